"""The anchor of long videos: what it does to latents, which videos it is for, and that it is in the run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from soragen.catalog import find
from soragen.pipeline import drift, run
from soragen.pipeline.drift import anchor, anchored_to
from soragen.pipeline.latents import Saved
from soragen.pipeline.plan import Plan, make_plan
from soragen.pipeline.timeline import Given
from soragen.request import Request

Ask = Callable[..., Request]
AXES = (2, 3, 4)


def drawn(mean: float, deviation: float) -> Tensor:
    noise = torch.randn(1, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return mean + deviation * (noise - noise.mean(AXES, keepdim=True)) / noise.std(AXES, correction=0, keepdim=True)


@pytest.mark.parametrize(("pull", "mean", "deviation"), [(0.0, 2.0, 1.0), (0.5, 1.5, 1.1), (1.0, 1.0, 1.2)])
def test_statistics_go_a_part_of_the_way(pull: float, mean: float, deviation: float) -> None:
    found = anchor(drawn(2.0, 1.0), drawn(1.0, 1.2), pull)
    torch.testing.assert_close(found.mean(AXES), torch.full((1, 3), mean))
    torch.testing.assert_close(found.std(AXES, correction=0), torch.full((1, 3), deviation))


def test_channels_are_apart_and_never_stretched_without_limit() -> None:
    latents, first = drawn(0.0, 1.0), torch.cat([drawn(0.0, 1.0)[:, :1], drawn(3.0, 9.0)[:, 1:]], dim=1)
    found = anchor(latents, first, 1.0)
    torch.testing.assert_close(found[:, :1], latents[:, :1])
    torch.testing.assert_close(found.std(AXES, correction=0)[:, 1:], torch.full((1, 2), drift.MOST_SCALE))
    assert bool(anchor(torch.zeros(1, 3, 4, 8, 8), first, 1.0).isfinite().all())  # a channel without any detail


def planned(request: Request) -> Plan:
    return make_plan(request, find(request.checkpoint), "cpu")


def test_it_is_for_long_videos_that_arrive_nowhere(ask: Ask) -> None:
    short, long = planned(ask(frames=45)), planned(ask(frames=65))
    assert (len(short.windows), anchored_to(short)) == (2, None)
    assert len(long.windows) == 3 and anchored_to(long) == slice(1, 7)
    for changes in ({"from_source": True}, {"num_cyclic": 1}, {"given": (Given(0, 0, 1, 0), Given(1, 0, 1, 64))}):
        assert anchored_to(replace(long, timeline=replace(long.timeline, **changes))) is None
    backward = replace(long, windows=long.windows[::-1], timeline=replace(long.timeline, grows_backward=True))
    assert anchored_to(backward) == backward.windows[0].new


@pytest.mark.parametrize("frames", [45, 65])
def test_windows_after_the_first_are_anchored(
    frames: int, ask: Ask, make: Callable[..., run.Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Saved] = []
    keep = run.keep
    monkeypatch.setattr(run, "keep", lambda saved, listen: kept.append(saved) or keep(saved, listen))
    for pull in (0.0, 1.0):
        monkeypatch.setattr(drift, "PULL", pull)
        make(ask(frames=frames, guidance=1.0), Path(f"{pull}.mp4"))
    without, pulled = (saved.latents for saved in kept)
    if frames == 45:
        assert torch.equal(without, pulled)
        return
    assert torch.equal(without[:, :, :7], pulled[:, :, :7]) and not torch.equal(without[:, :, 7:], pulled[:, :, 7:])
    first = pulled[:, :, 1:7].mean(AXES)
    for window in planned(ask(frames=frames)).windows[1:]:
        torch.testing.assert_close(pulled[:, :, window.new].mean(AXES), first, atol=1e-4, rtol=0)
