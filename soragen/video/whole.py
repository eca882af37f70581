"""Whether a file is all there, as far as its kind can tell. ffmpeg reads what there is and says nothing of the rest."""

from __future__ import annotations

import struct
from pathlib import Path

from soragen.errors import InputError
from soragen.video.boxes import is_mp4, top_boxes
from soragen.video.ebml import check_segment, is_matroska
from soragen.video.pictures import is_picture, read_picture_comment


def check_whole(path: Path) -> None:
    """Raises InputError for an MP4, Matroska, WebM, AVI, GIF, PNG, JPEG or WebP file that is cut off.

    Other kinds (MPEG-TS, FLV, Ogg) are streams: what is left of one is a shorter one.
    """
    if is_mp4(path):
        top_boxes(path)
    elif is_matroska(path):
        check_segment(path)
    elif is_picture(path):
        read_picture_comment(path)
    else:
        _check_avi(path)


def _check_avi(path: Path) -> None:
    """A file over 1 GB is several "RIFF" lists, one after the other (OpenDML AVI, 1996); each says how long it is."""
    size, start = path.stat().st_size, 0
    with path.open("rb") as file:
        while len(head := file.read(12)) == 12 and head[:4] == b"RIFF" and head[8:] in (b"AVI ", b"AVIX"):
            start += 8 + struct.unpack_from("<I", head, 4)[0]
            if start > size:
                raise InputError(f"{path} is cut off: it holds only a part of a video", "make or download it again")
            file.seek(start)
