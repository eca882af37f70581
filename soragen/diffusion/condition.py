"""Frames that are given: extending, looping, animating and connecting videos differ in their mask alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from soragen.diffusion.schedule import NoiseLevel


@dataclass(frozen=True, eq=False)
class KnownFrames:
    """Latent frames that are given, clean.

    latents: [B, C, T, H, W], of any finite value where free. mask: [T], 1 = free, 0 = known.
    native: the checkpoint was trained with clean known frames among noisy ones, told apart by the mask. Where it was
    not, the transformer sees known frames as noisy as the free ones (RePaint, Lugmayr et al., arXiv:2201.09865).
    repeats: how often a step in the noisier half of the levels is taken where they are not native: after each time but
    the last, noise leads back to the level before, so that the free frames find their way to the known ones.
    """

    latents: Tensor
    mask: Tensor
    native: bool
    repeats: int = 1

    def __post_init__(self) -> None:
        if self.latents.ndim != 5 or self.mask.shape != self.latents.shape[2:3]:
            raise ValueError(f"a mask {tuple(self.mask.shape)} does not fit latents {tuple(self.latents.shape)}")
        if self.repeats < 1:
            raise ValueError(f"a step cannot be taken {self.repeats} times")

    def put_into(self, latents: Tensor) -> Tensor:
        """`latents` [B, C, T, H, W] with the known frames in their place, clean."""
        return torch.where(self._free, latents, self.latents)

    def put_noisy_into(self, latents: Tensor, noise: Tensor, level: NoiseLevel) -> Tensor:
        """`latents` at `level` with the known frames in their place, mixed with `noise` to the same level."""
        return torch.where(self._free, latents, level.alpha * self.latents + level.sigma * noise)

    @property
    def _free(self) -> Tensor:
        return self.mask.bool()[:, None, None]  # [T, 1, 1]
