"""The noise a video starts from, given by its seed alone."""

from __future__ import annotations

import torch
from torch import Tensor

from soragen.diffusion.grid import Grid
from soragen.errors import InputError


def starting_noise(seed: int, channels: int, grid: Grid) -> Tensor:
    """Standard normal latents [1, C, T, H, W], float32.

    Always drawn on the CPU, in one call and in this order of axes, so that a seed gives the same noise for every device
    and precision, and the same as diffusers' video pipelines draw from a CPU generator.
    """
    if not 0 <= seed < 2**64:
        raise InputError(f"seed {seed} is out of range", "use a whole number from 0 to 2**64 - 1")
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn((1, channels, *grid.latent_shape), generator=generator, dtype=torch.float32)
