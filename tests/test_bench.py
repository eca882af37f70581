"""The measuring works: every column is filled, memory is that of the right process, the page keeps its prose.

Against diffusers: both sides make the same thing.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]

if sys.platform != "linux":
    pytest.skip("peaks of memory are read as Linux keeps them", allow_module_level=True)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return importlib.import_module("watch")


def test_quick_run_fills_the_page(tmp_path: Path) -> None:
    page = tmp_path / "bench.md"
    shutil.copyfile(ROOT / "docs" / "bench.md", page)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    script = [sys.executable, str(ROOT / "bench/generate.py"), "--quick", "--threads", "1", "--write", str(page)]
    done = subprocess.run(script, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = page.read_text(encoding="utf-8")
    assert done.stdout.strip() in text

    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines() if "|" in line]
    videos = [row for row in rows if row[0] == "64x64, 5 frame(s)" and row[1] in ("cold", "cached")]
    assert len(videos) == 2
    for row in videos:
        wall, *stages, memory, planned, ffmpeg = map(float, row[2:])
        assert wall == pytest.approx(sum(stages), abs=0.05) and len(stages) == 7 and min(stages[1:]) >= 0
        assert memory > 100 and planned > 100 and ffmpeg > 0
    limits = {row[0]: row[1:] for row in rows if row[-1] in ("yes", "**no**")}
    assert len(limits) == 3
    assert all((float(found) <= float(most)) == (holds == "yes") for found, most, holds in limits.values())

    assert platform.node() not in done.stdout and str(ROOT) not in done.stdout and str(tmp_path) not in done.stdout


def test_page_keeps_its_prose(watch: ModuleType, tmp_path: Path) -> None:
    generate, page = importlib.import_module("generate"), tmp_path / "bench.md"
    shutil.copyfile(ROOT / "docs" / "bench.md", page)
    before, after = (re.split(r"<!-- bench: \w+ -->", page.read_text(encoding="utf-8"))[n] for n in (0, 2))
    for tables in ("| the first |", "| the second |"):
        generate.write(page, tables)
    first, tables, last = re.split(r"<!-- bench: \w+ -->", page.read_text(encoding="utf-8"))
    assert (first, tables.strip(), last) == (before, "| the second |", after)
    page.write_text("no marks")
    with pytest.raises(SystemExit, match="lacks the marks"):
        generate.write(page, "")
    assert page.read_text() == "no marks"


def test_memory_is_told_apart(watch: ModuleType) -> None:
    alone = watch.run(["-c", "b = b'x' * 60_000_000; import time; time.sleep(0.1)"], {})
    assert 60e6 < alone.memory < 160e6 and alone.ffmpeg == 0
    child = "import os; os.execvp('dd', ['dd', 'if=/dev/zero', 'of=/dev/null', 'bs=90M', 'count=200'])"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], stderr=subprocess.DEVNULL)"
    both = watch.run(["-c", parent], {})
    assert both.ffmpeg > 80e6 > both.memory > 0


def test_a_process_that_fails_ends_the_bench(watch: ModuleType) -> None:
    with pytest.raises(SystemExit, match="ended with 3:\nno such thing"):
        watch.run(["-c", "import sys; print('no such thing', file=sys.stderr); sys.exit(3)"], {})
    refused = watch.run(["-c", "import sys; sys.exit(2)"], {}, may_fail=True)
    assert refused.code == 2


def test_both_sides_make_the_same_video(
    watch: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("imageio")
    peer = importlib.import_module("peer")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("SORAGEN_CACHE", str(tmp_path))
    words = ["--size", "tiny", "--case", "wan-2.2-ti2v", "--repeat", "1", "--threads", str(torch.get_num_threads())]
    monkeypatch.setattr(sys, "argv", ["peer.py", *words, "--json"])
    peer.main()
    (found,) = json.loads(capsys.readouterr().out)["results"]
    assert found["deviation"]["latents"] <= 1e-5 and found["deviation"]["frames"] <= 1e-5
    assert found["deviation"]["levels"] < 0.5
    for side in peer.SIDES:
        values = found[side]
        assert values["wall"] == pytest.approx(sum(values["seconds"].values()))
        assert all(values["seconds"][stage] > 0 for stage in peer.STAGES)
        assert values["cpu"] > 0 and values["memory"] > 100e6 and values["ffmpeg"] > 1e6
    rows = [line.count("|") for line in peer.markdown([found]).splitlines() if line]
    assert rows == [13] * 5 + [5] * 3


def test_networks_of_both_sides_hold_the_same_weights(
    watch: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu = importlib.import_module("gpu")
    cases = ["wan2.1-t2v-1.3b", "wan2.2-ti2v-5b", "ltx-video-0.9.5", "wan2.2-t2v-a14b"]
    assert cases == [case.name for case in gpu.CASES]
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu", "--tiny", "--steps", "1", "--json"])
    gpu.main()
    said = json.loads(capsys.readouterr().out)
    assert said["ceiling_tflops"] > 0 and [found["case"] for found in said["results"]] == cases
    for found in said["results"]:
        assert ("decode" in found) == (found["case"] != "wan2.2-t2v-a14b")
        for what in {"step", "decode"} & found.keys():
            assert found[what]["deviation"] <= 1e-5
            assert all(found[what][side]["seconds"] > 0 for side in gpu.SIDES)
        assert all(found["step"][side]["ceiling"] > 0 for side in gpu.SIDES)
    assert len(gpu.markdown(said["results"]).splitlines()) == 2 + 2 * 7
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cuda:99"])
    with pytest.raises(SystemExit, match=r"not available: this machine has .*cpu"):
        gpu.main()


@pytest.mark.parametrize(("tiny", "frames", "size"), [(True, 17, "96x64"), (False, 5, "64x96")])
def test_one_part_at_a_size_of_its_own(
    watch: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny: bool, frames: int,
    size: str,
) -> None:  # fmt: skip
    """--size and --frames say what is decoded, unless --tiny does; networks are thin here in both."""
    gpu = importlib.import_module("gpu")
    decode = gpu.Bench.decode

    def thin(bench: Any, case: Any, configs: Path, grid: Any) -> Any:
        (configs / "vae" / "config.json").write_text(json.dumps(gpu.vae_config(case.name, gpu.TINY)))
        return decode(bench, case, configs, grid) | {"latents": grid.latent_shape}

    monkeypatch.setattr(gpu.Bench, "decode", thin)
    words = ["--what", "decode", "--size", "64x96", "--frames", "5", *(["--tiny"] if tiny else [])]
    words += ["--case", "wan2.1-t2v-1.3b", "--case", "wan2.2-t2v-a14b"]  # the second one has the VAE of the first
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu", "--steps", "1", "--json", *words])
    gpu.main()
    first, second = json.loads(capsys.readouterr().out)["results"]
    width, height = (int(side) for side in size.split("x"))
    assert first["decode"]["latents"] == [1 + frames // 4, height // 8, width // 8]
    assert size in first["size"] and first["decode"]["deviation"] <= 1e-5
    assert "step" not in first and not {"step", "decode"} & second.keys()
    assert len(gpu.markdown([first, second]).splitlines()) == 2 + 2
