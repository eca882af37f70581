"""Any size and any duration: the file is exactly what was asked, and one line says what was done for it."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import pytest

from soragen.pipeline import run
from soragen.pipeline.events import Event, Note
from soragen.request import Request
from soragen.video.facts import video_facts

Ask = Callable[..., Request]
Make = Callable[..., run.Result]


def notes(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Note)]


@pytest.mark.parametrize(
    ("size", "note"),
    [
        ("128x128", None),
        ("130x126", "rendered at 144x128, cropped to 130x126"),
        ("334x258", "tiny renders 146x112, enlarged to 334x258"),
        ("854x480", "tiny renders 171x96, enlarged to 854x480"),
        ("1920x1080", "tiny renders 171x96, enlarged to 1920x1080"),
        ("1080x1920", "tiny renders 96x171, enlarged to 1080x1920"),
        ("64x64", "tiny renders 128x128, reduced to 64x64"),
        ("4096x64", "tiny renders 1024x16, enlarged to 4096x64"),
        ("64x4096", "tiny renders 16x1024, enlarged to 64x4096"),
        ("4096x4096", "tiny renders 128x128, enlarged to 4096x4096"),
    ],
)
def test_the_file_has_the_size_that_was_asked(
    ask: Ask, make: Make, events: list[Event], size: str, note: str | None
) -> None:
    result = make(ask(size=size, frames=1, steps=1, guidance=1.0))
    facts = video_facts(result.path)
    assert f"{facts.width}x{facts.height}" == size
    assert facts.num_frames == 1
    assert notes(events) == ([note] if note else [])


def test_large_and_long(ask: Ask, make: Make, events: list[Event]) -> None:
    facts = video_facts(make(ask(size="1920x1080", frames=40, steps=1, guidance=1.0)).path)
    assert (facts.width, facts.height, facts.num_frames) == (1920, 1080, 40)
    enlarged, trimmed, windows = notes(events)
    assert enlarged == "tiny renders 171x96, enlarged to 1920x1080" and trimmed == "rendered 41 frames, trimmed to 40"
    assert windows.startswith("longer than 25 frames: 2 windows")


@pytest.mark.parametrize(
    ("frames", "fps", "note"),
    [
        (1, "12", None),
        (2, "12", "rendered 5 frames, trimmed to 2"),
        (5, "12", None),
        (24, "12", "rendered 25 frames, trimmed to 24"),
        (24, "30000/1001", "rendered 25 frames, trimmed to 24"),
        (25, "23.976", None),
    ],
)
def test_the_file_lasts_as_long_as_was_asked(
    ask: Ask, make: Make, events: list[Event], frames: int, fps: str, note: str | None
) -> None:
    result = make(ask(frames=frames, fps=fps, steps=1, guidance=1.0))
    facts = video_facts(result.path)
    assert (facts.num_frames, facts.fps, facts.seconds) == (frames, Fraction(fps), frames / Fraction(fps))
    assert notes(events) == ([note] if note else [])
