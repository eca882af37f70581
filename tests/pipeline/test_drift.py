"""The anchor of long videos: what it does to latents, which videos it is for, and that it is in the run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from soragen.catalog import find
from soragen.diffusion.statistics import MOST_SCALE, pulled
from soragen.pipeline import drift, run
from soragen.pipeline.drift import find_anchor
from soragen.pipeline.latents import Saved
from soragen.pipeline.plan import Plan, make_plan
from soragen.pipeline.timeline import Given
from soragen.request import Request

Ask = Callable[..., Request]
AXES = (3, 4)


def drawn(mean: float, deviation: float) -> Tensor:
    """Four frames of three channels, [1, 3, 4, 8, 8], each with this mean and deviation."""
    noise = torch.randn(1, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return mean + deviation * (noise - noise.mean(AXES, keepdim=True)) / noise.std(AXES, correction=0, keepdim=True)


def test_statistics_go_a_part_of_the_way_more_from_frame_to_frame() -> None:
    away = torch.tensor([0.125, 0.25, 0.375, 0.5]).expand(1, 3, 4)
    found = pulled(drawn(2.0, 1.0), drawn(1.0, 1.2), 0.5)
    torch.testing.assert_close(found.mean(AXES), 2 - away)
    torch.testing.assert_close(found.std(AXES, correction=0), 1 + 0.2 * away)
    found = pulled(drawn(2.0, 1.0), drawn(1.0, 1.2), 0.5, contrast=False, backward=True)
    torch.testing.assert_close(found.mean(AXES), 2 - away.flip(-1))
    torch.testing.assert_close(found.std(AXES, correction=0), torch.ones(1, 3, 4))


def test_channels_are_apart_and_never_stretched_without_limit() -> None:
    latents, first = drawn(0.0, 1.0), torch.cat([drawn(0.0, 1.0)[:, :1], drawn(3.0, 9.0)[:, 1:]], dim=1)
    found = pulled(latents, first, 1.0)
    torch.testing.assert_close(found[:, :1], latents[:, :1])
    torch.testing.assert_close(found.std(AXES, correction=0)[:, 1:, -1], torch.full((1, 2), MOST_SCALE))
    assert bool(pulled(torch.zeros(1, 3, 4, 8, 8), first, 1.0).isfinite().all())  # a channel without any detail


def planned(request: Request) -> Plan:
    return make_plan(request, find(request.checkpoint), "cpu")


def frames_of(plan: Plan, given: int = 0, *, doubts: bool = False) -> list[int] | None:
    """The latent frames that are pulled to, where the first `given` are known, or the last where it grows backward."""
    is_given = torch.arange(plan.grid.latent_shape[0]) < given
    found = find_anchor(plan, is_given.flip(0) if plan.timeline.grows_backward else is_given, doubts)
    return None if found is None else found.frames.nonzero()[:, 0].tolist()


def test_it_is_for_long_videos_that_arrive_nowhere(ask: Ask) -> None:
    short, long = planned(ask(frames=45)), planned(ask(frames=65))
    assert (len(short.windows), frames_of(short)) == (2, None)
    assert len(long.windows) == 3 and frames_of(long) == [1, 2, 3, 4, 5, 6]
    for changes in ({"from_source": True}, {"num_cyclic": 1}, {"given": (Given(0, 0, 1, 0), Given(1, 0, 1, 64))}):
        ends = replace(long, timeline=replace(long.timeline, **changes))
        assert frames_of(ends) is None and frames_of(ends, 4, doubts=True) is None
    backward = replace(long, windows=long.windows[::-1], timeline=replace(long.timeline, grows_backward=True))
    assert frames_of(backward) == list(range(backward.windows[0].new_start, backward.windows[0].new_stop))


def test_what_doubts_is_pulled_to_what_it_continues(ask: Ask) -> None:
    """Also in a single window, and to its colours alone; not to a picture, which is the first frame alone."""
    short = planned(ask(frames=25))
    assert frames_of(short, 4) is None
    assert frames_of(short, 4, doubts=True) == [1, 2, 3]
    assert frames_of(short, 1, doubts=True) is None
    assert frames_of(replace(short, timeline=replace(short.timeline, grows_backward=True)), 3, doubts=True) == [4, 5, 6]
    anchor = find_anchor(short, torch.arange(7) < 4, True)
    assert anchor is not None and not anchor.contrast and anchor.from_window == 0


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
    first = pulled[:, :, 1:7].mean((2, 3, 4))
    for window in planned(ask(frames=frames)).windows[1:]:
        torch.testing.assert_close(pulled[:, :, window.new_stop - 1].mean((2, 3)), first, atol=1e-4, rtol=0)
