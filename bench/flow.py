"""How far the picture moves from one frame to the next, by matching blocks: small, exact enough to compare two steps.

Each block of 16 x 16 pixels of a frame, every 8, is looked for in the next frame within five pixels; a parabola through
the error beside the best place gives parts of a pixel. A block without texture could be anywhere, so that a small cost
keeps it where it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

REACH, BLOCK, STRIDE = 5, 16, 8
MOVING_COSTS = 2e-5
"""Of the mean squared error of luma in 0..1, for each squared pixel of movement."""
SIDE = 128
"""The shorter side at which blocks are compared: movements are in pixels of such a frame."""


def movement(one: Tensor, other: Tensor) -> float:
    """Mean length, in pixels, of the movement of all blocks from frame `one` to `other`, uint8 [H, W, 3]."""
    before, after = _luma(one), _luma(other)
    wide = F.pad(after, (REACH,) * 4, mode="replicate")
    height, width = before.shape[-2:]
    span = range(2 * REACH + 1)
    errors = torch.cat(
        [(wide[..., y : y + height, x : x + width] - before).square() for y in span for x in span], dim=1
    )  # [1, shifts, H, W]
    costs = F.avg_pool2d(errors, BLOCK, STRIDE)[0].flatten(1).T.reshape(-1, len(span), len(span))  # [blocks, y, x]
    away = (torch.arange(len(span)) - REACH).float()
    costs = costs + MOVING_COSTS * (away[:, None].square() + away.square())
    best = costs.flatten(1).argmin(1)
    y, x = best // len(span), best % len(span)
    block = torch.arange(len(costs))
    dy = away[y] + _between(lambda step: costs[block, (y + step).clamp(0, 2 * REACH), x])
    dx = away[x] + _between(lambda step: costs[block, y, (x + step).clamp(0, 2 * REACH)])
    return float((dy.square() + dx.square()).sqrt().mean())


def movements(frames: Tensor, steps: Sequence[int]) -> list[float]:
    """Of frames [T, H, W, 3]: from number `step` to the next, for each of `steps`."""
    return [movement(frames[step], frames[step + 1]) for step in steps]


def _between(cost: Callable[[int], Tensor]) -> Tensor:
    """Where the parabola through three costs has its lowest point, within half a pixel of the middle one."""
    low, here, high = cost(-1), cost(0), cost(1)
    bend = (low + high - 2 * here).clamp(min=1e-9)
    return ((low - high) / (2 * bend)).clamp(-0.5, 0.5)


def _luma(frame: Tensor) -> Tensor:
    """[1, 1, H, W] in 0..1, its shorter side at most SIDE."""
    luma = (frame.float() / 255) @ torch.tensor([0.2126, 0.7152, 0.0722])
    picture = luma[None, None]
    scale = SIDE / min(picture.shape[-2:])
    return F.interpolate(picture, scale_factor=scale, mode="bilinear", antialias=True) if scale < 1 else picture
