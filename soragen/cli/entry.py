"""From any end of a command to its lines and exit code, all in one place."""

from __future__ import annotations

import errno
import sys

import typer

from soragen.cli import output
from soragen.cli.interrupt import interruptible
from soragen.errors import EXIT_INTERRUPTED, InputError, ResourceError, SoragenError

OUT_OF_MEMORY = ("OutOfMemoryError", "can't allocate memory", "Cannot allocate memory")
"""torch's words: on an accelerator, on a processor, and for a file that cannot be mapped."""
SMALLER = "use a smaller --size, fewer --seconds, or a machine with more"


def run(app: typer.Typer, arguments: list[str] | None = None) -> int:
    """Runs the command line, prints what went wrong, and returns the exit code of soragen/errors.py."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        with interruptible():
            code = app(arguments, prog_name="soragen", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort) as stop:
        if isinstance(stop.__cause__, EOFError):  # Typer takes any of them for the end of its input
            return _fail(stop.__cause__, app, arguments)
        code = EXIT_INTERRUPTED
    except Exception as cause:
        return _fail(cause, app, arguments)
    if code == EXIT_INTERRUPTED:
        output.talk("interrupted")
    return code if isinstance(code, int) else 0


def _fail(cause: Exception, app: typer.Typer, arguments: list[str]) -> int:
    failure = _failure(cause, app, arguments)
    failure.hint = "; ".join([*getattr(cause, "__notes__", ()), *([failure.hint] if failure.hint else [])]) or None
    output.error(failure, cause if "--debug" in arguments else None)
    return failure.exit_code


def _failure(cause: Exception, app: typer.Typer, arguments: list[str]) -> SoragenError:
    """What `cause` means to the user. What is not foreseen is a bug, and says so."""
    if isinstance(cause, SoragenError):
        return cause
    if isinstance(cause, typer.TyperException):
        return InputError(*_usage(cause.format_message(), app, arguments))
    if isinstance(cause, MemoryError) or any(words in f"{type(cause).__name__}: {cause}" for words in OUT_OF_MEMORY):
        return ResourceError(f"out of memory: {str(cause) or 'the system gave none'}", SMALLER)
    if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceError(f"the disk is full: {cause}", "make room, or choose another place with --output")
    hint = (
        "report it with the lines above"
        if "--debug" in arguments
        else "run it with --debug, and report what that prints"
    )
    return SoragenError(f"a bug in soragen: {type(cause).__name__}: {cause}", hint)


def _usage(message: str, app: typer.Typer, arguments: list[str]) -> tuple[str, str]:
    """Message and hint for options and arguments that Typer refused."""
    first = arguments[0] if arguments else ""
    commands: set[str | None] = {command.callback.__name__ for command in app.registered_commands if command.callback}
    commands |= {group.typer_instance.info.name for group in app.registered_groups if group.typer_instance}
    if first in commands:
        return message, f"see soragen {first} --help"
    if " " in first.strip():
        return message, 'a prompt comes after a command: soragen generate "PROMPT"'
    return message, "see soragen --help"
