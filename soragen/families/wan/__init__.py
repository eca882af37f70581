"""Wan 2.1 and 2.2: text to video in all published sizes, images to video, and the two experts of A14B.

Which of these a checkpoint is, its config files say: strides and channels of its VAE, the channels its transformer
takes beside the noisy latents, and `boundary_ratio` of model_index.json where there are two transformers. Whether its
attention is sparse, the list of models says: see `SPARSITY`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from soragen.diffusion.grid import Compression, Grid
from soragen.errors import InputError, WeightsError
from soragen.families.wan.experts import Experts
from soragen.families.wan.images import check, check_count, join, see
from soragen.families.wan.keys import TEXT_ENCODER, TRANSFORMER, configs, vae_naming
from soragen.families.wan.sparse_attention import COPIES, PLACES, num_blocks, num_chosen
from soragen.families.wan.text import MAX_LENGTH, WanTextEncoder
from soragen.families.wan.transformer import KEEP_FLOAT32, TransformerConfig, WanTransformer
from soragen.families.wan.vae import VaeConfig, WanVae
from soragen.models.config import read_config
from soragen.models.family import NO_CHANGES, ImageCondition, Vae, Work
from soragen.models.keys import Shapes
from soragen.models.lora import Targets
from soragen.models.offload import Residence, load_network
from soragen.models.text_encoder import PromptEncoder
from soragen.models.weights import Change, load_module, read_json
from soragen.request import ATTENTIONS

SPARSITY = "transformer.sparsity"
"""What the files of checkpoints that were distilled with sparse attention do not say."""


class Wan:
    """See `soragen.models.family.ImageFamily` and `soragen.models.keys.ReadsSingleFiles`.

    absent: what the config.json of the transformers does not say.
    """

    text_encoder: Mapping[str, Any] = TEXT_ENCODER

    def __init__(self, absent: Mapping[str, Any] | None = None) -> None:
        self.absent = absent or {}

    def with_config(self, config: Mapping[str, Any]) -> Wan:
        """See `soragen.models.family.ConfiguredFamily`."""
        if unknown := config.keys() - {SPARSITY}:
            raise InputError(f"config has {', '.join(sorted(unknown))}, which no Wan model lacks", f"known: {SPARSITY}")
        return Wan(config)

    def takes_attention(self, name: str) -> bool:
        """See `soragen.models.family.ConfiguredFamily`. Sparse attention leaves out keys; the 8-bit kernel sees all."""
        return ATTENTIONS[name] or SPARSITY not in self.absent

    def read(self, folder: Path, part: str = "transformer") -> TransformerConfig:
        absent = {key.removeprefix("transformer."): value for key, value in self.absent.items()}
        return read_config(folder / part, TransformerConfig, absent)

    def compression(self, folder: Path) -> Compression:
        patch_size = self.read(folder).patch_size
        return Compression(stride=read_config(folder / "vae", VaeConfig).stride, patch_size=patch_size)

    def latent_channels(self, folder: Path) -> int:
        return read_config(folder / "vae", VaeConfig).z_dim

    def work(self, folder: Path, grid: Grid) -> Work:
        c, v = self.read(folder), read_config(folder / "vae", VaeConfig)
        n = grid.num_tokens
        matrices = 6 * c.width**2 + 2 * c.width * c.ffn_dim  # qkv and out, query and out, feed-forward
        pairs, held = n * n, 5.0  # queries with keys; what attention holds of a token, in widths
        if c.sparsity is not None:
            blocks = num_blocks(grid.token_shape)
            matrices += c.width**2  # the gate
            pairs = PLACES**2 * blocks * num_chosen(grid.token_shape, c.sparsity) + blocks**2
            held = (5 + 2 * COPIES) * PLACES * blocks / n  # in blocks: queries, keys, values, gates, and what comes out
        flops = c.num_layers * (2 * n * matrices + 4 * (pairs + n * MAX_LENGTH) * c.width)
        words = c.num_layers * 2 * 2 * MAX_LENGTH * c.width  # keys and values, of the prompt and of the negative one
        # Of a token: the residual stream, norms, and one layer.
        widest = 4 * c.width + math.ceil(max(held * c.width, 2 * c.ffn_dim))
        # Measured: the finest level holds up to 16.1 times its output, a chunk of one latent frame.
        finest = v.stride[0] * (v.decoder_base_dim or v.base_dim) * grid.height * grid.width // v.patch**2
        return Work(flops, 4 * (n * widest + words), math.ceil(4 * 16.2 * finest))

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
        configs = {name: self.read(folder, part) for name, part in parts.items()}
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

        def load(part: str, change: str) -> Callable[[], WanTransformer]:
            return transformer_loader(
                folder / part, self.read(folder, part), device, dtype, residence, changes.get(change), quantize
            )

        if boundary is None:
            return load("transformer", "")()
        return Experts(load("transformer", "high"), load("transformer_2", "low"), boundary)

    def load_vae(self, folder: Path, device: torch.device, dtype: torch.dtype) -> WanVae:
        config = read_config(folder / "vae", VaeConfig)
        naming = vae_naming(len(config.dim_mult), config.num_res_blocks, config.is_residual)
        return load_module(lambda: WanVae(config), folder / "vae", device=device, dtype=dtype, namings=[naming])

    def configs(self, shapes: Shapes) -> dict[str, dict[str, Any]]:
        return configs(shapes)

    def takes_images(self, folder: Path) -> bool:
        return self.read(folder).in_channels > self.latent_channels(folder)

    def check_images(self, folder: Path, num_images: int) -> None:
        check_count(self.read(folder), num_images)

    def read_images(
        self,
        folder: Path,
        images: Mapping[int, Tensor],
        grid: Grid,
        *,
        load_vae: Callable[[], Vae],
        device: torch.device,
        dtype: torch.dtype,
    ) -> ImageCondition:
        check(images, grid)
        config = self.read(folder)
        check_count(config, len(images))
        tokens = see(folder, config, images, device, dtype)
        return ImageCondition(join(load_vae(), images, grid), tokens)


def transformer_loader(
    folder: Path,
    config: TransformerConfig,
    device: torch.device,
    dtype: torch.dtype,
    residence: Residence,
    change: Change | None = None,
    quantize: str | None = None,
) -> Callable[[], WanTransformer]:
    """Loads the transformer in `folder` when it is called."""

    def load() -> WanTransformer:
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
