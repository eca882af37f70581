"""Single files as other programs have them become a model; files that do not go together do not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from soragen.catalog import checkpoint_folder, find
from soragen.cli import app, entry
from soragen.errors import InputError, WeightsError
from soragen.families import load_family
from soragen.families.ltx_video import keys as ltx_keys
from soragen.families.ltx_video.transformer import LtxTransformer
from soragen.families.ltx_video.transformer import TransformerConfig as LtxConfig
from soragen.families.wan import keys as wan_keys
from soragen.families.wan.transformer import TransformerConfig, WanTransformer
from soragen.families.wan.vae import VaeConfig, WanVae
from soragen.models.keys import Naming
from soragen.models.t5 import T5Config, T5Encoder
from soragen.models.text_encoder import load_t5
from soragen.pipeline.assemble import assemble
from soragen.pipeline.events import Event, Note

CPU = torch.device("cpu")
MODELS = """
[small-wan]
like = "wan2.1-t2v-1.3b"
description = "for a test"
source = "someone/small-wan"
signature = { "transformer.num_layers" = 1, "transformer.in_channels" = 16 }

[small-wan-two]
like = "small-wan"
source = "someone/small-wan-two"
signature = { "transformer.num_layers" = 1, "transformer.in_channels" = 16, "model_index.boundary_ratio" = 0.875 }

[small-wan-48]
like = "small-wan"
source = "someone/small-wan-48"
signature = { "transformer.num_layers" = 1, "transformer.in_channels" = 48 }

[small-ltx]
like = "ltx-video-0.9.1"
source = "someone/small-ltx"
signature = { "transformer.num_layers" = 1 }

[small-ltx-distilled]
like = "small-ltx"
source = "someone/small-ltx-distilled"
"""


Tensors = dict[str, Tensor]


def drawn(network: nn.Module) -> Tensors:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(t.shape, generator=generator) / 8 for name, t in network.state_dict().items()}


def authors(ours: Tensors, naming: Naming, prefix: str = "") -> Tensors:
    back = Naming("", {mine: theirs for theirs, mine in naming.names.items()})
    names = {name: str(back.rename(name, "")).replace(".head.modulation", ".modulation") for name in ours}
    return {prefix + names[name]: tensor for name, tensor in ours.items()}


SMALL_VAE = {"z_dim": 16, "base_dim": 4, "latents_mean": [0.0] * 16, "latents_std": [1.0] * 16}


@pytest.fixture(scope="module")
def networks() -> dict[str, Tensors]:
    """Of each kind one, small, as far as a file of it is small."""
    made: dict[str, Tensors] = {}
    for channels in (16, 36, 48):
        config = TransformerConfig(1, 128, channels, min(channels, 48) if channels != 36 else 16, 64, 1)
        made[f"wan{channels}"] = drawn(WanTransformer(config))
    mean, std = (0.0,) * 16, (1.0,) * 16
    made["vae"] = drawn(WanVae(VaeConfig(mean, std, base_dim=4, z_dim=16)))
    ltx = LtxConfig(attention_head_dim=2, cross_attention_dim=64, num_layers=1)
    made["ltx"] = drawn(LtxTransformer(ltx, False))
    for kind in ("t5", "umt5"):
        encoder = T5Config(64, 4096, 4, 2, 8, 2, feed_forward_proj="gated-gelu", model_type=kind)
        made[kind] = drawn(T5Encoder(encoder))
    return made


@pytest.fixture
def folder(tmp_path: Path, networks: dict[str, Tensors], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files, some only as far as one looks at them; soragen's own folder is elsewhere."""
    (tmp_path / "weights.toml").write_text(MODELS)
    monkeypatch.setenv("SORAGEN_WEIGHTS", str(tmp_path / "weights.toml"))
    monkeypatch.setenv("SORAGEN_MODELS", str(tmp_path / "models"))
    monkeypatch.setitem(wan_keys.VAES, 16, SMALL_VAE)
    files = tmp_path / "files"
    files.mkdir()

    def save(name: str, tensors: Tensors) -> None:
        save_file(tensors, files / f"{name}.safetensors")

    prefix = "model.diffusion_model."
    transformer = authors(networks["wan16"], wan_keys.TRANSFORMER, prefix)
    for name in ("wan small (fp16)", "wan_high_noise", "wan_low_noise"):
        save(name, transformer)
    for channels in (36, 48):
        save(f"wan{channels}", authors(networks[f"wan{channels}"], wan_keys.TRANSFORMER))
    save("vae", authors(networks["vae"], wan_keys.vae_naming(4, 2, is_residual=False)))
    save("vae48", {"decoder.middle.0.residual.0.gamma": torch.ones(1), "conv2.weight": torch.ones(48, 48, 1, 1, 1)})
    save("t5", networks["t5"])
    save("umt5", networks["umt5"] | {"spiece_model": torch.tensor(list(b"pieces"), dtype=torch.uint8)})
    save("umt5_bare", networks["umt5"])
    one = authors(networks["ltx"], ltx_keys.TRANSFORMER, prefix)
    one["vae.encoder.conv_out.conv.weight"] = torch.ones(1, 512, 1, 1, 1)
    one["vae.decoder.conv_in.conv.weight"] = torch.ones(1)
    one["vae.decoder.last_time_embedder.timestep_embedder.linear_1.weight"] = torch.ones(1)
    save("ltxv", one)
    save("lora", {"diffusion_model.blocks.0.self_attn.q.lora_down.weight": torch.ones(2, 2)})
    save("model-00001-of-00002", transformer)
    save("packed", transformer | {f"{prefix}blocks.0.ffn.0.comfy_quant": torch.zeros(3, dtype=torch.uint8)})
    (files / "tokenizer.json").write_text("{}")
    (files / "wan.gguf").write_bytes(b"GGUF" + bytes(60))
    (files / "wan.pth").write_bytes(b"PK\x03\x04" + bytes(60))
    return files


def add(folder: Path, *names: str, like: str | None = None) -> tuple[Path, str]:
    said: list[Event] = []
    paths = [folder / (name if "." in name else f"{name}.safetensors") for name in names]
    made = assemble(paths, like, said.append)
    (note,) = said
    assert isinstance(note, Note)
    return made, note.text


def test_three_files_make_a_model(folder: Path, networks: dict[str, Tensors]) -> None:
    made, said = add(folder, "umt5", "wan small (fp16)", "vae")
    assert made == folder.parent / "models" / "wan_small_fp16_" and "taken for small-wan " in said
    checkpoint = find("wan_small_fp16_")
    assert checkpoint_folder(checkpoint) == made and checkpoint.defaults == find("small-wan").defaults
    assert (made / "transformer" / "wan small (fp16).safetensors").samefile(folder / "wan small (fp16).safetensors")
    assert (made / "tokenizer" / "spiece.model").read_bytes() == b"pieces"
    family = load_family("wan")
    for loaded, name in (
        (family.load_transformer(made, CPU, torch.float32), "wan16"),
        (family.load_vae(made, CPU, torch.float32), "vae"),
        (load_t5(made / "text_encoder", CPU, torch.float32), "umt5"),
    ):
        assert isinstance(loaded, nn.Module)
        assert all(torch.equal(tensor, networks[name][key]) for key, tensor in loaded.state_dict().items())
    with pytest.raises(InputError, match="already") as caught:
        add(folder, "umt5", "wan small (fp16)", "vae")
    assert caught.value.hint == "soragen models remove wan_small_fp16_"
    assert sorted(path.name for path in made.parent.iterdir() if not path.name.endswith(".lock")) == [made.name]


def test_two_transformers_are_placed_by_their_noise(folder: Path) -> None:
    made, said = add(folder, "wan_low_noise", "wan_high_noise", "vae", "umt5_bare", "tokenizer.json")
    assert "taken for small-wan-two " in said
    assert (made / "transformer" / "wan_high_noise.safetensors").is_file()
    assert (made / "transformer_2" / "wan_low_noise.safetensors").is_file()
    assert json.loads((made / "model_index.json").read_text()) == {"boundary_ratio": 0.875}
    assert (made / "tokenizer" / "tokenizer.json").samefile(folder / "tokenizer.json")


def test_transformer_and_vae_in_one_file(folder: Path) -> None:
    with pytest.raises(InputError, match="cannot be told") as caught:
        add(folder, "ltxv", "t5", "tokenizer.json")
    assert caught.value.hint == "name it by --as small-ltx or --as small-ltx-distilled"
    made, _ = add(folder, "ltxv", "t5", "tokenizer.json", like="small-ltx-distilled")
    assert json.loads((made / "soragen.json").read_text())["like"] == "small-ltx-distilled"
    one = folder / "ltxv.safetensors"
    assert all((made / part / one.name).samefile(one) for part in ("transformer", "vae"))
    assert json.loads((made / "vae" / "config.json").read_text())["decoder_layers_per_block"] == [5, 6, 7, 8]


def test_shards_by_their_index(folder: Path, networks: dict[str, Tensors]) -> None:
    stored = authors(networks["wan16"], wan_keys.TRANSFORMER)
    places = {name: f"big-0000{1 + name.startswith('blocks.')}-of-00002.safetensors" for name in stored}
    for file in set(places.values()):
        save_file({name: stored[name] for name in stored if places[name] == file}, folder / file)
    (folder / "big.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    made, _ = add(folder, "big.safetensors.index.json", "vae", "umt5")
    assert made.name == "big"
    loaded = load_family("wan").load_transformer(made, CPU, torch.float32)
    assert isinstance(loaded, nn.Module)
    assert all(torch.equal(tensor, networks["wan16"][key]) for key, tensor in loaded.state_dict().items())


@pytest.mark.parametrize(
    ("names", "like", "said"),
    [
        (["wan small (fp16)", "vae"], None, "there is no text_encoder among"),
        (["vae", "umt5"], None, "there is no transformer among"),
        (["umt5"], None, "files of no known video model"),
        (["wan small (fp16)", "vae48", "umt5"], None, r"makes latents of 16 channels, .*vae48\.\w+ reads 48"),
        (["wan small (fp16)", "vae", "t5"], None, "is not the text encoder of wan: it has model_type t5, not umt5"),
        (["wan small (fp16)", "ltxv", "umt5"], None, "files of ltx_video and wan"),
        (["wan small (fp16)", "vae", "vae48", "umt5"], None, "are both a vae"),
        (["wan48", "wan small (fp16)", "vae", "umt5"], None, "are of different sizes"),
        (["wan36", "vae", "umt5"], None, "cannot be told from their tensors"),
        (["wan small (fp16)", "vae", "umt5_bare"], None, "has no tokenizer inside"),
        (["wan small (fp16)", "vae", "umt5"], "small-wan-48", "not small-wan-48: transformer.in_channels is 16"),
        (["wan small (fp16)", "vae", "umt5"], "small-wan-two", "one transformer was given"),
        (["wan small (fp16)", "vae", "umt5"], "pocket", "pocket is no model of wan"),
        (["lora", "vae", "umt5"], None, "lora.safetensors is a LoRA"),
        (["packed", "vae", "umt5"], None, "packed.safetensors is quantised"),
        (["model-00001-of-00002", "vae", "umt5"], None, "one part of several"),
        (["wan.gguf", "vae", "umt5"], None, "wan.gguf is a GGUF file"),
        (["wan.pth", "vae", "umt5"], None, "wan.pth is a pickle"),
        (["wan_low_noise", "vae", "umt5"], None, "wan_low_noise.safetensors is one of two transformers"),
        (["nowhere", "vae", "umt5"], None, "nowhere.safetensors is not there"),
    ],
)
def test_files_that_make_no_model(folder: Path, names: list[str], like: str | None, said: str) -> None:
    with pytest.raises((InputError, WeightsError), match=said) as caught:
        add(folder, *names, like=like)
    assert caught.value.hint and "\n" not in caught.value.message
    models = folder.parent / "models"
    assert not models.is_dir() or not [path for path in models.iterdir() if path.suffix != ".lock"]


def test_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: str) -> tuple[int, str, str]:
        return entry.run(app, ["models", *arguments]), *capsys.readouterr()

    paths = [str(folder / f"{name}.safetensors") for name in ("wan small (fp16)", "vae", "umt5")]
    code, out, err = run("add", *paths)
    assert (code, out) == (0, f"{folder.parent / 'models' / 'wan_small_fp16_'}\n")
    assert "taken for small-wan " in err and "--model wan_small_fp16_" in err
    assert run("path", "wan_small_fp16_")[:2] == (0, out)
    assert run("add", paths[0])[0] == 2
    assert run("remove", "wan_small_fp16_", "--yes")[0] == 0
    assert all(Path(path).is_file() for path in paths)
