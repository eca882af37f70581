"""A checkpoint as small as the classes allow, so that a run takes a moment, and the command line in this process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from soragen.catalog import checkpoint_folder, find
from soragen.cli import app, entry
from soragen.families import load_family
from soragen.families.pocket.transformer import PocketTransformer, TransformerConfig
from soragen.families.pocket.vae import PocketVae, VaeConfig
from soragen.models import hub, text_encoder
from soragen.models.t5 import T5Config, T5Encoder
from soragen.models.text_encoder import Tokenizer
from soragen.pipeline import run
from soragen.pipeline.events import Event
from soragen.pipeline.resolve import resolve
from soragen.request import Request


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where models are put that are pulled or added. Their list is `tmp_path / "weights.toml"`, for the test to write;
    no cache is shared with other programs, and nobody waits for a hub.
    """
    monkeypatch.setenv("SORAGEN_WEIGHTS", str(tmp_path / "weights.toml"))
    monkeypatch.setenv("SORAGEN_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "WAITS", ())
    return tmp_path / "models"


class Ended(NamedTuple):
    code: int
    out: str
    err: str


def write_network(network: nn.Module, folder: Path, config: dict[str, Any]) -> None:
    """Random weights, none of them trivial, in 16 bits as the embedded ones."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, tensor in network.state_dict().items():
        scale = tensor[0].numel() ** -0.5 if tensor.ndim > 1 else 0.1
        drawn = torch.randn(tensor.shape, generator=generator) * scale
        if name.endswith(("latent_std", "latent_scale")) or "norm" in name:
            drawn = 0.5 + drawn.abs()
        tensors[name] = drawn.half()
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in the published layout, with pocket's classes and the tokenizer of the embedded one."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = folder / "tokenizer" / "tokenizer.json"
    tokenizer.parent.mkdir(parents=True)
    shutil.copyfile(checkpoint_folder(find("pocket")) / "tokenizer" / "tokenizer.json", tokenizer)

    text = T5Config(Tokenizer(tokenizer).num_tokens, 32, 16, 2, 32, 1, feed_forward_proj="gated-gelu")
    vae = VaeConfig(6, 4, decoder_width=8, num_decoder_blocks=1, fine_width=8)
    transformer = TransformerConfig(10, width=64, num_layers=1, num_heads=2, mlp_width=64, text_width=32)
    write_network(T5Encoder(text), folder / "text_encoder", text.to_dict())
    write_network(PocketVae(vae), folder / "vae", {"_class_name": "PocketVae", **asdict(vae)})
    network = PocketTransformer(transformer)
    write_network(network, folder / "transformer", {"_class_name": "PocketTransformer", **asdict(transformer)})
    return folder


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the test, with a cache and a place for temporary files of its own beside it."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    for name, folder in {"SORAGEN_CACHE": "cache", "XDG_CONFIG_HOME": "config", "TMPDIR": "temporary"}.items():
        (tmp_path / folder).mkdir()
        monkeypatch.setenv(name, str(tmp_path / folder))
    monkeypatch.delenv("SORAGEN_WEIGHTS", raising=False)
    monkeypatch.setattr("tempfile.tempdir", None)
    yield here


@pytest.fixture
def ask(tiny: Path) -> Callable[..., Request]:
    """A small request on the tiny checkpoint: 9 frames of 128x128, two steps."""

    def make(prompt: str = "a red ball", **options: Any) -> Request:
        chosen = {"model": str(tiny), "size": "128x128", "frames": 9, "seed": 1, "steps": 2, **options}
        return resolve(prompt, listen=lambda event: None, **chosen)

    return make


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def make(events: list[Event]) -> Callable[..., run.Result]:
    """`generate` on the processor, whose events go to `events`."""

    def generate(request: Request, output: str | Path = "a.mp4", **options: Any) -> run.Result:
        return run.generate(request, Path(output), device="cpu", listen=events.append, **options)

    return generate


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tiny: Path) -> Callable[..., Ended]:
    """cli("decode", "a.latents.safetensors") in this process; "generate" makes a small video on the tiny checkpoint."""
    small = ["--model", str(tiny), "--size", "128x128", "--frames", "9", "--steps", "2", "--seed", "1", "-o", "a.mp4"]

    def command(name: str, *arguments: str) -> Ended:
        capsys.readouterr()
        options = small if name == "generate" else []
        code = entry.run(app, [name, *arguments[:1], *options, "--device", "cpu", *arguments[1:]])
        return Ended(code, *capsys.readouterr())

    return command


class Calls:
    """What was loaded in this test, what was still in memory then (alive), and how often it ran."""

    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.alive: dict[str, list[str]] = {}
        self.networks: WeakValueDictionary[str, Any] = WeakValueDictionary()
        self.forwards = 0
        self.decoded = 0


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Counts what the networks do in this test."""
    found = Calls()
    family = load_family("pocket")

    def counted(part: str, load: Callable[..., Any]) -> Callable[..., Any]:
        def loading(*arguments: Any, **options: Any) -> Any:
            found.loaded.append(part)
            found.alive[part] = sorted(found.networks)
            network = found.networks[part] = load(*arguments, **options)
            return network

        return loading

    for part in ("text_encoder", "transformer", "vae"):
        monkeypatch.setattr(family, f"load_{part}", counted(part, getattr(family, f"load_{part}")), raising=False)
    monkeypatch.setattr(text_encoder, "load_t5", counted("t5", text_encoder.load_t5))
    forward, decode_groups = PocketTransformer.forward, PocketVae.decode_groups

    def counted_forward(self: PocketTransformer, *arguments: Any) -> Any:
        found.forwards += 1
        return forward(self, *arguments)

    def counted_decode(self: PocketVae, *arguments: Any) -> Any:
        found.decoded += 1
        return decode_groups(self, *arguments)

    monkeypatch.setattr(PocketTransformer, "forward", counted_forward)
    monkeypatch.setattr(PocketVae, "decode_groups", counted_decode)
    return found
