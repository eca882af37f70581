"""LTX-Video's spatial latent upsampler, published since 0.9.7: latents of a clip at twice the height and width.

A large video is denoised at a small size first, its latents are upsampled here, and a second pass of a few steps brings
the detail: `second_pass` in weights.toml. Parameters are named as in the published checkpoints; the numbers agree with
diffusers' `LTXLatentUpsamplerModel` and its pipeline (a test).

Letters: B batch, C channels, T frames, H, W of latents; D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soragen.errors import WeightsError
from soragen.families.ltx_video.keys import vae_naming
from soragen.families.ltx_video.vae import VaeConfig
from soragen.models.config import read_config
from soragen.models.weights import load_module

NUM_GROUPS = 32
WIDE_TENSORS = 4
"""As large as [B, D, T, 2H, 2W], that are there at once: what goes round a block, and what a layer reads and makes."""


@dataclass(frozen=True)
class UpsamplerConfig:
    """The published config.json. Where all checkpoints agree, a field admits that value alone."""

    in_channels: int = 128
    mid_channels: int = 512
    num_blocks_per_stage: int = 4
    dims: Literal[3] = 3
    spatial_upsample: Literal[True] = True
    temporal_upsample: Literal[False] = False

    @property
    def num_weights(self) -> int:
        """About: the convolutions."""
        width = self.mid_channels
        in_blocks = 2 * self.num_blocks_per_stage * 2 * 27 * width**2
        return in_blocks + 2 * 27 * self.in_channels * width + 9 * 4 * width**2

    def activation_bytes(self, frames: int, height: int, width: int) -> int:
        """In float32, for latents of this shape."""
        return 4 * WIDE_TENSORS * self.mid_channels * frames * 2 * height * 2 * width

    def __post_init__(self) -> None:
        if self.mid_channels % NUM_GROUPS:
            raise WeightsError(
                f"a latent upsampler with {self.mid_channels} channels inside", f"they come in {NUM_GROUPS} groups"
            )


class ResidualBlock(nn.Module):
    """Two convolutions in space and time; the input is added before the last activation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(channels, channels, 3, padding=1)
        self.norm1 = nn.GroupNorm(NUM_GROUPS, channels)
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(NUM_GROUPS, channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.norm1(self.conv1(x)))
        return F.silu(self.norm2(self.conv2(y)) + x)


class LatentUpsampler(nn.Module):
    """Latents [B, C, T, H, W] as the VAE's encoder gives them, not normalised, to [B, C, T, 2H, 2W].

    The norms look at the whole clip, so that it is taken at once.
    """

    def __init__(self, config: UpsamplerConfig) -> None:
        super().__init__()
        channels, width, num_blocks = config.in_channels, config.mid_channels, config.num_blocks_per_stage
        self.initial_conv = nn.Conv3d(channels, width, 3, padding=1)
        self.initial_norm = nn.GroupNorm(NUM_GROUPS, width)
        self.res_blocks = nn.ModuleList(ResidualBlock(width) for _ in range(num_blocks))
        self.upsampler = nn.ModuleList([nn.Conv2d(width, 4 * width, 3, padding=1)])
        self.post_upsample_res_blocks = nn.ModuleList(ResidualBlock(width) for _ in range(num_blocks))
        self.final_conv = nn.Conv3d(width, channels, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        x = F.silu(self.initial_norm(self.initial_conv(latents)))  #             [B, D, T, H, W]
        for block in self.res_blocks:
            x = block(x)
        frames = x.transpose(1, 2)  #                                            [B, T, D, H, W]
        frames = self.upsampler[0](frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
        x = F.pixel_shuffle(frames, 2).transpose(1, 2)  #                        [B, D, T, 2H, 2W]
        for block in self.post_upsample_res_blocks:
            x = block(x)
        out: Tensor = self.final_conv(x)
        return out


class LatentStatistics(nn.Module):
    """What latents are normalised by, the only part of a VAE that upsampling needs; each [C], float32."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("latents_mean", torch.empty(channels))
        self.register_buffer("latents_std", torch.empty(channels))
        self.latents_mean: Tensor
        self.latents_std: Tensor


def load_latent_upsampler(folder: Path, device: torch.device, dtype: torch.dtype) -> LatentUpsampler:
    """The network in `folder`, which holds its config.json and weights. Raises WeightsError."""
    config = read_config(folder, UpsamplerConfig)
    return load_module(lambda: LatentUpsampler(config), folder, device=device, dtype=dtype)


def load_latent_statistics(vae: Path, channels: int, device: torch.device) -> LatentStatistics:
    """Those of the VAE in the folder `vae`; its networks are passed over. Raises WeightsError."""
    config = read_config(vae, VaeConfig)
    return load_module(
        lambda: LatentStatistics(channels),
        vae,
        device=device,
        dtype=torch.float32,
        namings=[vae_naming(config)],
        allow_extra=("encoder.", "decoder."),
    )


@torch.inference_mode()
def upsample_latents(
    network: LatentUpsampler,
    statistics: LatentStatistics,
    latents: Tensor,
    *,
    match: float = 1.0,
    tone_map: float = 0.0,
) -> Tensor:
    """Normalised latents [1, C, T, H, W] at twice the height and width, normalised, float32.

    match: how far each channel's mean and spread go back to those of `latents`, 0..1; the authors always take 1.
    tone_map: how much large values are pressed together, 0..1; diffusers' documentation takes .6 for 0.9.8, the
    authors .6 for its 13B alone, on normalised latents before they are decoded.
    Raises ValueError for a factor out of range.
    """
    if not (0 <= match <= 1 and 0 <= tone_map <= 1):
        raise ValueError(f"match {match} and tone_map {tone_map} should be from 0 to 1")
    weight = network.final_conv.weight
    mean, std = (values.to(weight.device)[:, None, None, None] for values in statistics.buffers())
    raw = latents.to(weight.device, torch.float32) * std + mean
    upsampled = network(raw.to(weight.dtype)).float()
    upsampled = torch.lerp(upsampled, match_channels(upsampled, raw), match)
    return (compress(upsampled, tone_map) - mean) / std


def match_channels(latents: Tensor, reference: Tensor) -> Tensor:
    """`latents` with each channel's mean and standard deviation those of `reference`; both [B, C, T, H, W].

    Adaptive instance normalisation (Huang and Belongie, arXiv:1703.06868, eq. 8).
    """
    std, mean = torch.std_mean(latents, dim=(2, 3, 4), keepdim=True)
    wanted_std, wanted_mean = torch.std_mean(reference, dim=(2, 3, 4), keepdim=True)
    return (latents - mean) / std * wanted_std + wanted_mean


def compress(latents: Tensor, amount: float) -> Tensor:
    """Values scaled by 1 - 0.8 a * sigmoid(4 a (|x| - 1)), with a = 0.75 * amount: large ones more than small ones."""
    scale = 0.75 * amount
    return latents * (1 - 0.8 * scale * torch.sigmoid(4 * scale * (latents.abs() - 1)))
