"""The elements that a Matroska or WebM file is made of (RFC 8794, RFC 9559), read in place.

Each element is an id, a length and its content. The length may be unknown, as in a live recording; then what follows
is taken as if it stood beside the element, which is enough to find things and to notice a file that is cut off.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

from soragen.errors import InputError

_EBML = bytes.fromhex("1a45dfa3")
_SEGMENT, _TRACKS, _TAGS = 0x18538067, 0x1654AE6B, 0x1254C367
_TRACK, _TRACK_TYPE, _FRAME_PERIOD = 0xAE, 0x83, 0x23E383
_TAG, _SIMPLE_TAG, _TAG_NAME, _TAG_TEXT = 0x7373, 0x67C8, 0x45A3, 0x4487
_VIDEO = b"\1"
_LARGEST_FPS = 1001


@dataclass(frozen=True)
class Element:
    """An element whose content is the bytes `start` up to `end` of the file; `end` is None when it is not known."""

    kind: int
    start: int
    end: int | None


def elements(file: BinaryIO, start: int, end: int) -> Iterator[Element]:
    """The elements between two places of a file. One that goes past `end` is given as it says, and is the last.

    Raises EOFError when the place ends within an id or a length. Stops at bytes that are no element.
    """
    while start < end:
        file.seek(start)
        head = file.read(min(12, end - start))
        kind_bytes = 9 - head[0].bit_length()
        if kind_bytes > 4:
            return
        if len(head) <= kind_bytes:
            raise EOFError
        length_bytes = 9 - head[kind_bytes].bit_length()
        if length_bytes > 8:
            return
        if len(head) < kind_bytes + length_bytes:
            raise EOFError
        bits = 7 * length_bytes
        length = int.from_bytes(head[kind_bytes : kind_bytes + length_bytes], "big") & ((1 << bits) - 1)
        content = start + kind_bytes + length_bytes
        known = length != (1 << bits) - 1
        yield Element(int.from_bytes(head[:kind_bytes], "big"), content, content + length if known else None)
        start = content + length if known else content


def is_matroska(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == _EBML


def _segment(path: Path, file: BinaryIO) -> tuple[int, int]:
    """Where the content of the file lies. Raises InputError when the file ends before it does."""
    size = path.stat().st_size
    cut = InputError(f"{path} is cut off: it holds only a part of a video", "make or download it again")
    try:
        found = next((one for one in elements(file, 0, size) if one.kind == _SEGMENT), None)
        if found is None or (found.end is not None and found.end > size):
            raise cut
        if found.end is None:  # a live recording: its end says nothing, but each of its parts does
            for part in elements(file, found.start, size):
                if part.end is not None and part.end > size:
                    raise cut
    except EOFError:
        raise cut from None
    return found.start, found.end or size


def check_segment(path: Path) -> None:
    """Raises InputError when the file is cut off, as far as it tells."""
    with path.open("rb") as file:
        _segment(path, file)


def _within(file: BinaryIO, start: int, end: int, *kinds: int) -> Iterator[Element]:
    """The elements down a path of kinds, each inside the one before it."""
    for one in elements(file, start, end):
        if one.kind == kinds[0] and one.end is not None and one.end <= end:
            if len(kinds) == 1:
                yield one
            else:
                yield from _within(file, one.start, one.end, *kinds[1:])


def _content(file: BinaryIO, parent: Element, kind: int) -> bytes | None:
    assert parent.end is not None
    for one in _within(file, parent.start, parent.end, kind):
        assert one.end is not None
        file.seek(one.start)
        return file.read(one.end - one.start)
    return None


def read_matroska_comment(path: Path) -> bytes | None:
    """The comment in the tags of the file, None when there is none. Raises InputError for a file that is cut off."""
    with path.open("rb") as file:
        for tag in _within(file, *_segment(path, file), _TAGS, _TAG, _SIMPLE_TAG):
            if _content(file, tag, _TAG_NAME) == b"COMMENT":
                return _content(file, tag, _TAG_TEXT)
    return None


def frame_rate(path: Path) -> Fraction | None:
    """What the file says of the frame rate of its first video, None when it does not.

    It is stored as the nanoseconds of a frame (DefaultDuration): the plainest frame rate that is rounded to them is
    taken, so that 30000/1001 comes back as it was.
    """
    with path.open("rb") as file:
        for track in _within(file, *_segment(path, file), _TRACKS, _TRACK):
            if (_content(file, track, _TRACK_TYPE) or b"").lstrip(b"\0") == _VIDEO:
                period = int.from_bytes(_content(file, track, _FRAME_PERIOD) or b"", "big")
                return _plainest(period) if period else None
    return None


def _plainest(period: int) -> Fraction:
    second = 10**9
    usual = [
        Fraction(round(Fraction(second, period))),
        Fraction(round(Fraction(second * 1001, period * 1000)) * 1000, 1001),
    ]
    others = (Fraction(round(Fraction(second * part, period)), part) for part in range(1, _LARGEST_FPS + 1))
    for fps in (*usual, *others):
        if fps and abs(second / fps - period) <= 1:
            return fps
    return Fraction(second, period)
