"""Latents on disk: whole or not there, never in the place of others, read back as they were."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from soragen.errors import InputError, OutputError
from soragen.pipeline.latents import Saved, load_latents, save_latents


def some(output: Path, seed: int = 0) -> Saved:
    latents = torch.randn(1, 10, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    return Saved(latents, {"request": {"prompt": "ein Bär 🐻"}}, "pocket", output, metadata=False)


def test_they_come_back_as_they_were(home: Path) -> None:
    path = save_latents(home, some(home / "a.mp4"))
    assert path == home / "a.latents.safetensors"
    found = load_latents(path)
    assert torch.equal(found.latents, some(home / "a.mp4").latents)
    assert (found.recipe, found.output, found.checkpoint, found.metadata) == (
        {"request": {"prompt": "ein Bär 🐻"}}, home / "a.mp4", "pocket", False,
    )  # fmt: skip
    assert list(home.iterdir()) == [path]


def test_two_runs_with_the_same_output_keep_both(home: Path) -> None:
    first, second = (save_latents(home, some(home / "a.mp4", seed)) for seed in (1, 2))
    assert first != second
    for path, seed in ((first, 1), (second, 2)):
        assert torch.equal(load_latents(path).latents, some(home / "a.mp4", seed).latents)


def test_a_name_as_long_as_the_disk_takes(home: Path) -> None:
    output = home / f"{'é' * 120}.mp4"
    output.touch()
    assert load_latents(save_latents(home, some(output))).output == output


def test_nothing_is_left_of_a_write_that_fails(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(part: Path, path: Path, overwrite: bool) -> Path:
        assert part.stat().st_size > 0
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("soragen.pipeline.latents.publish", fail)
    with pytest.raises(OutputError, match="No space left"):
        save_latents(home, some(home / "a.mp4"))
    assert list(home.iterdir()) == []


def test_other_files_are_refused(home: Path) -> None:
    good = save_latents(home, some(home / "a.mp4"))
    bad = home / "b.latents.safetensors"
    run = {"run": json.dumps({"recipe": {}, "checkpoint": "pocket", "output": "/a.mp4", "metadata": True})}
    contents = [b"", b"video", good.read_bytes()[:-1]]
    for tensors, metadata in (
        ({"latents": torch.zeros(1, 2, 3, 4, 5)}, {"format": "pt"}),
        ({"latents": torch.zeros(1, 2, 3, 4, 5)}, {"run": "[]"}),
        ({"latents": torch.zeros(2, 3)}, run),
        ({"latents": torch.zeros(1, 2, 3, 4, 5, dtype=torch.int32)}, run),
        ({"latents": torch.full((1, 2, 3, 4, 5), torch.nan)}, run),
        ({"other": torch.zeros(1, 2, 3, 4, 5)}, run),
    ):
        save_file(tensors, bad, metadata)
        contents.append(bad.read_bytes())
    for content in contents:
        bad.write_bytes(content)
        with pytest.raises(InputError, match="does not hold latents"):
            load_latents(bad)
    for path in (home, home / "none"):
        with pytest.raises(InputError, match="is not a file"):
            load_latents(path)
