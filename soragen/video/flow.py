"""Where what is seen in a frame was in another: by matching blocks, coarse and cheap.

Frames are on the CPU, and compared small, so that the cost does not grow with them. Each block is looked for in the
other frame within five pixels of the small ones; a parabola through the error beside the best place gives parts of a
pixel. A block without texture could be anywhere, so that a small cost keeps it where it is.

A flow is [1, 2, h, w]: for each block of a frame, how far to the right and down it lies in the other frame, where the
frame is 2 wide and 2 high (the units of `torch.nn.functional.grid_sample`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE = 128
"""The shorter side of the small frames that are compared, where they are neighbours."""
REACH = 5
MOVING_COSTS = 1e-6
"""Of the mean squared error of luma in 0..1, for each squared pixel of movement. At twenty times that, what is softly
drawn stays where it was, and what follows it stands still (docs/decisions/0013-handover.md)."""


def match(
    one: Tensor, other: Tensor, block: int, stride: int, side: int = SIDE, moving_costs: float = MOVING_COSTS
) -> tuple[Tensor, tuple[int, int]]:
    """Movement [1, 2, h, w] in pixels of the small frames, right and down, of the blocks of `one` to where they are in
    `other`; and the small frames' (height, width).

    one, other: [H, W, 3] in 0..1. block, stride: the side of a block in pixels of the small frames, and how far apart
    they are; their middles lie at stride / 2, 3 stride / 2, ... side: the shorter one of the small frames.
    """
    here = _luma(one, side)
    wide = F.pad(_luma(other, side), (REACH,) * 4, mode="replicate")
    height, width = here.shape[-2:]
    span = range(2 * REACH + 1)
    shifted = (wide[..., y : y + height, x : x + width] for y in span for x in span)
    mean = nn.AvgPool2d(block, stride, (block - stride) // 2, ceil_mode=True, count_include_pad=False)
    errors = torch.cat([mean((there - here).square()) for there in shifted])[:, 0]  # [shifts, h, w]
    costs = errors.flatten(1).T.reshape(-1, len(span), len(span))  # [blocks, y, x]
    away = (torch.arange(len(span)) - REACH).to(costs)
    costs = costs + moving_costs * (away[:, None].square() + away.square())
    best = costs.flatten(1).argmin(1)
    y, x = best // len(span), best % len(span)
    row = torch.arange(len(costs))
    down = away[y] + _between(lambda step: costs[row, (y + step).clamp(0, 2 * REACH), x])
    right = away[x] + _between(lambda step: costs[row, y, (x + step).clamp(0, 2 * REACH)])
    return torch.stack([right, down]).view(1, 2, *errors.shape[1:]), (height, width)


def flow(one: Tensor, other: Tensor, side: int = SIDE) -> Tensor:
    """From the blocks of `one` to where they are in `other`, both [H, W, 3] in 0..1. A smaller `side` looks farther."""
    moved, (height, width) = match(one, other, block=8, stride=4, side=side)
    return moved * torch.tensor([2 / width, 2 / height]).view(1, 2, 1, 1)


def follow(first: Tensor, then: Tensor) -> Tensor:
    """The flow that goes along `first`, and from where that arrives along `then`."""
    return first + F.grid_sample(then, _places(first), padding_mode="border", align_corners=False)


def calm(along: Tensor) -> Tensor:
    """A flow whose blocks go with those around them: the median of three by three, and of those the mean.

    Blocks that found something else than what they were, and pull it into threads, are outvoted.
    """
    around = F.unfold(F.pad(along, (1, 1, 1, 1), mode="replicate").transpose(0, 1), 3)  # [2, 9, h * w]
    outvoted = around.median(dim=1).values.view_as(along)
    return F.avg_pool2d(F.pad(outvoted, (1, 1, 1, 1), mode="replicate"), 3, 1)


def moved(frame: Tensor, along: Tensor) -> Tensor:
    """[H, W, 3] as `frame` is seen where `along`, a flow to it, finds it."""
    size = frame.shape[:2]
    places = _places(F.interpolate(along, size, mode="bilinear", align_corners=False))
    picture = F.grid_sample(frame.permute(2, 0, 1)[None], places, padding_mode="border", align_corners=False)
    return picture[0].permute(1, 2, 0)


def _places(along: Tensor) -> Tensor:
    """[1, h, w, 2]: the middle of each pixel, and from there along a flow."""
    rows, columns = ((torch.arange(n) + 0.5) * 2 / n - 1 for n in along.shape[-2:])
    middle = torch.stack(torch.meshgrid(columns, rows, indexing="xy"))  # [2, h, w]
    return (middle + along).permute(0, 2, 3, 1)


def _between(cost: Callable[[int], Tensor]) -> Tensor:
    """Where the parabola through three costs has its lowest point, within half a pixel of the middle one.

    It is no farther than the cost in the middle allows: where that is nothing, nothing has moved.
    """
    low, here, high = cost(-1), cost(0), cost(1)
    bend = (low + high - 2 * here).clamp(min=1e-9)
    most = (2 * here / bend).sqrt().clamp(max=0.5)
    return ((low - high) / (2 * bend)).clamp(-most, most)


def _luma(frame: Tensor, side: int) -> Tensor:
    """[1, 1, H, W] in 0..1, its shorter side at most `side`."""
    picture = (frame @ torch.tensor([0.2126, 0.7152, 0.0722]))[None, None]
    scale = min(1.0, side / min(frame.shape[:2]))
    size = [max(16, round(length * scale)) for length in frame.shape[:2]]  # a block at the least
    return F.interpolate(picture, size, mode="bilinear", antialias=True)
