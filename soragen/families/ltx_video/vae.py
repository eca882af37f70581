"""LTX-Video's video compression network, in all variants that its published configs span.

1 + 8k frames become 1 + k latent frames at 1/32 of the height and width. The encoder is causal, the decoder is not;
both are streams (see `vae_layers`). Since 0.9.1 the decoder ends the denoising: it is told a timestep and given latents
with a little noise, and in 0.9.1 it draws more noise inside. Since 0.9.5 the encoder downsamples by moving positions to
channels.

Letters: B batch, C channels, T frames, H, W pixels; latents are [1, z, T, h, w].
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soragen.errors import WeightsError
from soragen.families.ltx_video.timestep import TimestepEmbedding
from soragen.families.ltx_video.vae_layers import (
    Conv,
    DepthToSpace,
    DrawNoise,
    ResidualBlock,
    SpaceToDepth,
    Stack,
    Stream,
    modulated,
    norm,
)
from soragen.models.tiling import Place

DECODE_TIMESTEP, DECODE_NOISE_SCALE = 0.05, 0.025
"""What the authors decode with, for every checkpoint whose decoder is told a timestep (in 0..1)."""

DownBlockType = Literal["LTXVideoDownBlock3D", "LTXVideo095DownBlock3D"]
DownsampleType = Literal["conv", "spatial", "temporal", "spatiotemporal"]
DOWN_STRIDES = {"spatial": (1, 2, 2), "temporal": (2, 1, 1), "spatiotemporal": (2, 2, 2)}


@dataclass(frozen=True)
class VaeConfig:
    """The published config.json. Where all checkpoints agree, a field admits that value alone."""

    in_channels: Literal[3] = 3
    out_channels: Literal[3] = 3
    latent_channels: int = 128
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    down_block_types: tuple[DownBlockType, ...] = ("LTXVideoDownBlock3D",) * 4
    decoder_block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: tuple[int, ...] = (4, 3, 3, 3, 4)
    decoder_layers_per_block: tuple[int, ...] = (4, 3, 3, 3, 4)
    spatio_temporal_scaling: tuple[bool, ...] = (True, True, True, False)
    decoder_spatio_temporal_scaling: tuple[bool, ...] = (True, True, True, False)
    decoder_inject_noise: tuple[bool, ...] = (False,) * 5
    downsample_type: tuple[DownsampleType, ...] = ("conv",) * 4
    upsample_residual: tuple[bool, ...] = (False,) * 4
    upsample_factor: tuple[int, ...] = (1,) * 4
    timestep_conditioning: bool = False
    patch_size: int = 4
    patch_size_t: Literal[1] = 1
    resnet_norm_eps: float = 1e-6
    scaling_factor: float = 1.0
    encoder_causal: Literal[True] = True
    decoder_causal: Literal[False] = False
    spatial_compression_ratio: int | None = None
    temporal_compression_ratio: int | None = None

    def __post_init__(self) -> None:
        num_down, num_up = self.num_down_blocks, len(self.decoder_block_out_channels)
        lengths = (
            (self.down_block_types, num_down),
            (self.layers_per_block, num_down + 1),
            (self.spatio_temporal_scaling, num_down),
            (self.downsample_type, num_down),
            (self.decoder_layers_per_block, num_up + 1),
            (self.decoder_spatio_temporal_scaling, num_up),
            (self.decoder_inject_noise, num_up + 1),
            (self.upsample_residual, num_up),
            (self.upsample_factor, num_up),
        )
        if len(set(self.down_block_types)) != 1 or any(len(values) != length for values, length in lengths):
            raise WeightsError("a VAE config whose lists do not fit each other", "fetch the checkpoint again")

    @property
    def folds_space(self) -> bool:
        """Whether the encoder downsamples by moving positions to channels, as it does since 0.9.5."""
        return "LTXVideo095DownBlock3D" in self.down_block_types

    @property
    def num_down_blocks(self) -> int:
        return len(self.block_out_channels) - self.folds_space

    @property
    def stride(self) -> tuple[int, int, int]:
        """Frames and pixels per latent, of the decoder's; (time, height, width)."""
        time = 2 ** sum(self.decoder_spatio_temporal_scaling)
        return time, self.patch_size * time, self.patch_size * time

    def decoder_bytes(self, latent_area: int) -> int:
        """Activations in float32 of the decoder for latents of h * w = `latent_area`, however many frames there are.

        A block keeps six frames: two for each convolution, two that wait to be added. The finest one works on a chunk.
        """
        values, width, scale = 0.0, self.decoder_block_out_channels[-1], 1
        for index in reversed(range(len(self.decoder_block_out_channels) + 1)):
            if index < len(self.decoder_block_out_channels):
                width = self.decoder_block_out_channels[index] // self.upsample_factor[index]
                scale *= 1 + self.decoder_spatio_temporal_scaling[index]
            frame = width * latent_area * scale**2
            values += 6 * frame * (self.decoder_layers_per_block[index] + 1)
        return int(4 * (values + 8 * scale * frame))


class DownBlock(Stack):
    """Blocks of one width, then half the size; a block more where the width grows (before 0.9.5)."""

    def __init__(self, config: VaeConfig, index: int, in_channels: int, out_channels: int) -> None:
        eps, kind = config.resnet_norm_eps, config.downsample_type[index]
        super().__init__(in_channels, config.layers_per_block[index], causal=True, eps=eps)
        self.downsamplers: nn.ModuleList | None = None
        if config.spatio_temporal_scaling[index]:
            if kind == "conv":
                downsampler: nn.Module = Conv(in_channels, in_channels, stride=2, causal=True)
            else:
                downsampler = SpaceToDepth(in_channels, out_channels, DOWN_STRIDES[kind])
            self.downsamplers = nn.ModuleList([downsampler])
        widens = in_channels != out_channels and not config.folds_space
        self.conv_out = ResidualBlock(in_channels, out_channels, causal=True, eps=eps) if widens else None

    def forward(self, chunks: Stream, timestep: Tensor | None = None, draw: DrawNoise | None = None) -> Stream:
        chunks = super().forward(chunks)
        for layer in [*(self.downsamplers or []), *([self.conv_out] if self.conv_out else [])]:
            chunks = layer(chunks)
        return chunks


class Encoder(nn.Module):
    """Frames [1, 3, T, H, W] in -1..1 to the means of the latents [1, z, ...], not normalised."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.patch_size, self.latent_channels = config.patch_size, config.latent_channels
        widths = list(config.block_out_channels)
        if not config.folds_space:
            widths.append(widths[-1])
        self.conv_in = Conv(3 * config.patch_size**2, widths[0], causal=True)
        self.down_blocks = nn.ModuleList(
            DownBlock(config, index, widths[index], widths[index + 1]) for index in range(config.num_down_blocks)
        )
        self.mid_block = Stack(widths[-1], config.layers_per_block[-1], causal=True, eps=config.resnet_norm_eps)
        # One channel more: the logarithm of the variance, the same for all. The mean alone is used.
        self.conv_out = Conv(widths[-1], config.latent_channels + 1, causal=True)

    def forward(self, chunks: Stream) -> Stream:
        chunks = self.conv_in(map(self.to_patches, chunks))
        for block in self.down_blocks:
            chunks = block(chunks)
        chunks = self.mid_block(chunks)
        chunks = self.conv_out(map(lambda x: F.silu(norm(x)), chunks))
        return map(lambda x: x[:, : self.latent_channels], chunks)

    def to_patches(self, x: Tensor) -> Tensor:
        p = self.patch_size
        x = x.unflatten(4, (-1, p)).unflatten(3, (-1, p))  #                   [1, 3, T, H/p, p, W/p, p]
        return x.permute(0, 1, 6, 4, 2, 3, 5).flatten(1, 3)  #                 pixels across before pixels down


class UpBlock(Stack):
    """A block where the width falls (0.9.0), then twice the size, then blocks of one width."""

    def __init__(self, config: VaeConfig, index: int, in_channels: int, out_channels: int) -> None:
        """index: of the config's lists, which run from the finest block to the coarsest."""
        eps, factor = config.resnet_norm_eps, config.upsample_factor[index]
        super().__init__(
            out_channels,
            config.decoder_layers_per_block[index],
            causal=False,
            eps=eps,
            inject_noise=config.decoder_inject_noise[index],
            conditioned=config.timestep_conditioning,
        )
        narrows = in_channels != out_channels
        self.conv_in = ResidualBlock(in_channels, out_channels, causal=False, eps=eps) if narrows else None
        self.upsamplers: nn.ModuleList | None = None
        if config.decoder_spatio_temporal_scaling[index]:
            residual = config.upsample_residual[index]
            self.upsamplers = nn.ModuleList([DepthToSpace(out_channels * factor, factor, residual)])

    def forward(self, chunks: Stream, timestep: Tensor | None = None, draw: DrawNoise | None = None) -> Stream:
        for layer in [*([self.conv_in] if self.conv_in else []), *(self.upsamplers or [])]:
            chunks = layer(chunks)
        return super().forward(chunks, timestep, draw)


class Decoder(nn.Module):
    """Latents [1, z, T, h, w], not normalised, to frames [1, 3, 8T - 7, 32h, 32w] in -1..1 or so."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        width = config.decoder_block_out_channels[-1]
        self.conv_in = Conv(config.latent_channels, width, causal=False)
        self.mid_block = Stack(
            width,
            config.decoder_layers_per_block[-1],
            causal=False,
            eps=config.resnet_norm_eps,
            inject_noise=config.decoder_inject_noise[-1],
            conditioned=config.timestep_conditioning,
        )
        blocks = []
        for index in reversed(range(len(config.decoder_block_out_channels))):
            factor = config.upsample_factor[index]
            in_channels, width = width // factor, config.decoder_block_out_channels[index] // factor
            blocks.append(UpBlock(config, index, in_channels, width))
        self.up_blocks = nn.ModuleList(blocks)
        self.conv_out = Conv(width, 3 * config.patch_size**2, causal=False)
        conditioned = config.timestep_conditioning
        self.timestep_scale_multiplier = nn.Parameter(torch.empty(())) if conditioned else None
        self.time_embedder = TimestepEmbedding(2 * width) if conditioned else None
        self.scale_shift_table = nn.Parameter(torch.empty(2, width)) if conditioned else None

    def forward(self, chunks: Stream, timestep: float, draw: DrawNoise) -> Stream:
        """timestep: in 0..1, the noise that is left in the latents. draw: noise for the layers that add some."""
        return self.finish(self.begin(chunks, timestep, draw), timestep, draw)

    def begin(self, chunks: Stream, timestep: float, draw: DrawNoise) -> Stream:
        """The layers at the size of the latents."""
        return self.mid_block(self.conv_in(chunks), self.told(timestep), draw)

    def told(self, timestep: float) -> Tensor | None:
        """The timestep as the layers are told it, [1], where they are."""
        scale = self.timestep_scale_multiplier
        return None if scale is None else timestep * scale.float()[None]

    def finish(self, chunks: Stream, timestep: float, draw: DrawNoise) -> Stream:
        """Frames of what `begin` gives."""
        told, shift, scale = self.told(timestep), None, None
        if told is not None and self.time_embedder is not None:
            table = self.time_embedder(told).unflatten(1, (2, -1)) + self.scale_shift_table  # [1, 2, C]
            shift, scale = table[..., None, None, None].unbind(dim=1)
        for block in self.up_blocks:
            chunks = block(chunks, told, draw)
        chunks = self.conv_out(map(lambda x: F.silu(modulated(x, shift, scale)), chunks))
        return map(self.to_pixels, chunks)

    def to_pixels(self, x: Tensor) -> Tensor:
        p = self.patch_size
        x = x.unflatten(1, (3, p, p)).permute(0, 1, 4, 5, 3, 6, 2)  #          [1, 3, T, H/p, p, W/p, p]
        return x.flatten(5, 6).flatten(3, 4)


class LtxVae(nn.Module):
    """`encode` and `decode` speak frames in 0..1 and latents of unit variance (`soragen.models.family.Vae`).

    For tiles see `soragen.models.tiling.TwoPartVae`.
    """

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.register_buffer("latents_mean", torch.empty(config.latent_channels))
        self.register_buffer("latents_std", torch.empty(config.latent_channels))
        self.latents_mean: Tensor
        self.latents_std: Tensor

    @torch.inference_mode()
    def encode(self, frames: Iterable[Tensor]) -> Tensor:
        """Latents [1, z, T, h, w], float32, of 1 + 8k frames that come in chunks [t, H, W, 3] in 0..1; sides / 32.

        They are the means: nothing is drawn. Raises ValueError when the frames are not 1 + 8k.
        """
        means = torch.cat(list(self.encoder(self.regroup(frames))), dim=2).float()
        return (means - self.mean) * self.config.scaling_factor / self.std

    def regroup(self, frames: Iterable[Tensor]) -> Stream:
        """The first frame alone, then group by group, each [1, 3, t, H, W] in -1..1."""
        group, wanted = self.config.stride[0], 1
        waiting: Tensor | None = None
        for chunk in frames:
            waiting = chunk if waiting is None else torch.cat([waiting, chunk])
            while waiting.shape[0] >= wanted:
                x = waiting[:wanted].to(self.encoder.conv_in.conv.weight).permute(3, 0, 1, 2)[None]
                yield x * 2 - 1
                waiting, wanted = waiting[wanted:], group
        if waiting is None or len(waiting) or wanted == 1:
            raise ValueError(f"the number of frames is not 1 + {group}k")

    def decode(
        self,
        latents: Tensor,
        *,
        seed: int = 0,
        timestep: float = DECODE_TIMESTEP,
        noise_scale: float = DECODE_NOISE_SCALE,
    ) -> Iterator[Tensor]:
        """Chunks of frames [t, H, W, 3] float32 in 0..1 on the CPU, 8T - 7 in all, of latents [1, z, T, h, w].

        seed, timestep, noise_scale: how a decoder that is told a timestep ends the denoising, with noise_scale of noise
        mixed in. Others pass over them. The noise is the second that a generator with this seed draws in this shape,
        as in the reference; the first is what the denoising starts from. Noise inside the decoder is the third and on.
        """
        generator = torch.Generator("cpu").manual_seed(seed)
        return self._finish(self._begin(latents, generator, timestep, noise_scale), generator, timestep)

    def begin(self, latents: Tensor, *, generator: torch.Generator) -> Stream:
        """What the middle of the decoder makes of latents [1, z, T, h, w]: chunks [1, D, t, h, w]."""
        return self._begin(latents, generator, DECODE_TIMESTEP, DECODE_NOISE_SCALE)

    def finish(self, features: Iterable[Tensor], *, generator: torch.Generator, place: Place) -> Stream:
        """The chunks of `decode`, of what `begin` gives."""
        return self._finish(features, generator, DECODE_TIMESTEP, place)

    def _begin(self, latents: Tensor, generator: torch.Generator, timestep: float, noise_scale: float) -> Stream:
        weight = self.decoder.conv_in.conv.weight
        latents = latents.to(weight.device, torch.float32) * self.std / self.config.scaling_factor + self.mean
        if self.config.timestep_conditioning:
            _, noise = (torch.randn(latents.shape, generator=generator) for _ in range(2))
            latents = (1 - noise_scale) * latents + noise_scale * noise.to(latents.device)
        chunks = iter(latents.to(weight.dtype).split(1, dim=2))
        with torch.inference_mode():
            features = self.decoder.begin(chunks, timestep, drawn(generator))
        return without_gradients(features)

    def _finish(
        self, features: Iterable[Tensor], generator: torch.Generator, timestep: float, place: Place | None = None
    ) -> Stream:
        weight = self.decoder.conv_in.conv.weight
        with torch.inference_mode():
            frames = self.decoder.finish(map(lambda x: x.to(weight), features), timestep, drawn(generator, place))
        return without_gradients(map(lambda x: (x[0] / 2 + 0.5).clamp(0, 1).permute(1, 2, 3, 0).float().cpu(), frames))

    @property
    def mean(self) -> Tensor:
        return self.latents_mean.float().view(1, -1, 1, 1, 1)

    @property
    def std(self) -> Tensor:
        return self.latents_std.float().view(1, -1, 1, 1, 1)


def drawn(generator: torch.Generator, place: Place | None = None) -> DrawNoise:
    """Noise from `generator`; for a tile at `place` that of the whole picture, cut."""

    def draw(height: int, width: int) -> Tensor:
        if place is None:
            return torch.randn((height, width), generator=generator)
        stride = height // (place.rows.stop - place.rows.start)
        return place.cut(torch.randn((place.height * stride, place.width * stride), generator=generator), stride)

    return draw


def without_gradients(chunks: Stream) -> Stream:
    """The same chunks, each computed in inference mode, which must not reach into the consumer's code."""
    while True:
        with torch.inference_mode():
            x = next(chunks, None)
        if x is None:
            return
        yield x
