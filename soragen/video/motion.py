"""How much a video changes from frame to frame, and how well a loop closes. One frame is held at a time, and the first.

A difference is the mean over all pixels and colours of |a - b|, on the scale 0..1.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from soragen.errors import SoragenError

if TYPE_CHECKING:
    from torch import Tensor

_LEAST = 1 / 255 / 1000  # a still clip: what counts as a change at all, a thousandth of a level


def difference(one: Tensor, other: Tensor) -> float:
    """The mean absolute difference of two frames [H, W, 3] uint8, in 0..1."""
    # whole numbers are summed in 64 bits
    return float((one.short() - other.short()).abs().sum()) / (255 * one.numel())


def differences(frames: Iterable[Tensor]) -> list[float]:
    """Of each two neighbours among frames that come in chunks [t, H, W, 3] uint8: one number fewer than frames."""
    found: list[float] = []
    before: Tensor | None = None
    for frame in _each(frames):
        if before is not None:
            found.append(difference(before, frame))
        before = frame
    return found


def seam_score(frames: Iterable[Tensor]) -> float:
    """How visible the step from the last frame back to the first is in a loop: 1 or less is seamless.

    The difference of last and first frame over the median difference of neighbours. A clip in which nothing moves has
    0. frames: chunks [t, H, W, 3] uint8, two frames at the least; SoragenError for fewer.
    """
    first: Tensor | None = None
    last: Tensor | None = None
    steps: list[float] = []
    for frame in _each(frames):
        if last is None:
            first = frame
        else:
            steps.append(difference(last, frame))
        last = frame
    if first is None or last is None or not steps:
        raise SoragenError("a seam needs two frames")
    seam = difference(last, first)
    return seam / max(statistics.median(steps), _LEAST)


def _each(chunks: Iterable[Tensor]) -> Iterator[Tensor]:
    """Frames one by one. Those that are kept longer than their chunk, its first and last, have memory of their own."""
    for chunk in chunks:
        for number, frame in enumerate(chunk):
            yield frame.clone() if number in (0, len(chunk) - 1) else frame
