"""What a video file is: size, length, frame rate, codec, colour. ffmpeg says it, without a word about what is meant."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from soragen.errors import InputError
from soragen.video.ebml import frame_rate, is_matroska
from soragen.video.ffmpeg import INPUT, Ffmpeg, local_file
from soragen.video.whole import check_whole

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


def frame_table(path: Path, arguments: Sequence[str], said: Fraction | None = None) -> FrameTable:
    """Runs `path`'s first video stream through ffmpeg with `arguments`. Raises InputError when it cannot be read.

    said: the exact frame rate, if the file says it; it is believed when the frames lie where it puts them.
    """
    head: dict[str, str] = {}
    durations: set[int] = set()
    times: list[int] = []
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
                times.append(shown_at if shown_at > _NO_TIME else decoded_at)  # AVI says the latter alone
                durations.add(duration)
        failure = ffmpeg.failure()
        log = tuple(ffmpeg.log)
    if failure or not times or "dimensions 0" not in head:
        raise InputError(f"{path} is not a readable video: {failure or 'it has no frames'}", "give a video or an image")
    width, height = head["dimensions 0"].split("x")
    sar = head.get("sar 0", "0/1")  # 0/1: not said
    fps, constant = _frame_rate(sorted(times), durations, Fraction(head["tb 0"]), said)
    return FrameTable(
        width=int(width),
        height=int(height),
        pixel_aspect=Fraction(sar) if not sar.startswith("0/") else Fraction(1),
        num_frames=len(times),
        fps=fps,
        constant_fps=constant,
        log=log,
    )


def _frame_rate(times: list[int], durations: set[int], tick: Fraction, said: Fraction | None) -> tuple[Fraction, bool]:
    """The frame rate, and whether it is constant, of frames shown at `times`, in ticks of `tick` seconds.

    Many a container rounds times: to milliseconds (Matroska, FLV), to hundredths of a second (GIF).
    """
    longest, span, steps = max(durations), times[-1] - times[0], len(times) - 1
    exact = len(durations) == 1 and longest > 0 and longest * steps == span
    mean = steps / (span * tick) if span else Fraction(25)  # 25: one frame that does not last
    guesses = [said] if said else [] if exact else [*_STANDARD_FPS, _plainest(mean, mean / max(1, span))]
    for fps in guesses:
        period = 1 / (fps * tick)
        if period > Fraction(3, 2) and all(abs(time - times[0] - n * period) <= 1 for n, time in enumerate(times)):
            return fps, True
    if exact:
        return 1 / (longest * tick), True
    return _plain_fps(mean), False


def _plainest(fps: Fraction, slack: Fraction) -> Fraction:
    """The fraction of the smallest numbers that is no further from `fps` than `slack`; `fps` when none is small."""
    near = (Fraction(round(fps * part), part) for part in range(1, 101))
    return next((guess for guess in near if guess and abs(guess - fps) <= slack), fps)


def _plain_fps(fps: Fraction) -> Fraction:
    """A frame rate known to two digits: the usual one that is written so, else as it is."""
    near = min(_STANDARD_FPS, key=lambda usual: abs(usual - fps))
    return near if abs(near - fps) <= Fraction(1, 200) else max(Fraction(1, 100), round(fps, 2))


def video_facts(path: Path) -> VideoFacts:
    """The facts of the video or image at `path`; reads it through once, without decoding it.

    Raises InputError when there is no such file, or it is empty, cut off, or not a video.
    """
    check_whole(local_file(path))
    table = frame_table(path, ["-c", "copy"], frame_rate(path) if is_matroska(path) else None)
    text = "\n".join(table.log).partition("\nOutput #0")[0]
    stream = re.search(
        r"^  Stream #0:\S+ Video: (?P<codec>\w+)(?: \((?P<profile>[^)/]*)\))?(?: \([^)]*\))*, "
        r"(?P<pix_fmt>\w+)(?:\((?P<colour>[^)]*)\))?",
        text,
        re.MULTILINE,
    )
    if stream is None:
        raise InputError(f"{path} holds no video that ffmpeg knows", "give a video or an image")
    # Where times are rounded, what the file says about its frame rate is nearer than what they add up to.
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
