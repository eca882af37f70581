"""What denoises, how it is pushed towards the prompt, what it is told of the noise, and how it is held by a video."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from soragen.diffusion.schedule import NoiseLevel


class Denoiser(Protocol):
    """A transformer bound to one prompt and one grid: what does not change from step to step is computed already."""

    def __call__(self, latents: Tensor, level: NoiseLevel, mask: Tensor | None = None) -> Tensor:
        """The clean estimate [B, C, T, H, W] for noisy `latents` of the same shape.

        mask: [T], 1 = free, 0 = known (those frames are clean already, at timestep 0). Only families whose checkpoint
        takes known frames natively are given one.
        """
        ...


Scale = float | Callable[[NoiseLevel], float]
"""How far to push; one number, or another one at each noise level."""


def guided(cond: Denoiser, uncond: Denoiser | None, scale: Scale) -> Denoiser:
    """Classifier-free guidance (Ho and Salimans, arXiv:2207.12598): uncond + scale * (cond - uncond), in float32.

    The clean estimate is a fixed affine function of the velocity (or noise) at each level, and the weights sum to one,
    so guiding estimates equals guiding velocities. Where the scale is 1 there is no guidance: `uncond` is not called.
    Raises ValueError for another scale without `uncond`.
    """
    if scale == 1:
        return cond
    if uncond is None:
        raise ValueError("guidance needs an unconditional denoiser")

    def guided_denoiser(latents: Tensor, level: NoiseLevel, mask: Tensor | None = None) -> Tensor:
        here = scale(level) if callable(scale) else scale
        towards = cond(latents, level, mask).float()
        if here == 1:
            return towards
        away = uncond(latents, level, mask).float()
        return away + here * (towards - away)

    return guided_denoiser


def doubting(denoiser: Denoiser, told: Callable[[NoiseLevel, bool], NoiseLevel]) -> Denoiser:
    """A denoiser that is told of another noise level than there is.

    told: from the level that there is, and whether some frames are given, to the one that is told.
    """

    def doubting_denoiser(latents: Tensor, level: NoiseLevel, mask: Tensor | None = None) -> Tensor:
        return denoiser(latents, told(level, mask is not None), mask)

    return doubting_denoiser


def held(denoiser: Denoiser, uncond: Denoiser, source: Tensor, noise: Tensor, share: float) -> Denoiser:
    """A denoiser that keeps what it does not understand of `source`: a `share` (0..1) of it.

    `uncond` sees the source alone, as noisy as the step is, and what it misses of that is added to the clean estimate:
    where the prompt asks for nothing else, both networks err alike, and the source comes back. With a share of 1 and
    Euler's steps this is FlowEdit (Kulikov et al., arXiv:2412.08629, algorithm 1 with one noise): its
    z_edit + z_src - x_src are the noisy latents here. Said of clean estimates it fits every schedule and solver.

    source, noise: [B, C, T, H, W]; those of which the latents of the first step were mixed.
    """

    def held_denoiser(latents: Tensor, level: NoiseLevel, mask: Tensor | None = None) -> Tensor:
        noisy = level.alpha * source + level.sigma * noise
        if mask is not None:
            noisy = torch.where(mask.bool()[:, None, None], noisy, source)
        missed = source - uncond(noisy, level, mask).float()
        return denoiser(latents, level, mask).float() + share * missed

    return held_denoiser
