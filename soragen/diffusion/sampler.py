"""The one denoising loop."""

from __future__ import annotations

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
    noise_latents: Tensor,
    schedule: Schedule,
    solver: Solver,
    known: KnownFrames | None = None,
) -> Iterator[Step]:
    """Walk `noise_latents` [B, C, T, H, W] down `schedule` with a `solver` made for it, yielding after each step.

    The latents of the last step are the result; known frames come back in it exactly as they were given.
    Raises NumericalError at the first clean estimate that is not finite. Nothing runs ahead of its consumer: to stop
    between two steps, stop iterating.
    """
    num_steps = len(schedule) - 1
    latents = noise_latents.float()
    for index in range(num_steps):
        # Entered for each step, never across a yield: it would leak into the consumer's code.
        with torch.inference_mode():
            latents, clean = _step(denoiser, latents, noise_latents, schedule, index, solver, known)
        yield Step(index, num_steps, schedule[index + 1], latents, clean)


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
