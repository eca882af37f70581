"""The embedded family: Sora's recipe at the size of a laptop. Trained by `training/`, shipped inside the package."""

from __future__ import annotations

from pathlib import Path

import torch

from soragen.diffusion.grid import Compression, Grid
from soragen.families.pocket.transformer import PocketTransformer, TransformerConfig
from soragen.families.pocket.vae import GROUP, PATCH, PocketVae, VaeConfig
from soragen.models.config import read_config
from soragen.models.family import Work
from soragen.models.text_encoder import PromptEncoder
from soragen.models.weights import load_module

MAX_LENGTH = 96
"""Tokens of a prompt, the end token included: what the text encoder was trained on."""


class Pocket:
    """See `soragen.models.family.Family`."""

    def compression(self, folder: Path) -> Compression:
        patch = read_config(folder / "transformer", TransformerConfig).patch_size
        return Compression(stride=(GROUP, PATCH, PATCH), patch_size=(1, patch, patch))

    def latent_channels(self, folder: Path) -> int:
        return read_config(folder / "transformer", TransformerConfig).latent_channels

    def work(self, folder: Path, grid: Grid) -> Work:
        c, v = read_config(folder / "transformer", TransformerConfig), read_config(folder / "vae", VaeConfig)
        n = grid.num_tokens
        matrices = c.width * (6 * c.width + 3 * c.mlp_width)  # qkv, out, and the query and output of cross-attention
        flops = c.num_layers * (2 * n * matrices + 4 * n * n * c.width)
        widest = 3 * c.width + 2 * c.mlp_width  # what a block holds of a token at once, in float32
        columns = grid.height * grid.width // PATCH**2
        vae = columns * (GROUP * 3 * PATCH**2 * 3 + 6 * v.decoder_width + 24 * v.fine_width)  # one group of frames
        return Work(flops, 4 * n * (4 * c.width + widest), 4 * vae)

    def load_text_encoder(self, folder: Path, device: torch.device, dtype: torch.dtype) -> PromptEncoder:
        return PromptEncoder(
            folder / "text_encoder",
            folder / "tokenizer" / "tokenizer.json",
            max_length=MAX_LENGTH,
            device=device,
            dtype=dtype,
        )

    def load_transformer(self, folder: Path, device: torch.device, dtype: torch.dtype) -> PocketTransformer:
        config = read_config(folder / "transformer", TransformerConfig)
        return load_module(
            lambda: PocketTransformer(config),
            folder / "transformer",
            device=device,
            dtype=dtype,
            keep_float32=("latent_std",),
        )

    def load_vae(self, folder: Path, device: torch.device, dtype: torch.dtype) -> PocketVae:
        config = read_config(folder / "vae", VaeConfig)
        return load_module(
            lambda: PocketVae(config),
            folder / "vae",
            device=device,
            dtype=dtype,
            keep_float32=("latent_mean", "latent_scale"),
        )


FAMILY = Pocket()
