"""What a video file is: size, length, frame rate, codec, colour. ffmpeg says it, without a word about what is meant."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from soragen.errors import InputError
from soragen.video.boxes import is_mp4, top_boxes
from soragen.video.ffmpeg import INPUT, Ffmpeg, local_file

_STANDARD_FPS = tuple(Fraction(n) for n in (24, 25, 30, 48, 50, 60, 120)) + tuple(
    Fraction(n * 1000, 1001) for n in (24, 30, 60, 120)
)
_NO_TIME = -(1 << 63)


@dataclass(frozen=True)
class VideoFacts:
    """A video file as it is stored.

    container, codec, pix_fmt: ffmpeg's names ("mov,mp4,…" is shortened to "mov", "h264", "yuv420p").
    profile: such as "High"; "" when the codec has none. colour: such as "tv, bt709, progressive"; "" when not said.
    width, height: as stored, before `rotation` (degrees, as players turn it).
    fps: exact when `constant_fps`, else the mean. num_frames: of the stream, counted.
    """

    container: str
    width: int
    height: int
    num_frames: int
    fps: Fraction
    constant_fps: bool
    codec: str
    profile: str
    pix_fmt: str
    colour: str
    has_audio: bool
    rotation: float

    @property
    def seconds(self) -> Fraction:
        return self.num_frames / self.fps


@dataclass(frozen=True)
class FrameTable:
    """The frames, or packets, that one run of ffmpeg gave, as its "framecrc" output lists them."""

    width: int
    height: int
    pixel_aspect: Fraction
    num_frames: int
    fps: Fraction
    constant_fps: bool
    log: tuple[str, ...]


def frame_table(path: Path, arguments: Sequence[str]) -> FrameTable:
    """Runs `path`'s first video stream through ffmpeg with `arguments`. Raises InputError when it cannot be read."""
    head: dict[str, str] = {}
    durations: set[int] = set()
    times: tuple[int, int] | None = None
    count = 0
    command = [*INPUT, "-map", "0:v:0", *arguments, "-f", "framecrc", "pipe:1"]
    with path.open("rb") as file, Ffmpeg(command, stdin=file, stdout=subprocess.PIPE, level="info") as ffmpeg:
        assert ffmpeg.process.stdout is not None
        for raw in ffmpeg.process.stdout:
            line = raw.decode("ascii", "replace").strip()
            if line.startswith("#"):
                key, _, value = line[1:].partition(":")
                head[key] = value.strip()
            else:  # stream, dts, pts, duration, size, checksum, flags
                decoded_at, shown_at, duration = (int(column) for column in line.split(",")[1:4])
                time = shown_at if shown_at > _NO_TIME else decoded_at  # AVI says the latter alone
                times = (min(times[0], time), max(times[1], time)) if times else (time, time)
                durations.add(duration)
                count += 1
        failure = ffmpeg.failure()
        log = tuple(ffmpeg.log)
    if failure or times is None or "dimensions 0" not in head:
        raise InputError(f"{path} is not a readable video: {failure or 'it has no frames'}", "give a video or an image")
    width, height = head["dimensions 0"].split("x")
    sar = head.get("sar 0", "0/1")  # 0/1: not said
    longest, span, tick = max(durations), times[1] - times[0], Fraction(head["tb 0"])
    constant = len(durations) == 1 and longest > 0 and longest * (count - 1) == span
    mean = (count - 1) / (span * tick) if span else Fraction(25)  # one frame that does not last
    return FrameTable(
        width=int(width),
        height=int(height),
        pixel_aspect=Fraction(sar) if not sar.startswith("0/") else Fraction(1),
        num_frames=count,
        fps=1 / (longest * tick) if constant else _plain_fps(mean),
        constant_fps=constant,
        log=log,
    )


def _plain_fps(fps: Fraction) -> Fraction:
    """A frame rate known to two digits: the usual one that is written so, else as it is."""
    near = min(_STANDARD_FPS, key=lambda usual: abs(usual - fps))
    return near if abs(near - fps) <= Fraction(1, 200) else max(Fraction(1, 100), round(fps, 2))


def video_facts(path: Path) -> VideoFacts:
    """The facts of the video or image at `path`; reads it through once, without decoding it.

    Raises InputError when there is no such file, or it is empty, cut off, or not a video.
    """
    if is_mp4(local_file(path)):
        top_boxes(path)
    table = frame_table(path, ["-c", "copy"])
    text = "\n".join(table.log).partition("\nOutput #0")[0]
    stream = re.search(
        r"^  Stream #0:\S+ Video: (?P<codec>\w+)(?: \((?P<profile>[^)/]*)\))?(?: \([^)]*\))*, "
        r"(?P<pix_fmt>\w+)(?:\((?P<colour>[^)]*)\))?",
        text,
        re.MULTILINE,
    )
    if stream is None:
        raise InputError(f"{path} holds no video that ffmpeg knows", "give a video or an image")
    # Matroska rounds times to milliseconds; what it says about its frame rate is nearer than what they add up to.
    said = re.search(r", ([\d.]+) fps,", text[stream.start() :].partition("\n")[0])
    container = re.search(r"^Input #0, ([^,]+),", text, re.MULTILINE)
    rotation = re.search(r"^ +(?:Display Matrix|displaymatrix): rotation of (-?[\d.]+)", text, re.MULTILINE)
    return VideoFacts(
        container=container[1] if container else "",
        width=table.width,
        height=table.height,
        num_frames=table.num_frames,
        fps=_plain_fps(Fraction(said[1])) if said and not table.constant_fps else table.fps,
        constant_fps=table.constant_fps,
        codec=stream["codec"],
        profile=stream["profile"] or "",
        pix_fmt=stream["pix_fmt"],
        colour=stream["colour"] or "",
        has_audio=re.search(r"^  Stream #0:\S+ Audio: ", text, re.MULTILINE) is not None,
        rotation=float(rotation[1]) if rotation else 0.0,
    )
