"""Options to request: the defaults of the model, and one line for what was changed to fit."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest

from soragen.catalog import find
from soragen.pipeline.events import Event, Note
from soragen.pipeline.resolve import resolve
from soragen.request import Request


def resolved(**options: Any) -> tuple[Request, list[str]]:
    notes: list[str] = []

    def listen(event: Event) -> None:
        assert isinstance(event, Note)
        notes.append(event.text)

    return resolve(options.pop("prompt", "a ball"), listen=listen, **options), notes


def test_defaults_are_the_models() -> None:
    request, notes = resolved()
    pocket = find("pocket")
    assert notes == []
    assert (request.size.width, request.size.height) == (pocket.defaults.width, pocket.defaults.height)
    assert request.size.fps == pocket.native.fps
    assert request.size.num_frames == pocket.native.num_frames - 1
    assert request.num_steps == pocket.defaults.num_steps and request.solver == pocket.defaults.solver
    assert 0 <= request.seed < 2**31
    assert Request.from_dict(request.to_dict()) == request


def test_seeds_differ() -> None:
    assert len({resolved()[0].seed for _ in range(8)}) > 1


@pytest.mark.parametrize(
    ("asked", "given", "noted"),
    [
        ("1920x1080", (1920, 1080), False),
        ("1080X1920", (1080, 1920), False),
        ("854x480", (854, 480), False),
        ("333x257", (334, 258), True),
        ("4095x65", (4096, 66), True),
        ("16:9", (342, 192), False),
        ("1:1", (256, 256), False),
    ],
)
def test_sizes(asked: str, given: tuple[int, int], noted: bool) -> None:
    request, notes = resolved(size=asked)
    assert (request.size.width, request.size.height) == given
    assert bool(notes) == noted


@pytest.mark.parametrize(
    ("options", "num_frames", "fps", "noted"),
    [
        ({"seconds": "5"}, 60, 12, False),
        ({"seconds": "5s", "fps": "30000/1001"}, 150, Fraction(30000, 1001), True),
        ({"fps": "24"}, 48, 24, False),
        ({"frames": 1}, 1, 12, False),
        ({"frames": 7, "fps": "25"}, 7, 25, False),
        ({"seconds": "0.001"}, 1, 12, True),
        ({"seconds": "3600"}, 43200, 12, False),
    ],
)
def test_durations(options: dict[str, Any], num_frames: int, fps: Fraction, noted: bool) -> None:
    request, notes = resolved(**options)
    assert (request.size.num_frames, request.size.fps) == (num_frames, fps)
    assert bool(notes) == noted


def test_prompt_is_stripped_and_keeps_its_lines() -> None:
    assert resolved(prompt="  a ball\r\non grass\t \n")[0].prompt == "a ball\non grass"


def test_a_negative_prompt_may_be_empty() -> None:
    assert resolved(negative="")[0].negative_prompt == ""
