"""The one denoising loop."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from soragen.diffusion.condition import KnownFrames
from soragen.diffusion.guidance import Denoiser
from soragen.diffusion.schedule import NoiseLevel, Schedule
from soragen.diffusion.solver import Solver
from soragen.errors import NumericalError


@dataclass(frozen=True, eq=False)
class Step:
    """Step `index` (from 0) of `num_steps` is done: `latents` [B, C, T, H, W] float32 have reached `level`.

    clean: what the denoiser believes the end to be, of the same shape.
    """

    index: int
    num_steps: int
    level: NoiseLevel
    latents: Tensor
    clean: Tensor


def denoise(
    denoiser: Denoiser,
    latents: Tensor,
    schedule: Schedule,
    solver: Solver,
    known: KnownFrames | None = None,
    *,
    first_step: int = 0,
    noise: Tensor | None = None,
    seed: int = 0,
) -> Iterator[Step]:
    """Walk `latents` [B, C, T, H, W] down `schedule` with a `solver` made for it, yielding after each step.

    first_step: the level at which `latents` lie: 0 for pure noise; a later one, for clean latents that were mixed with
    noise to it, keeps the more of them the later it is (SDEdit, Meng et al., arXiv:2108.01073).
    noise: what known frames that are not native are mixed with, of the shape of `latents`; needed with a first step.
    seed: of the noise that leads back to a level where steps are repeated (see `KnownFrames`).

    The latents of the last step are the result; known frames come back in it exactly as they were given.
    Raises NumericalError at the first clean estimate that is not finite. Nothing runs ahead of its consumer: to stop
    between two steps, stop iterating.
    """
    num_steps = len(schedule) - 1
    if not 0 <= first_step < num_steps:
        raise ValueError(f"the first step is {first_step} of {num_steps}")
    if noise is None and first_step and known is not None and not known.native:
        raise ValueError("known frames need the noise to be mixed with where the latents are not noise")
    noise = latents.float() if noise is None else noise.float()
    latents = latents.float()
    # One of its own: that of the seed itself drew the noise which the video, and some solvers, start from.
    own_seed = int(torch.randint(2**63 - 1, (), generator=torch.Generator("cpu").manual_seed(seed)))
    generator = torch.Generator("cpu").manual_seed(own_seed)
    repeats = 1 if known is None or known.native else known.repeats
    for index in range(first_step, num_steps):
        # Entered for each step, never across a yield: it would leak into the consumer's code.
        with torch.inference_mode():
            for left in reversed(range(_times(repeats, index, num_steps))):
                latents, clean = _step(denoiser, latents, noise, schedule, index, solver, known)
                if left:
                    latents = _back(latents, schedule[index + 1], schedule[index], generator)
        yield Step(index, num_steps, schedule[index + 1], latents, clean)


def num_forwards(num_steps: int, first_step: int = 0, repeats: int = 1) -> int:
    """How often `denoise` asks its denoiser. repeats: of known frames that are not native, see `KnownFrames`."""
    return sum(_times(repeats, index, num_steps) for index in range(first_step, num_steps))


def _times(repeats: int, index: int, num_steps: int) -> int:
    """How often step `index` is taken. The way back to the first level would leave nothing of what was made."""
    return repeats if 0 < index < num_steps / 2 else 1


def _back(latents: Tensor, here: NoiseLevel, to: NoiseLevel, generator: torch.Generator) -> Tensor:
    """`latents` at level `here` with as much noise added as leads back to level `to`, drawn on the CPU.

    For x = alpha * clean + sigma * n: x' = r x + s n', with r = alpha' / alpha and s^2 = sigma'^2 - (r sigma)^2
    (Lugmayr et al., arXiv:2201.09865, section 4.2, for any schedule).
    """
    kept = to.alpha / here.alpha
    noise = torch.randn(latents.shape, generator=generator).to(latents.device)
    return kept * latents + math.sqrt(to.sigma**2 - (kept * here.sigma) ** 2) * noise


def _step(
    denoiser: Denoiser,
    latents: Tensor,
    noise: Tensor,
    schedule: Schedule,
    index: int,
    solver: Solver,
    known: KnownFrames | None,
) -> tuple[Tensor, Tensor]:
    """(latents at the next level, clean estimate at this one)."""
    level = schedule[index]
    mask = known.mask if known is not None and known.native else None
    if known is not None:
        latents = known.put_into(latents) if known.native else known.put_noisy_into(latents, noise, level)
    clean = denoiser(latents, level, mask).float()
    if not torch.isfinite(clean).all():
        raise NumericalError(
            f"the transformer gave values that are not finite at denoising step {index + 1} of {len(schedule) - 1}",
            "try --dtype float32, or a lower --guidance",
        )
    if known is not None:
        clean = known.put_into(clean)  # so that the last step, which leaves no noise, returns them exactly
    latents = solver.step(index, latents, clean)
    if known is not None and known.native:
        latents = known.put_into(latents)
    return latents, clean
