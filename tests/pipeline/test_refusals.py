"""What cannot end well is refused before anything is loaded."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file

from soragen.catalog import find
from soragen.errors import ResourceError
from soragen.models.device import Memory
from soragen.pipeline import memory, run
from soragen.pipeline.plan import make_plan
from soragen.request import Request
from soragen.video import write as write_file


class Disk(NamedTuple):
    total: int
    used: int
    free: int


def test_too_little_memory(cli: Any, calls: Any, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "memory_budget", lambda device: Memory(10**9, 10**8))
    ended = cli("generate", "a ball")
    assert ended.code == 4 and "of memory, 0.1 GB are free\nhint: ask for a smaller --size" in ended.err
    assert calls.loaded == [] and list(home.iterdir()) == []


def test_ffmpeg_counts_too(ask: Callable[..., Request], tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = find(str(tiny))
    peak = make_plan(ask(size="4096x4096"), checkpoint, "cpu").peak_bytes
    needed = peak["decode"] + peak["encode"]
    assert needed > 2 * make_plan(ask(), checkpoint, "cpu").peak_bytes["decode"]
    monkeypatch.setattr(memory, "memory_budget", lambda device: Memory(10**10, needed - 1))
    with pytest.raises(ResourceError, match="decode needs about"):
        make_plan(ask(size="4096x4096"), checkpoint, "cpu")


def test_too_small_a_disk(cli: Any, calls: Any, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_file.shutil, "disk_usage", lambda folder: Disk(10**9, 10**9, 10**6))
    ended = cli("generate", "a ball")
    assert ended.code == 4 and "0.00 GB free" in ended.err
    assert calls.loaded == [] and list(home.iterdir()) == []


def test_the_latents_need_room_too(
    ask: Callable[..., Request], cli: Any, calls: Any, monkeypatch: pytest.MonkeyPatch, tiny: Path
) -> None:
    request = ask(frames=481)
    plan = make_plan(request, find(str(tiny)), "cpu")
    assert plan.latent_bytes == 4 * 10 * 121 * 16 * 16
    free = write_file._SPARE_BYTES + int(0.15 * 128 * 128 * 481) + plan.latent_bytes
    for room, code in ((free - 1, 4), (free, 0)):
        monkeypatch.setattr(write_file.shutil, "disk_usage", lambda folder, room=room: Disk(10**9, 0, room))
        assert cli("generate", "a ball", "--frames", "481", "--steps", "1", "--guidance", "1").code == code
        assert bool(calls.loaded) == (code == 0)


@pytest.mark.parametrize("part", ["text_encoder", "transformer", "vae"])
def test_damaged_weights_are_found_before_any_work(
    part: str, tiny: Path, tmp_path: Path, cli: Any, calls: Any, home: Path
) -> None:
    folder = shutil.copytree(tiny, tmp_path / "damaged")
    weights = folder / part / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    ended = cli("generate", "a ball", "--model", str(folder))
    assert ended.code == 3 and str(weights) in ended.err
    weights.unlink()
    ended = cli("generate", "a ball", "--model", str(folder))
    assert ended.code == 3 and str(weights.parent) in ended.err
    assert calls.loaded == [] and list(home.iterdir()) == []


def test_values_that_are_not_finite_stop_the_run_at_that_step(
    tiny: Path, tmp_path: Path, cli: Any, calls: Any, home: Path
) -> None:
    folder = shutil.copytree(tiny, tmp_path / "poisoned")
    weights = folder / "transformer" / "model.safetensors"
    tensors = load_file(weights)
    tensors["patch_out.weight"] = torch.full_like(tensors["patch_out.weight"], 3e38, dtype=torch.float32)
    save_file(tensors, weights)
    ended = cli("generate", "a ball", "--model", str(folder))
    assert ended.code == 6 and "not finite at denoising step 1 of 2" in ended.err
    assert "vae" not in calls.loaded and list(home.iterdir()) == []


def test_a_dry_run_loads_nothing(cli: Any, calls: Any, home: Path) -> None:
    ended = cli("generate", "a ball", "--dry-run", "--frames", "49")
    assert ended.code == 0 and "64 tokens" not in ended.err
    assert "448 tokens in each of 3 windows" in ended.out and "cpu, float32" in ended.out
    assert calls.loaded == [] and list(home.iterdir()) == []
    assert cli("generate", "a ball", "--dry-run", "--dtype", "float16").code == 2


def test_large_files_are_hashed_by_verify_alone(
    cli: Any, tiny: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run finds a changed config; in a large file it looks at the header and at every value."""
    own = tmp_path / "weights.toml"
    monkeypatch.setenv("SORAGEN_WEIGHTS", str(own))
    folder = shutil.copytree(tiny, tmp_path / "mine")
    sizes = {path: (folder / path).stat().st_size for path in ("vae/config.json", "vae/model.safetensors")}
    own.write_text(
        f'[mine]\nlike = "pocket"\nsource = "{folder}"\n'
        + "".join(f'[mine.files."{path}"]\nsize = {size}\nsha256 = "{"0" * 64}"\n' for path, size in sizes.items())
    )
    monkeypatch.setattr(run, "HASHED_BYTES", sizes["vae/config.json"])
    ended = cli("generate", "a ball", "--model", "mine")
    assert ended.code == 3 and "config.json has SHA-256" in ended.err
    monkeypatch.setattr(run, "HASHED_BYTES", 1)
    assert cli("generate", "a ball", "--model", "mine").code == 0
