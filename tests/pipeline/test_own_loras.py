"""A checkpoint with a LoRA from another repository: pulled with it, added to it, and not to be had without it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import COMMIT, SOURCE, Hub, in_shared_cache
from safetensors.torch import save

from soragen.catalog import checkpoint_folder, find, identify
from soragen.errors import InputError, WeightsError
from soragen.families import load_family
from soragen.pipeline.add import add, add_from_shared_cache
from soragen.pipeline.lora_fits import own_loras
from soragen.pipeline.pull import plan_pull, pull
from soragen.pipeline.verify import verify

FILE, OTHER, REVISION = "few_steps.safetensors", "someone/loras", "b" * 40
WEIGHTS = f"""
[small-4step]
like = "pocket"
description = "for a test"
source = "{SOURCE}"
revision = "{COMMIT}"

[small-4step.parts.lora]
description = "few steps"
licence = "MIT"
source = "{OTHER}"
file = "{FILE}"
"""
NAME = "small-4step"


@pytest.fixture
def lora(tiny: Path) -> bytes:
    rows, columns = load_family("pocket").lora_targets(tiny)[""].shapes["summary.weight"]
    return save({"transformer.summary.lora_A.weight": torch.ones(1, columns),
                 "transformer.summary.lora_B.weight": torch.ones(rows, 1)})  # fmt: skip


@pytest.fixture
def place(models: Path, tmp_path: Path) -> Path:
    """The folder of the model."""
    (tmp_path / "weights.toml").write_text(WEIGHTS)
    return models / NAME


@pytest.fixture
def server(tiny: Path, lora: bytes) -> Iterator[Hub]:
    files = {path.relative_to(tiny).as_posix(): path.read_bytes() for path in tiny.rglob("*") if path.is_file()}
    with Hub(files, others={OTHER: {FILE: lora, "other.safetensors": b"another"}}) as server:
        yield server


def fetch(server: Hub) -> None:
    pull(plan_pull(NAME, server.url), lambda event: None)


def test_it_comes_with_the_model(place: Path, server: Hub) -> None:
    lines = "\n".join(plan_pull(NAME, server.url).lines())
    assert "lora (few steps): MIT" in lines and f"{server.url}/{OTHER} at" in lines
    fetch(server)
    assert not any("other.safetensors" in one.path for one in server.fetched())
    assert checkpoint_folder(find(NAME)) == place and (place / FILE).is_file()
    assert not [one for one in verify(NAME, lambda event: None) if one.problem]
    server.asked.clear()
    (place / FILE).unlink()
    with pytest.raises(WeightsError, match="only partly"):
        checkpoint_folder(find(NAME))
    fetch(server)
    assert [one.path.endswith(FILE) for one in server.fetched()] == [True]


def test_a_revision_of_its_own_is_asked_for(place: Path, server: Hub, tmp_path: Path) -> None:
    with (tmp_path / "weights.toml").open("a") as stream:
        stream.write(f'revision = "{REVISION}"\n')
    with pytest.raises(WeightsError):
        plan_pull(NAME, server.url)
    assert server.asked[-1].path.endswith(f"{OTHER}/revision/{REVISION}")


def test_it_is_what_the_option_adds(place: Path, server: Hub, tiny: Path, cli: Any, tmp_path: Path) -> None:
    fetch(server)
    (tmp_path / FILE).write_bytes((place / FILE).read_bytes())
    asked = ("generate", "a ball", "--size", "128x128", "--frames", "5", "--steps", "1", "--seed", "1", "--output")
    own = cli(*asked, "own.mkv", "--lossless", "--model", NAME)
    assert own.code == 0 and f"LoRA {FILE} at 1: applied 1 of 1" in own.err, own.err
    for output, more in {"option.mkv": ("--lora", str(tmp_path / FILE)), "plain.mkv": ()}.items():
        assert cli(*asked, output, "--lossless", "--model", str(tiny), *more).code == 0
    videos = {name: frames(name) for name in ("own.mkv", "option.mkv", "plain.mkv")}
    assert torch.equal(videos["own.mkv"], videos["option.mkv"])
    assert not torch.equal(videos["own.mkv"], videos["plain.mkv"])


def frames(name: str) -> torch.Tensor:
    from soragen.video.read import read_video

    return torch.cat(list(read_video(Path(name))[1]))


def test_a_folder_alone_is_the_model_without(place: Path, tiny: Path) -> None:
    assert NAME not in [checkpoint.name for checkpoint in identify(tiny)[0]]


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    """The model without its LoRA, to be changed."""
    return Path(shutil.copytree(tiny, tmp_path / "have"))


def test_added_without_it_the_model_lacks_it(place: Path, folder: Path, lora: bytes) -> None:
    _, missing = add(folder, NAME, lambda event: None)
    assert missing == [FILE]
    with pytest.raises(WeightsError, match="only partly"):
        checkpoint_folder(find(NAME))
    (folder / FILE).write_bytes(lora)
    _, missing = add(folder, NAME, lambda event: None)
    assert not missing and checkpoint_folder(find(NAME)) == place


def test_a_folder_of_ones_own_needs_it_inside(place: Path, folder: Path, lora: bytes) -> None:
    (folder / "soragen.json").write_text(json.dumps({"like": NAME}))
    with pytest.raises(WeightsError, match=f"lacks {FILE}"):
        own_loras(find(str(folder)), folder)
    (folder / FILE).write_bytes(lora)
    assert [one.path for one in own_loras(find(str(folder)), folder)] == [folder / FILE]


def test_offline_it_comes_from_the_shared_cache(place: Path, server: Hub, tmp_path: Path) -> None:
    in_shared_cache(tmp_path / "cache", SOURCE, server.files)
    with pytest.raises(WeightsError, match=f"does not hold {FILE} of {OTHER}$"):
        add_from_shared_cache(NAME, lambda event: None)
    assert not place.exists()
    in_shared_cache(tmp_path / "cache", OTHER, server.others[OTHER])
    assert add_from_shared_cache(NAME, lambda event: None) == place == checkpoint_folder(find(NAME))
    assert not [one for one in verify(NAME, lambda event: None) if one.problem]
    assert not server.asked and not (place / "other.safetensors").exists()


@pytest.mark.parametrize("part", ["lora_high", "lora"])
def test_the_file_has_to_fit(place: Path, server: Hub, cli: Any, tmp_path: Path, part: str) -> None:
    """A LoRA of one of two transformers has no place in a model with one; one of another model fits nothing."""
    (tmp_path / "weights.toml").write_text(WEIGHTS.replace("parts.lora]", f"parts.{part}]"))
    if part == "lora":
        server.others[OTHER][FILE] = save({"transformer.nothing.lora_A.weight": torch.ones(1, 3),
                                           "transformer.nothing.lora_B.weight": torch.ones(3, 1)})  # fmt: skip
    fetch(server)
    ended = cli("generate", "a ball", "--model", NAME, "--dry-run")
    assert ended.code == (InputError if part == "lora_high" else WeightsError).exit_code, ended.err
    assert FILE in ended.err
