"""A comment inside a picture: put in after ffmpeg, which writes none, and read back. ASCII of any length.

PNG has a text chunk "Comment" (PNG specification, 11.3.3), JPEG comment segments of at most 65,533 bytes each (ITU-T
T.81, B.2.4.5), WebP a chunk of Exif (RFC 9649, 2.7), whose field ImageDescription holds it, and GIF a comment block
(GIF89a, 24), which stands first.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from soragen.errors import InputError

_MOST = 65_533
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_KEY = b"Comment\0"
_GIF_COMMENT, _GIF_END = 0xFE, 0x3B
_HAS_EXIF = 0x08  # of the flags in a VP8X chunk
_EXIF = struct.Struct("<4sIHHHIII")  # little-endian TIFF: head, one directory of one field, and no next one
_EXIF_HEAD = (b"II*\0", 8, 1, 0x010E, 2)  # a directory at byte 8, of one field: ImageDescription, in ASCII


@dataclass(frozen=True)
class Picture:
    """How one kind of file is known, and where its comment is.

    put: the bytes of the file with the comment, given (width, height). read: the comment, None when there is none; it
    raises ValueError, IndexError or struct.error when the file ends too early.
    """

    is_one: Callable[[bytes], bool]
    put: Callable[[bytes, bytes, int, int], bytes]
    read: Callable[[bytes], bytes | None]


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    start, kind = len(_PNG), b""
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, start)
        if start + 12 + length > len(data):
            raise ValueError("a chunk is cut off")
        yield kind, data[start + 8 : start + 8 + length]
        start += 12 + length


def _put_in_png(data: bytes, comment: bytes, width: int, height: int) -> bytes:
    start = len(_PNG) + 25  # behind IHDR, which is always the first chunk and of one length
    chunk = b"tEXt" + _PNG_KEY + comment
    return (
        data[:start] + struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[start:]
    )


def _read_from_png(data: bytes) -> bytes | None:
    found = [content for kind, content in _png_chunks(data) if kind == b"tEXt" and content.startswith(_PNG_KEY)]
    return found[0].removeprefix(_PNG_KEY) if found else None


def _put_in_jpeg(data: bytes, comment: bytes, width: int, height: int) -> bytes:
    start = 4 + struct.unpack_from(">H", data, 4)[0]  # behind JFIF's own segment, which is always the first
    parts = [comment[at : at + _MOST] for at in range(0, len(comment), _MOST)]
    return (
        data[:start] + b"".join(b"\xff\xfe" + struct.pack(">H", len(part) + 2) + part for part in parts) + data[start:]
    )


def _read_from_jpeg(data: bytes) -> bytes | None:
    start, parts = 2, []
    while True:
        mark, kind, length = struct.unpack_from(">BBH", data, start)
        if mark != 0xFF:
            raise ValueError("not a segment")
        if kind == 0xFF:  # any number of these may stand before a segment
            start += 1
            continue
        if kind == 0xDA:  # the pixels begin
            break
        if kind == 0xFE:
            parts.append(data[start + 4 : start + 2 + length])
        start += 2 + length
    if data.find(b"\xff\xd9", start) < 0:  # a phone may put a short video behind the end
        raise ValueError("the pixels are cut off")
    return b"".join(parts) or None


def _webp_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    (size,) = struct.unpack_from("<I", data, 4)
    if size + 8 > len(data):
        raise ValueError("the file is cut off")
    start = 12
    while start + 8 <= size + 8:
        kind, length = struct.unpack_from("<4sI", data, start)
        yield kind, data[start + 8 : start + 8 + length]
        start += 8 + length + length % 2


def _put_in_webp(data: bytes, comment: bytes, width: int, height: int) -> bytes:
    text = comment + b"\0"
    exif = _EXIF.pack(*_EXIF_HEAD, len(text), _EXIF.size, 0) + text
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    chunks = [(b"VP8X", bytes([_HAS_EXIF, 0, 0, 0]) + sides), *_webp_chunks(data), (b"EXIF", exif)]
    body = b"".join(
        kind + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2) for kind, content in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def _read_from_webp(data: bytes) -> bytes | None:
    """Of Exif as it is written here; what others write is none of ours."""
    for kind, content in _webp_chunks(data):
        if kind == b"EXIF" and len(content) >= _EXIF.size:
            *head, length, start, _ = _EXIF.unpack_from(content)
            return content[start : start + length].rstrip(b"\0") if tuple(head) == _EXIF_HEAD else None
    return None


def _read_from_gif(data: bytes) -> bytes | None:
    start, found = 13 + _gif_colours(data[10]), None
    while data[start] != _GIF_END:
        if data[start] == 0x21:  # an extension: its kind is the next byte
            kind, start = data[start + 1], start + 2
        elif data[start] == 0x2C:  # a frame: place and size, flags, colours, the width of its codes
            kind, start = 0, start + 11 + _gif_colours(data[start + 9])
        else:
            raise ValueError("not a block")
        text = []
        while length := data[start]:
            text.append(data[start + 1 : start + 1 + length] if kind == _GIF_COMMENT else b"")
            start += 1 + length
        start += 1
        found = b"".join(text) if kind == _GIF_COMMENT else found
    return found


def _gif_colours(flags: int) -> int:
    """The bytes of a table of colours, from the flags before it."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _put_in_gif(data: bytes, comment: bytes, width: int, height: int) -> bytes:
    start = 13 + _gif_colours(data[10])  # before the first frame: ffmpeg takes a comment behind the last for one more
    parts = [comment[at : at + 255] for at in range(0, len(comment), 255)]
    block = bytes([0x21, _GIF_COMMENT]) + b"".join(bytes([len(part)]) + part for part in parts) + b"\0"
    return data[:start] + block + data[start:]


PICTURES = {
    ".png": Picture(lambda head: head.startswith(_PNG), _put_in_png, _read_from_png),
    ".jpg": Picture(lambda head: head.startswith(b"\xff\xd8\xff"), _put_in_jpeg, _read_from_jpeg),
    ".webp": Picture(lambda head: head[:4] + head[8:12] == b"RIFFWEBP", _put_in_webp, _read_from_webp),
    ".gif": Picture(lambda head: head[:6] in (b"GIF87a", b"GIF89a"), _put_in_gif, _read_from_gif),
}


def put_comment(path: Path, comment: str, width: int, height: int) -> None:
    """Puts `comment`, in ASCII, into a picture that ffmpeg has just written. Raises OSError."""
    data = path.read_bytes()
    kind = next(kind for kind in PICTURES.values() if kind.is_one(data[:12]))
    path.write_bytes(kind.put(data, comment.encode("ascii"), width, height))


def is_picture(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(12)
    return any(kind.is_one(head) for kind in PICTURES.values())


def read_picture_comment(path: Path) -> bytes | None:
    """The comment in a picture, None when there is none. Raises InputError for a file that is cut off."""
    data = path.read_bytes()
    kind = next(kind for kind in PICTURES.values() if kind.is_one(data[:12]))
    try:
        return kind.read(data)
    except (ValueError, IndexError, struct.error):
        raise InputError(f"{path} is cut off: it holds only a part of a picture", "make or download it again") from None
