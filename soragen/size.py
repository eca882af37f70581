"""How large and how long a video is, and the words in which users say so.

Pure arithmetic on whole numbers: no torch, no files.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, get_args

from soragen.errors import InputError

MIN_SIDE = 64
MAX_SIDE = 4096
MAX_FPS = 240

Fit = Literal["crop", "pad", "stretch"]
"""How a picture of one shape is brought into a frame of another. crop: covers the frame, what lies outside is cut off
evenly. pad: lies whole within the frame, and the rest has the mean colour of the picture's border. stretch: takes the
frame's shape."""
FITS: tuple[str, ...] = get_args(Fit)


@dataclass(frozen=True)
class VideoSize:
    """Pixels, frames and frame rate of a video. `fps` is exact: 30000/1001 stays what it is."""

    width: int
    height: int
    num_frames: int
    fps: Fraction

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1 or self.num_frames < 1 or self.fps <= 0:
            raise ValueError(f"not a video size: {self}")

    @property
    def seconds(self) -> Fraction:
        return self.num_frames / self.fps

    @property
    def area(self) -> int:
        return self.width * self.height

    def __str__(self) -> str:
        return f"{self.width}x{self.height}, {self.num_frames} frames at {format_fps(self.fps)} fps"


def parse_size(text: str, native_area: int) -> tuple[int, int]:
    """(width, height) from "1920x1080", or from an aspect such as "16:9" at about `native_area` pixels.

    An aspect gives even sides. Raises InputError for anything else, and for sides outside 64..4096.
    """
    if pixels := re.fullmatch(r"\s*(\d{1,9})\s*[xX×*]\s*(\d{1,9})\s*", text, re.ASCII):
        width, height = int(pixels[1]), int(pixels[2])
    elif aspect := re.fullmatch(r"\s*(\d{1,4})\s*:\s*(\d{1,4})\s*", text, re.ASCII):
        across, down = int(aspect[1]), int(aspect[2])
        if across == 0 or down == 0:
            raise InputError(f"size {text!r} has a side of zero", "use WIDTHxHEIGHT, such as 1280x720, or 16:9")
        height = 2 * round(math.sqrt(native_area * down / across) / 2)
        width = 2 * round(math.sqrt(native_area * across / down) / 2)
    else:
        raise InputError(f"size {text!r} is not WIDTHxHEIGHT", "use for example 1280x720, or an aspect such as 16:9")
    if not (MIN_SIDE <= width <= MAX_SIDE and MIN_SIDE <= height <= MAX_SIDE):
        raise InputError(
            f"size {width}x{height} is outside {MIN_SIDE}..{MAX_SIDE} pixels a side",
            f"use sides between {MIN_SIDE} and {MAX_SIDE}",
        )
    return width, height


def even(side: int) -> int:
    """The next even number: H.264 in yuv420p stores colour at half size, so its sides are even."""
    return side + side % 2


def parse_seconds(text: str) -> Fraction:
    """A positive duration from "5", "2.5" or "2.5s". Raises InputError."""
    match = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,9})?|\.\d{1,9})\s*s?\s*", text, re.ASCII)
    seconds = Fraction(match[1]) if match else Fraction(0)
    if seconds <= 0:
        raise InputError(f"{text!r} is not a positive number of seconds", "use for example --seconds 5")
    return seconds


def parse_fps(text: str) -> Fraction:
    """A frame rate from "24", "29.97" or "30000/1001". Raises InputError."""
    match = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,6})?)(?:\s*/\s*(\d{1,9}))?\s*", text, re.ASCII)
    if match and (match[2] is None or int(match[2]) > 0):
        fps = Fraction(match[1]) / (int(match[2]) if match[2] else 1)
        if 0 < fps <= MAX_FPS:
            return fps
    raise InputError(f"{text!r} is not a frame rate", f"use a number above 0 and up to {MAX_FPS}, such as 24")


def format_fps(fps: Fraction) -> str:
    return str(fps.numerator) if fps.denominator == 1 else f"{float(fps):.3f}"


def num_frames_for(seconds: Fraction, fps: Fraction) -> int:
    """Whole frames that last `seconds`, at least one; the nearest count, halves up."""
    return max(1, math.floor(seconds * fps + Fraction(1, 2)))
