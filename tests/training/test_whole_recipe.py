"""The one command of the recipe: what it would do, what it passes over, and where it stops."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

from training import __main__ as recipe
from training.__main__ import Stage, go, main


def scripted(monkeypatch: pytest.MonkeyPatch, codes: dict[str, str]) -> None:
    """Stages run these lines of Python instead of their module."""
    monkeypatch.setattr(Stage, "commands", lambda stage, run: [[sys.executable, "-c", codes[stage.module], str(run)]])


def test_all_minutes_are_shared_out() -> None:
    assert sum(recipe.SHARES.values()) == pytest.approx(1)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_plan_names_every_stage_and_runs_none(
    device: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(tmp_path / "run"), "--minutes", "20", "--device", device, "--processes", "3", "--plan"])
    lines = capsys.readouterr().out.splitlines()
    assert not (tmp_path / "run").exists()
    modules = [line.split()[1] for line in lines]
    for module in modules:
        assert importlib.import_module(module).main
    assert modules[-1] == "training.evaluate" and modules.index("training.vae") < modules.index("training.latents")
    assert all(f"--device {device}" in line for line in lines if "export" not in line)
    given = [float(line.split("--minutes ")[1].split()[0]) for line in lines if "--minutes" in line]
    twice = recipe.SHARES["vae"] + recipe.SHARES["refiner"]  # their second ones count the first
    assert sum(given) - 20 * twice == pytest.approx(20)


def test_a_quarter_of_what_is_rendered_to_train_on_has_weather() -> None:
    rendered = [str(stage) for stage in recipe.stages(20, "cpu", 30, 101, 8, 4, 4, 1) if stage.module == "clips"]
    for kind, asked in (("images", 2 * 101), ("clips", 2 * 30)):
        counts = {some: 0 for some in (True, False)}
        for line in rendered:
            if f"--{kind} " in line and "--held-out" not in line:
                counts["--weather" in line] += int(line.split(f"--{kind} ")[1].split()[0])
        assert counts[True] == pytest.approx(asked / 4, abs=2) and sum(counts.values()) == asked


def test_rendering_is_shared_among_processes(tmp_path: Path) -> None:
    commands = Stage("clips", ("--clips", "9"), num_processes=2).commands(tmp_path)
    assert [command[-2:] for command in commands] == [["--part", "0/2"], ["--part", "1/2"]]
    assert all(command[1:4] == ["-m", "training.clips", str(tmp_path)] for command in commands)


def test_what_is_done_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = "import pathlib, sys; path = pathlib.Path(sys.argv[1]) / 'seen'; "
    count = here + "path.write_text((path.read_text() if path.exists() else '') + 'x')"
    scripted(monkeypatch, {"text": count, "vae": "raise SystemExit(3)"})
    todo = [Stage("text", ()), Stage("vae", ()), Stage("text", ("--steps", "2"))]
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            go(tmp_path, todo)
        assert ended.value.code == 3 and (tmp_path / "seen").read_text() == "x"
    scripted(monkeypatch, {"text": count, "vae": "pass"})
    go(tmp_path, todo)
    assert (tmp_path / "seen").read_text() == "xx"
    assert list(json.loads((tmp_path / "stages.json").read_text())) == [
        "1. training.text RUN", "2. training.vae RUN", "3. training.text RUN --steps 2",
    ]  # fmt: skip
