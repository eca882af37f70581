"""Wan's files under the authors' names: every name and tensor as diffusers' own converters have it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

pytest.importorskip("diffusers")

from diffusers import AutoencoderKLWan
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers, convert_wan_vae_to_diffusers
from wan_reference import (
    IMAGE_TRANSFORMER,
    PUBLISHED_TRANSFORMERS,
    PUBLISHED_VAES,
    TRANSFORMER,
    VAE_21,
    VAE_22,
    randomise,
)

from soragen.errors import WeightsError
from soragen.families.wan import FAMILY, keys
from soragen.families.wan.clip import ClipConfig, ClipEncoder
from soragen.families.wan.transformer import TransformerConfig, WanTransformer
from soragen.families.wan.vae import VaeConfig, WanVae
from soragen.models.config import read_config
from soragen.models.keys import Naming, our_names

SMALL: dict[str, Any] = {**TRANSFORMER}
CPU, PREFIX = torch.device("cpu"), "model.diffusion_model."
Tensors = dict[str, Tensor]


def authors(ours: Tensors, naming: Naming, prefix: str = "") -> Tensors:
    """The same tensors under the authors' names, by the table backwards."""
    back = Naming("", {mine: theirs for theirs, mine in naming.names.items()})
    names = {name: str(back.rename(name, "")).replace(".head.modulation", ".modulation") for name in ours}
    assert len(set(names.values())) == len(names)
    return {prefix + names[name]: tensor for name, tensor in ours.items()}


def renamed(stored: Tensors, naming: Naming) -> Tensors:
    return {name: stored[key] for key, name in our_names(stored, [naming]).items() if name is not None}


def vae_naming(config: VaeConfig) -> Naming:
    return keys.vae_naming(len(config.dim_mult), config.num_res_blocks, config.is_residual)


def same(ours: Tensors, theirs: Tensors) -> bool:
    """Whether each name has the very same tensor."""
    return {name: id(tensor) for name, tensor in ours.items()} == {name: id(tensor) for name, tensor in theirs.items()}


def on_meta(build: type[nn.Module], config: Any) -> Tensors:
    with torch.device("meta"):
        return dict(build(config).state_dict())


def write(folder: Path, config: dict[str, Any], tensors: Tensors) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "any name.safetensors")
    return folder.parent


def random(network: nn.Module) -> Tensors:
    randomise(network)
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize("prefix", ["", PREFIX])
@pytest.mark.parametrize("config", PUBLISHED_TRANSFORMERS.values(), ids=PUBLISHED_TRANSFORMERS.keys())
def test_published_transformers(config: dict[str, Any], prefix: str) -> None:
    ours = on_meta(WanTransformer, TransformerConfig(**config))
    stored = authors(ours, keys.TRANSFORMER, prefix)
    assert f"{prefix}blocks.3.self_attn.norm_q.weight" in stored and f"{prefix}head.modulation" in stored
    assert same(renamed(stored, keys.TRANSFORMER), ours)
    converted = convert_wan_transformer_to_diffusers(dict(stored))
    if "pos_embed_seq_len" in config:  # the authors' name of these, which the converter leaves as it is
        converted["condition_embedder.image_embedder.pos_embed"] = converted.pop("img_emb.emb_pos")
    assert same(converted, ours)


@pytest.mark.parametrize("config", PUBLISHED_TRANSFORMERS.values(), ids=PUBLISHED_TRANSFORMERS.keys())
def test_the_config_of_a_published_transformer_from_its_shapes(tmp_path: Path, config: dict[str, Any]) -> None:
    wanted = TransformerConfig(**config)
    ours = on_meta(WanTransformer, wanted)
    for stored in (ours, authors(ours, keys.TRANSFORMER), authors(ours, keys.TRANSFORMER, PREFIX)):
        found = FAMILY.configs({name: tuple(tensor.shape) for name, tensor in stored.items()})
        assert list(found) == ["transformer"]
        (tmp_path / "config.json").write_text(json.dumps(found["transformer"]))
        assert read_config(tmp_path, TransformerConfig) == wanted


def test_the_published_vae_of_2_1() -> None:
    config = VaeConfig(**{key: value for key, value in keys.VAES[16].items() if key != "_class_name"})
    ours = on_meta(WanVae, config)
    stored = authors(ours, vae_naming(config))
    assert same(renamed(stored, vae_naming(config)), ours)
    assert same(convert_wan_vae_to_diffusers(dict(stored)), ours)


def residual(place: str, shortcut: bool) -> list[str]:
    layers = ["residual.0.gamma", "residual.3.gamma"]
    layers += [f"residual.{n}.{kind}" for n in (2, 6) for kind in ("weight", "bias")]
    layers += ["shortcut.weight", "shortcut.bias"] if shortcut else []
    return [f"{place}.{layer}" for layer in layers]


def vae_22_names() -> set[str]:
    """All names in the authors' file, from the modules of their code: diffusers' package has no converter for it."""
    names = ["conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias"]
    for half, levels, blocks, widens in (
        ("encoder", "downsamples", 2, (False, True, True, False)),
        ("decoder", "upsamples", 3, (False, False, True, True)),
    ):
        names += [f"{half}.{layer}.{kind}" for layer in ("conv1", "head.2") for kind in ("weight", "bias")]
        names += [f"{half}.head.0.gamma", f"{half}.middle.1.norm.gamma"]
        names += [f"{half}.middle.1.{layer}.{kind}" for layer in ("to_qkv", "proj") for kind in ("weight", "bias")]
        names += [*residual(f"{half}.middle.0", False), *residual(f"{half}.middle.2", False)]
        for level in range(4):
            place = f"{half}.{levels}.{level}.{levels}"
            for block in range(blocks):
                names += residual(f"{place}.{block}", widens[level] and block == 0)
            if level < 3:
                in_time = level > 0 if half == "encoder" else level < 2
                layers = ["resample.1", *(["time_conv"] if in_time else [])]
                names += [f"{place}.{blocks}.{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
    return set(names)


def test_the_published_vae_of_2_2() -> None:
    config = VaeConfig(**{key: value for key, value in keys.VAES[48].items() if key != "_class_name"})
    ours = on_meta(WanVae, config)
    stored = authors(ours, vae_naming(config))
    assert set(stored) == vae_22_names()
    assert same(renamed(stored, vae_naming(config)), ours)
    for theirs, mine in {
        "encoder.downsamples.1.downsamples.0.shortcut.bias": "encoder.down_blocks.1.resnets.0.conv_shortcut.bias",
        "encoder.downsamples.2.downsamples.2.time_conv.weight": "encoder.down_blocks.2.downsampler.time_conv.weight",
        "decoder.upsamples.0.upsamples.2.residual.6.weight": "decoder.up_blocks.0.resnets.2.conv2.weight",
        "decoder.upsamples.0.upsamples.3.resample.1.bias": "decoder.up_blocks.0.upsampler.resample.1.bias",
        "decoder.middle.2.residual.3.gamma": "decoder.mid_block.resnets.1.norm2.gamma",
        "conv2.weight": "post_quant_conv.weight",
    }.items():
        assert stored[theirs] is ours[mine]


@pytest.mark.parametrize(("channels", "published"), list(zip(keys.VAES, PUBLISHED_VAES.values(), strict=True)))
def test_the_configs_of_the_vaes(channels: int, published: dict[str, Any]) -> None:
    values = dict(keys.VAES[channels])
    assert AutoencoderKLWan.__name__ == values.pop("_class_name")
    config = VaeConfig(**values)
    assert {key: getattr(config, key) for key in published} == published
    ours = on_meta(WanVae, config)
    for stored in (ours, authors(ours, vae_naming(config), "vae.")):
        shapes = {name: tuple(tensor.shape) for name, tensor in stored.items()}
        assert FAMILY.configs(shapes) == {"vae": keys.VAES[channels]}
    with torch.device("meta"):
        theirs: Any = AutoencoderKLWan(**values)
    assert {name: tensor.shape for name, tensor in theirs.state_dict().items()} == {
        name: tensor.shape for name, tensor in ours.items()
    }
    if channels == 16:  # the values that diffusers has as its defaults
        assert theirs.config.latents_mean == values["latents_mean"]
        assert theirs.config.latents_std == values["latents_std"]


@pytest.mark.parametrize("config", [TRANSFORMER, IMAGE_TRANSFORMER], ids=["text", "image"])
@pytest.mark.parametrize("prefix", ["", PREFIX])
def test_a_transformer_loads(tmp_path: Path, config: dict[str, Any], prefix: str) -> None:
    ours = random(WanTransformer(TransformerConfig(**config)))
    stored = authors(ours, keys.TRANSFORMER, prefix) | ({"vae.conv1.bias": torch.ones(1)} if prefix else {})
    folder = write(tmp_path / "transformer", config, stored)
    loaded = FAMILY.load_transformer(folder, CPU, torch.float32)
    assert isinstance(loaded, WanTransformer)
    assert all(torch.equal(tensor, ours[name]) for name, tensor in loaded.state_dict().items())


@pytest.mark.parametrize("config", [VAE_21, VAE_22], ids=["2.1", "2.2"])
def test_a_vae_loads(tmp_path: Path, config: dict[str, Any]) -> None:
    network = WanVae(read_config(write(tmp_path / "vae", config, {}) / "vae", VaeConfig))
    ours = random(network)
    save_file(authors(ours, vae_naming(network.config)), tmp_path / "vae" / "any name.safetensors")
    loaded = FAMILY.load_vae(tmp_path, CPU, torch.float32)
    assert all(torch.equal(tensor, ours[name]) for name, tensor in loaded.state_dict().items())


def scaled(stored: Tensors, prefix: str) -> Tensors:
    """As repackaged in fp8: matrices divided by a scale, which is stored beside them."""
    tensors: Tensors = {f"{prefix}scaled_fp8": torch.zeros(0, dtype=torch.float8_e4m3fn)}
    for name, tensor in stored.items():
        tensors[name] = tensor
        if tensor.ndim == 2:
            scale = tensor.abs().max() / 448
            tensors[name] = (tensor / scale).to(torch.float8_e4m3fn)
            tensors[name.removesuffix("weight") + "scale_weight"] = scale
            tensors[name.removesuffix("weight") + "scale_input"] = torch.ones(())
    return tensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scaled_fp8_loads_as_the_values_it_stands_for(tmp_path: Path, dtype: torch.dtype) -> None:
    ours = random(WanTransformer(TransformerConfig(**SMALL)))
    stored = scaled(authors(ours, keys.TRANSFORMER, PREFIX), PREFIX)
    folder = write(tmp_path / "transformer", TRANSFORMER, stored)
    loaded = FAMILY.load_transformer(folder, CPU, dtype)
    assert isinstance(loaded, WanTransformer)
    place = f"{PREFIX}blocks.1.ffn.0"
    wanted = (stored[f"{place}.weight"].float() * stored[f"{place}.scale_weight"]).to(dtype)
    weight = loaded.state_dict()["blocks.1.ffn.net.0.proj.weight"]
    assert torch.equal(weight, wanted) and weight.dtype == dtype
    assert (weight.float() - ours["blocks.1.ffn.net.0.proj.weight"]).abs().max() < 0.07 * weight.abs().max()
    torch.testing.assert_close(loaded.state_dict()["proj_out.bias"], ours["proj_out.bias"].to(dtype))


def test_a_scale_for_each_row_is_refused(tmp_path: Path) -> None:
    ours = random(WanTransformer(TransformerConfig(**SMALL)))
    stored = scaled(authors(ours, keys.TRANSFORMER), "")
    stored["blocks.1.ffn.0.scale_weight"] = torch.ones(80)
    with pytest.raises(WeightsError, match=r"blocks\.1\.ffn\.0\.scale_weight has 80 values"):
        FAMILY.load_transformer(write(tmp_path / "transformer", TRANSFORMER, stored), CPU, torch.float32)


def test_the_image_encoder() -> None:
    """Repackaged files have the published names; the config is that of the published one."""
    config = ClipConfig(**keys.CLIP)
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in ClipEncoder(config).state_dict().items()}
    shapes["vision_model.encoder.layers.31.layer_norm1.weight"] = (1280,)  # the last layer, which is not read
    assert FAMILY.configs(shapes) == {"image_encoder": keys.CLIP}
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) > 600e6
