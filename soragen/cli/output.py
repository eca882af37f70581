"""The only file that prints. stdout is data; stderr is talk: progress, notes, errors.

On a terminal progress is drawn by rich; in a pipe it is plain lines, one at least every five seconds. A reader that has
gone away never ends a run: the work is worth more than the talk about it.
"""

from __future__ import annotations

import errno
import io
import json
import os
import sys
import threading
import time
import traceback
import unicodedata
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Protocol, TextIO

from soragen.errors import InputError, OutputError, ResourceError, SoragenError
from soragen.pipeline.events import Event, Note, Progress, Stage

SILENCE = 5.0
"""Seconds after which a plain progress line is due."""


def data(text: str) -> None:
    """One piece of result, on stdout. Raises OutputError or ResourceError when it cannot be written there."""
    stream = sys.stdout
    if isinstance(stream, io.TextIOWrapper):  # a path may hold any bytes, a prompt any character
        stream.reconfigure(encoding="utf-8", errors="surrogateescape")
    try:
        print(text, file=stream, flush=True)
    except BrokenPipeError:
        _discard(stream)
    except OSError as error:
        _discard(stream)
        kind = ResourceError if error.errno == errno.ENOSPC else OutputError
        raise kind(f"cannot write to standard output: {error.strerror}", "write it to another place") from error


def json_object(values: dict[str, Any] | list[Any]) -> None:
    data(json.dumps(values, ensure_ascii=False, indent=2, default=str))


def table(rows: Iterable[Sequence[object]]) -> None:
    """Rows in aligned columns. A cell of several lines keeps them, below each other."""
    cells = [[str(cell).replace("\t", " ").splitlines() or [""] for cell in row] for row in rows]
    if not cells:
        return
    widths = [max((len(line) for line in column), default=0) for column in map(_flat, zip(*cells, strict=True))]
    lines = []
    for row in cells:
        for index in range(max(map(len, row))):
            parts = [cell[index] if index < len(cell) else "" for cell in row]
            lines.append("  ".join(part.ljust(width) for part, width in zip(parts, widths, strict=True)).rstrip())
    data(visible("\n".join(lines), keep="\n"))


def error(failure: SoragenError, cause: BaseException | None = None) -> None:
    """The two lines of a failure; `cause` prints a traceback before them."""
    if cause is not None:
        talk("".join(traceback.format_exception(cause)).rstrip())
    talk(f"error: {one_line(failure.message)}")
    if failure.hint:
        talk(f"hint: {one_line(failure.hint)}")


def talk(text: str) -> None:
    """One line on stderr. Never raises for a reader that is gone."""
    try:
        print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        _discard(sys.stderr)


def agree(question: str, hint: str) -> None:
    """Asks on the terminal, once. Raises InputError where nobody can be asked, and when the answer is not yes."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise InputError(f"{question} Nobody is here to answer", hint)
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise InputError("nothing was done: the answer was not yes", hint)


def last_words(text: str) -> None:
    """A line straight to stderr, with the terminal's cursor shown again, in a process that is about to end."""
    cursor = "\x1b[?25h\n" if sys.stderr.isatty() else ""
    os.write(2, f"{cursor}{text}\n".encode())


def one_line(text: str) -> str:
    return visible(" ".join(text.split()), keep="")


def visible(text: str, keep: str) -> str:
    """`text` with control characters and broken ones written out: a file's name must not steer the terminal."""
    steers = ("Cc", "Cs")
    return "".join(c if c in keep or unicodedata.category(c) not in steers else ascii(c)[1:-1] for c in text)


def _flat(column: Iterable[list[str]]) -> list[str]:
    return [line for cell in column for line in cell]


def _discard(stream: TextIO) -> None:
    """Sends what is still to come to nowhere, so that closing the stream at exit fails no more."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    except (OSError, ValueError):
        pass


class Display(Protocol):
    def stage(self, event: Stage) -> None: ...
    def progress(self, event: Progress) -> None: ...
    def note(self, text: str) -> None: ...
    def close(self) -> None: ...


class Talk:
    """Shows the events of a run on stderr while its block runs. `listen` is the pipeline's listener."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._display: Display | None = None

    def __enter__(self) -> Talk:
        return self

    def listen(self, event: Event) -> None:
        if self._quiet:
            return
        if self._display is None:
            self._display = TerminalDisplay() if _is_terminal() else PlainDisplay()
        match event:
            case Stage():
                self._display.stage(event)
            case Progress():
                self._display.progress(event)
            case Note(text):
                self._display.note(f"note: {one_line(text)}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._display is not None:
            self._display.close()


def _is_terminal() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


class PlainDisplay:
    """Lines for a pipe or a log: one when a stage begins, then one every `SILENCE` seconds, no matter what happens."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._stage = Stage("")
        self._progress: Progress | None = None
        self._began = self._said = time.monotonic()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def stage(self, event: Stage) -> None:
        with self._lock:
            self._stage, self._progress, self._began = event, None, time.monotonic()
            self._say(f"{event.name}: {event.detail}" if event.detail else event.name)

    def progress(self, event: Progress) -> None:
        with self._lock:
            if event.stage == self._stage.name:
                self._progress = event

    def note(self, text: str) -> None:
        with self._lock:
            self._say(text)

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._closed.wait(0.25):
            with self._lock:
                if self._stage.name and time.monotonic() - self._said >= SILENCE:
                    self._say(self._state())

    def _state(self) -> str:
        elapsed = time.monotonic() - self._began
        event = self._progress
        words = [self._stage.name if event is None or event.total <= 0 else f"{event.stage} {count(event)}"]
        words.append(f"{elapsed:.0f} s")
        if event is not None and 0 < event.done < event.total:
            words.append(f"about {elapsed * (event.total - event.done) / event.done:.0f} s left")
        return ", ".join([*words, *memory()])

    def _say(self, text: str) -> None:
        self._said = time.monotonic()
        talk(text)


class TerminalDisplay:
    """One line per stage, redrawn in place by rich: bar, count, time so far, time left, memory."""

    def __init__(self) -> None:
        from rich import progress
        from rich.console import Console

        self._bars = progress.Progress(
            progress.TextColumn("{task.description:<8}", markup=False),
            progress.BarColumn(bar_width=24),
            progress.TextColumn("{task.fields[count]:>9}", markup=False),
            progress.TimeElapsedColumn(),
            progress.TimeRemainingColumn(compact=True),
            progress.TextColumn("{task.fields[about]}", markup=False),
            console=Console(stderr=True),
        )
        self._tasks: dict[str, Any] = {}
        self._details: dict[str, str] = {}
        self._bars.start()

    def stage(self, event: Stage) -> None:
        self._finish()
        if (before := self._tasks.pop(event.name, None)) is not None:  # one bar a stage, however often it comes
            self._bars.remove_task(before)
        self._details[event.name] = one_line(event.detail)
        self._tasks[event.name] = self._bars.add_task(event.name, total=None, count="", about=self._about(event.name))

    def progress(self, event: Progress) -> None:
        if event.stage not in self._tasks:
            self._tasks[event.stage] = self._bars.add_task(event.stage, total=None, count="", about="")
        self._bars.update(
            self._tasks[event.stage],
            completed=event.done,
            total=event.total or None,
            count=count(event),
            about=self._about(event.stage),
        )

    def note(self, text: str) -> None:
        self._bars.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        self._finish()
        self._bars.stop()

    def _finish(self) -> None:
        """Stages without a count end full when the next one begins; the others stand where they are."""
        for task in self._bars.tasks:
            if task.total is None:
                self._bars.update(task.id, total=1, completed=1)

    def _about(self, stage: str) -> str:
        return ", ".join(word for word in (self._details.get(stage, ""), *memory()) if word)


def count(event: Progress) -> str:
    """How far a stage is: 3/20, or 1.2/28.9 GB."""
    if event.unit != "bytes":
        return f"{event.done}/{event.total}"
    scale, unit = (1e9, "GB") if event.total >= 1e9 else (1e6, "MB")
    return f"{event.done / scale:.1f}/{event.total / scale:.1f} {unit}"


def memory() -> list[str]:
    """The memory in use now, as words; nothing where the system does not tell."""
    from soragen.pipeline.report import accelerator_memory, process_memory

    words = [f"{used / 1e9:.1f} GB memory"] if (used := process_memory()) else []
    return [*words, f"{used / 1e9:.1f} GB on the GPU"] if (used := accelerator_memory()) else words
