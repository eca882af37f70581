"""The embedded family: Sora's recipe at the size of a laptop. Trained by `training/`, shipped inside the package."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch

from soragen.diffusion.grid import Compression, Grid
from soragen.families.pocket.refiner import PocketRefiner, RefinerConfig
from soragen.families.pocket.transformer import PocketTransformer, TransformerConfig
from soragen.families.pocket.upscaler import FACTOR, PocketUpscaler, UpscalerConfig
from soragen.families.pocket.vae import GROUP, PATCH, PocketVae, VaeConfig
from soragen.models.config import read_config
from soragen.models.family import NO_CHANGES, Work
from soragen.models.lora import Targets
from soragen.models.offload import Residence, load_network
from soragen.models.text_encoder import PromptEncoder
from soragen.models.weights import Change, load_module

MAX_LENGTH = 96
"""Tokens of a prompt, the end token included: what the text encoder was trained on."""


class Pocket:
    """See `soragen.models.family.UpscalerFamily`."""

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
        head = 9 * (3 * c.latent_channels + c.head_width) + 21 * c.head_layers * c.head_width
        flops += 2 * n * c.patch_size**2 * c.head_width * head  # of a step that has them (`head_below`)
        widest = 3 * c.width + 2 * c.mlp_width  # what a block holds of a token at once, in float32
        widest = max(widest, c.patch_size**2 * (2 * c.latent_channels + 6 * c.head_width))  # or the convolutions
        columns = grid.height * grid.width // PATCH**2
        # Measured: of one group of frames up to 2.15 times what its pixels and the widest layers hold.
        vae = math.ceil(2.2 * columns * (GROUP * 3 * PATCH**2 * 3 + 6 * v.decoder_width + 24 * v.fine_width))
        return Work(flops, 4 * n * (4 * c.width + widest), 4 * vae)

    def load_text_encoder(
        self,
        folder: Path,
        device: torch.device,
        dtype: torch.dtype,
        residence: Residence = Residence.RESIDENT,
        quantize: str | None = None,
    ) -> PromptEncoder:
        return PromptEncoder(
            folder / "text_encoder",
            folder / "tokenizer" / "tokenizer.json",
            max_length=MAX_LENGTH,
            device=device,
            dtype=dtype,
            residence=residence,
            quantize=quantize,
        )

    def lora_targets(self, folder: Path) -> dict[str, Targets]:
        config = read_config(folder / "transformer", TransformerConfig)
        return {"": Targets.of(lambda: PocketTransformer(config))}

    def load_transformer(
        self,
        folder: Path,
        device: torch.device,
        dtype: torch.dtype,
        residence: Residence = Residence.RESIDENT,
        changes: Mapping[str, Change] = NO_CHANGES,
        quantize: str | None = None,
    ) -> PocketTransformer:
        config = read_config(folder / "transformer", TransformerConfig)
        network = load_network(
            lambda: PocketTransformer(config),
            folder / "transformer",
            residence=residence,
            blocks="blocks",
            quantize=quantize,
            device=device,
            dtype=dtype,
            change=changes.get(""),
            keep_float32=("latent_std",),
        )
        if (refiner := folder / "refiner").is_dir():
            settings = read_config(refiner, RefinerConfig)
            network.refiner = load_module(
                lambda: PocketRefiner(settings), refiner, device=device, dtype=dtype, keep_float32=("latent_std",)
            )
        return network

    def load_vae(self, folder: Path, device: torch.device, dtype: torch.dtype) -> PocketVae:
        config = read_config(folder / "vae", VaeConfig)
        return load_module(
            lambda: PocketVae(config),
            folder / "vae",
            device=device,
            dtype=dtype,
            keep_float32=("latent_mean", "latent_scale"),
        )

    def upscale_factor(self, folder: Path) -> int:
        return FACTOR if (folder / "upscaler").is_dir() else 1

    def load_upscaler(self, folder: Path, device: torch.device, dtype: torch.dtype) -> PocketUpscaler | None:
        if not (folder / "upscaler").is_dir():
            return None
        config = read_config(folder / "upscaler", UpscalerConfig)
        return load_module(lambda: PocketUpscaler(config), folder / "upscaler", device=device, dtype=dtype)


FAMILY = Pocket()
