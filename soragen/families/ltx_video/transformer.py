"""LTX-Video's diffusion transformer (HaCohen et al., arXiv:2501.00103), with the parameter names of its publication.

A token is one latent position. Tokens know where they lie through rotary angles over the full width, before it is split
into heads; time is in seconds, so the frame rate is in it. One modulation table per layer is added to what the timestep
says (adaLN-single). A frame that is given has timestep 0.

Letters: F frames of tokens: keyframes, then the T latent frames; S = H*W tokens of a frame, N = F*S; L text tokens,
D width, R distinct timesteps (at most two). The batch is 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soragen.diffusion.grid import Grid
from soragen.diffusion.schedule import NoiseLevel
from soragen.errors import WeightsError
from soragen.families.ltx_video.timestep import TimestepEmbedding
from soragen.models.attention import attend
from soragen.models.family import Context, Denoiser, Keyframe


@dataclass(frozen=True)
class TransformerConfig:
    """The published config.json. Where all checkpoints agree, a field admits that value alone."""

    in_channels: int = 128
    out_channels: int = 128
    patch_size: Literal[1] = 1
    patch_size_t: Literal[1] = 1
    num_attention_heads: int = 32
    attention_head_dim: int = 64
    cross_attention_dim: int = 2048
    num_layers: int = 28
    activation_fn: Literal["gelu-approximate"] = "gelu-approximate"
    qk_norm: Literal["rms_norm_across_heads"] = "rms_norm_across_heads"
    norm_elementwise_affine: Literal[False] = False
    norm_eps: float = 1e-6
    caption_channels: int = 4096
    attention_bias: bool = True
    attention_out_bias: bool = True

    def __post_init__(self) -> None:
        if self.cross_attention_dim != self.width or self.out_channels != self.in_channels or self.width % 2:
            raise WeightsError(
                f"a transformer with heads {self.num_attention_heads} x {self.attention_head_dim}, cross-attention "
                f"{self.cross_attention_dim} and channels {self.in_channels} to {self.out_channels}",
                "in LTX-Video text is projected to the width of the heads, and channels come out as they go in",
            )

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim


Rotary = tuple[Tensor, Tensor]
"""(cos, sin), each [N, D / 2] float32."""

Words = list[tuple[Tensor, Tensor]]
"""Keys and values of each layer for the text, each [1, heads, L, head_dim]."""


def lay_coordinates(grid: Grid, causal_time: bool, keyframes: Sequence[Keyframe]) -> Tensor:
    """Seconds, pixels down and pixels across of every token: [3, N] float32.

    causal_time: a latent frame stands where its first pixel frame does: 0, 1, 9, 17, ... Otherwise, as the checkpoints
    before 0.9.5 were trained, at 0, 8, 16, ...
    """
    stride, fps = grid.compression.stride, float(grid.fps)
    _, height, width = grid.token_shape
    seconds = []
    for clip_frames, start in [*((k.latents.shape[2], k.frame) for k in keyframes), (grid.token_shape[0], 0)]:
        index = torch.arange(clip_frames) * stride[0]
        if causal_time:
            seconds.append(((index + 1 - stride[0]).clamp(min=0) + start).float() * (1 / fps))
        else:
            seconds.append(torch.arange(clip_frames).float() * (stride[0] / fps) + start / fps)
    down = torch.arange(height).float() * stride[1]
    across = torch.arange(width).float() * stride[2]
    return torch.stack([axis.flatten() for axis in torch.meshgrid(torch.cat(seconds), down, across, indexing="ij")])


def lay_rotary(coordinates: Tensor, width: int) -> Rotary:
    """The angles by which channel pairs of a token turn, for coordinates [3, N] from `lay_coordinates`.

    Each of width // 6 frequencies serves time, height and width in turn; what does not divide by 6 stands still, first.
    A clip of 20 seconds and a picture of 2048 x 2048 span -1..1.
    """
    span = torch.tensor([20.0, 2048.0, 2048.0])
    frequencies = 10000.0 ** torch.linspace(0, 1, width // 6) * math.pi / 2
    place = (coordinates.T / span) * 2 - 1  #                                  [N, 3]
    angle = (place[:, None] * frequencies[:, None]).flatten(1)  #              [N, 3 * (D // 6)]
    angle = F.pad(angle, (width % 6 // 2, 0))  #                               [N, D / 2]
    return angle.cos(), angle.sin()


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """x [1, N, D], its neighbouring channels turned in pairs; in float32, as published."""
    cos, sin = rotary
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)  #                      [1, N, D / 2] each
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2).to(x.dtype)


class Attention(nn.Module):
    """Self- or cross-attention; queries and keys are normalised over all heads together."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width, bias = config.width, config.attention_bias
        self.heads = (config.num_attention_heads, config.attention_head_dim)
        self.norm_q = nn.RMSNorm(width, eps=1e-5)
        self.norm_k = nn.RMSNorm(width, eps=1e-5)
        self.to_q = nn.Linear(width, width, bias=bias)
        self.to_k = nn.Linear(width, width, bias=bias)
        self.to_v = nn.Linear(width, width, bias=bias)
        self.to_out = nn.ModuleList([nn.Linear(width, width, bias=config.attention_out_bias)])

    def read(self, x: Tensor, rotary: Rotary | None = None) -> tuple[Tensor, Tensor]:
        """Keys and values [1, heads, N, head_dim] of x [1, N, D]."""
        k = self.norm_k(self.to_k(x))
        return self.split(k if rotary is None else rotate(k, rotary)), self.split(self.to_v(x))

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, self.heads).transpose(1, 2)  #                  [1, N, D] -> [1, heads, N, head_dim]

    def forward(self, x: Tensor, rotary: Rotary | None = None, words: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """x [1, N, D] looks at itself, or at `words` from `read`."""
        q = self.norm_q(self.to_q(x))
        k, v = self.read(x, rotary) if words is None else words
        y = attend(self.split(q if rotary is None else rotate(q, rotary)), k, v)
        out: Tensor = self.to_out[0](y.transpose(1, 2).flatten(2))  #          [1, N, D]
        return out


class Block(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width = config.width
        self.eps = config.norm_eps
        self.scale_shift_table = nn.Parameter(torch.empty(6, width))
        self.attn1 = Attention(config)
        self.attn2 = Attention(config)
        widen, narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.ff = nn.ModuleDict({"net": nn.ModuleDict({"0": nn.ModuleDict({"proj": widen}), "2": narrow})})

    def feed_forward(self, x: Tensor) -> Tensor:
        net = self.ff["net"]
        y: Tensor = net["2"](F.gelu(net["0"]["proj"](x), approximate="tanh"))  # type: ignore[index]
        return y

    def forward(
        self, x: Tensor, modulation: Tensor, rows: Tensor, rotary: Rotary, words: tuple[Tensor, Tensor]
    ) -> Tensor:
        """x [1, F, S, D]; modulation [R, 6, D], of which frame f takes row rows[f]; rows is [F], or [1] for all."""
        modulation = (self.scale_shift_table + modulation)[rows, None]  #      [F, 1, 6, D]
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.unbind(dim=2)
        y = self.norm(x) * (1 + scale1) + shift1
        x = x + self.attn1(y.flatten(1, 2), rotary).view_as(x) * gate1
        x = x + self.attn2(x.flatten(1, 2), words=words).view_as(x)  #         no norm before it: as published
        y = self.norm(x) * (1 + scale2) + shift2
        return x + self.feed_forward(y) * gate2

    def norm(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], eps=self.eps)


class TimeEmbedding(nn.Module):
    """Timesteps [R] to the modulation of all layers [R, 6, D] and the embedding itself [R, D]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.emb = TimestepEmbedding(width)
        self.linear = nn.Linear(width, 6 * width)

    def forward(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        embedding: Tensor = self.emb(timesteps)
        return self.linear(F.silu(embedding)).unflatten(-1, (6, -1)), embedding


class GivenNoise:
    """A little noise on given frames, which keeps a still one from stopping the motion around it.

    The reference pipeline since 0.9.5 adds scale * sigma^2 of new noise at each level. Here it is new at each as well,
    and the same for every prompt on a grid: each of their denoisers draws its own, and they are walked together.
    """

    def __init__(self) -> None:
        self._generator = torch.Generator("cpu").manual_seed(0)
        self._level: NoiseLevel | None = None
        self._noise = torch.empty(0)

    def at(self, level: NoiseLevel, tokens: Tensor) -> Tensor:
        """Standard normal values of the shape of `tokens`: drawn when the level is another one than before."""
        if level != self._level:
            self._noise, self._level = torch.randn(tokens.shape, generator=self._generator).to(tokens), level
        return self._noise


class LtxTransformer(nn.Module):
    """causal_time: see `lay_coordinates`. given_noise_scale: see `GivenNoise`; 0 is none."""

    def __init__(self, config: TransformerConfig, causal_time: bool) -> None:
        super().__init__()
        self.config, self.causal_time = config, causal_time
        self.given_noise_scale = 0.15 if causal_time else 0.0
        width = config.width
        self.proj_in = nn.Linear(config.in_channels, width)
        self.time_embed = TimeEmbedding(width)
        self.caption_projection = nn.ModuleDict(
            {"linear_1": nn.Linear(config.caption_channels, width), "linear_2": nn.Linear(width, width)}
        )
        self.transformer_blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.scale_shift_table = nn.Parameter(torch.empty(2, width))
        self.proj_out = nn.Linear(width, config.out_channels)

    def read(self, context: Context) -> Words:
        """What every layer keeps of a prompt.

        The padding is left out. It was masked in training by adding -10000 to its scores, which leaves it a weight of
        exactly zero in every type.
        """
        linear_1, linear_2 = self.caption_projection.values()
        text = context.embeddings[context.mask][None].to(self.proj_in.weight)
        text = linear_2(F.gelu(linear_1(text), approximate="tanh"))  #         [1, L, D]
        return [block.attn2.read(text) for block in self.transformer_blocks]  # type: ignore[union-attr, operator]

    def forward(self, tokens: Tensor, timesteps: Tensor, rows: Tensor, rotary: Rotary, words: Words) -> Tensor:
        """The velocity (noise - clean) of tokens [1, F, S, C], in their shape; frame f is at timesteps[rows[f]].

        timesteps: [R] in 0..1000. rows: [F], or [1] when all frames are alike. words: from `read`.
        """
        x = self.proj_in(tokens.to(self.proj_in.weight.dtype))  #              [1, F, S, D]
        modulation, embedding = self.time_embed(timesteps)  #                  [R, 6, D], [R, D]
        for block, word in zip(self.transformer_blocks, words, strict=True):
            x = block(x, modulation, rows, rotary, word)
        shift, scale = (self.scale_shift_table + embedding[:, None])[rows, None].unbind(dim=2)  # [F, 1, D] each
        x = F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift
        velocity: Tensor = self.proj_out(x)
        return velocity.float()

    @torch.inference_mode()
    def bind(self, context: Context, grid: Grid, keyframes: Sequence[Keyframe] = ()) -> Denoiser:
        """The denoiser of one prompt on one grid (`soragen.models.family.KeyframeTransformer`).

        Keyframes join the sequence as clean tokens of their own, which every frame sees and which are not returned.
        """
        device = self.proj_in.weight.device
        words = self.read(Context(context.embeddings.to(device), context.mask.to(device)))
        cos, sin = lay_rotary(lay_coordinates(grid, self.causal_time, keyframes), self.config.width)
        rotary = (cos.to(device), sin.to(device))
        extra = [to_tokens(keyframe.latents.to(device)) for keyframe in keyframes]
        num_extra = sum(tokens.shape[1] for tokens in extra)
        given_noise = GivenNoise()

        def denoise(latents: Tensor, level: NoiseLevel, mask: Tensor | None = None) -> Tensor:
            free = torch.ones(latents.shape[2], device=latents.device) if mask is None else mask.to(latents)
            timesteps, rows = [level.timestep], torch.zeros(1, dtype=torch.long)
            tokens = torch.cat([*extra, to_tokens(latents)], dim=1)  #         [1, F, S, C]
            if mask is not None or extra:
                timesteps, rows = [0.0, level.timestep], F.pad(free, (num_extra, 0)).long()
                if self.given_noise_scale:
                    scale = self.given_noise_scale * level.sigma**2 * (rows == 0).to(tokens)
                    tokens = tokens + scale[:, None, None] * given_noise.at(level, tokens)
            velocity = self(tokens, torch.tensor(timesteps, device=device), rows.to(device), rotary, words)
            velocity = velocity[:, num_extra:].permute(0, 3, 1, 2).reshape(latents.shape)
            return latents - level.sigma * free[:, None, None] * velocity  #   flow: x = clean + sigma * velocity

        return denoise


def to_tokens(latents: Tensor) -> Tensor:
    """[1, C, T, H, W] -> [1, T, S, C]."""
    return latents.flatten(3).permute(0, 2, 3, 1)
