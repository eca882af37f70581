"""Windows or, with --direct, one grid: what is far from the training is said, what memory is short of refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from footage import film

from soragen.catalog import find
from soragen.diffusion.sampler import num_forwards
from soragen.errors import ResourceError
from soragen.models.device import Memory
from soragen.pipeline import edits, memory, run
from soragen.pipeline.asking import check, request_of
from soragen.pipeline.conditions import REPEATS
from soragen.pipeline.events import Event, Note
from soragen.pipeline.plan import Plan, make_plan
from soragen.pipeline.replay import read_replay
from soragen.request import Request
from soragen.video.facts import video_facts
from soragen.video.recipe import read_recipe

Ask = Callable[..., Request]


def planned(request: Request) -> Plan:
    return make_plan(request, find(request.checkpoint), "cpu")


def test_one_grid_of_what_was_asked(ask: Ask) -> None:
    usual, direct = (planned(ask(size="320x192", frames=49, direct=direct)) for direct in (False, True))
    assert len(usual.windows) > 1 and usual.scale_from is not None
    assert len(direct.windows) == 1 and direct.scale_from is None and direct.upscale_factor == 1
    assert (direct.grid.width, direct.grid.height, direct.grid.num_frames) == (320, 192, 49)
    assert direct.latent_shape == (1, 10, 13, 24, 40) and direct.window_grid.num_tokens == 13 * 12 * 20
    assert direct.notes() == [
        "320x192 at once is far from what tiny was trained on: forms may fall apart",
        "tiny was trained on at most 25 frames; more at once may repeat or drift",
    ]


def test_it_changes_nothing_that_fits(ask: Ask) -> None:
    usual, direct = planned(ask()), planned(ask(direct=True))
    assert (usual.grid, usual.windows, usual.notes()) == (direct.grid, direct.windows, direct.notes())


def test_the_file_and_its_recipe(ask: Ask, make: Callable[..., run.Result], events: list[Event]) -> None:
    request = ask(size="192x192", frames=29, steps=1, guidance=1.0, direct=True)
    result = make(request)
    notes = [event.text for event in events if isinstance(event, Note)]
    assert "192x192 at once is far from what tiny was trained on: forms may fall apart" in notes
    recipe = read_recipe(result.path)
    assert recipe is not None and recipe["request"]["direct"] is True
    assert read_replay(result.path, listen=lambda event: None).request == request
    assert "direct" not in ask().to_dict()


def test_too_little_memory(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """What windows and a smaller grid make possible is refused in one, and the line says what would work."""
    request = ask(size="1280x720", frames=481)
    room = planned(request).peak_bytes
    monkeypatch.setattr(memory, "memory_budget", lambda device: Memory(10**12, 2 * room["decode"] + room["encode"]))
    planned(request)
    with pytest.raises(ResourceError, match="denoise needs about") as refused:
        planned(ask(size="1280x720", frames=481, direct=True))
    assert refused.value.hint == "leave --direct out, or ask for a smaller --size or fewer --seconds"


@pytest.mark.parametrize("command", ["generate", "image"])
def test_the_commands_and_lists_take_it(
    command: str, cli: Any, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    seen: list[Request] = []
    monkeypatch.setattr(run, "generate", lambda request, path, **options: seen.append(request) or 1 / 0)
    for more in ((), ("--direct",)):
        cli(command, "a ball", *more, "--model", str(tiny))
    assert [request.direct for request in seen] == [False, True]
    values = {"command": command, "prompt": "a ball", "model": str(tiny), "direct": True}
    check(values)
    assert request_of(values, lambda event: None).direct


@pytest.fixture
def untrained(tiny: Path, tmp_path: Path) -> Path:
    """The same checkpoint, said to be trained on prompts alone."""
    folder = Path(shutil.copytree(tiny, tmp_path / "untrained"))
    names = ("text", "first_frame", "last_frame", "any_frames")
    (folder / "soragen.json").write_text(json.dumps({"abilities": {name: name == "text" for name in names}}))
    return folder


def test_windows_of_a_model_that_was_not_trained_with_given_frames(ask: Ask, untrained: Path, make: Any) -> None:
    """They continue each other all the same, by noise of their own level; its steps are taken twice then, and said."""
    asked = {"frames": 49, "steps": 4, "guidance": 1.0}
    able, unable = planned(ask(**asked)), planned(ask(model=str(untrained), **asked))
    assert unable.windows == able.windows and len(able.windows) == 3
    (words,) = (note for note in unable.notes() if "windows" in note)
    assert words.endswith("each continuing the one before, which untrained was not trained to do")
    assert not any("less closely" in note for note in unable.notes())  # no frame is given from outside
    assert unable.flops == able.flops / 3 * (1 + 2 * num_forwards(4, 0, REPEATS) / 4) > able.flops
    assert video_facts(make(unable.request).path).num_frames == 49


def test_that_given_frames_are_followed_less_closely_is_said_beforehand(tiny: Path, untrained: Path) -> None:
    source = film("source.mkv", 9)
    for folder, said in ((tiny, False), (untrained, True)):
        request = edits.extend(source, "a ball", frames=4, model=str(folder), steps=1, seed=1, listen=lambda _: None)
        assert any("less closely" in note for note in planned(request).notes()) == said
