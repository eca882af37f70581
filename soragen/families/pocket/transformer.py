"""Pocket's diffusion transformer: noisy spacetime patches and a sentence in, the clean patches out.

Sora's recipe in small. The latents of a video are cut into patches; each is a token that knows where it lies in time
(in seconds, so the frame rate is in it), height and width. A plain transformer lets all tokens attend to each other and
to the words of the sentence; the noise level of every frame and the sentence as a whole steer each layer (adaLN-Zero).
A frame that is given has noise level 0: it comes back as it is, and the others follow it.

Letters: B batch, C channels, T frames, H, W latents; t, h, w tokens; S = h*w tokens of a frame, N = t*S;
L text tokens, D width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soragen.diffusion.grid import Grid, patchify, unpatchify
from soragen.diffusion.schedule import NoiseLevel, noisier
from soragen.families.pocket.refiner import PocketRefiner
from soragen.models.attention import attend
from soragen.models.family import Context, Denoiser

NUM_POSITION_WAVES = 30


@dataclass(frozen=True)
class TransformerConfig:
    latent_channels: int = 160
    patch_size: int = 2
    width: int = 256
    num_layers: int = 8
    num_heads: int = 4
    mlp_width: int = 704
    text_width: int = 192
    native_tokens: int = 64
    """Tokens of a frame of the native area: other grids are laid over the same square of positions."""
    seconds_per_unit: float = 1 / 3
    """One step of the rotary time axis: a latent frame of four at twelve frames a second."""
    head_width: int = 0
    """Channels of the convolutions behind the transformer; 0 for none."""
    head_layers: int = 0
    """Residual blocks among them."""
    head_below: float = math.inf
    """Noise level from which on they are left out: they tell what neighbours agree on, and there is nothing yet."""
    told_shift: float = 1.0
    """How many times stronger than it is the noise is said to be where a video is made of nothing else."""
    told_shift_given: float = 1.0
    """The same where some of its frames are given, which more can be left to."""

    def __post_init__(self) -> None:
        if self.width % self.num_heads or (self.width // self.num_heads) % 8:
            raise ValueError("width must be num_heads times a multiple of 8")


@dataclass(frozen=True)
class Positions:
    """What a grid of t x h x w tokens looks like to the transformer; computed once per run.

    rotary: (cos, sin), each [N, head_dim / 2]. absolute: [N, 30] features of the place in the frame and in time.
    """

    rotary: tuple[Tensor, Tensor]
    absolute: Tensor
    shape: tuple[int, int, int]

    def to(self, device: torch.device) -> Positions:
        cos, sin = self.rotary
        return Positions((cos.to(device), sin.to(device)), self.absolute.to(device), self.shape)


def lay_positions(config: TransformerConfig, shape: tuple[int, int, int], seconds_per_frame: float) -> Positions:
    """Positions of t x h x w tokens whose latent frames are `seconds_per_frame` apart.

    Height and width are scaled so that every grid has the area of the native one: more tokens are a finer view of the
    same picture, not a larger one. Rotary angles after Su et al. (2021), split over the three axes.
    """
    t, h, w = shape
    spacing = math.sqrt(config.native_tokens / (h * w))
    seconds = torch.arange(t) * seconds_per_frame
    y = (torch.arange(h) + 0.5 - h / 2) * spacing
    x = (torch.arange(w) + 0.5 - w / 2) * spacing
    time, row, column = (
        axis.flatten() for axis in torch.meshgrid(seconds / config.seconds_per_unit, y, x, indexing="ij")
    )  #                                                                 [N] each

    half = config.width // config.num_heads // 2
    num_time = half // 4
    num_row = (half - num_time) // 2
    angles = []
    for axis, count in ((time, num_time), (row, num_row), (column, half - num_time - num_row)):
        frequencies = 0.01 ** (torch.arange(count) / count)  #           1 .. 0.01 radians a unit
        angles.append(axis[:, None] * frequencies)
    angle = torch.cat(angles, dim=1)  #                                  [N, half]

    # The place as a share of the frame as well: with the scaled one it tells the aspect, and where the edges are.
    place = torch.stack([time, row, column, row * 8 / (h * spacing), column * 8 / (w * spacing)], dim=1) / 8  # [N, 5]
    waves = [f(math.pi * k * place) for k in (0.5, 1, 2) for f in (torch.sin, torch.cos)]
    return Positions((angle.cos(), angle.sin()), torch.cat(waves, dim=1), shape)


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """x [B, heads, N, head_dim] turned by the angles of its place; the two halves of a head are the pairs."""
    cos, sin = rotary[0].to(x.dtype), rotary[1].to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)  #           [B, N, D] -> [B, heads, N, head_dim]


class SelfAttention(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.out = nn.Linear(config.width, config.width, bias=False)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        q, k, v = (split_heads(part, self.num_heads) for part in self.qkv(x).chunk(3, dim=-1))
        q, k = (rotate(F.rms_norm(part, part.shape[-1:]), rotary) for part in (q, k))
        return self.out(attend(q, k, v).transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Tokens look at the words. Keys and values are made once per prompt by `read`."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.q = nn.Linear(config.width, config.width, bias=False)
        self.kv = nn.Linear(config.text_width, 2 * config.width, bias=False)
        self.out = nn.Linear(config.width, config.width, bias=False)

    def read(self, context: Tensor) -> tuple[Tensor, Tensor]:
        k, v = (split_heads(part, self.num_heads) for part in self.kv(context).chunk(2, dim=-1))
        return F.rms_norm(k, k.shape[-1:]), v  #                         [B, heads, L, head_dim] each

    def forward(self, x: Tensor, words: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        q = split_heads(self.q(x), self.num_heads)
        q = F.rms_norm(q, q.shape[-1:])
        return self.out(attend(q, *words, mask).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.gate_up = nn.Linear(config.width, 2 * config.mlp_width, bias=False)
        self.down = nn.Linear(config.mlp_width, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    """adaLN-Zero (Peebles and Xie 2023); the modulation is shared by all blocks, each adds its own table to it."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.modulation_table = nn.Parameter(torch.zeros(6, config.width))
        self.attention = SelfAttention(config)
        self.cross_attention = CrossAttention(config)
        self.feed_forward = FeedForward(config)

    def forward(
        self, x: Tensor, modulation: Tensor, rotary: tuple[Tensor, Tensor], words: tuple[Tensor, Tensor], mask: Tensor
    ) -> Tensor:
        """x [B, t, S, D]; modulation [B, t, 1, 6, D]: one row for each frame, not for each token."""
        shift1, scale1, gate1, shift2, scale2, gate2 = (modulation + self.modulation_table).unbind(dim=-2)
        y = norm(x) * (1 + scale1) + shift1
        x = x + gate1 * self.attention(y.flatten(1, 2), rotary).view_as(x)
        x = x + self.cross_attention(norm(x).flatten(1, 2), words, mask).view_as(x)
        y = norm(x) * (1 + scale2) + shift2
        return x + gate2 * self.feed_forward(y)


class HeadBlock(nn.Module):
    """A latent beside its neighbours in the frame, in time, and in the frame again; zero at the start."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width = config.head_width
        self.modulation = nn.Linear(config.width, 2 * width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.mix = nn.Linear(3 * width, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x [B*T, D', H, W]; condition [B, T, 1, D]."""
        scale, shift = self.modulation(condition).flatten(0, 2)[..., None, None].chunk(2, dim=1)
        y = F.group_norm(x, 1) * (1 + scale) + shift
        y = F.silu(self.conv1(y)).movedim(1, -1).unflatten(0, condition.shape[:2])  # [B, T, H, W, D']
        before, after = torch.cat([y[:, :1], y[:, :-1]], dim=1), torch.cat([y[:, 1:], y[:, -1:]], dim=1)
        y = F.silu(self.mix(torch.cat([y, before, after], dim=-1))).flatten(0, 1).movedim(-1, 1)
        return x + self.conv2(y)


class LocalHead(nn.Module):
    """Convolutions that see a latent beside its neighbours, and add to the estimate what joins them.

    Patches are answered one by one; without these their borders show (Bao et al. 2023, U-ViT, end with one, too).
    What an edge looks like is a matter of few latents, and of the frames beside; convolutions learn it sooner.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        c, width = config.latent_channels, config.head_width
        self.conv_in = nn.Conv2d(2 * c, width, 3, padding=1)
        self.modulation = nn.Linear(config.width, 2 * width)
        self.blocks = nn.ModuleList(HeadBlock(config) for _ in range(config.head_layers))
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.conv_out = nn.Conv2d(width, c, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)  # type: ignore[arg-type]

    def forward(self, noisy: Tensor, estimate: Tensor, condition: Tensor) -> Tensor:
        """What to add to `estimate`; it and `noisy` [B, C, T, H, W] of unit variance, condition [B, T, 1, D]."""
        frames = torch.cat([noisy, estimate], dim=1).transpose(1, 2)  #  [B, T, 2C, H, W]
        x = frames.flatten(0, 1).to(self.conv_in.weight.dtype, memory_format=torch.channels_last)
        scale, shift = self.modulation(condition).flatten(0, 2)[..., None, None].chunk(2, dim=1)
        x = F.silu(self.conv_in(x) * (1 + scale) + shift)  #             [B*T, head_width, H, W]
        for block in self.blocks:
            x = block(x, condition)
        x = self.conv_out(F.silu(x + self.conv(x)))
        return x.unflatten(0, frames.shape[:2]).transpose(1, 2)


def norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:])


Words = list[tuple[Tensor, Tensor]]


class PocketTransformer(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = c = config
        token_dim = c.latent_channels * c.patch_size**2
        self.latent_std = nn.Parameter(torch.ones(c.latent_channels))
        self.patch_in = nn.Linear(token_dim, c.width)
        self.position = nn.Linear(NUM_POSITION_WAVES, c.width, bias=False)
        self.time1 = nn.Linear(128, c.width)
        self.time2 = nn.Linear(c.width, c.width)
        self.summary = nn.Linear(c.text_width, c.width)
        self.modulation = nn.Linear(c.width, 6 * c.width)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.num_layers))
        self.final_modulation = nn.Linear(c.width, 2 * c.width)
        self.patch_out = nn.Linear(c.width, token_dim)
        self.head = LocalHead(c) if c.head_width else None
        self.refiner: PocketRefiner | None = None  # a part of its own: it has no share in a step

    def init_weights(self) -> None:
        """Each block starts as the identity and the output at zero (adaLN-Zero)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for layer in (self.modulation, self.final_modulation, self.patch_out):
            nn.init.zeros_(layer.weight)
        for block in self._blocks():
            nn.init.zeros_(block.cross_attention.out.weight)

    def read(self, context: Tensor) -> Words:
        """Keys and values of every layer for text embeddings [B, L, text_width]: the same at every step."""
        return [block.cross_attention.read(context) for block in self._blocks()]

    def _blocks(self) -> Iterable[Block]:
        return cast("Iterable[Block]", self.blocks)

    def summarise(self, context: Tensor, mask: Tensor) -> Tensor:
        """The sentence as one vector [B, D]: the mean of its token embeddings [B, L, text_width]; mask [B, L]."""
        weight = mask.to(context.dtype)[..., None]
        return self.summary((context * weight).sum(dim=1) / weight.sum(dim=1))

    def forward(
        self, latents: Tensor, sigma: Tensor, positions: Positions, words: Words, summary: Tensor, mask: Tensor
    ) -> Tensor:
        """The clean estimate of latents [B, C, T, H, W] = (1 - sigma) * clean + sigma * noise.

        sigma: [B, T], 0 for a frame that is given. words, summary: from `read` and `summarise`. mask: [B, L].

        The network sees inputs of unit variance and answers in unit variance at every noise level: the estimate is the
        best linear guess for a channel of spread `latent_std`, plus what the network adds to it (the preconditioning of
        Karras et al. 2022, for flow matching). At sigma 0 the latents come back unchanged.
        """
        p, (t, h, w) = self.config.patch_size, positions.shape
        noise = sigma[:, None, :, None, None]  #                         [B, 1, T, 1, 1]
        spread = self.latent_std.view(1, -1, 1, 1, 1)
        total = ((1 - noise) ** 2 * spread**2 + noise**2).sqrt()
        skip = (1 - noise) * spread**2 / total**2
        gain = noise * spread / total

        dtype = self.patch_in.weight.dtype  # that of the matrices; noise levels and latents are float32
        noisy = (latents / total).to(dtype)
        x = patchify(noisy, (1, p, p)).unflatten(1, (t, h * w))  #       [B, t, S, C*p*p]
        x = self.patch_in(x) + self.position(positions.absolute.to(dtype)).view(1, t, h * w, -1)

        condition = self.time2(F.silu(self.time1(sinusoid(sigma).to(dtype)))) + summary[:, None]  # [B, t, D]
        condition = F.silu(condition)[:, :, None]  #                     [B, t, 1, D]
        modulation = self.modulation(condition).unflatten(-1, (6, -1))
        attend = mask[:, None, None]  #                                  [B, 1, 1, L]
        for block, word in zip(self._blocks(), words, strict=True):
            x = block(x, modulation, positions.rotary, word, attend)

        shift, scale = self.final_modulation(condition).chunk(2, dim=-1)
        x = self.patch_out(norm(x) * (1 + scale) + shift)  #             [B, t, S, C*p*p]
        x = unpatchify(x.flatten(1, 2), (1, p, p), (t, h, w))  #         [B, C, T, H, W]
        if self.head is not None:
            late = (sigma.amax(dim=1) < self.config.head_below).nonzero().flatten()  # samples that are clear enough
            if len(late):
                x = x.index_add(0, late, self.head(noisy[late], x[late], condition[late]))
        return skip * latents + gain * x.float()

    def refine(self, latents: Tensor, made: Tensor, num_cyclic: int = 0) -> Tensor:
        """See `soragen.models.family.RefiningTransformer`. Where the checkpoint has no such network, all stays."""
        if self.refiner is None:
            return latents
        here = latents.to(self.latent_std.device)
        if not num_cyclic:
            return self.refiner.refine(here, made).to(latents)
        # Behind the last frame come those that are behind the frames it repeats. What it repeats is then put in their
        # place, and what comes before that in the place of the first frame, which is not shown: so the VAE, which sees
        # frames before, begins with the ones it will have seen where the video ends.
        following = slice(1 + num_cyclic, 2 + num_cyclic)
        goes_on = torch.cat([here, here[:, :, following]], dim=2)
        refined = self.refiner.refine(goes_on, torch.cat([made, made[following]]))[:, :, :-1].to(latents)
        return torch.cat([refined[:, :, -1 - num_cyclic :], refined[:, :, 1 + num_cyclic :]], dim=2)

    @torch.inference_mode()
    def bind(self, context: Context, grid: Grid) -> Denoiser:
        """The denoiser of one prompt on one grid (`soragen.models.family.Transformer`)."""
        embeddings = context.embeddings[None].to(self.patch_in.weight)
        text_mask = context.mask[None].to(embeddings.device)
        words, summary = self.read(embeddings), self.summarise(embeddings, text_mask)
        seconds = grid.compression.stride[0] / float(grid.fps)
        positions = lay_positions(self.config, grid.token_shape, seconds).to(embeddings.device)

        def denoise(latents: Tensor, level: NoiseLevel, mask: Tensor | None = None) -> Tensor:
            sigma = torch.full((1, latents.shape[2]), level.sigma, device=latents.device)
            if mask is not None:
                sigma = sigma * mask.to(sigma)
            return self(latents, sigma, positions, words, summary, text_mask)

        return denoise

    def told(self, level: NoiseLevel, given: bool) -> NoiseLevel:
        """See `soragen.models.family.DoubtingTransformer`."""
        return noisier(level, self.config.told_shift_given if given else self.config.told_shift)


def sinusoid(sigma: Tensor) -> Tensor:
    """[B, T] noise levels 0..1 -> [B, T, 128] waves from slow to fast."""
    frequencies = math.pi * 0.5 * 1000.0 ** (torch.arange(64, device=sigma.device) / 63)
    angle = sigma[..., None] * frequencies
    return torch.cat([angle.cos(), angle.sin()], dim=-1)
