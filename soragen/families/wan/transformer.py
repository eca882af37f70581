"""Wan's video diffusion transformer, versions 2.1 and 2.2, with the parameter names of the published checkpoints.

Latents are cut into patches, one token each. Every block lets all tokens attend to each other (rotary positions in
time, height and width), then to the prompt, and is steered by the timestep: six vectors (shift, scale and gate of each
half) that a small network makes once for all blocks, to which each block adds a table of its own. What comes out is the
flow's velocity. Some checkpoints were distilled with sparse attention among tokens, and have gates for it. Sources:
Wan team, "Wan: Open and Advanced Large-Scale Video Generative Models" (arXiv:2503.20314) and the published code; the
numbers agree with diffusers' `WanTransformer3DModel` (a test).

Residual sums, norms and modulation are computed in float32, whatever the type of the weights.

Axis letters: B batch, C channels, T frames, H, W latents; t, h, w tokens; S = h*w tokens of a frame, N = t*S; R rows of
modulation, one for each timestep in use; L text or image tokens; A heads, K width of a head; D width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soragen.diffusion.grid import Grid, patchify, unpatchify
from soragen.diffusion.schedule import NoiseLevel
from soragen.errors import InputError, WeightsError
from soragen.families.wan.sparse_attention import TokenShape, attend_sparsely
from soragen.models.attention import attend
from soragen.models.family import Context, Denoiser, ImageCondition

KEEP_FLOAT32 = ("time_embedder", "scale_shift_table", "norm1", "norm2", "norm3")
"""Parts of parameter names that stay in float32, as the published code runs them."""

Rotary = tuple[Tensor, Tensor]
"""(cos, sin) of every token's angles, each [N, 1, K / 2]."""
Words = list[tuple[Tensor, Tensor]]
"""What a block's cross-attention looks at: keys and values [B, A, L, K] of the prompt and, in some, of images."""


@dataclass(frozen=True)
class TransformerConfig:
    """A published `transformer/config.json`.

    image_dim, added_kv_proj_dim: widths of the image tokens of the 2.1 image-to-video checkpoints, before and after
    their projection. pos_embed_seq_len: how many there are where their places are learned (first and last frame).
    rope_max_seq_len: the length of the tables in the published code; here they are as long as the video.
    sparsity: 0..1, of the sparse attention that a checkpoint was distilled with; None is full attention, without gates.
    No published file says it: weights.toml does (`soragen.checkpoint.Checkpoint.config`).
    """

    num_attention_heads: int
    attention_head_dim: int
    in_channels: int
    out_channels: int
    ffn_dim: int
    num_layers: int
    patch_size: tuple[int, int, int] = (1, 2, 2)
    text_dim: int = 4096
    freq_dim: int = 256
    cross_attn_norm: bool = True
    qk_norm: Literal["rms_norm_across_heads"] = "rms_norm_across_heads"
    eps: float = 1e-6
    image_dim: int | None = None
    added_kv_proj_dim: int | None = None
    rope_max_seq_len: int = 1024
    pos_embed_seq_len: int | None = None
    sparsity: float | None = None

    def __post_init__(self) -> None:
        if self.sparsity is not None and not 0 <= self.sparsity < 1:
            raise WeightsError(f"sparsity is {self.sparsity}", "it is the share of blocks left out: 0 or more, below 1")

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim


class SelfAttention(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.to_q = nn.Linear(config.width, config.width)
        self.to_k = nn.Linear(config.width, config.width)
        self.to_v = nn.Linear(config.width, config.width)
        self.to_out = nn.ModuleList([nn.Linear(config.width, config.width)])
        self.norm_q = nn.RMSNorm(config.width, eps=config.eps)  # over all heads together
        self.norm_k = nn.RMSNorm(config.width, eps=config.eps)

    def split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1))  #                   [B, N, D] -> [B, N, A, K]

    def forward(self, x: Tensor, rotary: Rotary) -> Tensor:
        q = rotate(self.split_heads(self.norm_q(self.to_q(x))), rotary)
        k = rotate(self.split_heads(self.norm_k(self.to_k(x))), rotary)
        v = self.split_heads(self.to_v(x))
        y = attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return self.to_out[0](y.transpose(1, 2).flatten(2))  #            [B, N, D]


class SparseSelfAttention(SelfAttention):
    """See `sparse_attention`."""

    def __init__(self, config: TransformerConfig, sparsity: float) -> None:
        super().__init__(config)
        self.sparsity = sparsity

    def forward(self, x: Tensor, rotary: Rotary, gate: Tensor, token_shape: TokenShape) -> Tensor:  # type: ignore[override]
        y = attend_sparsely(
            rotate(self.split_heads(self.norm_q(self.to_q(x))), rotary),
            rotate(self.split_heads(self.norm_k(self.to_k(x))), rotary),
            self.split_heads(self.to_v(x)),
            self.split_heads(gate),
            token_shape,
            self.sparsity,
        )
        return self.to_out[0](y.flatten(2))  #                            [B, N, D]


class CrossAttention(SelfAttention):
    """Tokens look at the prompt and, apart from it, at images; what they find is added up. No mask: padding counts."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        if config.added_kv_proj_dim is not None:
            self.add_k_proj = nn.Linear(config.added_kv_proj_dim, config.width)
            self.add_v_proj = nn.Linear(config.added_kv_proj_dim, config.width)
            self.norm_added_k = nn.RMSNorm(config.width, eps=config.eps)

    def read(self, text: Tensor, image: Tensor | None) -> Words:
        """Keys and values of text tokens [B, L, D] and image tokens; they do not change from step to step."""
        pairs = [(self.norm_k(self.to_k(text)), self.to_v(text))]
        if image is not None:
            pairs.append((self.norm_added_k(self.add_k_proj(image)), self.add_v_proj(image)))
        return [(self.split_heads(k).transpose(1, 2), self.split_heads(v).transpose(1, 2)) for k, v in pairs]

    def forward(self, x: Tensor, words: Words) -> Tensor:  # type: ignore[override]
        q = self.split_heads(self.norm_q(self.to_q(x))).transpose(1, 2)  # [B, A, N, K]
        y, *others = (attend(q, k, v) for k, v in words)
        for other in others:
            y = y + other
        return self.to_out[0](y.transpose(1, 2).flatten(2))  #            [B, N, D]


class GeluLinear(nn.Module):
    def __init__(self, width: int, hidden: int, approximate: Literal["none", "tanh"]) -> None:
        super().__init__()
        self.proj = nn.Linear(width, hidden)
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x), approximate=self.approximate)


class FeedForward(nn.Module):
    def __init__(self, width: int, hidden: int, out: int, approximate: Literal["none", "tanh"]) -> None:
        super().__init__()
        # The place in the middle held dropout in training.
        self.net = nn.Sequential(GeluLinear(width, hidden, approximate), nn.Identity(), nn.Linear(hidden, out))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Block(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.eps = config.eps
        self.scale_shift_table = nn.Parameter(torch.zeros(1, 6, config.width))
        self.sparse = config.sparsity is not None
        if config.sparsity is None:
            self.attn1 = SelfAttention(config)
        else:
            self.attn1 = SparseSelfAttention(config, config.sparsity)
            self.to_gate_compress = nn.Linear(config.width, config.width)  # beside `attn1`, where it is published
        self.norm2 = nn.LayerNorm(config.width, eps=config.eps) if config.cross_attn_norm else nn.Identity()
        self.attn2 = CrossAttention(config)
        self.ffn = FeedForward(config.width, config.ffn_dim, config.width, "tanh")

    def forward(self, x: Tensor, modulation: Tensor, rotary: Rotary, words: Words, token_shape: TokenShape) -> Tensor:
        """x [B, t, S, D]; modulation [B or 1, t or 1, S or 1, 6, D] in float32; token_shape (t, h, w)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = (modulation + self.scale_shift_table).unbind(dim=-2)
        y = (norm(x, self.eps) * (1 + scale1) + shift1).type_as(x)
        y = y.flatten(1, 2)
        more = (self.to_gate_compress(y), token_shape) if self.sparse else ()
        y = self.attn1(y, rotary, *more).view_as(x)
        x = (x.float() + y * gate1).type_as(x)
        y = self.norm2(x.float()).type_as(x)
        x = x + self.attn2(y.flatten(1, 2), words).view_as(x)
        y = (norm(x, self.eps) * (1 + scale2) + shift2).type_as(x)
        return (x.float() + self.ffn(y) * gate2).type_as(x)


class TwoLinears(nn.Module):
    def __init__(self, width: int, out: int, activation: nn.Module) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width, out)
        self.activation = activation
        self.linear_2 = nn.Linear(out, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(self.activation(self.linear_1(x)))


class ImageEmbedder(nn.Module):
    """Tokens [B, L, image_dim] of an image encoder, or of two images one after the other, to width D."""

    def __init__(self, config: TransformerConfig, image_dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(image_dim)
        self.ff = FeedForward(image_dim, image_dim, config.width, "none")
        self.norm2 = nn.LayerNorm(config.width)
        if config.pos_embed_seq_len is not None:
            self.pos_embed = nn.Parameter(torch.zeros(1, config.pos_embed_seq_len, image_dim))
        else:
            self.register_parameter("pos_embed", None)

    def forward(self, tokens: Tensor) -> Tensor:
        if self.pos_embed is not None:
            tokens = tokens + self.pos_embed
        x = self.ff(self.norm1(tokens.float()).type_as(tokens))
        return self.norm2(x.float()).type_as(x)


class ConditionEmbedder(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.freq_dim = config.freq_dim
        self.time_embedder = TwoLinears(config.freq_dim, config.width, nn.SiLU())
        self.time_proj = nn.Linear(config.width, 6 * config.width)
        self.text_embedder = TwoLinears(config.text_dim, config.width, nn.GELU(approximate="tanh"))
        if config.image_dim is not None:
            self.image_embedder = ImageEmbedder(config, config.image_dim)

    def embed_time(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """For timesteps [R]: what steers the output [R, 1, D], and the modulation of the blocks [R, 6, D], float32."""
        time = self.time_embedder(sinusoid(timesteps, self.freq_dim)).to(self.time_proj.weight.dtype)  # [R, D]
        modulation = self.time_proj(F.silu(time)).unflatten(-1, (6, -1))
        return time[:, None].float(), modulation.float()


class WanTransformer(nn.Module):
    """See `soragen.models.family.Transformer`."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = c = config
        self.patch_embedding = nn.Conv3d(c.in_channels, c.width, c.patch_size, stride=c.patch_size)
        self.condition_embedder = ConditionEmbedder(c)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.num_layers))
        self.scale_shift_table = nn.Parameter(torch.zeros(1, 2, c.width))
        self.proj_out = nn.Linear(c.width, c.out_channels * math.prod(c.patch_size))

    def read(self, text: Tensor, image: Tensor | None = None) -> list[Words]:
        """Keys and values of every block for text embeddings [B, L, text_dim] and image tokens [B, L, image_dim]."""
        text = self.condition_embedder.text_embedder(text)
        if image is not None:
            image = self.condition_embedder.image_embedder(image)
        return [block.attn2.read(text, image) for block in cast("Iterable[Block]", self.blocks)]

    def forward(self, latents: Tensor, timesteps: Tensor, rows: Tensor, rotary: Rotary, words: list[Words]) -> Tensor:
        """The velocity [B, out_channels, T, H, W] at latents [B, in_channels, T, H, W].

        timesteps: [R], the distinct ones, 0..1000. rows: which of them a token is at, [B or 1, t or 1, S or 1] of
        0..R-1: one for all, one for each sample, frame or token. rotary, words: from `lay_positions` and `read`.
        """
        c = self.config
        t, h, w = (length // patch for length, patch in zip(latents.shape[2:], c.patch_size, strict=True))
        # A convolution whose kernel is its stride is a product of matrices.
        patches = patchify(latents, c.patch_size).unflatten(1, (t, h * w))
        x = F.linear(patches, self.patch_embedding.weight.flatten(1), self.patch_embedding.bias)  # [B, t, S, D]

        time, modulation = self.condition_embedder.embed_time(timesteps)
        time, modulation = time[rows], modulation[rows]  #                [.., .., .., 1, D], [.., .., .., 6, D]
        for block, words_of_block in zip(self.blocks, words, strict=True):
            x = block(x, modulation, rotary, words_of_block, (t, h, w))

        shift, scale = (time + self.scale_shift_table).unbind(dim=-2)
        x = self.proj_out((norm(x, c.eps) * (1 + scale) + shift).type_as(x))
        return unpatchify(x.flatten(1, 2), c.patch_size, (t, h, w), channels_last=True)

    @torch.inference_mode()
    def bind(self, context: Context, grid: Grid, image: ImageCondition | None = None) -> Denoiser:
        """The denoiser of one prompt on one grid; `image` for a checkpoint that is conditioned on images.

        Raises InputError where the two do not go together.
        """
        beside = image.channels.shape[1] if image is not None else 0
        if (beside > 0) != (self.config.in_channels > self.config.out_channels):
            raise InputError(
                "this model makes videos from an image" if image is None else "this model does not see images this way",
                "give it a first frame" if image is None else "leave the image out",
            )
        weight = self.proj_out.weight
        tokens = image.tokens[None].to(weight) if image is not None and image.tokens is not None else None
        words = self.read(context.embeddings[None].to(weight), tokens)
        cos, sin = lay_positions(self.config.attention_head_dim, grid.token_shape)
        rotary = cos.to(weight.device), sin.to(weight.device)
        channels = image.channels.to(weight) if image is not None else None
        one_row = torch.zeros(1, 1, 1, dtype=torch.long, device=weight.device)

        def denoise(latents: Tensor, level: NoiseLevel, mask: Tensor | None = None) -> Tensor:
            x = latents.to(weight)
            if channels is not None:
                x = torch.cat([x, channels], dim=1)
            if mask is None:
                timesteps, rows = torch.tensor([level.timestep], device=x.device), one_row
                return latents - level.sigma * self(x, timesteps, rows, rotary, words).float()
            # Known frames are clean: their tokens are at timestep 0.
            timesteps = torch.tensor([0.0, level.timestep], device=x.device)
            free = mask.to(x.device)
            rows = free[:: self.config.patch_size[0]].long()[None, :, None]
            velocity = self(x, timesteps, rows, rotary, words).float()
            return latents - level.sigma * free[:, None, None] * velocity

        return denoise


def norm(x: Tensor, eps: float) -> Tensor:
    """Layer norm without weights, float32."""
    return F.layer_norm(x.float(), x.shape[-1:], eps=eps)


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """x [B, N, A, K] turned by the angles of its place; neighbours are the pairs (Su et al., arXiv:2104.09864)."""
    cos, sin = rotary
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2).type_as(x)


def lay_positions(head_dim: int, token_shape: tuple[int, int, int]) -> Rotary:
    """The angles of t x h x w tokens: time has the first third of a head's pairs, and what division leaves over."""
    third = 2 * (head_dim // 6)
    angles = []
    for axis, (count, width) in enumerate(zip(token_shape, (head_dim - 2 * third, third, third), strict=True)):
        frequency = 1 / 10000.0 ** (torch.arange(0, width, 2, dtype=torch.float64) / width)
        angle = torch.outer(torch.arange(count, dtype=torch.float64), frequency)
        shape = [count if axis == other else 1 for other in range(3)]
        angles.append(angle.view(*shape, -1).expand(*token_shape, -1))
    angle = torch.cat(angles, dim=-1).flatten(0, 2)[:, None]  #           [N, 1, K / 2]
    return angle.cos().float(), angle.sin().float()


def sinusoid(timesteps: Tensor, width: int) -> Tensor:
    """[R] timesteps 0..1000 -> [R, width] waves, from fast to slow, cosines first."""
    exponent = -math.log(10000) * torch.arange(width // 2, dtype=torch.float32, device=timesteps.device)
    angle = timesteps[:, None].float() * torch.exp(exponent / (width // 2))
    return torch.cat([angle.cos(), angle.sin()], dim=-1)
