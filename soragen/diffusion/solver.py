"""Solvers: from noisy latents and a clean estimate at one level to latents at the next.

They work on clean estimates, so the same lines serve flow matching, v-prediction and noise prediction. Coefficients are
computed in Python's float64 and applied to float32 latents.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from soragen.diffusion.renoise import Renoise
from soragen.diffusion.schedule import NoiseLevel, Schedule
from soragen.errors import InputError


class Solver(Protocol):
    def step(self, index: int, latents: Tensor, clean: Tensor) -> Tensor:
        """`latents` at level index + 1, from those at level `index` and their clean estimate.

        Indices come in order: a solver may remember the steps before. One that does not follow starts anew.
        """
        ...


class Euler:
    """The first-order step of the probability-flow equation; for flow, `latents + (sigma' - sigma) * velocity`.

    With noise = (latents - alpha * clean) / sigma, the next latents are alpha' * clean + sigma' * noise: a DDIM step
    (Song et al., arXiv:2010.02502, eq. 12 with eta = 0).
    """

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule

    def step(self, index: int, latents: Tensor, clean: Tensor) -> Tensor:
        level, following = self._schedule[index], self._schedule[index + 1]
        kept = following.sigma / level.sigma
        return kept * latents + (following.alpha - kept * level.alpha) * clean


class UniPC:
    """UniPC-2 with B(h) = exp(h) - 1 ("bh2") on clean estimates (Zhao et al., arXiv:2302.04867).

    Each new estimate first corrects the step that led to it, then a predictor goes on from there: one estimate a step.
    The first and the last step are of order 1, as there is one estimate only and as the last level has no noise. An
    index that does not follow the one before it is a first step.
    """

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._log_snr = [_log_snr(level) for level in schedule]
        self._latents: Tensor | None = None  # where the last prediction started
        self._estimates: list[Tensor] = []  # the last two clean estimates, oldest first
        self._next = 0  # the index that follows the last one

    def step(self, index: int, latents: Tensor, clean: Tensor) -> Tensor:
        if index != self._next or self._latents is None:
            self._estimates = []
        else:
            latents = self._correct(index - 1, self._latents, clean)
        self._latents, self._next = latents, index + 1
        self._estimates = [*self._estimates[-1:], clean]
        return self._predict(index, latents)

    def _predict(self, index: int, latents: Tensor) -> Tensor:
        """The next latents, from estimates at this level and the one before."""
        current = self._estimates[-1]
        if self._order(index) == 1:
            return self._advance(index, latents, current)
        past = 0.5 / self._past_ratio(index)
        return self._advance(index, latents, current + past * (self._estimates[-2] - current))

    def _correct(self, index: int, latents: Tensor, following: Tensor) -> Tensor:
        """The step from level `index` taken again, now that the estimate `following` at its end is known."""
        current = self._estimates[-1]
        if self._order(index) == 1:
            return self._advance(index, latents, current + 0.5 * (following - current))
        # The two weights solve the order conditions R(h) a = b(h) of the paper, here 2 x 2 and solved by hand.
        h = self._log_snr[index + 1] - self._log_snr[index]
        growth = math.expm1(-h)
        phi_1 = -growth / h - 1
        phi_2 = -phi_1 / h - 0.5
        first, second = phi_1 / growth, 2 * phi_2 / growth
        ratio = self._past_ratio(index)
        past = (first - second) / (1 - ratio)
        change = past / ratio * (self._estimates[-2] - current) + (first - past) * (following - current)
        return self._advance(index, latents, current + change)

    def _advance(self, index: int, latents: Tensor, clean: Tensor) -> Tensor:
        """The exact solution over one step if the clean estimate were constant along it."""
        level, following = self._schedule[index], self._schedule[index + 1]
        growth = math.expm1(self._log_snr[index] - self._log_snr[index + 1])
        return following.sigma / level.sigma * latents - following.alpha * growth * clean

    def _order(self, index: int) -> int:
        return 1 if len(self._estimates) == 1 or index == len(self._schedule) - 2 else 2

    def _past_ratio(self, index: int) -> float:
        """The step before level `index` in units of the step after it, negative; minus infinity from pure noise."""
        before, level, after = self._log_snr[index - 1 : index + 2]
        return (before - level) / (after - level)


SOLVERS: dict[str, Callable[[Schedule, int], Solver]] = {
    "euler": lambda schedule, seed: Euler(schedule),
    "unipc": lambda schedule, seed: UniPC(schedule),
    "renoise": Renoise,
}


def make_solver(name: str, schedule: Schedule, seed: int = 0) -> Solver:
    """seed: the video's, for a solver that draws noise; others pass over it.

    Raises InputError for a name that is not in SOLVERS.
    """
    if name not in SOLVERS:
        raise InputError(f"there is no solver {name!r}", f"use one of: {', '.join(SOLVERS)}")
    return SOLVERS[name](schedule, seed)


def _log_snr(level: NoiseLevel) -> float:
    """log(alpha / sigma), half the logarithm of the signal-to-noise ratio: from -inf, pure noise, to inf, clean."""
    if level.alpha == 0:
        return -math.inf
    return math.inf if level.sigma == 0 else math.log(level.alpha) - math.log(level.sigma)
