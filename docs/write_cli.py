"""Writes docs/cli.md from the commands themselves: python docs/write_cli.py"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from typer.testing import CliRunner

from soragen import errors
from soragen.cli import app

PAGE = Path(__file__).with_name("cli.md")
WIDTH = 100


def page() -> str:
    parts = ["# The command line", "<!-- written by docs/write_cli.py from the commands themselves -->"]
    parts += [
        "stdout is data: the path of the file, a table, or with `--json` one object. Everything else (progress, notes,"
        " errors) is on stderr.",
        "## Exit codes",
        "\n".join(["| code | meaning |", "|---|---|", *exit_codes()]),
    ]
    for command in ([], *commands()):
        parts += [f"## `{' '.join(['soragen', *command])}`", f"```text\n{help_of(command)}\n```"]
    return "\n\n".join(parts) + "\n"


def exit_codes() -> Iterator[str]:
    yield "| 0 | done |"
    yield "| 1 | a bug in soragen |"
    for kind in errors.SoragenError.__subclasses__():
        yield f"| {kind.exit_code} | {' '.join((kind.__doc__ or '').split())} |"
    yield f"| {errors.EXIT_INTERRUPTED} | interrupted: Ctrl-C, SIGTERM, or the terminal was closed |"


def commands() -> Iterator[list[str]]:
    for command in app.registered_commands:
        assert command.callback is not None
        yield [command.callback.__name__]
    for group in app.registered_groups:
        assert group.typer_instance is not None
        for command in group.typer_instance.registered_commands:
            yield [str(group.typer_instance.info.name), str(command.name)]


def help_of(command: list[str]) -> str:
    result = CliRunner().invoke(
        app, [*command, "--help"], prog_name="soragen", env={"COLUMNS": str(WIDTH), "LINES": "50", "TERM": "dumb"}
    )
    assert result.exit_code == 0, result.output
    return "\n".join(line.rstrip() for line in result.output.strip().splitlines())


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
