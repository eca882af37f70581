"""A file that is being written: hidden beside its place, and gone whatever happens."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path

from soragen.errors import OutputError
from soragen.leftovers import leftover

# What a run of ffmpeg needs beside the file itself: the recipe, and for a GIF its frames and its palette.
METADATA, FRAMES, PALETTE = ".txt", ".frames.mkv", ".palette.png"


@contextlib.contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """A hidden name beside `path`, so that the last step is a rename; removed in any case at the end."""
    part = path.with_name(f".{path.stem[:40]}.{secrets.token_hex(4)}.part{path.suffix}")

    def remove() -> None:
        for file in (part, *(part.with_suffix(ending) for ending in (METADATA, FRAMES, PALETTE))):
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)

    try:
        with leftover(remove):
            yield part
    finally:
        remove()


@contextlib.contextmanager
def writing_in(part: Path) -> Iterator[None]:
    """Turns what the disk refuses into an OutputError."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot write in {part.absolute().parent}: {error.strerror}", "use another folder"
        ) from error
