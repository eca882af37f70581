"""The boxes an MP4 file is made of (ISO/IEC 14496-12, section 4.2), read in place.

Each box is a length of 4 bytes that counts itself, a type of 4 bytes and its content. Length 1 means that 8 bytes of
length follow the type, length 0 that the box goes on to the end of what it is in.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from soragen.errors import InputError


@dataclass(frozen=True)
class Box:
    """A box whose content is the bytes `start` up to `end` of the file."""

    kind: bytes
    start: int
    end: int


def boxes(file: BinaryIO, start: int, end: int) -> Iterator[Box]:
    """The boxes between two places of a file. One that goes past `end` is given as it says, and is the last."""
    while start + 8 <= end:
        file.seek(start)
        length, kind = struct.unpack(">I4s", file.read(8))
        content = start + 8
        if length == 1 and start + 16 <= end:
            (length,) = struct.unpack(">Q", file.read(8))
            content = start + 16
        elif length == 0:
            length = end - start
        if start + length < content:  # no box is shorter than its own head
            return
        yield Box(kind, content, start + length)
        start += length


def is_mp4(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(8)[4:] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")


def top_boxes(path: Path) -> list[Box]:
    """The outermost boxes of an MP4 file. Raises InputError when the file ends before they do, or has no index."""
    size = path.stat().st_size
    with path.open("rb") as file:
        found = list(boxes(file, 0, size))
    if b"meta" in (kinds := {box.kind for box in found}) and b"moov" not in kinds:
        raise InputError(f"{path} is a HEIC or AVIF picture, which is not read here", "save it as JPEG or PNG")
    whole = {box.kind for box in found if box.end <= size}
    cut = {box.kind for box in found if box.end > size} & {b"moov", b"moof", b"mdat"}
    if cut or not {b"moov", b"mdat"} <= whole:
        raise InputError(f"{path} is cut off: it holds only a part of a video", "make or download it again")
    return found


def read_comment(path: Path) -> bytes | None:
    """The comment in a file's metadata: moov / udta / meta / ilst / ©cmt / data. None when there is none."""
    top = next(box for box in top_boxes(path) if box.kind == b"moov")
    start, end = top.start, top.end
    with path.open("rb") as file:
        for kind in (b"udta", b"meta", b"ilst", b"\xa9cmt", b"data"):
            box = next((box for box in boxes(file, start, end) if box.kind == kind and box.end <= end), None)
            if box is None:
                return None
            start, end = box.start + (4 if kind == b"meta" else 0), box.end  # meta: 4 bytes of version and flags
        file.seek(start + 8)  # data: 4 bytes of type, 4 of language
        return file.read(max(0, end - start - 8))
