"""Noise levels from pure noise to clean latents.

At a level, noisy latents are `alpha * clean + sigma * noise`. Flow matching (Lipman et al., arXiv:2210.02747; Liu et
al., arXiv:2209.03003) has alpha = 1 - sigma, and large videos need more steps near pure noise: the shift
`s' = shift * s / (1 + (shift - 1) * s)` (Esser et al., arXiv:2403.03206) moves them there.

Published checkpoints were tuned with the tables of diffusers' schedulers, quirks included. Each function here gives one
of those tables; the quirks are named where they are.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass

from soragen.errors import InputError

TRAIN_TIMESTEPS = 1000


@dataclass(frozen=True)
class NoiseLevel:
    """x = alpha * clean + sigma * noise, both in 0..1; `timestep`, in 0..1000, is what the transformer is told."""

    alpha: float
    sigma: float
    timestep: float


Schedule = tuple[NoiseLevel, ...]
"""num_steps + 1 levels of falling sigma; the last one is clean: alpha 1, sigma 0."""


def flow(num_steps: int, shift: float) -> Schedule:
    """Sigmas evenly spaced from 1 to 0, shifted once."""
    _check(num_steps, shift)
    return _levels([_shifted(1 - step / num_steps, shift) for step in range(num_steps)])


def flow_shifted_twice(num_steps: int, shift: float) -> Schedule:
    """The table of FlowMatchEulerDiscreteScheduler with a fixed shift.

    That scheduler spaces sigmas evenly from 1 to an already shifted 1/1000 and shifts them again, so with a shift of 3
    and five steps the last one starts at sigma .00893, not .003. With a shift of 1 nothing is doubled.
    """
    _check(num_steps, shift)
    last = _shifted(1 / TRAIN_TIMESTEPS, shift)
    return _levels([_shifted(sigma, shift) for sigma in _linspace(1, last, num_steps)])


@dataclass(frozen=True)
class DynamicShift:
    """A shift of exp(mu), with mu on the line through (base_tokens, base_shift) and (max_tokens, max_shift), also past
    its ends.

    terminal: the sigmas are stretched so that the last step starts there. The defaults are those of LTX-Video 0.9.
    """

    base_shift: float = 0.95
    max_shift: float = 2.05
    base_tokens: int = 1024
    max_tokens: int = 4096
    terminal: float | None = 0.1

    def mu(self, num_tokens: int) -> float:
        slope = (self.max_shift - self.base_shift) / (self.max_tokens - self.base_tokens)
        return self.base_shift + slope * (num_tokens - self.base_tokens)


def flow_dynamic(num_steps: int, num_tokens: int, dynamic: DynamicShift) -> Schedule:
    """FlowMatchEulerDiscreteScheduler's table with a shift that grows with the video, from sigmas 1 .. 1/num_steps.

    Alphas are shifted and stretched in place of sigmas: those of a large video lie so near to 1 that their differences
    drown in rounding, to the reference's division by zero. A single step cannot both begin at 1 and at the terminal
    (there the reference divides by zero, too): it begins at 1.
    """
    _check(num_steps)
    shift = math.exp(min(dynamic.mu(num_tokens), 100.0))  # a stretched table no longer changes long before
    sigmas = _linspace(1, 1 / num_steps, num_steps)
    alphas = [(1 - sigma) / (1 + (shift - 1) * sigma) for sigma in sigmas]
    if dynamic.terminal is not None and num_steps > 1:
        stretch = (1 - dynamic.terminal) / alphas[-1]
        alphas = [alpha * stretch for alpha in alphas]
    return _levels([1 - alpha for alpha in alphas])


def flow_truncated(num_steps: int, shift: float) -> Schedule:
    """The table of UniPCMultistepScheduler with flow sigmas, which the Wan checkpoints are sampled with.

    The first sigma is 1 - 1e-6, so that its logarithm of the signal-to-noise ratio is finite. Timesteps are cut to
    whole numbers (999, not 1000), and the transformer is told those. Sigmas are rounded to float32, as the scheduler
    holds them: 1e-6 below 1 that changes alpha by a whole percent, which the solver sees.
    """
    _check(num_steps, shift)
    sigmas = [_shifted(sigma, shift) for sigma in _linspace(1, 1 / TRAIN_TIMESTEPS, num_steps + 1)[:-1]]
    sigmas[0] -= 1e-6
    return _levels(
        [ctypes.c_float(sigma).value for sigma in sigmas],
        [float(int(sigma * TRAIN_TIMESTEPS)) for sigma in sigmas],
    )


def linear_quadratic(num_steps: int, threshold: float = 0.025, *, rising_timesteps: bool = False) -> Schedule:
    """Half of the steps fall evenly by `threshold` in all, the other half by growing strides.

    From Movie Gen (arXiv:2410.13720), as Mochi and LTX-Video 0.9.5 use it. `rising_timesteps`: the
    transformer is told 1000 * alpha, which Mochi was trained with.
    """
    _check(num_steps)
    num_linear = num_steps // 2
    num_quadratic = num_steps - num_linear
    sigmas = [1 - threshold * step / num_linear for step in range(num_linear)]
    # The parabola starts where the line ends, with the line's slope, and reaches sigma 0 in num_quadratic steps.
    slope = threshold / num_linear if num_linear else 0.0
    start = threshold if num_linear else 0.0
    bend = (1 - start - slope * num_quadratic) / num_quadratic**2
    sigmas += [1 - (start + slope * step + bend * step**2) for step in range(num_quadratic)]
    timesteps = [TRAIN_TIMESTEPS * (1 - sigma) for sigma in sigmas] if rising_timesteps else None
    return _levels(sigmas, timesteps)


def listed(timesteps: Sequence[float]) -> Schedule:
    """Falling timesteps in 0..1000 as a distilled checkpoint publishes them, unshifted; a final 0 may be left out."""
    steps = [timestep for timestep in timesteps if timestep > 0]
    _check(len(steps))
    return _levels([timestep / TRAIN_TIMESTEPS for timestep in steps])


def make_schedule(
    kind: str, num_steps: int, shift: float, num_tokens: int, timesteps: Sequence[float] = ()
) -> Schedule:
    """The table that weights.toml calls `kind`; timesteps: those of "listed".

    Raises InputError for steps or a shift that make none.
    """
    match kind:
        case "flow":
            return flow(num_steps, shift)
        case "flow_shifted_twice":
            return flow_shifted_twice(num_steps, shift)
        case "flow_truncated":
            return flow_truncated(num_steps, shift)
        case "flow_dynamic":
            return flow_dynamic(num_steps, num_tokens, DynamicShift())
        case "linear_quadratic":
            return linear_quadratic(num_steps)
        case "listed":
            if num_steps != len(timesteps):
                raise InputError(
                    f"{num_steps} steps were asked for, this model was distilled to {len(timesteps)}",
                    f"leave --steps out, or use --steps {len(timesteps)}",
                )
            return listed(timesteps)
    raise ValueError(f"no schedule is called {kind!r}")


def _levels(sigmas: Sequence[float], timesteps: Sequence[float] | None = None) -> Schedule:
    """Flow levels with the clean one appended. Raises InputError where two sigmas coincide: no step leads anywhere."""
    if not all(before > after for before, after in zip(sigmas, [*sigmas[1:], 0.0], strict=True)):
        raise InputError(
            "the noise levels of this schedule do not fall from step to step",
            "use fewer steps, or a shift nearer to 1",
        )
    if timesteps is None:
        timesteps = [TRAIN_TIMESTEPS * sigma for sigma in sigmas]
    noisy = (NoiseLevel(1 - sigma, sigma, timestep) for sigma, timestep in zip(sigmas, timesteps, strict=True))
    return (*noisy, NoiseLevel(1.0, 0.0, 0.0))


def noisier(level: NoiseLevel, shift: float) -> NoiseLevel:
    """The level whose ratio of noise to signal is `shift` times that of `level`, of the flow `1 - sigma, sigma`.

    To tell a network of it in place of `level` is a cure for exposure bias: in training what is left below the noise is
    true, here it is what earlier steps made of it ("shifted time steps", Li et al., arXiv:2305.15583).
    """
    sigma = _shifted(level.sigma, shift)
    return NoiseLevel(1 - sigma, sigma, 1000 * sigma)


def _shifted(sigma: float, shift: float) -> float:
    return min(1.0, shift * sigma / (1 + (shift - 1) * sigma))  # rounding may pass 1


def _linspace(first: float, last: float, count: int) -> list[float]:
    """`count` evenly spaced values; in numpy's order of operations, so that cutting to whole numbers agrees."""
    stride = (last - first) / max(count - 1, 1)
    return [index * stride + first for index in range(count)]


def _check(num_steps: int, shift: float = 1.0) -> None:
    if num_steps < 1:
        raise InputError(f"{num_steps} steps cannot make a video", "use at least 1 step, such as --steps 20")
    if not 0.001 <= shift <= 1000:
        raise InputError(f"shift {shift} is not between 0.001 and 1000", "models are made for shifts from 1 to 12")
