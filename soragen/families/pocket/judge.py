"""Says how well a clip shows what a sentence asks for: two readings of the world's attributes, and where they agree.

One reads the coarse channels of a clip's latents, finished or on the way, the other the sentence; both answer with
probabilities for the values of every attribute (training/judge.py). What the sentence leaves open, its reading leaves
open, and it does not count. So of several clips that have only begun the most promising can go on.

Letters: B batch, T latent frames; C channels, of which the first K are coarse; L text tokens, D width of the text.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CELLS = 8
"""To so many on a side the pictures are reduced before they are looked at as a whole."""


@dataclass(frozen=True)
class JudgeConfig:
    """num_still: how many values each attribute has that a picture shows; num_moving: those that only clips do."""

    latent_channels: int = 112
    coarse_channels: int = 16
    width: int = 32
    side: int = 16
    text_width: int = 192
    num_still: tuple[int, ...] = ()
    num_moving: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.side != 2 * CELLS or self.width % 8:
            raise ValueError(f"a judge sees {2 * CELLS} latents on a side, and its width is a multiple of 8: {self}")


class Conv(nn.Linear):
    """A convolution of 3x3 whose weight is a matrix [out, in * 9], as it is trained (training/muon.py)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__(9 * before, after)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight.unflatten(1, (-1, 3, 3)), self.bias, self.stride, 1)


class PocketJudge(nn.Module):
    def __init__(self, config: JudgeConfig) -> None:
        super().__init__()
        self.config = c = config
        w, layers = c.width, list[nn.Module]()
        before = 3 * c.coarse_channels + 2  # three frames, and the place
        for after, stride in ((w, 1), (2 * w, 2), (2 * w, 1), (4 * w, 1), (4 * w, 1)):
            layers += [Conv(before, after, stride), nn.GroupNorm(8, after), nn.ReLU()]
            before = after
        self.latent_std = nn.Parameter(torch.ones(c.latent_channels))
        self.trunk = nn.Sequential(*layers, nn.Conv2d(4 * w, w, 1), nn.ReLU(), nn.Flatten())
        self.look = nn.Sequential(nn.Linear(w * CELLS**2, 8 * w), nn.ReLU(), nn.Dropout(0.1))
        self.watch = nn.Sequential(
            nn.Conv1d(8 * w, 8 * w, 3, padding=1), nn.ReLU(), nn.Conv1d(8 * w, 8 * w, 3, padding=1), nn.ReLU()
        )
        self.still = nn.ModuleList(nn.Linear(8 * w, count) for count in c.num_still)
        self.moving = nn.ModuleList(nn.Linear(16 * w, count) for count in c.num_moving)
        self.asked = nn.ModuleList(nn.Linear(c.text_width, count) for count in (*c.num_still, *c.num_moving))

    def coarse(self, latents: Tensor) -> Tensor:
        """What is seen of latents [B, C, T, h, w]: [B, T, K, 16, 16] of unit spread, of whatever aspect they were."""
        side, count = self.config.side, self.config.coarse_channels
        frames = (latents[:, :count] / self.latent_std[:count].view(1, -1, 1, 1, 1)).transpose(1, 2)
        if frames.shape[-2:] == (side, side):
            return frames
        flat = F.interpolate(frames.flatten(0, 1), (side, side), mode="bilinear", antialias=True, align_corners=False)
        return flat.unflatten(0, frames.shape[:2])

    def forward(self, clips: Tensor) -> list[Tensor]:
        """Logits of every attribute, each [B, values], for clips [B, T, K, 16, 16]; of one frame, those it shows."""
        batch, num_frames = clips.shape[:2]
        before, after = torch.cat([clips[:, :1], clips[:, :-1]], 1), torch.cat([clips[:, 1:], clips[:, -1:]], 1)
        row = torch.linspace(-1, 1, self.config.side).to(clips)
        place = torch.stack(torch.meshgrid(row, row, indexing="ij")).expand(batch, num_frames, -1, -1, -1)
        seen = torch.cat([clips, before - clips, after - clips, place], dim=2).flatten(0, 1)
        seen = self.look(self.trunk(seen.to(memory_format=torch.channels_last))).unflatten(0, (batch, num_frames))
        told = [head(seen).mean(dim=1) for head in self.still]  #        [B, values]
        if num_frames == 1:
            return told
        watched = self.watch(seen.transpose(1, 2))  #                    [B, 8w, T]
        whole = torch.cat([watched.mean(dim=2), watched.amax(dim=2)], dim=1)
        return told + [head(whole) for head in self.moving]

    def read(self, embeddings: Tensor, mask: Tensor) -> list[Tensor]:
        """Logits of every attribute, each [B, values], that sentences ask for; embeddings [B, L, D], mask [B, L]."""
        weight = mask.to(embeddings)[..., None]
        mean = (embeddings * weight).sum(dim=1) / weight.sum(dim=1)
        return [head(mean) for head in self.asked]

    @torch.inference_mode()
    def agreement(self, latents: Tensor, embeddings: Tensor, mask: Tensor) -> Tensor:
        """How well each of clips [B, C, T, h, w] shows the sentence [L, D], mask [L]: [B], at most 0.

        The logarithm of the probability that both readings, drawn apart, name the same values of all attributes, over
        what it would be for a clip that shows the sentence's likeliest ones.
        """
        weight = self.asked[0].get_parameter("weight")
        told = self(self.coarse(latents.float()).to(weight))
        asked = self.read(embeddings[None].to(weight), mask[None].to(weight.device))
        pairs = [(t.float().softmax(1), a.float().softmax(1)) for t, a in zip(told, asked, strict=False)]
        return torch.stack([((t * a).sum(1) / a.amax(1)).log() for t, a in pairs]).sum(dim=0)
