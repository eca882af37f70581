"""LoRAs in lists: of all lines or of one, one transformer for each set of them, and still there when a list goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from soragen.families import load_family
from soragen.pipeline import run
from soragen.pipeline.lines import read_lines
from soragen.video.recipe import read_recipe

SMALL = ("--size", "128x128", "--frames", "5", "--steps", "1", "--seed", "1")


@pytest.fixture
def lora(tiny: Path, tmp_path: Path) -> Path:
    """A LoRA of the tiny checkpoint, in a folder of its own."""
    (tmp_path / "loras").mkdir()
    return write(tmp_path / "loras" / "style.safetensors", tiny, 1.0)


def write(path: Path, tiny: Path, value: float) -> Path:
    rows, columns = load_family("pocket").lora_targets(tiny)[""].shapes["summary.weight"]
    save_file({"transformer.summary.lora_A.weight": torch.ones(1, columns),
               "transformer.summary.lora_B.weight": torch.full((rows, 1), value)}, path)  # fmt: skip
    return path


@pytest.fixture
def batch(cli: Any, tiny: Path) -> Callable[..., Any]:
    return lambda *more, name="list.jsonl": cli("batch", name, "--model", str(tiny), *SMALL, *more)


def loras_in(path: str | Path) -> list[tuple[str, float]]:
    recipe = read_recipe(Path(path))
    assert recipe is not None
    return [(lora["name"], lora["scale"]) for lora in recipe["request"].get("loras", ())]


def test_a_transformer_for_each_set_of_loras(batch: Any, cli: Any, calls: Any, lora: Path, tiny: Path) -> None:
    plain = {"prompt": "a ball", "output": "plain.mp4"}
    styled = {"prompt": "a ball", "output": "styled.mp4", "lora": f"{lora}:2"}
    both = {"prompt": "a cube", "output": "both.mp4", "lora": [f"{lora}:2"]}
    Path("list.jsonl").write_text("".join(json.dumps(line) + "\n" for line in (styled, plain, both)))
    ended = batch()
    assert ended.code == 0, ended.err
    assert calls.loaded == ["text_encoder", "t5", "transformer", "transformer", "vae"]
    assert "line 1: LoRA style.safetensors at 2: applied 1 of 1" in ended.err
    assert [loras_in(f"{name}.mp4") for name in ("plain", "styled", "both")] == [
        [], [("style.safetensors", 2)], [("style.safetensors", 2)]
    ]  # fmt: skip
    asked = ("generate", "a ball", "--frames", "5", "--steps", "1", "--overwrite")
    for name, more in {"plain": (), "styled": ("--lora", f"{lora}:2")}.items():
        assert cli(*asked, *more).code == 0
        assert Path("a.mp4").read_bytes() == Path(f"{name}.mp4").read_bytes()
    assert Path("plain.mp4").read_bytes() != Path("styled.mp4").read_bytes()


def test_of_all_lines_that_say_no_other(batch: Any, lora: Path) -> None:
    Path("list.csv").write_text(f"prompt,lora,output\na ball,,all.mp4\na ball,{lora}:0.5,own.mp4\n")
    ended = batch("--lora", str(lora), name="list.csv")
    assert ended.code == 0, ended.err
    assert loras_in("all.mp4") == [("style.safetensors", 1)] and loras_in("own.mp4") == [("style.safetensors", 0.5)]


def test_going_on(batch: Any, calls: Any, lora: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal knows a LoRA by name and hash, and the line where it is."""
    Path("list.jsonl").write_text('{"prompt": "a ball"}\n{"prompt": "a cube"}\n{"prompt": "a cone"}\n')
    with monkeypatch.context() as patch:
        patch.setattr(run, "decode_to_file", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert batch("--lora", str(lora)).code == 130
    before = lora.read_bytes()
    write(lora, tiny, 3.0)
    ended = batch("--lora", str(lora), "--resume")
    assert ended.code == 2 and "3 of 3 lines came to nothing" in ended.err
    assert f"{lora} is not the LoRA that this video was made with" in ended.err
    lora.write_bytes(before)
    calls.loaded.clear()
    ended = batch("--lora", str(lora), "--resume")
    assert ended.code == 0, ended.err
    assert calls.loaded == ["vae"]  # all was denoised
    assert all(loras_in(name) == [("style.safetensors", 1)] for name in ended.out.split())


@pytest.mark.parametrize("value", [3, ["a.safetensors", 3], {}])
def test_what_is_no_lora(value: Any) -> None:
    Path("list.jsonl").write_text(json.dumps({"prompt": "a ball", "lora": value}))
    (line,) = read_lines(Path("list.jsonl"))
    assert "is not text, or a list of texts" in str(line.error)
