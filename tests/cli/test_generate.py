"""soragen generate and decode: what reaches the pipeline, what reaches stdout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fakes import Cli, FakeRun

from soragen.catalog import find


def test_stdout_is_the_path_alone(cli: Cli, fake_run: FakeRun, tmp_path: Path) -> None:
    ended = cli("generate", "A red ball, bouncing!", "--seed", "7")
    assert ended.code == 0, ended.err
    assert ended.out == "a-red-ball-bouncing-7.mp4\n"
    assert (tmp_path / "a-red-ball-bouncing-7.mp4").read_bytes() == b"video"
    assert (
        f"denoise: {find('pocket').defaults.num_steps} steps" in ended.err
        and "note: the prompt is a good one" in ended.err
    )
    assert "\r" not in ended.err and "\x1b" not in ended.err


def test_nothing_is_overwritten_unless_asked(cli: Cli, fake_run: FakeRun) -> None:
    assert cli("generate", "a ball", "--seed", "7").out == "a-ball-7.mp4\n"
    assert cli("generate", "a ball", "--seed", "7").out == "a-ball-7-2.mp4\n"
    ended = cli("generate", "a ball", "-o", "a-ball-7.mp4", "--overwrite")
    assert ended.out == "a-ball-7.mp4\n" and fake_run.calls[-1].overwrite


def test_json_is_one_object(cli: Cli, fake_run: FakeRun) -> None:
    ended = cli("generate", "a ball", "--size", "333x257", "--frames", "9", "--seed", "1", "-o", "x.mp4", "--json")
    values = json.loads(ended.out)
    total = values["seconds"].pop("total")
    assert isinstance(total, float)
    assert values == {
        "path": "x.mp4",
        "width": 334,
        "height": 258,
        "num_frames": 9,
        "fps": 12,
        "seed": 1,
        "seconds": {"load": 0.5, "denoise": 1.25},
    }
    assert "334x258" in ended.err


def test_every_option_reaches_the_request(cli: Cli, fake_run: FakeRun) -> None:
    given = "--size 640x360 --seconds 1.5 --fps 24 --seed 5 --steps 9 --guidance 2.5 --shift 4 --solver euler"
    ended = cli(
        "generate", "a ball", *given.split(), "--negative", "blur", "--device", "cpu", "--dtype", "float32",
        "--no-metadata", "--strict", "--quiet", "-o", "x.mp4",
    )  # fmt: skip
    assert (ended.code, ended.err) == (0, "")
    call = fake_run.calls[0]
    assert call.request.to_dict() == {
        "prompt": "a ball",
        "negative_prompt": "blur",
        "width": 640,
        "height": 360,
        "num_frames": 36,
        "fps": "24",
        "seed": 5,
        "num_steps": 9,
        "guidance_scale": 2.5,
        "shift": 4.0,
        "solver": "euler",
        "checkpoint": "pocket",
    }
    assert (call.device, call.dtype, call.metadata, call.strict_prompt) == ("cpu", "float32", False, True)


def test_the_random_seed_is_said(cli: Cli, fake_run: FakeRun) -> None:
    ended = cli("generate", "a ball", "-o", "x.mp4")
    assert f"note: seed {fake_run.calls[0].request.seed}" in ended.err


def test_prompt_from_standard_input(cli: Cli, fake_run: FakeRun) -> None:
    prompt = "a ball\r\non «عشب أخضر» 🟢"
    ended = cli("generate", "-", "-o", "x.mp4", stdin=b"\xef\xbb\xbf" + prompt.encode() + b"\n")
    assert ended.code == 0, ended.err
    assert fake_run.calls[0].request.prompt == prompt.replace("\r", "")
    assert cli("generate", "-", stdin=b"caf\xe9").code == 2


@pytest.mark.parametrize("prompt", ["x" * 100_000, "🎈🎉", "كرة حمراء", "--", "日本語の猫"])
def test_any_text_is_a_prompt(cli: Cli, fake_run: FakeRun, prompt: str) -> None:
    ended = cli("generate", "--seed", "1", "--", prompt)
    assert ended.code == 0, ended.err
    assert fake_run.calls[0].request.prompt == prompt
    assert Path(ended.out.strip()).is_file()


def test_dry_run_only_plans(cli: Cli, fake_run: FakeRun, tmp_path: Path) -> None:
    ended = cli("generate", "a ball", "--dry-run", "--size", "128x64")
    assert (ended.code, ended.out) == (0, "plan: 128x64, 24 frames at 12 fps\ndevice: None\n")
    assert json.loads(cli("generate", "a ball", "--dry-run", "--json").out)["checkpoint"] == "pocket"
    assert not fake_run.calls and not list(tmp_path.glob("*.mp4"))


def test_decode_goes_on(cli: Cli, fake_run: FakeRun, tmp_path: Path) -> None:
    (tmp_path / "left.safetensors").write_bytes(b"latents")
    assert cli("decode", "left.safetensors").out == "left.mp4\n"
    assert json.loads(cli("decode", "left.safetensors", "-o", "y.mp4", "--json").out)["path"] == "y.mp4"
