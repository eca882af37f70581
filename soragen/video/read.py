"""A video or an image → frames, through ffmpeg's pipe, a few at a time."""

from __future__ import annotations

import math
import re
import subprocess
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from soragen.errors import InputError
from soragen.size import VideoSize
from soragen.video.facts import VideoFacts, frame_table, video_facts
from soragen.video.ffmpeg import INPUT, Ffmpeg

if TYPE_CHECKING:
    from torch import Tensor

_CHUNK_FRAMES = 16
_CHUNK_BYTES = 32 << 20

# What is transparent is shown on white, as on a page; the colour stored under it is nobody's intention.
_ON_WHITE = (
    "format=gbrap,split[a][b];[a]lutrgb=r=maxval:g=maxval:b=maxval:a=maxval[white];[white][b]overlay=format=gbrp"
)
_SCALE = "flags=lanczos+accurate_rnd+full_chroma_int+full_chroma_inp:out_range=full"


def read_video(
    path: Path, *, width: int | None = None, height: int | None = None, fps: Fraction | None = None
) -> tuple[VideoSize, Iterator[Tensor]]:
    """The size of the video or image at `path`, and its frames: chunks [t, H, W, 3] uint8, `num_frames` in all.

    Rotation, EXIF too, and pixels that are not square are undone; a varying frame rate is made constant, at `fps` or
    the file's mean. With one of `width`, `height` the other follows; with both the frames cover that size and what lies
    outside is cut off evenly. An image is one frame. The file is decoded twice, the first time to count: so a damaged
    one is found before any work, and `num_frames` is true. The iterator raises InputError if the file has changed.

    Raises InputError when `path` is missing, empty, cut off, not on this machine, or not a video.
    """
    facts = video_facts(path)
    still = facts.container.endswith("_pipe") or facts.num_frames == 1
    rate = fps or facts.fps
    filters = [_ON_WHITE] if _has_alpha(facts.pix_fmt) else []
    if not still and not (facts.constant_fps and rate == facts.fps):
        filters.append(f"fps={rate.numerator}/{rate.denominator}:round=near")
    decode = ["-an", "-sn", "-fps_mode", "passthrough"]
    survey = ["-xerror", *decode, "-c:v", "wrapped_avframe"]
    table = frame_table(path, [*survey, "-vf", ",".join(filters or ["null"])])

    shown = (table.width * table.pixel_aspect, Fraction(table.height))
    size = VideoSize(*_fit(shown, width, height), table.num_frames, rate)
    cover = max(size.width / shown[0], size.height / shown[1])
    across, down = max(size.width, round(shown[0] * cover)), max(size.height, round(shown[1] * cover))
    filters += [
        f"scale={across}:{down}:{_SCALE}{_unsaid(facts)}",
        f"crop={size.width}:{size.height}",
        "format=rgb24",
    ]
    output = [*decode, "-vf", ",".join(filters), "-f", "rawvideo", "pipe:1"]
    return size, _frames(path, [*INPUT, "-map", "0:v:0", *output], size)


def _frames(path: Path, arguments: list[str], size: VideoSize) -> Iterator[Tensor]:
    import torch

    num_bytes = size.area * 3
    most = max(1, min(_CHUNK_FRAMES, _CHUNK_BYTES // num_bytes))
    done = 0
    with path.open("rb") as file, Ffmpeg(arguments, stdin=file, stdout=subprocess.PIPE) as ffmpeg:
        assert ffmpeg.process.stdout is not None
        while done < size.num_frames:
            chunk = torch.empty((min(most, size.num_frames - done), size.height, size.width, 3), dtype=torch.uint8)
            view = chunk.numpy().data.cast("B")
            got = 0
            while got < len(view) and (more := ffmpeg.process.stdout.readinto(view[got:])):  # type: ignore[attr-defined]
                got += more
            if got < len(view):
                reason = ffmpeg.failure() or f"it ended after {done + got // num_bytes} of {size.num_frames} frames"
                raise InputError(f"{path} cannot be read to its end: {reason}", "was it changed meanwhile?")
            done += len(chunk)
            yield chunk


def _fit(shown: tuple[Fraction, Fraction], width: int | None, height: int | None) -> tuple[int, int]:
    """(width, height) of the frames: as shown, or as asked; a side that is not asked keeps the aspect."""
    if width is None and height is None:
        return max(1, round(shown[0])), round(shown[1])
    if width is None:
        assert height is not None
        return max(1, math.floor(height * shown[0] / shown[1] + Fraction(1, 2))), height
    return width, height or max(1, math.floor(width * shown[1] / shown[0] + Fraction(1, 2)))


def _has_alpha(pix_fmt: str) -> bool:
    return re.match(r"rgba|bgra|argb|abgr|ayuv|vuya|yuva|gbrap|ya\d|pal8", pix_fmt) is not None


def _unsaid(facts: VideoFacts) -> str:
    """Of a video that does not say how its colours were made and where they lie, what players take.

    That is bt709 in high definition, and half-size colour on the left pixel of two; images (JPEG) have it between them.
    """
    if facts.container.endswith("_pipe") or not facts.pix_fmt.startswith(("yuv", "nv", "p0")):
        return ""
    matrix_said = re.search(r"bt709|bt470|bt2020|smpte|fcc|gbr|ycgco|ictcp", facts.colour)
    place_said = re.search(r"left|center|top|bottom", facts.colour)
    matrix = ":in_color_matrix=bt709" if not matrix_said and min(facts.width, facts.height) > 576 else ""
    return matrix + ("" if place_said else ":in_h_chr_pos=0:in_v_chr_pos=128")
