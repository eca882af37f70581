"""Sizes, durations and frame rates as people write them."""

from __future__ import annotations

from fractions import Fraction

import pytest

from soragen.errors import InputError
from soragen.size import VideoSize, even, format_fps, num_frames_for, parse_fps, parse_seconds, parse_size


@pytest.mark.parametrize("text", ["1920x1080", "1920X1080", " 1920 × 1080 ", "1920*1080"])
def test_pixels(text: str) -> None:
    assert parse_size(text, 1) == (1920, 1080)


@pytest.mark.parametrize("aspect", ["16:9", "9:16", "1:1", "4:3", "21:9"])
def test_an_aspect_keeps_area_and_shape(aspect: str) -> None:
    width, height = parse_size(aspect, 256 * 256)
    across, down = map(int, aspect.split(":"))
    assert width % 2 == height % 2 == 0
    assert abs(width / height * down / across - 1) < 0.02
    assert abs(width * height / 256**2 - 1) < 0.02


@pytest.mark.parametrize(
    "text", ["", "x", "10y10", "0x0", "63x64", "64x4097", "-64x64", "64x64x64", "1e3x64", "1:0", "1:40", "٦٤x٦٤", "nan"]
)
def test_no_size(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_size(text, 256 * 256)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "seconds"), [("5", 5), ("2.5", Fraction(5, 2)), ("2.5s", Fraction(5, 2)), (".5", Fraction(1, 2))]
)
def test_seconds(text: str, seconds: Fraction) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "-1", "nan", "inf", "1e9", "5 minutes", "1" * 10])
def test_no_seconds(text: str) -> None:
    with pytest.raises(InputError):
        parse_seconds(text)


@pytest.mark.parametrize(
    ("text", "fps"), [("24", 24), ("29.97", Fraction(2997, 100)), ("30000/1001", Fraction(30000, 1001)), ("240", 240)]
)
def test_fps(text: str, fps: Fraction) -> None:
    assert parse_fps(text) == fps


@pytest.mark.parametrize("text", ["", "0", "-24", "241", "24/0", "nan", "inf", "24fps"])
def test_no_fps(text: str) -> None:
    with pytest.raises(InputError):
        parse_fps(text)


def test_whole_frames() -> None:
    assert num_frames_for(Fraction(5), Fraction(30000, 1001)) == 150
    assert num_frames_for(Fraction(1, 1000), Fraction(24)) == 1
    assert num_frames_for(Fraction(5, 2), Fraction(1)) == 3


def test_video_size_tells_itself() -> None:
    size = VideoSize(640, 360, 48, Fraction(24))
    assert (str(size), size.seconds, size.area) == ("640x360, 48 frames at 24 fps", 2, 230400)
    assert (even(333), even(334)) == (334, 334)
    assert format_fps(Fraction(30000, 1001)) == "29.970"
    with pytest.raises(ValueError):
        VideoSize(0, 1, 1, Fraction(1))
