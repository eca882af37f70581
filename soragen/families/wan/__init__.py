"""Wan 2.1 and 2.2: text to video in all published sizes, images to video, and the two experts of A14B.

Which of these a checkpoint is, its config files say: strides and channels of its VAE, the channels its transformer
takes beside the noisy latents, and `boundary_ratio` of model_index.json where there are two transformers.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from soragen.diffusion.grid import Compression, Grid
from soragen.errors import WeightsError
from soragen.families.wan.experts import Experts
from soragen.families.wan.images import check, check_count, join, see
from soragen.families.wan.keys import TEXT_ENCODER, TRANSFORMER, configs, vae_naming
from soragen.families.wan.text import MAX_LENGTH, WanTextEncoder
from soragen.families.wan.transformer import KEEP_FLOAT32, TransformerConfig, WanTransformer
from soragen.families.wan.vae import VaeConfig, WanVae
from soragen.models.config import read_config
from soragen.models.device import free_memory
from soragen.models.family import NO_CHANGES, ImageCondition, Work
from soragen.models.keys import Shapes
from soragen.models.lora import Targets
from soragen.models.offload import Residence, load_network
from soragen.models.text_encoder import PromptEncoder
from soragen.models.weights import Change, load_module, read_json


class Wan:
    """See `soragen.models.family.ImageFamily` and `soragen.models.keys.ReadsSingleFiles`."""

    text_encoder: Mapping[str, Any] = TEXT_ENCODER

    def compression(self, folder: Path) -> Compression:
        patch_size = read_config(folder / "transformer", TransformerConfig).patch_size
        return Compression(stride=read_config(folder / "vae", VaeConfig).stride, patch_size=patch_size)

    def latent_channels(self, folder: Path) -> int:
        return read_config(folder / "vae", VaeConfig).z_dim

    def work(self, folder: Path, grid: Grid) -> Work:
        c, v = read_config(folder / "transformer", TransformerConfig), read_config(folder / "vae", VaeConfig)
        n = grid.num_tokens
        matrices = 6 * c.width**2 + 2 * c.width * c.ffn_dim  # qkv and out, query and out, feed-forward
        flops = c.num_layers * (2 * n * matrices + 4 * n * (n + MAX_LENGTH) * c.width)
        words = c.num_layers * 2 * 2 * MAX_LENGTH * c.width  # keys and values, of the prompt and of the negative one
        widest = 4 * c.width + max(5 * c.width, 2 * c.ffn_dim)  # of a token: the residual stream, norms, and one layer
        # Measured: the finest level holds fifteen times its output, a chunk of one latent frame.
        finest = v.stride[0] * (v.decoder_base_dim or v.base_dim) * grid.height * grid.width // v.patch**2
        return Work(flops, 4 * (n * widest + words), 4 * 15 * finest)

    def load_text_encoder(
        self,
        folder: Path,
        device: torch.device,
        dtype: torch.dtype,
        residence: Residence = Residence.RESIDENT,
        quantize: str | None = None,
    ) -> WanTextEncoder:
        encoder = PromptEncoder(
            folder / "text_encoder",
            folder / "tokenizer" / "tokenizer.json",
            max_length=MAX_LENGTH,
            padding="masked",
            device=device,
            dtype=dtype,
            residence=residence,
            quantize=quantize,
        )
        return WanTextEncoder(encoder)

    def lora_targets(self, folder: Path) -> dict[str, Targets]:
        parts = {"": "transformer"}
        if boundary_ratio(folder) is not None:
            parts = {"high": "transformer", "low": "transformer_2"}
        configs = {name: read_config(folder / part, TransformerConfig) for name, part in parts.items()}
        targets = {config: Targets.of(partial(WanTransformer, config), TRANSFORMER) for config in configs.values()}
        return {name: targets[config] for name, config in configs.items()}

    def load_transformer(
        self,
        folder: Path,
        device: torch.device,
        dtype: torch.dtype,
        residence: Residence = Residence.RESIDENT,
        changes: Mapping[str, Change] = NO_CHANGES,
        quantize: str | None = None,
    ) -> WanTransformer | Experts:
        boundary = boundary_ratio(folder)
        load = partial(transformer_loader, device=device, dtype=dtype, residence=residence, quantize=quantize)
        if boundary is None:
            return load(folder / "transformer", change=changes.get(""))()
        high = load(folder / "transformer", change=changes.get("high"))
        return Experts(high, load(folder / "transformer_2", change=changes.get("low")), boundary)

    def load_vae(self, folder: Path, device: torch.device, dtype: torch.dtype) -> WanVae:
        config = read_config(folder / "vae", VaeConfig)
        naming = vae_naming(len(config.dim_mult), config.num_res_blocks, config.is_residual)
        return load_module(lambda: WanVae(config), folder / "vae", device=device, dtype=dtype, namings=[naming])

    def configs(self, shapes: Shapes) -> dict[str, dict[str, Any]]:
        return configs(shapes)

    def takes_images(self, folder: Path) -> bool:
        return read_config(folder / "transformer", TransformerConfig).in_channels > self.latent_channels(folder)

    def check_images(self, folder: Path, num_images: int) -> None:
        check_count(read_config(folder / "transformer", TransformerConfig), num_images)

    def read_images(
        self, folder: Path, images: Mapping[int, Tensor], grid: Grid, device: torch.device, dtype: torch.dtype
    ) -> ImageCondition:
        check(images, grid)
        config = read_config(folder / "transformer", TransformerConfig)
        check_count(config, len(images))
        tokens = see(folder, config, images, device, dtype)
        channels = join(self.load_vae(folder, device, dtype), images, grid)
        gc.collect()
        free_memory(device)
        return ImageCondition(channels, tokens)


def transformer_loader(
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
    residence: Residence,
    change: Change | None = None,
    quantize: str | None = None,
) -> Callable[[], WanTransformer]:
    """Loads the transformer in `folder` when it is called."""

    def load() -> WanTransformer:
        config = read_config(folder, TransformerConfig)
        return load_network(
            lambda: WanTransformer(config),
            folder,
            residence=residence,
            blocks="blocks",
            quantize=quantize,
            device=device,
            dtype=dtype,
            keep_float32=KEEP_FLOAT32,
            change=change,
            namings=[TRANSFORMER],
            # Stored with some image-to-video checkpoints, but never read: image queries are those of the text.
            allow_extra=tuple(f"blocks.{n}.attn2.norm_added_q." for n in range(config.num_layers)),
        )

    return load


def boundary_ratio(folder: Path) -> float | None:
    """The share of timesteps from which on the first of two transformers works; None where there is one alone.

    Raises WeightsError when the folder does not say.
    """
    index = folder / "model_index.json"
    values = read_json(index) if index.is_file() else {}
    ratio, has_two = values.get("boundary_ratio"), (folder / "transformer_2").is_dir()
    if ratio is None and not has_two:
        return None
    if not has_two or not isinstance(ratio, float) or not 0 < ratio < 1:
        raise WeightsError(
            f"{folder} holds {'two transformers' if has_two else 'one transformer'}, "
            f"model_index.json has boundary_ratio {ratio!r}",
            "two transformers need a ratio between 0 and 1, one has none: fetch the checkpoint again",
        )
    return ratio


FAMILY = Wan()
