"""What drifts first where one video continues another: the mean and standard deviation of each latent channel.

Giving latents those of other latents is adaptive instance normalisation (AdaIN, Huang and Belongie, arXiv:1703.06868).
"""

from __future__ import annotations

import torch
from torch import Tensor

CONTINUED = 0.5
"""How far what doubts (docs/decisions/0019) is pulled to what it continues: a sentence may ask for something else."""
MOST_SCALE = 2.0
"""A channel is never stretched by more, nor squeezed by more than its inverse: something may truly appear or go."""


def pulled(latents: Tensor, first: Tensor, pull: float, *, contrast: bool = True, backward: bool = False) -> Tensor:
    """`latents` [B, C, T, H, W] with the mean of each channel, frame by frame, on the way to that of `first`.

    How far grows evenly from frame to frame, up to `pull` in the last one, or in the first where it goes `backward`.
    contrast: the deviation of each channel goes the same way.

    first: [B, C, t, H, W], of the same video. Its mean and deviation are those over time and place.
    """
    deviation, mean = torch.std_mean(latents, dim=(3, 4), correction=0, keepdim=True)
    first_deviation, first_mean = torch.std_mean(first, dim=(2, 3, 4), correction=0, keepdim=True)
    scale = torch.ones_like(deviation)
    if contrast:
        scale = (first_deviation / deviation.clamp(min=1e-6)).clamp(1 / MOST_SCALE, MOST_SCALE)
    count = latents.shape[2]
    share = torch.arange(1, count + 1).to(latents).view(-1, 1, 1) * (pull / count)
    return torch.lerp(latents, (latents - mean) * scale + first_mean, share.flip(0) if backward else share)
