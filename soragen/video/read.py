"""A video or an image → frames, through ffmpeg's pipe, a few at a time."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from soragen.errors import InputError
from soragen.size import Fit, VideoSize
from soragen.video.colour import on_white, to_sdr, unsaid
from soragen.video.facts import VideoFacts, frame_table, video_facts
from soragen.video.ffmpeg import INPUT, Ffmpeg
from soragen.video.fit import fill_up, place

if TYPE_CHECKING:
    from torch import Tensor

_CHUNK_FRAMES = 16
_CHUNK_BYTES = 32 << 20
_SCALE = "flags=lanczos+accurate_rnd+full_chroma_int+full_chroma_inp:out_range=full"
_DECODE = ("-an", "-sn", "-fps_mode", "passthrough")


def read_video(
    path: Path,
    *,
    width: int | None = None,
    height: int | None = None,
    fps: Fraction | None = None,
    fit: Fit = "crop",
    first: int = 0,
    count: int | None = None,
) -> tuple[VideoSize, Iterator[Tensor]]:
    """The size of the video or image at `path`, and its frames: chunks [t, H, W, 3] uint8, `num_frames` in all.

    Rotation, EXIF too, and pixels that are not square are undone; what is transparent is shown on white; high dynamic
    range is brought into that of a screen; a varying frame rate is made constant, at `fps` or the file's mean. With one
    of `width`, `height` the other follows; with both the frames have that size, and `fit` says how (see `fit.py`). An
    image is one frame. Only `count` frames from number `first` on are given, all that are left when it is None; a
    negative `first` counts from the end.

    The file is decoded twice, the first time to count: so a damaged one is found before any work, and `num_frames` is
    true. The iterator raises InputError if the file has changed meanwhile.
    Raises InputError when `path` is missing, empty, cut off, not on this machine, not a video, or has too few frames.
    """
    facts = video_facts(path)
    return frames_of(path, facts, width=width, height=height, fps=fps, fit=fit, first=first, count=count)


def frames_of(
    path: Path,
    facts: VideoFacts,
    *,
    width: int | None = None,
    height: int | None = None,
    fps: Fraction | None = None,
    fit: Fit = "crop",
    first: int = 0,
    count: int | None = None,
) -> tuple[VideoSize, Iterator[Tensor]]:
    """What `read_video` gives, of a file whose facts are known."""
    still = facts.container.endswith("_pipe") or facts.num_frames == 1
    rate = fps or facts.fps
    filters = on_white(facts)
    if not still and not (facts.constant_fps and rate == facts.fps):
        if facts.constant_fps:  # the times in the file may be rounded
            filters += [f"settb={facts.fps.denominator}/{facts.fps.numerator}", "setpts=N"]
        filters.append(f"fps={rate.numerator}/{rate.denominator}:round=near")
    survey = ["-xerror", *_DECODE, "-c:v", "wrapped_avframe"]
    table = frame_table(path, [*survey, "-vf", ",".join(filters or ["null"])])
    begin, end = _part(path, table.num_frames, first, count)

    shown = (table.width * table.pixel_aspect, Fraction(table.height))
    placement = place(shown, width, height, fit)
    across, down = placement.seen
    if (begin, end) != (0, table.num_frames):
        filters.append(f"trim=start_frame={begin}:end_frame={end}")
    mapped = to_sdr(facts)
    scale = f"scale={placement.across}:{placement.down}:{_SCALE}{'' if mapped else unsaid(facts)}"
    filters += [*mapped, scale, f"crop={across}:{down}", "format=rgb24"]
    output = [*_DECODE, "-vf", ",".join(filters), "-f", "rawvideo", "pipe:1"]
    size = VideoSize(placement.width, placement.height, end - begin, rate)
    seen = VideoSize(across, down, end - begin, rate)
    frames = _frames(path, [*INPUT, "-map", "0:v:0", *output], seen)
    return size, frames if seen == size else fill_up(frames, placement)


def chunk_frames(area: int) -> int:
    """How many frames of `area` pixels come at once."""
    return max(1, min(_CHUNK_FRAMES, _CHUNK_BYTES // (3 * area)))


def _part(path: Path, num_frames: int, first: int, count: int | None) -> tuple[int, int]:
    """The first frame, and the one behind the last. Raises InputError when there are not so many."""
    begin = first if first >= 0 else num_frames + first
    end = num_frames if count is None else begin + count
    if not 0 <= begin < end <= num_frames:
        asked = f"{'all' if count is None else count} from {first}"
        have = f"{num_frames} frame{'s' if num_frames != 1 else ''}"
        raise InputError(f"{path} has {have}, fewer than are needed: {asked}", "give a longer video")
    return begin, end


def _frames(path: Path, arguments: list[str], size: VideoSize) -> Iterator[Tensor]:
    import torch

    num_bytes = size.area * 3
    most = chunk_frames(size.area)
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
