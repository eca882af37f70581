"""Wan's video compression network, versions 2.1 (strides 4 x 8 x 8, 16 channels) and 2.2 (4 x 16 x 16, 48 channels).

The first frame becomes a latent frame of its own, every four after it another one; both directions are exact streams
(see `vae_layers`). Version 2.2 folds patches of 2 x 2 pixels into channels first, and adds shortcuts without weights
around its levels. Parameters are named as in the published checkpoints; sources as in `transformer`; the numbers agree
with diffusers' `AutoencoderKLWan` (a test).

Axis letters: B batch, C channels, T frames, H, W pixels; t, h, w of a chunk at some level.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soragen.errors import WeightsError
from soragen.families.wan.vae_layers import (
    CausalConv3d,
    Downsample,
    MidBlock,
    ResidualBlock,
    RMSNorm,
    Stream,
    Upsample,
    average_down,
    repeat_up,
)
from soragen.models.tiling import Place


@dataclass(frozen=True)
class VaeConfig:
    """A published `vae/config.json`.

    dim_mult: widths of the levels, from fine to coarse, in units of base_dim and decoder_base_dim.
    temperal_downsample: which of the steps between them halve the number of frames, too.
    """

    latents_mean: tuple[float, ...]
    latents_std: tuple[float, ...]
    base_dim: int = 96
    decoder_base_dim: int | None = None
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    attn_scales: tuple[float, ...] = ()
    temperal_downsample: tuple[bool, ...] = (False, True, True)
    dropout: float = 0.0
    is_residual: bool = False
    in_channels: int = 3
    out_channels: int = 3
    patch_size: int | None = None
    scale_factor_temporal: int = 4
    scale_factor_spatial: int = 8
    clip_output: bool = True
    """Not read: frames are always clipped to their range, as the published code does."""

    def __post_init__(self) -> None:
        if self.attn_scales:
            raise WeightsError("a Wan VAE with attention at its levels is not known", "the published ones have none")
        if len(self.latents_mean) != self.z_dim or len(self.latents_std) != self.z_dim:
            raise WeightsError(
                f"the VAE has {self.z_dim} channels, its config.json describes {len(self.latents_mean)} of them",
                "fetch config.json of the same checkpoint",
            )
        if len(self.temperal_downsample) != len(self.dim_mult) - 1:
            raise WeightsError("the VAE's dim_mult and temperal_downsample do not fit", "fetch its config.json again")

    @property
    def patch(self) -> int:
        return self.patch_size or 1

    @property
    def stride(self) -> tuple[int, int, int]:
        space = self.patch * 2 ** len(self.temperal_downsample)
        return 2 ** sum(self.temperal_downsample), space, space


class ResidualDownBlock(nn.Module):
    """A level of version 2.2's encoder."""

    def __init__(self, width: int, out: int, num_res_blocks: int, space: int, time: int) -> None:
        super().__init__()
        self.out, self.space, self.time = out, space, time
        self.resnets = nn.ModuleList(ResidualBlock(out if n else width, out) for n in range(num_res_blocks))
        self.downsampler = Downsample(out, time == 2) if space == 2 else None

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        y = x
        for block in self.resnets:
            y = block(y, stream)
        if self.downsampler is not None:
            y = self.downsampler(y, stream)
        return y + average_down(x, self.out, self.time, self.space)


class UpBlock(nn.Module):
    """A level of version 2.1's decoder. space, time: by how much it makes the next one larger."""

    def __init__(self, width: int, out: int, num_res_blocks: int, space: int, time: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResidualBlock(out if n else width, out) for n in range(num_res_blocks + 1))
        self.upsamplers = nn.ModuleList([Upsample(out, out // 2, time == 2)] if space == 2 else [])

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        for layer in (*self.resnets, *self.upsamplers):
            x = layer(x, stream)
        return x


class ResidualUpBlock(nn.Module):
    """A level of version 2.2's decoder."""

    def __init__(self, width: int, out: int, num_res_blocks: int, space: int, time: int) -> None:
        super().__init__()
        self.out, self.space, self.time = out, space, time
        self.resnets = nn.ModuleList(ResidualBlock(out if n else width, out) for n in range(num_res_blocks + 1))
        self.upsampler = Upsample(out, out, time == 2) if space == 2 else None

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        y = x
        for block in self.resnets:
            y = block(y, stream)
        if self.upsampler is None:
            return y
        return self.upsampler(y, stream) + repeat_up(x, self.out, self.time, self.space, first=stream.first)


class Encoder(nn.Module):
    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        widths = [config.base_dim * factor for factor in (1, *config.dim_mult)]
        steps = [(2, 2 if in_time else 1) for in_time in config.temperal_downsample] + [(1, 1)]
        self.conv_in = CausalConv3d(config.in_channels, widths[0])
        layers: list[nn.Module] = []
        for width, out, (space, time) in zip(widths, widths[1:], steps, strict=False):
            if config.is_residual:
                layers.append(ResidualDownBlock(width, out, config.num_res_blocks, space, time))
                continue
            layers += [ResidualBlock(out if n else width, out) for n in range(config.num_res_blocks)]
            layers += [Downsample(out, time == 2)] if space == 2 else []
        self.down_blocks = nn.ModuleList(layers)
        self.mid_block = MidBlock(widths[-1])
        self.norm_out = RMSNorm(widths[-1])
        self.conv_out = CausalConv3d(widths[-1], 2 * config.z_dim)

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        x = self.conv_in(x, stream)
        for layer in self.down_blocks:
            x = layer(x, stream)
        x = self.mid_block(x, stream)
        return self.conv_out(F.silu(self.norm_out(x)), stream)


class Decoder(nn.Module):
    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        base = config.decoder_base_dim or config.base_dim
        widths = [base * factor for factor in (config.dim_mult[-1], *config.dim_mult[::-1])]
        steps = [(2, 2 if in_time else 1) for in_time in config.temperal_downsample[::-1]] + [(1, 1)]
        block = ResidualUpBlock if config.is_residual else UpBlock
        self.conv_in = CausalConv3d(config.z_dim, widths[0])
        self.mid_block = MidBlock(widths[0])
        self.up_blocks = nn.ModuleList()
        for level, (width, out, (space, time)) in enumerate(zip(widths, widths[1:], steps, strict=False)):
            if level and not config.is_residual:
                width //= 2  # the level before halved it as it made the frames larger
            self.up_blocks.append(block(width, out, config.num_res_blocks, space, time))
        self.norm_out = RMSNorm(widths[-1])
        self.conv_out = CausalConv3d(widths[-1], config.out_channels)

    def begin(self, x: Tensor, stream: Stream) -> Tensor:
        """The layers at the size of the latents, which see the whole of a frame."""
        return self.mid_block(self.conv_in(x, stream), stream)

    def finish(self, x: Tensor, stream: Stream) -> Tensor:
        for block in self.up_blocks:
            x = block(x, stream)
        return self.conv_out(F.silu(self.norm_out(x)), stream)


class WanVae(nn.Module):
    """See `soragen.models.family.Vae` and `soragen.models.tiling.TwoPartVae`."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quant_conv = nn.Conv3d(2 * config.z_dim, 2 * config.z_dim, 1)
        self.post_quant_conv = nn.Conv3d(config.z_dim, config.z_dim, 1)
        self.decoder = Decoder(config)

    @torch.inference_mode()
    def encode(self, frames: Iterable[Tensor]) -> Tensor:
        """Latents [1, C, T, h, w], float32, of 1 + 4k frames in chunks [t, H, W, 3] in 0..1; sides in whole strides.

        The mean of the distribution that the encoder gives, normalised. Raises ValueError for another number of frames.
        """
        stream, latents = Stream(), []
        for chunk in regroup(frames, self.config.stride[0]):
            x = self.encoder(self._fold(chunk.to(self.quant_conv.weight)), stream)
            mean, _ = self.quant_conv(x).chunk(2, dim=1)
            latents.append(mean.float())
            stream.first = False
        mean, std = self._statistics(latents[0].device)
        return (torch.cat(latents, dim=2) - mean) / std

    @torch.inference_mode()
    def decode(self, latents: Tensor, *, seed: int = 0) -> Iterator[Tensor]:
        """A chunk [1, H, W, 3], then chunks [4, H, W, 3], in 0..1, float32, on the CPU, of latents [1, C, T, h, w].

        seed: passed over, nothing is drawn.
        """
        return self.finish(self.begin(latents))

    def begin(self, latents: Tensor, *, generator: torch.Generator | None = None) -> Iterator[Tensor]:
        """What the middle of the decoder makes of each latent frame, [1, D, 1, h, w]. Nothing is drawn."""
        stream = Stream()
        for latent in latents.split(1, dim=2):
            with torch.inference_mode():  # a generator leaves the decorator's mode at its first yield
                mean, std = self._statistics(self.quant_conv.weight.device)
                x = (latent.to(mean) * std + mean).to(self.quant_conv.weight)
                x = self.decoder.begin(self.post_quant_conv(x), stream)
                stream.first = False
            yield x

    def finish(
        self, features: Iterable[Tensor], *, generator: torch.Generator | None = None, place: Place | None = None
    ) -> Iterator[Tensor]:
        """The chunks of `decode`, of what `begin` gives, or of a tile of it."""
        stream = Stream()
        for x in features:
            with torch.inference_mode():
                x = self.decoder.finish(x.to(self.quant_conv.weight), stream)
                frames = self._unfold(x).float().mul_(0.5).add_(0.5).clamp_(0, 1).cpu()
                stream.first = False
            yield frames

    def _statistics(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mean and spread of the encoder's channels over the training set, each [1, C, 1, 1, 1]."""
        mean, std = (
            torch.tensor(values, device=device).view(1, -1, 1, 1, 1)
            for values in (self.config.latents_mean, self.config.latents_std)
        )
        return mean, std

    def _fold(self, frames: Tensor) -> Tensor:
        """Frames [t, H, W, 3] in 0..1 to [1, 3*p*p, t, H/p, W/p] in -1..1; of a patch, rows vary fastest."""
        p = self.config.patch
        x = (frames * 2 - 1).unflatten(2, (-1, p)).unflatten(1, (-1, p))  # [t, h, dh, w, dw, 3]
        return x.permute(5, 4, 2, 0, 1, 3).flatten(0, 2)[None]

    def _unfold(self, x: Tensor) -> Tensor:
        """The way back: [1, 3*p*p, t, h, w] to [t, H, W, 3]."""
        p = self.config.patch
        x = x[0].unflatten(0, (-1, p, p))  #                              [3, dw, dh, t, h, w]
        return x.permute(3, 4, 2, 5, 1, 0).flatten(3, 4).flatten(1, 2)


def regroup(frames: Iterable[Tensor], group: int) -> Iterator[Tensor]:
    """The first frame, then `group` frames at a time, of frames in chunks of any length.

    Raises ValueError when the last group is not full, or when there is no frame.
    """
    waiting: list[Tensor] = []
    wanted = 1
    for chunk in frames:
        for frame in chunk:
            waiting.append(frame)
            if len(waiting) == wanted:
                yield torch.stack(waiting)
                waiting, wanted = [], group
    if waiting or wanted == 1:
        raise ValueError(f"the number of frames is not 1 + {group}k")
