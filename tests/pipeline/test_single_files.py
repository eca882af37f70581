"""Models that are published as single files, and parts that come from another repository: pulled, and laid out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import COMMIT, SOURCE, Hub, in_shared_cache
from safetensors.torch import save

from soragen.catalog import catalog, checkpoint_folder, find, identify
from soragen.errors import InputError, WeightsError
from soragen.families import load_family
from soragen.families.ltx_video.latent_upsampler import LatentUpsampler, UpsamplerConfig
from soragen.families.ltx_video.transformer import LtxTransformer, TransformerConfig
from soragen.installed import read_record
from soragen.models.offload import measure
from soragen.pipeline.add import add_from_shared_cache
from soragen.pipeline.memory import Machine, weigh
from soragen.pipeline.origins import origins
from soragen.pipeline.prospect import prospect
from soragen.pipeline.pull import plan_pull, pull
from soragen.pipeline.verify import verify

FILE, UPSAMPLER, OTHER = "tiny-0.9.8.safetensors", "tiny-upscaler.safetensors", "someone/encoders"
WEIGHTS = f"""
[tiny]
like = "ltx-video-0.9.5"
description = "for a test"
source = "{SOURCE}"
revision = "{COMMIT}"
file = "{FILE}"
parts.text_encoder.source = "{OTHER}"
signature = {{ "transformer.num_layers" = 1 }}

[tiny.parts.latent_upsampler]
description = "spatial latent upsampler"
licence = "MIT"
file = "{UPSAMPLER}"
"""


def the_transformer() -> dict[str, torch.Tensor]:
    config = TransformerConfig(attention_head_dim=2, cross_attention_dim=64, num_layers=1)
    generator = torch.Generator().manual_seed(0)
    network = LtxTransformer(config, causal_time=True)
    return {name: torch.randn(t.shape, generator=generator) / 8 for name, t in network.state_dict().items()}


def files() -> dict[str, bytes]:
    """Of a repository with many models; a VAE as far as one looks at it. Nobody needs most of them."""
    back = {"proj_in": "patchify_proj", "time_embed": "adaln_single", "norm_q": "q_norm", "norm_k": "k_norm"}
    one = {}
    for name, tensor in the_transformer().items():
        words = [word if n else back.get(word, word) for n, word in enumerate(name.split("."))]
        words = [back.get(word, word) if word.startswith("norm_") else word for word in words]
        one["model.diffusion_model." + ".".join(words)] = tensor
    one["vae.encoder.conv_out.conv.weight"] = torch.ones(1, 2048, 1, 1, 1)
    one["vae.decoder.conv_in.conv.weight"] = torch.ones(1)
    with torch.device("meta"):
        upsampler = LatentUpsampler(UpsamplerConfig(mid_channels=32, num_blocks_per_stage=1))
    return {
        FILE: save(one),
        UPSAMPLER: save({name: torch.ones(tensor.shape) for name, tensor in upsampler.state_dict().items()}),
        "tiny-0.9.6.safetensors": b"another model",
        "transformer/diffusion_pytorch_model.safetensors": b"another model",
        "text_encoder/model.safetensors": b"another encoder",
        "model_index.json": b"{}",
    }


def encoder_files() -> dict[str, bytes]:
    return {
        "text_encoder/config.json": json.dumps({"d_model": 64}).encode(),
        "text_encoder/model.safetensors": save({"shared.weight": torch.ones(4, 4)}),
        "tokenizer/spiece.model": b"pieces",
        "vae/config.json": b"{}",
    }


FETCHED = {FILE, UPSAMPLER, "text_encoder/config.json", "text_encoder/model.safetensors", "tokenizer/spiece.model"}


@pytest.fixture
def place(models: Path, tmp_path: Path) -> Path:
    """The folder of the model."""
    (tmp_path / "weights.toml").write_text(WEIGHTS)
    return models / "tiny"


@pytest.fixture
def server() -> Iterator[Hub]:
    with Hub(files(), others={OTHER: encoder_files()}) as server:
        yield server


def fetch(server: Hub) -> None:
    pull(plan_pull("tiny", server.url), lambda event: None)


def test_only_the_named_files_come_and_are_laid_out(place: Path, server: Hub) -> None:
    lines = "\n".join(plan_pull("tiny", server.url).lines())
    assert f"{server.url}/{SOURCE} at {COMMIT}" in lines and f"{server.url}/{OTHER} at" in lines
    assert "Apache-2.0" in lines and "MIT" in lines and "in 5 files" in lines
    fetch(server)
    assert {one.path.split(f"/resolve/{COMMIT}/")[1] for one in server.fetched()} == FETCHED
    assert checkpoint_folder(find("tiny")) == place
    assert all((place / part / FILE).samefile(place / FILE) for part in ("transformer", "vae"))
    assert (place / "latent_upsampler" / UPSAMPLER).samefile(place / UPSAMPLER)
    record = read_record(place)
    assert record and record.complete and {file.path for file in record.files} == FETCHED
    assert not [one for one in verify("tiny", lambda event: None) if one.problem]
    family, cpu = load_family("ltx_video"), torch.device("cpu")
    loaded = family.load_transformer(place, cpu, torch.float32)
    assert isinstance(loaded, LtxTransformer) and loaded.causal_time
    assert all(torch.equal(tensor, the_transformer()[name]) for name, tensor in loaded.state_dict().items())
    config = json.loads((place / "latent_upsampler" / "config.json").read_text())
    assert (config["mid_channels"], config["num_blocks_per_stage"], config["in_channels"]) == (32, 1, 128)


def test_what_is_there_is_not_fetched_again(place: Path, server: Hub) -> None:
    fetch(server)
    (place / UPSAMPLER).unlink()
    with pytest.raises(WeightsError, match="only partly"):
        checkpoint_folder(find("tiny"))
    server.asked.clear()
    fetch(server)
    assert [one.path.endswith(UPSAMPLER) for one in server.fetched()] == [True]
    assert (place / "latent_upsampler" / UPSAMPLER).samefile(place / UPSAMPLER)


def test_a_file_that_is_another_model_is_named(place: Path, server: Hub) -> None:
    server.files[FILE] = save({"blocks.0.self_attn.q.lora_down.weight": torch.ones(2, 2)})
    with pytest.raises(WeightsError, match=rf"{FILE} is a LoRA"):
        fetch(server)
    with pytest.raises(WeightsError, match="only partly"):
        checkpoint_folder(find("tiny"))


def test_a_file_that_is_gone_is_named_before_anything_comes(place: Path, server: Hub) -> None:
    del server.files[FILE]
    with pytest.raises(WeightsError, match=f"{SOURCE} has no file {FILE}"):
        plan_pull("tiny", server.url)
    server.others.clear()
    server.files = files()
    with pytest.raises(WeightsError, match=f"{OTHER} is not there"):
        plan_pull("tiny", server.url)
    assert not server.fetched() and not place.exists()


@pytest.mark.parametrize("file", ["../x.safetensors", "/x.safetensors", "x.bin", "a/../../x.safetensors"])
def test_names_that_lead_out_are_refused(place: Path, tmp_path: Path, file: str) -> None:
    (tmp_path / "weights.toml").write_text(WEIGHTS.replace(f'"{FILE}"', f'"{file}"'))
    with pytest.raises(InputError, match="names the file"):
        origins(find("tiny"))


def test_offline_they_come_from_the_shared_cache(place: Path, server: Hub, tmp_path: Path) -> None:
    """All of them, laid out as a pull would; what is not there is named, with its repository."""

    def take() -> Path:
        return add_from_shared_cache("tiny", lambda event: None)

    with pytest.raises(WeightsError, match=f"does not hold {FILE} of {SOURCE}$"):
        take()
    own = in_shared_cache(tmp_path / "cache", SOURCE, {FILE: server.files[FILE]})
    with pytest.raises(WeightsError, match=f"does not hold {OTHER}$"):
        take()
    encoder = {path: data for path, data in encoder_files().items() if not path.startswith("tokenizer/")}
    in_shared_cache(tmp_path / "cache", OTHER, encoder)
    with pytest.raises(WeightsError, match=f"does not hold {UPSAMPLER} of {SOURCE}$"):
        take()
    in_shared_cache(tmp_path / "cache", SOURCE, {UPSAMPLER: server.files[UPSAMPLER]})
    with pytest.raises(WeightsError, match=f"does not hold tokenizer/tokenizer.json of {OTHER}$"):
        take()
    with pytest.raises(WeightsError, match="only partly"):
        checkpoint_folder(find("tiny"))
    shutil.rmtree(tmp_path / "cache" / "models--someone--encoders")
    in_shared_cache(tmp_path / "cache", OTHER, encoder_files())
    assert take() == place == checkpoint_folder(find("tiny"))
    assert all((place / part / FILE).samefile(own / "snapshots" / COMMIT / FILE) for part in ("transformer", "vae"))

    def state() -> tuple[Any, set[Any], set[Path]]:
        record = read_record(place)
        assert record
        laid_out = {path.relative_to(place) for path in place.rglob("*") if path.is_file()}
        return replace(record, files=()), set(record.files), laid_out

    offline = state()
    fetch(server)
    assert not server.fetched() and state() == offline
    shutil.rmtree(place)
    fetch(server)
    assert state() == offline


def test_what_they_need_in_memory_is_said_before(place: Path, server: Hub) -> None:
    """The text encoder has no more than its sizes in this test; config.json of the others is made of their headers."""
    (line,) = prospect(plan_pull("tiny", server.url))
    assert line.startswith("memory    704x512, 161 frames on ") and not server.fetched() and not place.exists()


def test_a_folder_is_no_model_that_is_published_as_a_file(place: Path, tmp_path: Path) -> None:
    folder = tmp_path / "have"
    for part, config in {
        "transformer": {"_class_name": "LTXVideoTransformer3DModel", "num_layers": 28},
        "vae": {"decoder_layers_per_block": [5, 5, 5, 5]},
    }.items():
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(json.dumps(config))
    found, fits = identify(folder)
    assert fits and [checkpoint.name for checkpoint in found] == ["ltx-video-0.9.5"]


def test_every_listed_origin_is_whole() -> None:
    """Each listed model comes with transformer, VAE, text encoder and tokenizer, wherever they lie."""
    for checkpoint in catalog().values():
        if not checkpoint.is_hub:
            continue
        taken = {folder for origin in origins(checkpoint) for folder in origin.folders}
        taken |= {"transformer", "vae"} if checkpoint.file else set()
        assert {"transformer", "vae", "text_encoder", "tokenizer"} <= taken, checkpoint.name


def test_each_network_in_a_file_is_weighed_alone(place: Path, server: Hub) -> None:
    fetch(server)
    machine = Machine(torch.device("cpu"), torch.float32, torch.float32, torch.float32)
    weights = weigh(place, machine)
    assert weights["transformer"] == 4 * sum(tensor.numel() for tensor in the_transformer().values())
    assert weights["vae"] == 4 * 2049
    assert sum(measure(place / "transformer")[::2]) == weights["transformer"] // 4
