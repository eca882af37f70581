"""soragen info, models and doctor."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from fakes import Cli

from soragen import __version__
from soragen.errors import WeightsError
from soragen.pipeline import doctor
from soragen.size import VideoSize
from soragen.video.write import write_video


def test_version(cli: Cli) -> None:
    assert cli("--version") == (0, f"soragen {__version__}\n", "")


def test_models(cli: Cli) -> None:
    table = cli("models", "list").out.splitlines()
    assert table[0].split()[:2] == ["name", "family"] and table[1].startswith("pocket")
    models = json.loads(cli("models", "list", "--json").out)
    assert [(model["name"], model["here"]) for model in models[:2]] == [("pocket", True), ("wan2.1-t2v-1.3b", False)]
    shown = cli("models", "info", "pocket").out
    assert "licence.id" in shown and "Apache-2.0" in shown and "\nnative.seconds" in shown
    values = json.loads(cli("models", "info", "pocket", "--json").out)
    assert values["native"]["fps"] == 12 and values["abilities"]["text"] is True
    shown = cli("models", "info", "wan2.2-ti2v-5b").out
    assert "parts.text_encoder.licence.id" in shown and "licence.territory" in shown and "licence.commercial" in shown


def test_info_shows_the_recipe(cli: Cli, tmp_path: Path) -> None:
    recipe = {"version": 1, "request": {"prompt": "a ball\non grass 🟢", "seed": 7}}
    frames = torch.zeros(2, 64, 64, 3, dtype=torch.uint8)
    write_video(tmp_path / "x.mp4", [frames], VideoSize(64, 64, 2, Fraction(12)), recipe=recipe)
    values = json.loads(cli("info", "x.mp4", "--json").out)
    assert values["recipe"] == recipe
    assert (values["file"]["width"], values["file"]["num_frames"], values["file"]["fps"]) == (64, 2, 12)
    shown = cli("info", "x.mp4").out.splitlines()
    assert any(line.split() == ["recipe.request.seed", "7"] for line in shown)
    assert any(line.startswith("recipe.request.prompt") and line.endswith("a ball") for line in shown)


def test_doctor_lists_every_check_and_ends_with_the_first_failure(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged() -> str:
        raise WeightsError("vae of the embedded model is damaged", "install soragen again")

    def broken() -> str:
        raise KeyError("x")

    monkeypatch.setattr(doctor, "CHECKS", {"python": lambda: "3.14", "weights": damaged, "ffmpeg": broken})
    ended = cli("doctor", "--quiet")
    assert ended.code == WeightsError.exit_code
    assert [line.split()[:2] for line in ended.out.splitlines()] == [
        ["ok", "python"],
        ["FAILED", "weights"],
        ["FAILED", "ffmpeg"],
    ]
    assert ended.err.splitlines()[0] == "error: vae of the embedded model is damaged"
    assert [check["ok"] for check in json.loads(cli("doctor", "--json", "--quiet").out)] == [True, False, False]


@pytest.mark.parametrize("name", [name for name in doctor.CHECKS if name not in ("weights", "generation", "memory")])
def test_checks_of_this_machine(name: str) -> None:
    assert doctor.CHECKS[name]()


def test_architectures() -> None:
    built = doctor._is_built_for
    assert built(9, 0, ["sm_80", "sm_90a"])
    assert built(8, 9, ["sm_80"]) and not built(8, 0, ["sm_86"])
    assert not built(12, 0, ["sm_80", "sm_90"]) and built(12, 0, ["compute_90"])
