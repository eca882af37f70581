"""Pocket's upscaler: twice the height and width, one frame at a time, learned on renders by `training/upscaler.py`.

A residual network (Lim et al. 2017, EDSR without its norms) at the small frame's size, shuffled into the large one at
the end (Shi et al. 2016), adds what bicubic enlargement cannot know. It is zero before training, so a new network is
bicubic enlargement. A frame is enlarged alone: what stands still stays still, and a stream is exact.

Letters: B batch, C channels, H, W pixels of the small frame.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FACTOR = 2
DETAIL = 8.0
"""How much a pixel's difference from its neighbourhood is magnified: outlines are a small part of what a pixel is."""
RESIDUAL = 0.1
"""What one unit of the network adds to a pixel. At 1 a step of the optimizer moves pixels far more than they lack."""


@dataclass(frozen=True)
class UpscalerConfig:
    width: int = 32
    num_blocks: int = 4

    def __post_init__(self) -> None:
        if self.width < 1 or self.num_blocks < 1:
            raise ValueError(f"an upscaler has a width and blocks: {self}")


class Block(nn.Module):
    """Two convolutions beside the identity; nothing at the start of training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.conv2(F.silu(self.conv1(F.silu(x))))
        return x + change


class PocketUpscaler(nn.Module):
    """See `soragen.models.family.Upscaler`: called with chunks of frames, it gives them back enlarged."""

    factor = FACTOR

    def __init__(self, config: UpscalerConfig) -> None:
        super().__init__()
        self.config = config
        self.conv_in = nn.Conv2d(2 * 3, config.width, 3, padding=1)
        self.blocks = nn.Sequential(*(Block(config.width) for _ in range(config.num_blocks)))
        self.conv_out = nn.Conv2d(config.width, 3 * FACTOR**2, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)  # type: ignore[arg-type]

    def enlarge(self, frames: Tensor) -> Tensor:
        """Frames [B, 3, H, W] in 0..1 -> float32 [B, 3, 2H, 2W], not clamped."""
        frames = frames.float()
        around = F.avg_pool2d(F.pad(frames, (2, 2, 2, 2), mode="replicate"), 5, stride=1)
        x = torch.cat([frames * 2 - 1, (frames - around) * DETAIL], dim=1)  # [B, 6, H, W]
        x = self.conv_in(x.to(self.conv_in.weight.dtype, memory_format=torch.channels_last))
        x = self.conv_out(F.silu(self.blocks(x)))  #                     [B, 12, H, W]
        residual = F.pixel_shuffle(x.float(), FACTOR) * RESIDUAL
        return F.interpolate(frames, scale_factor=FACTOR, mode="bicubic") + residual

    def forward(self, frames: Iterable[Tensor]) -> Iterator[Tensor]:
        """Chunks [t, 2H, 2W, 3] in 0..1 on the CPU of chunks [t, H, W, 3] in 0..1; memory is that of one frame."""
        for chunk in frames:
            with torch.inference_mode():
                small = chunk.to(self.conv_in.weight.device).permute(0, 3, 1, 2)
                large = torch.cat([self.enlarge(frame) for frame in torch.split(small, 1)])
                large = large.clamp(0, 1).permute(0, 2, 3, 1).float().cpu()
            yield large
