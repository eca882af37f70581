"""Several videos are begun from a prompt, and the one goes on that shows it best."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from soragen.catalog import find
from soragen.diffusion.noise import candidate_seeds
from soragen.errors import InputError
from soragen.families.pocket.judge import JudgeConfig, PocketJudge
from soragen.families.pocket.transformer import PocketTransformer
from soragen.pipeline import edits, run
from soragen.pipeline.events import Event, Note, Progress
from soragen.pipeline.plan import make_plan
from soragen.pipeline.resolve import resolve
from soragen.request import Request
from soragen.video.recipe import read_recipe
from tests.pipeline.conftest import write_network
from training import sample

Ask = Callable[..., Request]
Make = Callable[..., run.Result]


@pytest.fixture
def judged(tiny: Path, tmp_path: Path) -> str:
    """The tiny checkpoint with a judge."""
    folder = tmp_path / "judged"
    shutil.copytree(tiny, folder)
    config = JudgeConfig(10, 4, 8, text_width=32, num_still=(3, 2), num_moving=(4,))
    write_network(PocketJudge(config), folder / "judge", {"_class_name": "PocketJudge", **asdict(config)})
    return str(folder)


@pytest.fixture
def latents_of(make: Make, monkeypatch: pytest.MonkeyPatch) -> Callable[[Request], Tensor]:
    found: list[Tensor] = []
    monkeypatch.setattr(run, "decode_to_file", lambda plan, saved, output, *rest: found.append(saved.latents) or output)

    def latents(request: Request) -> Tensor:
        make(request)
        return found[-1]

    return latents


@pytest.mark.parametrize("best", [0, 1, 2])
def test_the_best_candidate_goes_on_as_if_it_had_been_alone(
    ask: Ask, judged: str, latents_of: Callable[[Request], Tensor], monkeypatch: pytest.MonkeyPatch, best: int
) -> None:
    seen: list[Tensor] = []

    def agreement(self: PocketTransformer, clean: Tensor, context: object) -> float:
        seen.append(clean)
        return float(len(seen) - 1 == best)

    monkeypatch.setattr(PocketTransformer, "agreement", agreement)
    chosen = latents_of(ask(model=judged, candidates=3, steps=4))
    assert len(seen) == 3
    assert torch.equal(chosen, latents_of(ask(model=judged, candidates=1, steps=4, seed=candidate_seeds(1, 3)[best])))


def test_the_judge_of_the_checkpoint_chooses(ask: Ask, judged: str, latents_of: Callable[[Request], Tensor]) -> None:
    chosen = latents_of(ask(model=judged, candidates=3))
    alone = [latents_of(ask(model=judged, candidates=1, seed=seed)) for seed in candidate_seeds(1, 3)]
    assert sum(torch.equal(chosen, each) for each in alone) == 1
    assert not torch.equal(chosen, latents_of(ask(model=judged, candidates=3, prompt="a blue boat at night")))


def test_what_it_takes_is_planned_and_told(
    ask: Ask, make: Make, judged: str, calls: Any, events: list[Event]
) -> None:  # fmt: skip
    request = ask(model=judged, candidates=3, steps=6)
    plan = make_plan(request, find(judged))
    assert plan.to_dict()["num_candidates"] == 3
    assert "best of 3 after 2" in "\n".join(plan.lines())
    make(request)
    assert calls.forwards == 2 * (3 * 2 + 4)  # with the prompt and without, two steps of three, four of one
    assert plan.flops == calls.forwards * plan.work.transformer_flops
    told = [(event.done, event.total) for event in events if isinstance(event, Progress) and event.stage == "denoise"]
    assert told == [(step, 10) for step in range(1, 11)]


def test_only_the_first_window_has_candidates(ask: Ask, make: Make, judged: str, calls: Any) -> None:
    request = ask(model=judged, candidates=2, frames=49)
    make(request)
    plan = make_plan(request, find(judged))
    assert len(plan.windows) == 3
    assert calls.forwards == 2 * (3 * 2 + 1) == plan.flops / plan.work.transformer_flops


def test_one_is_enough_where_frames_are_given(ask: Ask, make: Make, judged: str) -> None:
    source = make(ask(), "source.mp4").path
    request = edits.extend(source, "a red ball", frames=4, model=judged, candidates=3, steps=2, listen=lambda _: None)
    assert make_plan(request, find(judged)).num_candidates == 1


def test_a_checkpoint_without_a_judge_makes_one(ask: Ask, make: Make, tiny: Path, calls: Any) -> None:
    request = ask(candidates=3)
    assert make_plan(request, find(str(tiny))).num_candidates == 1
    make(request)
    assert calls.forwards == 4


def test_that_candidates_have_no_part_is_told_where_they_were_asked_for(ask: Ask, tiny: Path) -> None:
    own = find(str(tiny)).defaults.num_candidates
    words = "has no judge in its folder"
    assert not any(words in line for line in make_plan(ask(), find(str(tiny))).notes())
    assert any(words in line for line in make_plan(ask(candidates=own + 1), find(str(tiny))).notes())


def test_a_family_without_a_judge_refuses() -> None:
    with pytest.raises(InputError, match="no judge to choose among candidates"):
        resolve("a cat", model="wan2.1-t2v-1.3b", candidates=2, listen=lambda _: None)
    assert resolve("a cat", model="wan2.1-t2v-1.3b", candidates=1, listen=lambda _: None).num_candidates == 1


@pytest.mark.parametrize("count", [0, -1, 65])
def test_a_count_out_of_range_is_refused(ask: Ask, count: int) -> None:
    with pytest.raises(InputError, match="candidates"):
        ask(candidates=count)


def test_the_recipe_has_the_count(ask: Ask, make: Make, judged: str, cli: Any, events: list[Event]) -> None:
    request = ask(model=judged, candidates=3)
    recipe = read_recipe(make(request).path)
    assert recipe is not None and recipe["request"]["num_candidates"] == 3
    assert Request.from_dict(recipe["request"]) == request
    assert "num_candidates" not in replace(request, num_candidates=1).to_dict()
    assert cli("replay", "a.mp4", "-o", "b.mp4").code == 0
    assert Path("a.mp4").read_bytes() == Path("b.mp4").read_bytes()
    assert cli("replay", "a.mp4", "-o", "c.mp4", "--candidates", "1").code == 0
    other = read_recipe(Path("c.mp4"))
    assert other is not None and "num_candidates" not in other["request"]
    assert not any(isinstance(event, Note) and "judge" in event.text for event in events)


def test_seeds_of_candidates_begin_with_the_own_one_and_follow_from_it() -> None:
    seeds = candidate_seeds(7, 5)
    assert seeds[0] == 7 and len(set(seeds)) == 5 and candidate_seeds(7, 3) == seeds[:3]
    assert not set(seeds) & set(candidate_seeds(8, 5))


def test_scores_are_of_the_candidates_that_users_get(
    ask: Ask, judged: str, latents_of: Callable[[Request], Tensor]
) -> None:
    prompts, seeds = ["a red ball", "a blue boat at night"], [1, 5]
    chosen = sample.choose(sample.load_model(judged, torch.device("cpu")), prompts, seeds, 3, 3)
    assert [seed in candidate_seeds(own, 3) for seed, own in zip(chosen, seeds, strict=True)] == [True, True]
    for prompt, seed, best in zip(prompts, seeds, chosen, strict=True):
        size = {"model": judged, "frames": 25, "steps": 3}
        made = latents_of(ask(prompt, seed=seed, candidates=3, **size))
        assert torch.equal(made, latents_of(ask(prompt, seed=best, candidates=1, **size)))
