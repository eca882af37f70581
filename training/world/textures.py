"""Tileable random textures, made once per device, and a wrapped bilinear lookup."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

SIZE = 256


@cache
def noise(kind: str, device: str) -> Tensor:
    """Periodic noise [1, 2, SIZE + 1, SIZE + 1], two independent fields of zero mean and unit deviation.

    "cloud": energy falls with frequency (soft blobs). "grain": a band of wavelengths of 5..16 texels (blades, grit).
    """
    g = torch.Generator().manual_seed(20240 if kind == "cloud" else 7)
    spectrum = torch.fft.rfft2(torch.randn(2, SIZE, SIZE, generator=g))
    fy = torch.fft.fftfreq(SIZE)[:, None] * SIZE
    fx = torch.fft.rfftfreq(SIZE)[None, :] * SIZE
    f = torch.sqrt(fx * fx + fy * fy)
    if kind == "cloud":
        shape = (f.clamp_min(1.0) ** -1.75) * torch.exp(-((f / 48) ** 2)) * (f >= 2)
    else:
        shape = torch.exp(-(((f - 30) / 14) ** 2))
    field = torch.fft.irfft2(spectrum * shape, s=(SIZE, SIZE))
    field = (field - field.mean((1, 2), keepdim=True)) / field.std((1, 2), keepdim=True)
    return F.pad(field[None], (0, 1, 0, 1), mode="circular").contiguous().to(device)


def lookup(texture: Tensor, u: Tensor, v: Tensor, channels: int = 1) -> Tensor:
    """Bilinear sample at tile coordinates (one tile = 1.0, wrapped): [channels, *u.shape]."""
    grid = torch.stack([u - u.floor(), v - v.floor()], -1).mul_(2.0).sub_(1.0)
    out = F.grid_sample(texture[:, :channels], grid.reshape(1, 1, -1, 2), mode="bilinear", align_corners=True)
    return out.reshape(channels, *u.shape)


@cache
def star_table(device: str) -> Tensor:
    """Per cell of a 64 x 64 tile: place in the cell (x, y), brightness, warmth: [4, 64, 64]."""
    g = torch.Generator().manual_seed(99)
    table = torch.rand(4, 64, 64, generator=g)
    table[:2] = 0.3 + 0.4 * table[:2]
    table[2] = torch.where(table[2] > 0.58, table[2] ** 3, torch.zeros(()))
    return table.to(device)
