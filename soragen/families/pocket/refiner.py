"""Tells the fine of pocket's latents, detail and movement, from the coarse: a network that goes over what was denoised.

The first channels of a latent frame say in coarse lines what is seen, the next ones in fine lines, and the last how its
four frames differ from their mean. The transformer draws all of them from noise, and where it is not sure it draws
speckle, and movement that does not lead to the next frame. But most of the fine follows from the coarse: an outline
from the lines beside it, a movement from where a thing was and will be. So once all is denoised a small convolutional
network, taught on renders by `training/refiner.py`, tells it anew for the frames that were made. Beside a frame that
was given it sees the fine of that one as well, so that texture and movement go on from there.

Letters: B batch, T latent frames, H, W latents; C channels, of which the first K are coarse.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soragen.families.pocket.upscaler import Block

STRENGTH = 1.25
"""How much of the fine is used that is told. That is a mean of all that may be, and so is fainter than any of it."""


@dataclass(frozen=True)
class RefinerConfig:
    latent_channels: int = 160
    coarse_channels: int = 16
    width: int = 128
    num_blocks: int = 3


class NormedBlock(Block):
    """The upscaler's, behind a norm: latents differ more in strength than pixels do."""

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.conv2(F.silu(self.conv1(F.silu(F.group_norm(x, 1)))))
        return x + change


class PocketRefiner(nn.Module):
    def __init__(self, config: RefinerConfig) -> None:
        super().__init__()
        self.config = c = config
        self.latent_std = nn.Parameter(torch.ones(c.latent_channels))
        num_fine = c.latent_channels - c.coarse_channels
        self.conv_in = nn.Conv2d(3 * c.coarse_channels + 3 + 2 * num_fine + 2, c.width, 3, padding=1)
        self.blocks = nn.Sequential(*(NormedBlock(c.width) for _ in range(c.num_blocks)))
        self.conv_out = nn.Conv2d(c.width, num_fine, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)  # type: ignore[arg-type]

    def look(self, latents: Tensor, free: Tensor, k: int) -> Tensor:
        """What is seen for latent frame `k` of a video: [B, 3K + 3 + 2F + 2, H, W], of latents [B, C, T, H, W].

        Its coarse channels; those of the frames before and after, as what they are more; whether it is the first, which
        holds a single frame, follows that one, or is the last of several. Then the F fine channels of the frames before
        and after, and whether they are known: zeros where they are not. free [B, T]: 0 for a given frame.
        """
        num_coarse, last = self.config.coarse_channels, latents.shape[2] - 1
        beside, spread = (max(k - 1, 0), min(k + 1, last)), self.latent_std.view(1, -1, 1, 1).to(latents)
        frames = [latents[:, :, n] / spread for n in (k, *beside)]
        now, before, after = (frame[:, :num_coarse] for frame in frames)
        edge = torch.ones_like(now[:, :1])
        edges = [edge * (k == 0), edge * (k == 1), edge * (0 < k == last)]  # a picture is a first frame that stays
        known = [(n != k) * (1 - free[:, n]).to(now).view(-1, 1, 1, 1) * edge for n in beside]
        fine = [frame[:, num_coarse:] * share for frame, share in zip(frames[1:], known, strict=True)]
        return torch.cat([now, before - now, after - now, *edges, *fine, *known], dim=1)

    def forward(self, seen: Tensor) -> Tensor:
        """Fine channels [B, F, H, W] in units of `latent_std`, as `look` sees all, of what it has seen."""
        x = self.conv_in(seen.to(self.conv_in.weight.dtype, memory_format=torch.channels_last))
        told: Tensor = self.conv_out(F.silu(self.blocks(x)))
        return told.float()

    @torch.inference_mode()
    def refine(self, latents: Tensor, made: Tensor) -> Tensor:
        """Tells the fine channels of latents [B, C, T, H, W], float32, anew in the frames that `made` [T] names.

        In place: what is told depends on the coarse channels alone, and on the fine ones of the other frames.
        """
        num_coarse, free = self.config.coarse_channels, made.to(latents)[None]
        spread = self.latent_std[num_coarse:].view(1, -1, 1, 1).to(latents)
        for k in range(latents.shape[2]):
            if made[k]:
                latents[:, num_coarse:, k] = STRENGTH * self(self.look(latents, free, k)) * spread
        return latents
