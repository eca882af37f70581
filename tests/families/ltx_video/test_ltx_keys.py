"""LTX-Video's single files: every name and tensor as diffusers' own converters have it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

pytest.importorskip("diffusers")

from diffusers.loaders.single_file_utils import (
    convert_ltx_transformer_checkpoint_to_diffusers,
    convert_ltx_vae_checkpoint_to_diffusers,
)
from ltx_reference import TRANSFORMER, VAES, randomise
from test_ltx_published import PUBLISHED_091, PUBLISHED_095

from soragen.families.ltx_video import FAMILY, keys
from soragen.families.ltx_video.transformer import LtxTransformer, TransformerConfig
from soragen.families.ltx_video.vae import LtxVae, VaeConfig
from soragen.models.config import read_config
from soragen.models.keys import Naming, our_names

CPU = torch.device("cpu")
Tensors = dict[str, Tensor]
PUBLISHED_VAES: dict[str, dict[str, Any]] = {"0.9.0": {}, "0.9.1": PUBLISHED_091, "0.9.5": PUBLISHED_095}
PUBLISHED_TRANSFORMERS: dict[str, dict[str, Any]] = {
    "2B": {}, "13B": {"attention_head_dim": 128, "cross_attention_dim": 4096, "num_layers": 48}
}  # fmt: skip


def authors(ours: Tensors, naming: Naming, prefix: str) -> Tensors:
    """The same tensors under the authors' names, by the table backwards, and others that their files hold."""
    back = Naming("", {mine: theirs for theirs, mine in naming.names.items()})
    stored = {prefix + str(back.rename(name, "")): tensor for name, tensor in ours.items()}
    assert len(stored) == len(ours)
    return stored | {prefix + name: torch.ones(3) for name in naming.unread if "statistics" in name}


def renamed(stored: Tensors, naming: Naming) -> Tensors:
    return {name: stored[key] for key, name in our_names(stored, [naming]).items() if name is not None}


def same(ours: Tensors, theirs: Tensors) -> bool:
    """Whether each name has the very same tensor."""
    return {name: id(tensor) for name, tensor in ours.items()} == {name: id(tensor) for name, tensor in theirs.items()}


def on_meta(network: Any) -> Tensors:
    with torch.device("meta"):
        return dict(network().state_dict())


def as_json(values: dict[str, Any]) -> VaeConfig:
    tuples: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return VaeConfig(**tuples)


def configs(stored: Tensors) -> dict[str, dict[str, Any]]:
    return FAMILY.configs({name: tuple(tensor.shape) for name, tensor in stored.items()})


@pytest.mark.parametrize("values", PUBLISHED_TRANSFORMERS.values(), ids=PUBLISHED_TRANSFORMERS.keys())
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_published_transformers(tmp_path: Path, values: dict[str, Any], prefix: str) -> None:
    config = TransformerConfig(**values)
    ours = on_meta(lambda: LtxTransformer(config, True))
    stored = authors(ours, keys.TRANSFORMER, prefix)
    assert f"{prefix}transformer_blocks.7.attn2.q_norm.weight" in stored
    assert same(renamed(stored | {"vae.encoder.conv_in.conv.bias": torch.ones(1)}, keys.TRANSFORMER), ours)
    assert same(convert_ltx_transformer_checkpoint_to_diffusers(dict(stored)), ours)
    for file in (ours, stored):
        found = configs(file)
        assert list(found) == ["transformer"]
        (tmp_path / "config.json").write_text(json.dumps(found["transformer"]))
        assert read_config(tmp_path, TransformerConfig) == config


@pytest.mark.parametrize("values", PUBLISHED_VAES.values(), ids=PUBLISHED_VAES.keys())
def test_published_vaes(tmp_path: Path, values: dict[str, Any]) -> None:
    config = as_json(values)
    ours = on_meta(lambda: LtxVae(config))
    naming = keys.vae_naming(config)
    stored = authors(ours, naming, "vae.")
    assert {"vae.per_channel_statistics.std-of-means", "vae.decoder.up_blocks.5.conv.conv.weight"} < set(stored)
    assert same(renamed(stored | {"model.diffusion_model.patchify_proj.bias": torch.ones(1)}, naming), ours)
    converted = convert_ltx_vae_checkpoint_to_diffusers(dict(stored))
    assert same({name: tensor for name, tensor in converted.items() if "statistics" not in name}, ours)
    for file in (ours, stored, authors(ours, naming, "")):
        found = configs(file)
        assert list(found) == ["vae"]
        (tmp_path / "config.json").write_text(json.dumps(found["vae"]))
        assert read_config(tmp_path, VaeConfig) == config


def random(network: nn.Module) -> Tensors:
    randomise(network)
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize("values", VAES.values(), ids=VAES.keys())
def test_both_networks_load_from_one_file(tmp_path: Path, values: dict[str, Any]) -> None:
    config = VaeConfig(**values)
    transformer = random(LtxTransformer(TransformerConfig(**TRANSFORMER), True))
    vae = random(LtxVae(config))
    one = authors(transformer, keys.TRANSFORMER, "model.diffusion_model.")
    one |= authors(vae, keys.vae_naming(config), "vae.")
    for component, described in (("transformer", TRANSFORMER), ("vae", values)):
        (tmp_path / component).mkdir()
        (tmp_path / component / "config.json").write_text(json.dumps(described))
        save_file(one, tmp_path / component / "ltx-video-2b.safetensors")
    for loaded, wanted in (
        (FAMILY.load_transformer(tmp_path, CPU, torch.float32), transformer),
        (FAMILY.load_vae(tmp_path, CPU, torch.float32), vae),
    ):
        assert isinstance(loaded, nn.Module) and len(wanted) == len(loaded.state_dict())
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in loaded.state_dict().items())
