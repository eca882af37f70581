"""How far the picture moves from one frame to the next, in pixels of a frame whose shorter side is 128."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from soragen.video.flow import match

STAYING = 2e-5
"""What a squared pixel of movement costs: a block without texture has not moved."""


def movement(one: Tensor, other: Tensor) -> float:
    """Mean length of the movement of all blocks of 16 x 16 from frame `one` to `other`, uint8 [H, W, 3]."""
    moved, _ = match(one.float() / 255, other.float() / 255, block=16, stride=8, moving_costs=STAYING)
    return float(moved.square().sum(dim=1).sqrt().mean())


def movements(frames: Tensor, steps: Sequence[int]) -> list[float]:
    """Of frames [T, H, W, 3]: from number `step` to the next, for each of `steps`."""
    return [movement(frames[step], frames[step + 1]) for step in steps]
