"""The order of a run: what is loaded when, what is computed, and what a seed decides."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from soragen.diffusion.condition import KnownFrames
from soragen.diffusion.sampler import Step
from soragen.pipeline import denoise as windows
from soragen.pipeline import run
from soragen.pipeline.events import STAGES, Event, Note, Progress, Stage
from soragen.pipeline.latents import Saved
from soragen.pipeline.plan import Plan
from soragen.request import Request
from soragen.video.recipe import read_recipe

Ask = Callable[..., Request]
Make = Callable[..., run.Result]
Made = list[tuple[KnownFrames | None, Tensor]]


@pytest.fixture
def latents_of(make: Make, monkeypatch: pytest.MonkeyPatch) -> Callable[[Request], Tensor]:
    """The latents of a request; nothing is decoded."""
    found: list[Tensor] = []

    def keep(plan: Plan, saved: Saved, output: Path, *rest: Any) -> Path:
        found.append(saved.latents)
        return output

    monkeypatch.setattr(run, "decode_to_file", keep)

    def latents(request: Request) -> Tensor:
        make(request)
        return found[-1]

    return latents


def test_stages_come_in_order_and_every_second_is_counted_once(ask: Ask, make: Make, events: list[Event]) -> None:
    result = make(ask())
    assert [event.name for event in events if isinstance(event, Stage)] == ["load", "text", "denoise", "decode"]
    assert [(e.done, e.total) for e in events if isinstance(e, Progress) and e.stage == "denoise"] == [(1, 2), (2, 2)]
    done = [(event.done, event.total) for event in events if isinstance(event, Progress) and event.stage == "decode"]
    assert done == [(1, 9), (5, 9), (9, 9)]
    assert list(result.seconds) == list(STAGES)
    assert all((seconds > 0) == (stage != "read") for stage, seconds in result.seconds.items())  # nothing was given


def test_one_network_is_in_memory_at_a_time(ask: Ask, make: Make, calls: Any) -> None:
    make(ask())
    assert calls.loaded == ["text_encoder", "t5", "transformer", "vae"]
    assert calls.alive == {"text_encoder": [], "t5": ["text_encoder"], "transformer": [], "vae": []}
    assert not calls.networks


def test_without_guidance_the_negative_prompt_is_never_read(ask: Ask, make: Make, calls: Any, tmp_path: Path) -> None:
    make(ask(guidance=1.0, negative="blurry"))
    assert calls.forwards == 2
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 1
    make(ask(guidance=3.0, negative="blurry"), "b.mp4")
    assert calls.forwards == 2 + 4
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 2


def test_a_cached_prompt_loads_no_encoder_and_gives_the_same_bytes(
    ask: Ask, latents_of: Callable[[Request], Tensor], calls: Any
) -> None:
    cold = latents_of(ask())
    cached = latents_of(ask())
    assert torch.equal(cold, cached)
    assert calls.loaded.count("t5") == 1 and calls.loaded.count("transformer") == 2


def test_a_seed_gives_the_same_bytes_whatever_came_before(
    ask: Ask, latents_of: Callable[[Request], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = latents_of(ask())
    latents_of(ask("a blue cube", seed=2, frames=5, steps=1))
    torch.manual_seed(99)
    torch.rand(7)
    assert torch.equal(latents_of(ask()), first)
    assert not torch.equal(latents_of(ask(seed=2)), first)
    assert not torch.equal(latents_of(ask("a blue cube")), first)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Made:
    """What each window was given, and what it came to."""
    made: Made = []
    denoise = windows.denoise

    def watched(*arguments: Any, **options: Any) -> Iterator[Step]:
        known = arguments[4]
        given = known and replace(known, latents=known.latents.clone())  # they are of the timeline, which changes
        for step in denoise(*arguments, **options):
            yield step
        made.append((given, step.latents.clone()))

    monkeypatch.setattr(windows, "denoise", watched)
    return made


def test_a_long_video_is_made_in_windows_that_continue_each_other(
    ask: Ask, latents_of: Callable[[Request], Tensor], events: list[Event], monkeypatch: pytest.MonkeyPatch, made: Made
) -> None:
    monkeypatch.setattr(windows.drift, "PULL", 0.0)  # tests/pipeline/test_drift.py has that
    whole = latents_of(ask(frames=49))
    assert whole.shape == (1, 10, 13, 16, 16)
    assert [latents.shape[2] for _, latents in made] == [7, 7, 7]
    for (_, before), (known, latents) in pairwise(made):
        assert known is not None and known.native and known.mask.tolist() == [0, 0, 0, 0, 1, 1, 1]
        assert torch.equal(known.latents[:, :, :4], before[:, :, 3:])
        assert torch.equal(latents[:, :, :4], before[:, :, 3:])
    assert torch.equal(whole, torch.cat([made[0][1], made[1][1][:, :, 4:], made[2][1][:, :, 4:]], dim=2))
    steps = [(event.done, event.total) for event in events if isinstance(event, Progress)]
    assert steps == [(step, 6) for step in range(1, 7)]
    assert Note("longer than 25 frames: 3 windows, each continuing the one before") in events


def test_windows_of_pocket_go_on_from_refined_frames(
    ask: Ask, latents_of: Callable[[Request], Tensor], made: Made
) -> None:
    """Their coarse channels are what was denoised, their fine ones are not: the next window sees what will be shown."""
    whole = latents_of(ask(model="pocket", size="64x64", frames=33, steps=1))
    (_, before), (known, _) = made
    assert known is not None
    (last,) = (known.mask == 0).nonzero()[-1].tolist()
    seen, was, shown = known.latents[:, :, 1:last], before[:, :, -last:-1], whole[:, :, 7 - last : 6]
    assert torch.equal(seen[:, :16], was[:, :16]) and not torch.equal(seen[:, 16:], was[:, 16:])
    assert torch.equal(shown, seen)  # the very last one alone has another frame behind it by now


def test_frames_are_decoded_no_faster_than_they_are_written(ask: Ask, calls: Any) -> None:
    ahead: list[int] = []

    def listen(event: Event) -> None:
        if isinstance(event, Progress) and event.stage == "decode":
            ahead.append(calls.decoded - (1 + (event.done - 1) // 4))

    run.generate(ask(frames=25), Path("a.mp4"), device="cpu", listen=listen)
    assert ahead == [0] * 7


def test_the_recipe_is_in_the_video_unless_it_is_not_wanted(ask: Ask, make: Make) -> None:
    request = ask()
    recipe = read_recipe(make(request).path)
    assert recipe is not None and Request.from_dict(recipe["request"]) == request
    assert read_recipe(make(request, "b.mp4", metadata=False).path) is None


def test_words_that_are_dropped_are_printed(cli: Any, calls: Any, home: Path) -> None:
    prompt = "a red ball " + "and a cube " * 50 + "beside an owl"
    ended = cli("generate", prompt)
    assert ended.code == 0
    assert re.search(r"note: the prompt is too long, the model does not read: .*and a cube beside an owl\n", ended.err)
    assert "a red ball" not in ended.err
    ended = cli("generate", prompt.replace("owl", "old owl"), "--strict", "--overwrite")
    assert ended.code == 2 and "and a cube beside an old owl\nhint: shorten the prompt\n" in ended.err
    assert calls.loaded.count("t5") == 1  # by the first run alone
    ended = cli("generate", prompt * 10, "--overwrite")
    assert ended.code == 0 and "… (" in ended.err and " characters)\n" in ended.err


def test_a_long_negative_prompt_is_named(ask: Ask, make: Make, events: list[Event]) -> None:
    make(ask(negative="blur " * 200))
    assert any(isinstance(e, Note) and e.text.startswith("the negative prompt is too long") for e in events)
