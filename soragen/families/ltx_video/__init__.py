"""LTX-Video by Lightricks: a transformer with very few tokens, as its VAE makes one latent of 8 x 32 x 32 pixels.

Two generations, told apart by the VAE they came with. Up to 0.9.1: prompts of 128 tokens, whose padding T5 reads as if
it were text, and latent frames placed at 0, 8, 16, ... Since 0.9.5: 256 tokens, padding masked, frames placed where
their first pixel frame is, and keyframes. Each is as the reference pipeline for that generation has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from soragen.diffusion.grid import Compression, Grid
from soragen.families.ltx_video.keys import TEXT_ENCODER, TRANSFORMER, configs, vae_naming
from soragen.families.ltx_video.latent_upsampler import (
    UpsamplerConfig,
    load_latent_statistics,
    load_latent_upsampler,
    upsample_latents,
)
from soragen.families.ltx_video.transformer import LtxTransformer, TransformerConfig
from soragen.families.ltx_video.vae import LtxVae, VaeConfig
from soragen.models.config import read_config
from soragen.models.family import NO_CHANGES, LatentUpsampler, Work
from soragen.models.keys import Shapes
from soragen.models.lora import Targets
from soragen.models.offload import Residence, load_network
from soragen.models.text_encoder import PromptEncoder
from soragen.models.weights import Change, load_module

UPSAMPLER = "latent_upsampler"


class LtxVideo:
    """See `KeyframeFamily` and `LatentUpsamplerFamily` in models/family.py, `ReadsSingleFiles` in models/keys.py."""

    text_encoder: Mapping[str, Any] = TEXT_ENCODER

    def compression(self, folder: Path) -> Compression:
        return Compression(stride=read_config(folder / "vae", VaeConfig).stride, patch_size=(1, 1, 1))

    def latent_channels(self, folder: Path) -> int:
        return read_config(folder / "transformer", TransformerConfig).in_channels

    def takes_keyframes(self, folder: Path) -> bool:
        return is_second_generation(folder)

    def work(self, folder: Path, grid: Grid) -> Work:
        c, v = read_config(folder / "transformer", TransformerConfig), read_config(folder / "vae", VaeConfig)
        n = grid.num_tokens
        matrices = 14 * c.width**2  # q, k, v, out; the query and output of cross-attention; the feed-forward's 2 * 4
        flops = c.num_layers * (2 * n * matrices + 4 * n * n * c.width)
        return Work(flops, 4 * n * 13 * c.width, v.decoder_bytes(grid.latent_shape[1] * grid.latent_shape[2]))

    def load_text_encoder(
        self,
        folder: Path,
        device: torch.device,
        dtype: torch.dtype,
        residence: Residence = Residence.RESIDENT,
        quantize: str | None = None,
    ) -> PromptEncoder:
        second_generation = is_second_generation(folder)
        return PromptEncoder(
            folder / "text_encoder",
            folder / "tokenizer" / "tokenizer.json",
            max_length=256 if second_generation else 128,
            padding="masked" if second_generation else "attended",
            device=device,
            dtype=dtype,
            residence=residence,
            quantize=quantize,
        )

    def lora_targets(self, folder: Path) -> dict[str, Targets]:
        config = read_config(folder / "transformer", TransformerConfig)
        return {"": Targets.of(lambda: LtxTransformer(config, causal_time=True), TRANSFORMER)}

    def load_transformer(
        self,
        folder: Path,
        device: torch.device,
        dtype: torch.dtype,
        residence: Residence = Residence.RESIDENT,
        changes: Mapping[str, Change] = NO_CHANGES,
        quantize: str | None = None,
    ) -> LtxTransformer:
        config = read_config(folder / "transformer", TransformerConfig)
        second_generation = is_second_generation(folder)
        return load_network(
            lambda: LtxTransformer(config, causal_time=second_generation),
            folder / "transformer",
            residence=residence,
            blocks="transformer_blocks",
            quantize=quantize,
            device=device,
            dtype=dtype,
            change=changes.get(""),
            namings=[TRANSFORMER],
        )

    def load_vae(self, folder: Path, device: torch.device, dtype: torch.dtype) -> LtxVae:
        config = read_config(folder / "vae", VaeConfig)
        return load_module(
            lambda: LtxVae(config),
            folder / "vae",
            device=device,
            dtype=dtype,
            keep_float32=("latents_mean", "latents_std"),
            namings=[vae_naming(config)],
        )

    def has_latent_upsampler(self, folder: Path) -> bool:
        return (folder / UPSAMPLER / "config.json").is_file()

    def upsampler_bytes(self, folder: Path, grid: Grid) -> int:
        config = read_config(folder / UPSAMPLER, UpsamplerConfig)
        return 4 * config.num_weights + config.activation_bytes(*grid.latent_shape)

    def load_latent_upsampler(self, folder: Path, device: torch.device, dtype: torch.dtype) -> LatentUpsampler:
        network = load_latent_upsampler(folder / UPSAMPLER, device, dtype)
        statistics = load_latent_statistics(folder / "vae", self.latent_channels(folder), device)

        def upsample(latents: Tensor) -> Tensor:
            return upsample_latents(network, statistics, latents)

        return upsample

    def configs(self, shapes: Shapes) -> dict[str, dict[str, Any]]:
        return configs(shapes)


def is_second_generation(folder: Path) -> bool:
    return read_config(folder / "vae", VaeConfig).folds_space


FAMILY = LtxVideo()
