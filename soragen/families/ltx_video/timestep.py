"""How LTX-Video's networks are told a timestep: waves of it through two layers (PixArt-alpha, arXiv:2310.00426)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NUM_WAVES = 256


class TimestepEmbedding(nn.Module):
    """Timesteps [R] in 0..1000 to embeddings [R, D] in the type of the weights."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.timestep_embedder = nn.ModuleDict(
            {"linear_1": nn.Linear(NUM_WAVES, width), "linear_2": nn.Linear(width, width)}
        )

    def forward(self, timesteps: Tensor) -> Tensor:
        linear_1, linear_2 = self.timestep_embedder.values()
        assert isinstance(linear_1, nn.Linear)
        x: Tensor = linear_2(F.silu(linear_1(waves(timesteps).to(linear_1.weight.dtype))))
        return x


def waves(timesteps: Tensor) -> Tensor:
    """[R, 256] of timesteps [R]: cosines, then sines, of 1 to 1/10000 radians per unit; float32."""
    half = NUM_WAVES // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=timesteps.device) / half)
    angle = timesteps[:, None].float() * frequencies
    return torch.cat([angle.cos(), angle.sin()], dim=-1)
