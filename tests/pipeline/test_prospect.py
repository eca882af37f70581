"""What a pull says of memory before the weights come: what the plan of the whole model says afterwards."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hub_server import COMMIT, SOURCE, Hub
from published_configs import write_configs
from torch import nn

from soragen.catalog import catalog, find
from soragen.cli import app, entry
from soragen.families.wan.clip import ClipConfig, ClipEncoder
from soragen.families.wan.transformer import TransformerConfig, WanTransformer
from soragen.families.wan.vae import VaeConfig, WanVae
from soragen.models.config import read_config
from soragen.models.device import Memory
from soragen.models.hub import RemoteFile, Repository
from soragen.models.t5 import T5Config, T5Encoder
from soragen.pipeline import prospect as prospect_file
from soragen.pipeline.plan import make_plan
from soragen.pipeline.prospect import prospect
from soragen.pipeline.pull import Pull, plan_pull, pull
from soragen.pipeline.resolve import resolve

WEIGHTS = f"""
[small]
like = "pocket"
description = "for a test"
source = "{SOURCE}"
revision = "{COMMIT}"
"""
WEIGHED = "transformer/model.safetensors"
Free = Callable[[float], None]


@pytest.fixture
def place(models: Path, tmp_path: Path) -> Path:
    """The folder of the model."""
    (tmp_path / "weights.toml").write_text(WEIGHTS)
    return models / "small"


@pytest.fixture
def server(tiny: Path) -> Iterator[Hub]:
    files = {path.relative_to(tiny).as_posix(): path.read_bytes() for path in tiny.rglob("*") if path.is_file()}
    with Hub(files) as server:
        yield server


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Free:
    """free(gigabytes) says how many there are, on a machine without a graphics card."""

    def set_free(gigabytes: float) -> None:
        for module in ("soragen.models.device", "soragen.pipeline.memory"):
            monkeypatch.setattr(f"{module}.memory_budget", lambda device=None: Memory(10**13, int(gigabytes * 1e9)))
        monkeypatch.setattr("soragen.models.device.devices", lambda: ["cpu"])

    return set_free


def test_it_is_what_the_plan_says_of_the_whole_model(place: Path, server: Hub, free: Free) -> None:
    free(100)
    (line,) = prospect(plan_pull("small", server.url))
    assert not server.fetched() and not server.sent and not place.exists()
    asked = {one.path.removeprefix(f"/{SOURCE}/resolve/{COMMIT}/") for one in server.asked if one.method == "GET"}
    assert WEIGHED in asked and "transformer/config.json" in asked and "tokenizer/tokenizer.json" not in asked
    pull(plan_pull("small", server.url), lambda event: None)
    peaks = make_plan(resolve("any", listen=print, model="small"), find("small"), "cpu").peak_bytes
    peaks["decode"] += peaks.pop("encode")
    stage = max(peaks, key=lambda name: peaks[name])
    said = f"about {peaks[stage] / 1e9:.1f} GB at most ({stage}), 100.0 GB are free"
    assert line == f"memory    256x256, 25 frames on cpu: {said}"
    assert prospect(plan_pull("small", server.url)) == []  # it is here


def test_only_the_start_of_a_file_is_asked_for(place: Path, server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prospect_file, "START", 100)
    assert prospect(plan_pull("small", server.url))
    header = 8 + int.from_bytes(server.files[WEIGHED][:8], "little")
    ranges = [one.headers["range"] for one in server.asked if one.path.endswith(WEIGHED) and one.method == "GET"]
    assert ranges == ["bytes=0-99", f"bytes=0-{header - 1}"]


@pytest.mark.parametrize("trouble", ["refused", "no weights", "no safetensors", "no config"])
def test_what_cannot_be_told_is_not_guessed(place: Path, server: Hub, trouble: str) -> None:
    if trouble == "refused":
        server.blind = 403
    elif trouble == "no config":
        del server.files["vae/config.json"]
    else:
        server.files[WEIGHED] = b"" if trouble == "no weights" else b"x" * 10**6
    assert prospect(plan_pull("small", server.url)) == []


def test_the_command_says_it_before_it_asks(
    place: Path, server: Hub, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    command = ["models", "pull", "small", "--endpoint", server.url]
    assert entry.run(app, [*command, "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert out == "" and "\nmemory    256x256, 25 frames on " in err
    assert not place.exists() and not list((tmp_path / "temporary").iterdir())
    server.blind = 500
    assert entry.run(app, [*command, "--yes"]) == 0
    out, err = capsys.readouterr()
    assert out == f"{place}\n" and "memory" not in err


# Published sizes


NETWORKS: dict[str, Callable[[Path], nn.Module]] = {
    "transformer": lambda folder: WanTransformer(read_config(folder, TransformerConfig)),
    "vae": lambda folder: WanVae(read_config(folder, VaeConfig)),
    "text_encoder": lambda folder: T5Encoder(T5Config.read(folder)),
    "image_encoder": lambda folder: ClipEncoder(ClipConfig.read(folder)),
}


def batches(tensors: list[tuple[str, torch.Tensor]]) -> Iterator[list[tuple[str, torch.Tensor]]]:
    """As published: a file of 57 GB is not to be mapped on a machine with less memory."""
    for first in range(0, len(tensors), 50):
        yield tensors[first : first + 50]


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """published(model) is what is said of a model whose files are those of its networks, in float32."""

    def said(model: str) -> list[str]:
        folder = write_configs(model, Path(tempfile.mkdtemp()))
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.json")}
        sizes = {path: len(data) for path, data in files.items()}
        for part in [path.parent for path in folder.glob("*/config.json")]:
            with torch.device("meta"):
                network = NETWORKS[part.name.removesuffix("_2")](part)
            shards: dict[str, str] = {}
            for number, keys in enumerate(batches(list(network.state_dict().items()))):
                entries, end = {}, 0
                for key, tensor in keys:
                    begin, end = end, end + 4 * tensor.numel()
                    entries[key] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [begin, end]}
                text, name = json.dumps(entries).encode(), f"model-{number}.safetensors"
                path = f"{part.name}/{name}"
                files[path] = len(text).to_bytes(8, "little") + text
                sizes[path] = len(files[path]) + end
                shards |= dict.fromkeys(entries, name)
            path = f"{part.name}/model.safetensors.index.json"
            files[path] = json.dumps({"weight_map": shards}).encode()
            sizes[path] = len(files[path])
        repository = Repository("a/b", COMMIT, "https://hub.example", tuple(RemoteFile(*one) for one in sizes.items()))
        monkeypatch.setattr(
            prospect_file, "read_start", lambda url, _, count: files[url.split(f"/{COMMIT}/")[1]][:count]
        )
        return prospect(Pull(catalog()[model], tmp_path / "models" / model, (repository,), 0))

    return said


def test_a_model_that_fits_one_that_is_streamed_and_one_that_is_too_large(
    published: Callable[[str], list[str]], free: Free
) -> None:
    free(200)
    (line,) = published("wan2.2-ti2v-5b")
    assert line.startswith("memory    1280x704, 121 frames on cpu: about ") and line.endswith("200.0 GB are free")
    free(16)
    (line,) = published("wan2.2-ti2v-5b")
    blocks = "blocks of text encoder and transformer would come one at a time, frames would be decoded in tiles"
    assert line.endswith(f"(denoise), 16.0 GB are free: {blocks}, which is slower")
    free(5)
    (line,) = published("wan2.2-ti2v-5b")
    assert "needs about" in line and "5.0 GB are free; --size " in line and line.endswith(" would fit")
    free(0.5)
    (line,) = published("wan2.2-ti2v-5b")
    assert line.endswith("no smaller video fits either: take a smaller model")


@pytest.mark.parametrize("name", ["wan2.1-flf2v-14b-720p", "wan2.2-i2v-a14b", "wan2.1-t2v-14b-4step"])
def test_models_of_pictures_of_two_transformers_and_with_a_lora(
    name: str, published: Callable[[str], list[str]], free: Free
) -> None:
    free(64)
    (line,) = published(name)
    assert "64.0 GB are free: blocks of transformer would come one at a time" in line
