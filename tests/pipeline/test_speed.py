"""The work of the denoising, and the time that it takes: told from runs on this machine, or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from footage import film

from soragen.catalog import find
from soragen.checkpoint import Abilities
from soragen.models.offload import Residence
from soragen.pipeline import edits, run, speed
from soragen.pipeline.clock import Clock
from soragen.pipeline.plan import Plan, make_plan
from soragen.request import Request

Ask = Callable[..., Request]
PROMPTS_ALONE = Abilities(text=True, first_frame=False, last_frame=False, any_frames=False)


def planned(request: Request, dtype: str | None = None) -> Plan:
    return make_plan(request, find(request.checkpoint), "cpu", dtype)


def test_no_time_is_told_that_was_not_measured(ask: Ask) -> None:
    plan = planned(ask())
    assert plan.expected_seconds is None and plan.to_dict()["expected_seconds"] is None
    assert not any("measured" in line for line in plan.lines())


def test_a_run_tells_the_time_of_the_next_one(ask: Ask, make: Callable[..., run.Result]) -> None:
    result = make(ask())
    again = planned(ask())
    assert again.expected_seconds is not None and again.speed is not None
    assert again.expected_seconds == pytest.approx(result.seconds["denoise"], rel=0.2)
    assert planned(ask(steps=20)).expected_seconds == pytest.approx(10 * again.expected_seconds)
    longer = planned(ask(frames=17))
    assert longer.expected_seconds == pytest.approx(again.expected_seconds * longer.flops / again.flops)
    (line,) = [line for line in again.lines() if line.startswith("time")]
    assert line.endswith(f" s to denoise on this machine (as measured on {again.speed.measured})")
    assert again.to_dict()["expected_seconds"] == again.expected_seconds
    # Others do not run as fast: much more work at once, another type.
    assert planned(ask(size="1024x1024", frames=65, direct=True)).expected_seconds is None
    assert planned(ask(), "bfloat16").expected_seconds is None


def test_the_nearest_run_counts_and_a_newer_one_replaces_it() -> None:
    speed.keep_speed("this", 1e12, 8e12, 4.0)
    speed.keep_speed("this", 1e13, 8e13, 8.0)
    speed.keep_speed("that", 1e12, 8e12, 1.0)
    nearest = [speed.find_speed("this", flops) for flops in (0.9e12, 2.5e12, 4e12, 39e12)]
    assert [found and found.flops_per_second for found in nearest] == [2e12, 2e12, 1e13, 1e13]
    assert speed.find_speed("this", 1e11) is None and speed.find_speed("another", 1e12) is None
    speed.keep_speed("this", 1.1e12, 8e12, 2.0)
    found = speed.find_speed("this", 0.9e12)
    assert found is not None and found.flops_per_second == 4e12
    for number in range(speed.MOST + 5):
        speed.keep_speed(f"kind {number}", 1e12, 1e12, 1.0)
    assert len(speed._read()) == speed.MOST and speed.find_speed("kind 204", 1e12) is not None


def test_streamed_blocks_have_a_speed_of_their_own(ask: Ask) -> None:
    plan = planned(ask())
    kinds = {plan.kind, replace(plan, residence={"transformer": Residence.MAPPED}).kind}
    kinds.add(replace(plan, request=replace(plan.request, quantize="int8")).kind)
    assert len(kinds) == 3


@pytest.mark.parametrize(
    "content", ["", "{", "[1]", '{"a": 1}', '[{"kind": "this", "forward_flops": 0, "flops_per_second": 1}]', "\xff"]
)
def test_a_damaged_file_counts_as_empty(content: str, tmp_path: Path) -> None:
    (tmp_path / "cache" / speed.FILE).write_text(content, encoding="latin-1")
    assert speed.find_speed("this", 1e12) is None
    speed.keep_speed("this", 1e12, 1e12, 1.0)
    assert speed.find_speed("this", 1e12) is not None
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [speed.FILE]


def test_a_folder_that_cannot_be_written_is_passed_over(
    ask: Ask, make: Callable[..., run.Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SORAGEN_CACHE", str(tmp_path / "file"))
    assert make(ask()).path.is_file()
    assert planned(ask()).expected_seconds is None


def test_what_fails_keeps_nothing(cli: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(run, "denoise_windows", lambda *_: 1 / 0)
    assert cli("generate", "a ball").code == 1
    assert not (tmp_path / "cache" / speed.FILE).exists()


@pytest.mark.parametrize("able", [None, PROMPTS_ALONE], ids=["native", "re-noised"])
def test_steps_that_are_repeated_count(able: Abilities | None, tiny: Path, calls: Any) -> None:
    film("a.mkv", 9, 64, 64)
    request = edits.extend(
        Path("a.mkv"), "on", frames=4, model=str(tiny), seed=1, steps=6, guidance=1.0, listen=lambda event: None
    )
    checkpoint = find(str(tiny))
    if able is not None:
        checkpoint = replace(checkpoint, abilities=able)
    plan, clock = make_plan(request, checkpoint, "cpu"), Clock(lambda event: None)
    context, negative = run.encode_prompts(plan, True, clock.listen)
    run.denoise_all(plan, context, negative, run.encode_given(plan, clock), clock)
    assert calls.forwards == (6 if able is None else 6 + 2)  # of steps 1 and 2, one more each
    assert plan.flops == calls.forwards * plan.work.transformer_flops


def test_a_video_that_is_left_as_it_is_takes_no_work(tiny: Path) -> None:
    film("a.mkv", 9, 64, 64)
    options: dict[str, Any] = {"model": str(tiny), "seed": 1, "steps": 2, "listen": lambda event: None}
    assert planned(edits.restyle(Path("a.mkv"), "night", strength=0.0, **options)).flops == 0
    assert planned(edits.restyle(Path("a.mkv"), "night", strength=0.5, **options)).flops > 0


def test_a_list_keeps_it_too(cli: Any, tiny: Path) -> None:
    Path("list.txt").write_text("a ball\na cube\n")
    asked = ("batch", "list.txt", "--model", str(tiny), "--size", "128x128", "--frames", "9", "--steps", "2")
    assert cli(*asked).code == 0
    plans = json.loads(cli(*asked, "--dry-run", "--json").out)
    assert all(plan["expected_seconds"] > 0 for plan in plans)
