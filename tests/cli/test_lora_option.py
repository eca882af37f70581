"""--lora on the command line, in the recipe, and in a replay."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from fakes import Cli, FakeRun
from safetensors.torch import save_file

from soragen.errors import InputError
from soragen.pipeline.loras import parse_lora
from soragen.request import LoraFile, Request

SMALL = ("--size", "128x128", "--frames", "5", "--steps", "1", "--seed", "1", "--device", "cpu")


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    """A LoRA of the embedded model, in its folder."""
    folder = tmp_path / "loras: new"
    folder.mkdir()
    path = folder / "style.v1.safetensors"
    save_file({"transformer.summary.lora_A.weight": torch.ones(1, summary()[1]),
               "transformer.summary.lora_B.weight": torch.ones(summary()[0], 1)}, path)  # fmt: skip
    return path


def summary() -> tuple[int, ...]:
    """The shape of one layer of the embedded transformer."""
    from soragen.catalog import checkpoint_folder, find
    from soragen.families import load_family

    targets = load_family("pocket").lora_targets(checkpoint_folder(find("pocket")))[""]
    return targets.shapes["summary.weight"]


@pytest.mark.parametrize(
    ("suffix", "scale", "target"),
    [("", 1.0, ""), (":0.8", 0.8, ""), ("@high", 1.0, "high"), (":-1.5@low", -1.5, "low"), (":1e-1", 0.1, "")],
)
def test_path_scale_and_target(suffix: str, scale: float, target: str, lora: Path) -> None:
    digest = hashlib.sha256(lora.read_bytes()).hexdigest()
    assert parse_lora(f"{lora}{suffix}") == LoraFile(lora, digest, scale, target)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("gone.safetensors", "gone.safetensors is not a file", "check its path"),
        ("{lora}:", "'' is no scale", "0.8"),
        ("{lora}:strong", "'strong' is no scale", "0.8"),
        ("{lora}:nan", "'nan' is no scale", "0.8"),
        ("{lora}:inf", "'inf' is no scale", "0.8"),
        ("{lora}:101", "'101' is no scale", "up to 100"),
        ("{lora}@middle", "no transformer is called 'middle'", "@high or @low"),
        ("{lora}@high:0.8", "names no .safetensors file", "0.8@high"),
        ("style.pt", "names no .safetensors file", "write it as"),
        ("{folder}", "names no .safetensors file", "style.v1.safetensors"),
    ],
)
def test_what_is_not_one_is_refused(text: str, message: str, hint: str, lora: Path) -> None:
    with pytest.raises(InputError, match=message) as error:
        parse_lora(text.format(lora=lora, folder=lora.parent))
    assert error.value.hint is not None and hint in error.value.hint


def test_several_of_them_reach_the_run(cli: Cli, fake_run: FakeRun, lora: Path) -> None:
    ended = cli(
        "generate", "a ball", "--lora", f"{lora}:0.5", "--lora", f"{lora}@high", "--lora-partial", "-o", "a.mp4"
    )
    assert ended.code == 0, ended.err
    found = fake_run.calls[0].request.loras
    assert [(one.path, one.scale, one.target, one.partial) for one in found] == [
        (lora, 0.5, "", True),
        (lora, 1.0, "high", True),
    ]


def test_the_recipe_has_names_and_hashes_and_no_paths(lora: Path) -> None:
    digest = hashlib.sha256(lora.read_bytes()).hexdigest()
    from soragen.pipeline.resolve import resolve

    request = resolve("a ball", listen=lambda event: None, lora=[f"{lora}:0.5@low"], lora_partial=True)
    values = json.loads(json.dumps(request.to_dict()))
    assert values["loras"] == [{"name": lora.name, "sha256": digest, "scale": 0.5, "target": "low", "partial": True}]
    assert Request.from_dict(values).to_dict() == values
    assert "loras" not in resolve("a ball", listen=lambda event: None).to_dict()
    values["loras"][0]["name"] = "../../elsewhere.safetensors"  # a recipe may come from anyone
    assert Request.from_dict(values).loras[0].path == Path("elsewhere.safetensors")


def test_made_and_made_again(cli: Cli, lora: Path, tmp_path: Path) -> None:
    plain = cli("generate", "a ball", *SMALL, "-o", "plain.mp4")
    styled = cli("generate", "a ball", *SMALL, "--lora", f"{lora}:0.5", "-o", "styled.mp4")
    assert (plain.code, styled.code) == (0, 0), styled.err
    assert "LoRA style.v1.safetensors at 0.5: applied 1 of 1" in styled.err
    frames = {name: (tmp_path / name).read_bytes() for name in ("plain.mp4", "styled.mp4")}
    assert frames["plain.mp4"] != frames["styled.mp4"]

    gone = cli("replay", "styled.mp4", "-o", "again.mp4")
    assert gone.code == 2
    assert "LoRA style.v1.safetensors is not here" in gone.err
    assert "--lora FOLDER/style.v1.safetensors:0.5" in gone.err

    beside = tmp_path / lora.name
    beside.write_bytes(b"another file")
    other = cli("replay", "styled.mp4", "-o", "again.mp4")
    assert other.code == 2 and "is not the LoRA that this video was made with" in other.err

    beside.write_bytes(lora.read_bytes())
    again = cli("replay", "styled.mp4", "-o", "again.mp4")
    assert again.code == 0, again.err
    assert (tmp_path / "again.mp4").read_bytes() == frames["styled.mp4"]

    beside.unlink()
    planned = cli("replay", "styled.mp4", "--lora", f"{lora}:2", "--dry-run", "--json")
    assert planned.code == 0, planned.err
    assert json.loads(planned.out)["request"]["loras"][0]["scale"] == 2


def test_a_file_of_another_model_is_refused_before_anything_is_loaded(cli: Cli, tmp_path: Path) -> None:
    layer = "diffusion_model.blocks.0.self_attn.q"
    tensors = {f"{layer}.lora_A.weight": torch.zeros(1, 5120), f"{layer}.lora_B.weight": torch.zeros(5120, 1)}
    save_file(tensors, tmp_path / "wan.safetensors")
    ended = cli("generate", "a ball", *SMALL, "--lora", "wan.safetensors", "-o", "a.mp4")
    assert ended.code == 3
    assert "LoRA wan.safetensors does not fit this model" in ended.err and "seems to be for Wan 14B" in ended.err
    assert not (tmp_path / "a.mp4").exists()


def test_a_part_of_a_file_is_taken_on_request(cli: Cli, lora: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    save_file(load_file(lora) | {"transformer.nothing.diff": torch.zeros(1)}, tmp_path / "part.safetensors")
    command = ("generate", "a ball", *SMALL, "--lora", "part.safetensors", "--dry-run")
    refused = cli(*command)
    assert refused.code == 3
    assert "only 1 of its 2 changes" in refused.err and "--lora-partial" in refused.err
    taken = cli(*command, "--lora-partial")
    assert taken.code == 0 and "applied 1 of 2" in taken.out


def test_one_transformer_has_no_high_noise(cli: Cli, lora: Path) -> None:
    ended = cli("generate", "a ball", *SMALL, "--lora", f"{lora}@high", "--dry-run")
    assert ended.code == 2
    assert "this model has one transformer" in ended.err and "leave @high out" in ended.err
