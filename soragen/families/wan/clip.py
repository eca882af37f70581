"""The image encoder beside Wan 2.1's image-to-video transformers: the vision half of CLIP, without its last layer.

Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (arXiv:2103.00020).
Parameters are named as in the published checkpoints; the numbers agree with transformers' `CLIPVisionModel` (a test).

Axis letters: B batch, L tokens (one for the picture as a whole, then one for each patch), D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soragen.errors import WeightsError
from soragen.models.t5 import embedding
from soragen.models.weights import load_module, read_json

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""Of the three colours in CLIP's training set."""

PREFIX = "vision_model."


@dataclass(frozen=True)
class ClipConfig:
    """What is needed of a published `image_encoder/config.json`; the rest of it describes training."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    image_size: int
    patch_size: int
    hidden_act: str
    layer_norm_eps: float

    @classmethod
    def read(cls, folder: Path) -> ClipConfig:
        """Raises WeightsError."""
        file = folder / "config.json"
        values = read_json(file)
        if missing := [name for name in cls.__dataclass_fields__ if name not in values]:
            raise WeightsError(f"{file} lacks {', '.join(missing)}", "the config.json of a CLIP vision model has them")
        if values["hidden_act"] != "gelu":
            raise WeightsError(f"{file} has hidden_act {values['hidden_act']!r}", "'gelu' is known")
        return cls(**{name: values[name] for name in cls.__dataclass_fields__})

    @property
    def num_tokens(self) -> int:
        return 1 + (self.image_size // self.patch_size) ** 2


class Attention(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            project(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Layer(nn.Module):
    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = Attention(config.hidden_size, config.num_attention_heads)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = Mlp(config.hidden_size, config.intermediate_size)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Embeddings(nn.Module):
    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.zeros(config.hidden_size))
        self.patch_embedding = nn.Conv2d(3, config.hidden_size, config.patch_size, stride=config.patch_size, bias=False)
        self.position_embedding = embedding(config.num_tokens, config.hidden_size)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patch_embedding(images).flatten(2).mT  #           [B, L - 1, D]
        whole = self.class_embedding.expand(len(images), 1, -1)
        return torch.cat([whole, patches], dim=1) + self.position_embedding.weight


class VisionModel(nn.Module):
    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)  # published under this name
        layers = (Layer(config) for _ in range(config.num_hidden_layers - 1))
        self.encoder = nn.ModuleDict({"layers": nn.Sequential(*layers)})

    def forward(self, images: Tensor) -> Tensor:
        return self.encoder["layers"](self.pre_layrnorm(self.embeddings(images)))  #  [B, L, D]


class ClipEncoder(nn.Module):
    """Pictures to what CLIP knows about each of their places, before its last layer sums it up."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_model = VisionModel(config)

    @torch.inference_mode()
    def forward(self, image: Tensor) -> Tensor:
        """Tokens [L, D] of a picture [H, W, 3] in 0..1: its middle square, at the size that CLIP knows."""
        weight = self.vision_model.embeddings.class_embedding
        square = middle_square(image.float(), self.config.image_size).to(weight.device)
        mean, std = (torch.tensor(values, device=weight.device) for values in (MEAN, STD))
        return self.vision_model(((square - mean) / std).permute(2, 0, 1)[None].to(weight))[0]


def middle_square(image: Tensor, side: int) -> Tensor:
    """[side, side, 3] of a picture [H, W, 3] in 0..1: scaled so that its shorter side fits, then cut, in 256 shades.

    Rows are scaled first, then columns, and shades rounded after each, to the bit as Pillow does it for the published
    processor: near the middle of two shades a sum of floats would fall to either side.
    """
    height, width = image.shape[:2]
    short = min(height, width)
    sides = side * height // short, side * width // short
    shades = (image.double() * 255).round()
    shades = scaled(shades.movedim(1, 2), sides[1]).movedim(2, 1)  #      [H, sides[1], 3]
    shades = scaled(shades.movedim(0, 2), sides[0]).movedim(2, 0)  #      [*sides, 3]
    top, left = (sides[0] - side) // 2, (sides[1] - side) // 2
    return (shades / 255).float()[top : top + side, left : left + side]


def scaled(shades: Tensor, size: int) -> Tensor:
    """Whole numbers 0..255 [..., n] brought to [..., size] by bicubic weights in whole parts of 2^22."""
    before = shades.shape[-1]
    if size == before:
        return shades
    one = 2.0**22
    factor = before / size
    spread = max(factor, 1.0)  # antialiased
    centre = (torch.arange(size, dtype=torch.float64)[:, None] + 0.5) * factor  #  [size, 1]
    place = torch.arange(before, dtype=torch.float64)
    first, end = ((centre + reach * spread + 0.5).floor() for reach in (-2, 2))
    x = ((place - centre + 0.5) / spread).abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, -0.5 * (((x - 5) * x + 8) * x - 4)
    weights = torch.where(x < 1, near, torch.where(x < 2, far, 0.0)) * ((place >= first) & (place < end))
    weights = weights / weights.sum(dim=1, keepdim=True) * one
    weights = (weights + 0.5 * weights.sign()).trunc()  #                  halves away from zero
    return ((shades @ weights.mT + one / 2) / one).floor().clamp(0, 255)


def load_clip(folder: Path, device: torch.device, dtype: torch.dtype) -> ClipEncoder:
    """The image encoder in a published folder. Raises WeightsError."""
    config = ClipConfig.read(folder)
    last = config.num_hidden_layers - 1
    unread = (f"encoder.layers.{last}.", "post_layernorm.", "embeddings.position_ids", "visual_projection.")
    return load_module(
        lambda: ClipEncoder(config),
        folder,
        device=device,
        dtype=dtype,
        rename=lambda name: f"{PREFIX}{name.removeprefix(PREFIX)}",  # new versions of transformers save without it
        allow_extra=(*unread, *(PREFIX + name for name in unread)),
    )
