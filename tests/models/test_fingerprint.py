"""A file is named for what it is, under the authors' names as under the published ones; only its header is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from published import config, write_encoder
from safetensors.torch import load_file, save_file
from torch import nn

from soragen.errors import WeightsError
from soragen.families.ltx_video import keys as ltx_keys
from soragen.families.ltx_video.transformer import LtxTransformer
from soragen.families.ltx_video.transformer import TransformerConfig as LtxConfig
from soragen.families.ltx_video.vae import LtxVae
from soragen.families.ltx_video.vae import VaeConfig as LtxVaeConfig
from soragen.families.wan import keys as wan_keys
from soragen.families.wan.transformer import TransformerConfig, WanTransformer
from soragen.families.wan.vae import VaeConfig, WanVae
from soragen.models.fingerprint import describe, quantised, read_header
from soragen.models.keys import T5_NAMINGS, Naming, our_names, t5_config
from soragen.models.t5 import T5Config, T5Encoder
from soragen.models.text_encoder import load_t5
from soragen.models.weights import load_module

CPU = torch.device("cpu")
Shapes = dict[str, tuple[int, ...]]


def shapes_of(build: Any, *arguments: Any) -> Shapes:
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in build(*arguments).state_dict().items()}


def authors(ours: Shapes, naming: Naming, prefix: str = "") -> Shapes:
    back = Naming("", {mine: theirs for theirs, mine in naming.names.items()})
    return {
        prefix + str(back.rename(name, "")).replace(".head.modulation", ".modulation"): s for name, s in ours.items()
    }


def wan(width: int, channels: int, out: int = 16, **more: Any) -> Shapes:
    heads = width // 128
    values = {"in_channels": channels, "out_channels": out, "ffn_dim": 8960, "num_layers": 2, **more}
    return shapes_of(WanTransformer, TransformerConfig(num_attention_heads=heads, attention_head_dim=128, **values))


def wan_vae(channels: int) -> Shapes:
    values = {key: value for key, value in wan_keys.VAES[channels].items() if key != "_class_name"}
    return shapes_of(WanVae, VaeConfig(**values))


def ltx_vae(values: dict[str, Any]) -> LtxVaeConfig:
    tuples: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return LtxVaeConfig(**tuples)


IMAGES = {"image_dim": 1280, "added_kv_proj_dim": 5120}


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        (wan(1536, 16), "a Wan transformer for text to video, 1.3B, 16 channels"),
        (wan(5120, 16), "a Wan transformer for text to video, 14B, 16 channels"),
        (wan(3072, 48, 48), "a Wan transformer for text and image to video, 5B, 48 channels"),
        (wan(5120, 36), "a Wan transformer for image to video (2.2), 14B, 36 channels"),
        (wan(5120, 36, **IMAGES), "a Wan transformer for image to video (2.1), 14B, 36 channels"),
        (
            wan(5120, 36, pos_embed_seq_len=514, **IMAGES),
            "a Wan transformer for a first and a last frame, 14B, 36 channels",
        ),
    ],
)
def test_wan_transformers(shapes: Shapes, said: str) -> None:
    assert describe(shapes) == [said]
    assert describe(authors(shapes, wan_keys.TRANSFORMER)) == [said]
    assert describe(authors(shapes, wan_keys.TRANSFORMER, "model.diffusion_model.")) == [said]


@pytest.mark.parametrize(("channels", "version"), [(16, "2.1"), (48, "2.2")])
def test_wan_vaes(channels: int, version: str) -> None:
    shapes = wan_vae(channels)
    stored = authors(shapes, wan_keys.vae_naming(4, 2, channels == 48))
    assert describe(shapes) == describe(stored) == [f"the VAE of Wan {version}, {channels} channels"]


@pytest.mark.parametrize(
    ("values", "version"), [({}, "0.9.0"), (ltx_keys.VAE_091, "0.9.1"), (ltx_keys.VAE_095, "0.9.5 or later")]
)
def test_a_whole_pipeline_in_one_file(values: dict[str, Any], version: str) -> None:
    vae, transformer = shapes_of(LtxVae, ltx_vae(values)), shapes_of(LtxTransformer, LtxConfig(num_layers=2), True)
    said = ["an LTX-Video transformer, 2B", f"the VAE of LTX-Video {version}"]
    assert [describe(transformer), describe(vae)] == [[one] for one in said]
    stored = authors(transformer, ltx_keys.TRANSFORMER, "model.diffusion_model.")
    assert describe(stored | authors(vae, ltx_keys.vae_naming(ltx_vae(values)), "vae.")) == said


@pytest.mark.parametrize(("kind", "said"), [("t5", "a T5"), ("umt5", "a UMT5")])
def test_text_encoders(kind: str, said: str) -> None:
    shapes = shapes_of(T5Encoder, config(kind))
    said += " text encoder, 3 layers of width 32"
    assert describe(shapes) == describe(authors(shapes, T5_NAMINGS[0])) == [said]
    assert describe({f"text_encoders.t5xxl.transformer.{name}": shape for name, shape in shapes.items()}) == [said]


@pytest.mark.parametrize(
    "name",
    [
        "blocks.0.self_attn.q.lora_down.weight", "diffusion_model.blocks.0.ffn.0.lora_A.weight",
        "diffusion_model.blocks.0.ffn.0.diff_b", "lora_unet_blocks_0_self_attn_q.lora_up.weight",
    ],
)  # fmt: skip
def test_a_lora(name: str) -> None:
    assert describe({**wan(1536, 16), name: (16, 1536)})[0].startswith("a LoRA")


def test_what_nobody_knows() -> None:
    assert describe({"a.weight": (3, 4), "b.bias": ()}) == [] and describe({}) == []


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (b"GGUF\x03\0\0\0\x12\x04\0\0", "a GGUF file"),
        (b"PK\x03\x04" + bytes(20), "a pickle in a zip archive, which can run code"),
        (b"\x80\x02}q\0(X\x04\0\0\0", "a pickle, which can run code"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"", "not a whole safetensors file"),
        (b"\x80\x02\0\0\0\0\0\0{", "not a whole safetensors file"),
    ],
)
def test_files_that_are_not_safetensors(tmp_path: Path, start: bytes, said: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(start)
    with pytest.raises(WeightsError, match=f"model.safetensors is {said}") as caught:
        read_header(path)
    assert caught.value.hint
    with pytest.raises(WeightsError, match=f"model.safetensors is {said}"):
        load_module(lambda: nn.Linear(2, 2), path, device=CPU, dtype=torch.float32)


def test_the_header_alone_is_read(tmp_path: Path) -> None:
    """The values are cut off, and nobody notices."""
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(7, 5), "b": torch.ones((), dtype=torch.bfloat16)}, path, {"format": "pt"})
    path.write_bytes(path.read_bytes()[:-142])
    header = read_header(path)
    assert header.shapes == {"a": (7, 5), "b": ()} and header.dtypes == {"a": "F32", "b": "BF16"}


@pytest.mark.parametrize(
    ("name", "dtype", "shape", "said"),
    [
        ("x.comfy_quant", "U8", (20,), "int8"),
        ("x.weight_scale", "F32", (), "scales"),
        ("x.weight", "I8", (4, 4), "8 bits"),
        ("x.weight", "F8_E4M3", (4, 4), ""),
        ("spiece_model", "U8", (99,), ""),
    ],
)
def test_quantised_files(tmp_path: Path, name: str, dtype: str, shape: tuple[int, ...], said: str) -> None:
    body = bytes(256)
    entries = {name: {"dtype": dtype, "shape": shape, "data_offsets": [0, 256]}}
    text = json.dumps(entries).encode()
    (tmp_path / "x.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + body)
    found = quantised(read_header(tmp_path / "x.safetensors"))
    assert said in found and bool(found) == bool(said)


def small_vae(z_dim: int) -> VaeConfig:
    return VaeConfig(latents_mean=(0.0,) * z_dim, latents_std=(1.0,) * z_dim, z_dim=z_dim, base_dim=4, num_res_blocks=1)


def test_loading_the_wrong_file_says_which_it_is(tmp_path: Path) -> None:
    def refused(path: Path, build: Any) -> WeightsError:
        with pytest.raises(WeightsError) as caught:
            load_module(build, path, device=CPU, dtype=torch.float32)
        assert "\n" not in caught.value.message
        return caught.value

    vae = tmp_path / "vae.safetensors"
    save_file(WanVae(small_vae(48)).state_dict(), vae)
    error = refused(vae, lambda: WanVae(small_vae(16)))
    assert f"{vae} is the VAE of Wan 2.1, 48 channels where the VAE of Wan 2.1, 16 channels is needed:" in error.message
    assert error.hint == "give the VAE of Wan 2.1, 16 channels"
    lora = tmp_path / "lora.safetensors"
    save_file({"blocks.0.self_attn.q.lora_down.weight": torch.ones(2, 2)}, lora)
    assert "is a LoRA" in refused(lora, lambda: WanVae(small_vae(16))).message
    assert "is a LoRA" in refused(lora, lambda: nn.Linear(2, 2)).message  # a network that is not known by its names
    part = {name: tensor for name, tensor in load_file(vae).items() if not name.startswith("encoder.conv_in")}
    save_file(part, vae)
    assert f"{vae}: tensors 2 missing" in refused(vae, lambda: WanVae(small_vae(48))).message  # the right one, damaged
    whole = WanVae(small_vae(16)).state_dict()
    whole["conv_in.weight_scale"] = torch.ones(())
    save_file(whole, vae)
    assert f"{vae} is quantised" in refused(vae, lambda: WanVae(small_vae(16))).message


@pytest.mark.parametrize("kind", ["t5", "umt5"])
@pytest.mark.parametrize("origin", ["published", "authors", "repackaged"])
def test_text_encoders_load_under_other_names(tmp_path: Path, kind: str, origin: str) -> None:
    encoder = write_encoder(tmp_path)
    if kind == "umt5":
        encoder = T5Encoder(config("umt5")).eval()
        encoder.init_weights(torch.Generator().manual_seed(1))
        (tmp_path / "config.json").write_text(json.dumps(config("umt5").to_dict()))
    stored = dict(encoder.state_dict())
    if origin == "authors":
        back = Naming("", {mine: theirs for theirs, mine in T5_NAMINGS[0].names.items()})
        stored = {str(back.rename(name, "")): tensor for name, tensor in stored.items()}
        assert {"token_embedding.weight", "norm.weight", "blocks.2.ffn.gate.0.weight"} < set(stored)
        assert stored["blocks.1.ffn.fc1.weight"] is not stored["blocks.1.ffn.gate.0.weight"]
    if origin == "repackaged":
        stored = {f"text_encoders.t5xxl.transformer.{name}": tensor for name, tensor in stored.items()}
        stored |= {"text_encoders.t5xxl.transformer.spiece_model": torch.zeros(9, dtype=torch.uint8)}
        stored |= {"vae.conv.weight": torch.ones(2)}
    save_file(stored, tmp_path / "model.safetensors")
    loaded = load_t5(tmp_path, CPU, torch.float32).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in encoder.state_dict().items())

    found = t5_config({name: tuple(tensor.shape) for name, tensor in stored.items()})
    assert found is not None
    (tmp_path / "config.json").write_text(json.dumps(found))
    assert T5Config.read(tmp_path) == config(kind)


def test_umt5_by_its_authors() -> None:
    names = {
        "token_embedding.weight": "shared.weight",
        "blocks.11.norm1.weight": "encoder.block.11.layer.0.layer_norm.weight",
        "blocks.11.attn.o.weight": "encoder.block.11.layer.0.SelfAttention.o.weight",
        "blocks.11.pos_embedding.embedding.weight":
            "encoder.block.11.layer.0.SelfAttention.relative_attention_bias.weight",
        "blocks.11.norm2.weight": "encoder.block.11.layer.1.layer_norm.weight",
        "blocks.11.ffn.gate.0.weight": "encoder.block.11.layer.1.DenseReluDense.wi_0.weight",
        "blocks.11.ffn.fc1.weight": "encoder.block.11.layer.1.DenseReluDense.wi_1.weight",
        "blocks.11.ffn.fc2.weight": "encoder.block.11.layer.1.DenseReluDense.wo.weight",
        "norm.weight": "encoder.final_layer_norm.weight",
    }  # fmt: skip
    assert our_names(names, T5_NAMINGS) == names
