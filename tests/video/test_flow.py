"""What moved is found where it was, and what did not move stays."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from soragen.video.flow import calm, flow, follow, moved


@pytest.fixture
def picture() -> Tensor:
    """[2H, 2W, 3] with coarse and fine lines, of which frames are cut."""
    torch.manual_seed(0)
    layers = [F.interpolate(torch.rand(1, 3, n, 2 * n), (160, 240), mode="bicubic") for n in (6, 20)]
    return torch.stack(layers).mean(0).clamp(0, 1)[0].permute(1, 2, 0)


def view(picture: Tensor, right: int, down: int) -> Tensor:
    return picture[40 - down : 120 - down, 60 - right : 180 - right]


def test_a_still_picture_does_not_move_at_all(picture: Tensor) -> None:
    frame = view(picture, 0, 0)
    assert float(flow(frame, frame).abs().max()) < 1e-3
    torch.testing.assert_close(moved(frame, flow(frame, frame)), frame, atol=1e-3, rtol=0)


@pytest.mark.parametrize(("right", "down"), [(3, 0), (0, -2), (-4, 3)])
def test_what_moved_is_found(picture: Tensor, right: int, down: int) -> None:
    before, after = view(picture, 0, 0), view(picture, right, down)
    along = flow(after, before)
    inner = along[..., 3:-3, 3:-3]
    asked = torch.tensor([-2 * right / 120, -2 * down / 80]).view(1, 2, 1, 1)
    assert float((inner - asked).abs().median()) < 2 / 120 * 0.2  # a fifth of a pixel
    there = (moved(before, along) - after)[8:-8, 8:-8].abs().mean()
    assert there < 0.15 * (before - after)[8:-8, 8:-8].abs().mean()


def test_flows_add_up(picture: Tensor) -> None:
    frames = [view(picture, 2 * n, n) for n in range(4)]
    first, *steps = (flow(frame, before) for before, frame in itertools.pairwise(frames))
    along = functools.reduce(lambda along, step: follow(step, along), steps, first)
    left = (moved(frames[0], along) - frames[3])[12:-12, 12:-12].abs().mean()
    assert left < 0.2 * (frames[0] - frames[3])[12:-12, 12:-12].abs().mean()


def test_a_block_that_found_something_else_is_outvoted() -> None:
    along = torch.tensor([0.1, -0.2]).view(1, 2, 1, 1).repeat(1, 1, 6, 9)
    wrong = along.clone()
    wrong[:, :, 3, 4] = 0.5
    torch.testing.assert_close(calm(wrong), along)


def test_large_and_tiny_frames() -> None:
    for height, width in ((2, 2), (7, 300), (600, 400)):
        frame = torch.rand(height, width, 3)
        assert moved(frame, flow(frame, torch.rand_like(frame))).shape == frame.shape
