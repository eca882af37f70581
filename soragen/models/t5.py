"""The encoder of T5 and UMT5, with the parameter names of the published checkpoints.

Sources: Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer" (2020), its
Mesh TensorFlow code for the position buckets and the initialisation, and Chung et al., "UniMax" (2023) for UMT5. The
numbers agree with transformers' `T5EncoderModel` and `UMT5EncoderModel` (a test); the code does not need transformers.

Axis letters: B batch, L text tokens, D width, H heads, K width of one head, F feed-forward width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soragen.errors import WeightsError
from soragen.models.weights import read_json

TABLES = ("shared.weight", "encoder.embed_tokens.weight", "token_embedding.weight")
"""What files call the embeddings of all tokens, of which a prompt needs a few."""


@dataclass(frozen=True)
class T5Config:
    """What the encoder needs of a published `config.json`; the rest of that file describes the decoder.

    per_layer_bias: UMT5 learns a position bias in every layer, T5 one in layer 0 that all layers share.
    """

    vocab_size: int
    d_model: int
    d_kv: int
    num_heads: int
    d_ff: int
    num_layers: int
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: str = "relu"
    model_type: str = "t5"

    def __post_init__(self) -> None:
        if self.model_type not in ("t5", "umt5"):
            raise WeightsError(f"text encoder of type {self.model_type!r}", "T5 and UMT5 encoders can be read")
        if self.feed_forward_proj not in ("relu", "gated-gelu"):
            raise WeightsError(
                f"text encoder with feed-forward {self.feed_forward_proj!r}", "'relu' and 'gated-gelu' are known"
            )
        for name in ("vocab_size", "d_model", "d_kv", "num_heads", "d_ff", "num_layers"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise WeightsError(f"text encoder config: {name} is {value!r}", "a positive whole number is needed")

    @property
    def gated(self) -> bool:
        return self.feed_forward_proj == "gated-gelu"

    @property
    def per_layer_bias(self) -> bool:
        return self.model_type == "umt5"

    @classmethod
    def read(cls, folder: Path) -> T5Config:
        """The config of a text encoder folder in the published layout. Raises WeightsError."""
        file = folder / "config.json"
        values = read_json(file)
        missing = [name for name in ("vocab_size", "d_model", "d_kv", "num_heads", "d_ff", "num_layers", "model_type")
                   if name not in values]  # fmt: skip
        if missing:
            raise WeightsError(f"{file} lacks {', '.join(missing)}", "a T5 or UMT5 config.json has them")
        return cls(**{name: values[name] for name in cls.__dataclass_fields__ if name in values})

    def to_dict(self) -> dict[str, object]:
        """The content of a `config.json` that transformers reads as the same encoder."""
        architecture = "UMT5EncoderModel" if self.per_layer_bias else "T5EncoderModel"
        values: dict[str, object] = {"architectures": [architecture]}
        values |= {name: getattr(self, name) for name in self.__dataclass_fields__}
        return values


class RMSNorm(nn.Module):
    """x / rms(x) * weight, computed in float32; no mean is subtracted and no bias added."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.epsilon)
        return self.weight * x.to(self.weight.dtype)


def embedding(count: int, width: int) -> nn.Embedding:
    """A table of `count` vectors, not yet set. The usual constructor draws it at random, which on the meta device makes
    torch import sympy: a second and 80 MB for nothing."""
    return nn.Embedding.from_pretrained(torch.empty(count, width), freeze=False)


class SelfAttention(nn.Module):
    def __init__(self, config: T5Config, has_bias: bool) -> None:
        super().__init__()
        inner = config.num_heads * config.d_kv
        self.num_heads = config.num_heads
        self.q = nn.Linear(config.d_model, inner, bias=False)
        self.k = nn.Linear(config.d_model, inner, bias=False)
        self.v = nn.Linear(config.d_model, inner, bias=False)
        self.o = nn.Linear(inner, config.d_model, bias=False)
        if has_bias:
            self.relative_attention_bias = embedding(config.relative_attention_num_buckets, config.num_heads)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        q, k, v = (
            project(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for project in (self.q, self.k, self.v)
        )  # [B, H, L, K] each
        scores = (q @ k.mT).float() + bias  # [B, H, L, L]; T5 does not divide by sqrt(K)
        mixed = scores.softmax(-1).to(v.dtype) @ v  # [B, H, L, K]
        return self.o(mixed.transpose(1, 2).flatten(2))  # [B, L, D]


class FeedForward(nn.Module):
    """relu(x wi) wo, or (gelu(x wi_0) * x wi_1) wo with the tanh form of GELU."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.gated = config.gated
        if self.gated:
            self.wi_0 = nn.Linear(config.d_model, config.d_ff, bias=False)
            self.wi_1 = nn.Linear(config.d_model, config.d_ff, bias=False)
        else:
            self.wi = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.wo = nn.Linear(config.d_ff, config.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(self.wi_0(x), approximate="tanh") * self.wi_1(x) if self.gated else F.relu(self.wi(x))
        return self.wo(hidden.to(self.wo.weight.dtype))  # [B, L, D]


class AttentionLayer(nn.Module):
    def __init__(self, config: T5Config, has_bias: bool) -> None:
        super().__init__()
        self.has_bias = has_bias
        self.SelfAttention = SelfAttention(config, has_bias)
        self.layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)

    def forward(self, x: Tensor, bias: Tensor, buckets: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
        """The new x, and the bias in use: this layer's own, or the one handed in."""
        if self.has_bias:
            bias = self.SelfAttention.relative_attention_bias(buckets).permute(2, 0, 1) + padding  # [B, H, L, L]
        return x + self.SelfAttention(self.layer_norm(x), bias), bias


class FeedForwardLayer(nn.Module):
    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.DenseReluDense = FeedForward(config)
        self.layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.DenseReluDense(self.layer_norm(x))


class Block(nn.Module):
    def __init__(self, config: T5Config, has_bias: bool) -> None:
        super().__init__()
        self.layer = nn.ModuleList([AttentionLayer(config, has_bias), FeedForwardLayer(config)])

    def forward(self, x: Tensor, bias: Tensor, buckets: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
        attention, feed_forward = self.layer
        x, bias = attention(x, bias, buckets, padding)
        return feed_forward(x), bias


class Stack(nn.Module):
    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.block = nn.ModuleList(Block(config, config.per_layer_bias or n == 0) for n in range(config.num_layers))
        self.final_layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)

    def forward(self, x: Tensor, buckets: Tensor, padding: Tensor) -> Tensor:
        bias = padding
        for block in self.block:
            x, bias = block(x, bias, buckets, padding)
        return self.final_layer_norm(x)


class T5Encoder(nn.Module):
    """Token ids [B, L] to embeddings [B, L, D]. Differentiable; it has no dropout."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.config = config
        self.shared = embedding(config.vocab_size, config.d_model)
        self.encoder = Stack(config)

    def forward(self, token_ids: Tensor, mask: Tensor) -> Tensor:
        """Embeddings [B, L, D] of token_ids [B, L]; mask [B, L] is True where there is text.

        Padded positions get values too, as in the published encoders: a family decides what to do with them.
        """
        c = self.config
        buckets = position_buckets(
            token_ids.shape[1], c.relative_attention_num_buckets, c.relative_attention_max_distance
        )  # [L, L]
        padding = torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, torch.finfo(torch.float32).min)
        return self.encoder(  # [B, L, D]
            self.shared(token_ids), buckets.to(token_ids.device), padding[:, None, None]
        )

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """T5's published initialisation, for training from scratch.

        All weights are normal: 1 for embeddings, 1/sqrt(fan-in) for matrices, and queries also divided by sqrt(K),
        which is why attention scores need no scale.
        """
        c = self.config
        for name, weight in self.named_parameters():
            kind = name.split(".")[-2]
            if kind.endswith("layer_norm"):
                weight.fill_(1.0)
                continue
            std = {
                "shared": 1.0,
                "q": (c.d_model * c.d_kv) ** -0.5,
                "o": (c.num_heads * c.d_kv) ** -0.5,
                "wo": c.d_ff**-0.5,
            }.get(kind, c.d_model**-0.5)  # k, v, wi, wi_0, wi_1, relative_attention_bias
            weight.normal_(0.0, std, generator=generator)


def position_buckets(length: int, num_buckets: int, max_distance: int) -> Tensor:
    """The bucket [L, L] of key position minus query position: half of them for keys to the right of the query.

    In each half, small distances have a bucket of their own and larger ones share buckets that grow logarithmically
    up to `max_distance` (T5 paper, section 2.1). Made on the CPU in float32, as published, so that a distance on the
    edge of a bucket falls on the same side on every device.
    """
    position = torch.arange(length)
    offset = position[None, :] - position[:, None]  # [L, L]
    half = num_buckets // 2
    exact = half // 2
    distance = offset.abs()
    growth = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact)  # 0 at exact, 1 at max
    shared = (exact + (growth * (half - exact)).long()).clamp(max=half - 1)
    return torch.where(distance < exact, distance, shared) + half * (offset > 0)
