"""A picture of one shape in a frame of another: cut off, filled up, or stretched."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from soragen.errors import InputError
from soragen.size import FITS, Fit

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Placement:
    """width, height: of the frame. across, down: of the whole picture, scaled, whose middle lies on the frame's."""

    width: int
    height: int
    across: int
    down: int

    @property
    def seen(self) -> tuple[int, int]:
        """(width, height) of the part of the picture that lies within the frame."""
        return min(self.across, self.width), min(self.down, self.height)


def place(shown: tuple[Fraction, Fraction], width: int | None, height: int | None, fit: Fit) -> Placement:
    """Where a picture that is shown as (width, height) goes. A side that is not asked keeps the aspect.

    Raises InputError when there is no such fit.
    """
    if fit not in FITS:
        raise InputError(f"--fit {fit!r} is not one of {', '.join(FITS)}", "use crop, the usual one")
    if width is None and height is None:
        width, height = max(1, round(shown[0])), max(1, round(shown[1]))
    elif width is None:
        assert height is not None
        width = max(1, math.floor(height * shown[0] / shown[1] + Fraction(1, 2)))
    elif height is None:
        height = max(1, math.floor(width * shown[1] / shown[0] + Fraction(1, 2)))
    ratios = width / shown[0], height / shown[1]
    if fit == "stretch":
        return Placement(width, height, width, height)
    if fit == "crop":
        across, down = (round(side * max(ratios)) for side in shown)
        return Placement(width, height, max(width, across), max(height, down))
    across, down = (max(1, round(side * min(ratios))) for side in shown)
    return Placement(width, height, min(width, across), min(height, down))


def fill_up(chunks: Iterable[Tensor], placement: Placement) -> Iterator[Tensor]:
    """Chunks [t, down, across, 3] uint8 → [t, height, width, 3]. The colour of the first frame is that of all."""
    colour: Tensor | None = None
    left = (placement.width - placement.across) // 2
    top = (placement.height - placement.down) // 2
    for chunk in chunks:
        if colour is None:
            colour = _border(chunk[0])
        frames = colour.repeat(len(chunk), placement.height, placement.width, 1)  # [t, height, width, 3]
        frames[:, top : top + placement.down, left : left + placement.across] = chunk
        yield frames


def _border(frame: Tensor) -> Tensor:
    """The mean colour [3] of the outermost pixels of a frame [H, W, 3] uint8."""
    import torch

    edge = torch.cat([frame[0], frame[-1], frame[1:-1, 0], frame[1:-1, -1]])
    return edge.double().mean(0).round().to(torch.uint8)
