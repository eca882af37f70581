"""A video again from the file alone; and pictures, which are videos of one frame."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

from soragen.pipeline.events import Event, Note
from soragen.pipeline.replay import differences, read_replay
from soragen.size import VideoSize
from soragen.video.facts import video_facts
from soragen.video.recipe import read_recipe
from soragen.video.write import write_video

UNUSUAL = [
    "--steps", "3", "--guidance", "2.3", "--shift", "1.7", "--solver", "euler", "--negative", "blur",
    "--fps", "30000/1001", "--frames", "6",
]  # fmt: skip


def request_of(path: str) -> dict[str, Any]:
    recipe = read_recipe(Path(path.strip()))
    assert recipe is not None
    return dict(recipe["request"])


def test_the_same_video_from_the_file_alone(cli: Any) -> None:
    for prompt, options in (("a red ball", UNUSUAL), ("a «عشب» 🟢", [])):
        assert cli("generate", prompt, *options, "--overwrite").code == 0
        ended = cli("replay", "a.mp4", "-o", "again.mp4", "--overwrite")
        assert ended.code == 0, ended.err
        assert Path("again.mp4").read_bytes() == Path("a.mp4").read_bytes()
        assert "note: compared with the recipe: the files of tiny have no known hash; the video may" in ended.err


def test_what_an_option_says_is_changed_and_nothing_else(cli: Any) -> None:
    cli("generate", "a red ball", *UNUSUAL)
    before = request_of("a.mp4")
    ended = cli("replay", "a.mp4", "--seed", "random", "--steps", "1")
    after = request_of(ended.out)
    assert after["seed"] != before["seed"] and f"note: seed {after['seed']}\n" in ended.err
    assert {**after, "seed": 1, "num_steps": 3} == before
    plan = json.loads(cli("replay", "a.mp4", "--seconds", "1", "--prompt", "a cube", "--dry-run", "--json").out)
    assert plan["request"] == {**before, "num_frames": 30, "prompt": "a cube"}


def test_what_cannot_be_typed_is_kept(ask: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = replace(ask(prompt="-", guidance=3.0, typed=False), low_noise_guidance_scale=1.5)
    recipe = {"recipe": 1, "request": asked.to_dict(), "machine": {"device": "cpu", "dtype": "float32"}}
    frames = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    path = write_video(tmp_path / "a.mp4", [frames], VideoSize(64, 64, 1, Fraction(12)), recipe=recipe)
    again = read_replay(path, listen=lambda event: None)
    assert (again.request, again.device, again.suffix) == (asked, "cpu", ".mp4")
    assert read_replay(path, listen=lambda event: None, guidance=2.0).request.low_noise_guidance_scale == 2.0

    recipe["machine"] = {"device": "cuda", "dtype": "float16"}  # a machine that this one is not
    path = write_video(tmp_path / "b.mp4", [frames], VideoSize(64, 64, 1, Fraction(12)), recipe=recipe)
    notes: list[Event] = []
    monkeypatch.setattr("soragen.models.device.devices", lambda: ["cpu"])
    assert read_replay(path, listen=notes.append).device is None
    assert isinstance(notes[0], Note) and "device cuda is cpu" in notes[0].text


def test_the_type_of_the_recipe_is_used(cli: Any, ask: Any, tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "half")
    dtypes = dict.fromkeys(("text_encoder", "transformer", "vae"), "bfloat16")
    (folder / "soragen.json").write_text(json.dumps({"dtypes": dtypes}))
    machine = {"device": "cpu", "dtype": "bfloat16"}
    recipe = {"recipe": 1, "request": ask(model=str(folder)).to_dict(), "machine": machine}
    frames = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    write_video(Path("a.mp4"), [frames], VideoSize(64, 64, 1, Fraction(12)), recipe=recipe)
    plan = json.loads(cli("replay", "a.mp4", "--dry-run", "--json").out)
    assert plan["dtype"] == "bfloat16"
    assert json.loads(cli("replay", "a.mp4", "--dry-run", "--json", "--dtype", "float32").out)["dtype"] == "float32"


def test_differences_are_named() -> None:
    now = {"model": {"name": "m", "sha256": "ab"}, "versions": {"torch": "2"}, "machine": {"device": "cpu"}}
    assert differences(now, now) == []
    assert differences({**now, "model": {"name": "m", "sha256": "cd"}}, now) == ["model m has other files (ab)"]
    assert differences({**now, "model": {"name": "n", "sha256": "ab"}}, now) == ["model n is m"]
    assert differences({**now, "versions": {"torch": "1"}, "machine": 3}, now) == ["torch 1 is 2", "device None is cpu"]


def test_a_model_that_moved_is_named(cli: Any, tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "models" / "tiny")
    cli("generate", "a red ball", "--model", str(tmp_path / "models" / "tiny"))
    shutil.move(tmp_path / "models", tmp_path / "others")
    ended = cli("replay", "a.mp4")
    assert ended.code == 2 and "no model named" in ended.err
    assert cli("replay", "a.mp4", "-m", str(tmp_path / "others" / "tiny"), "-o", "b.mp4").code == 0
    assert request_of("b.mp4")["checkpoint"] == str(tmp_path / "others" / "tiny")


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (None, "holds no recipe"),
        ({"recipe": 1, "request": {"prompt": "a"}}, "not whole"),
        ({"recipe": 99, "versions": {"soragen": "7.1"}}, "hint: make it again with soragen 7.1"),
        ({"recipe": 1}, "not whole"),
    ],
)
def test_files_that_cannot_be_made_again(cli: Any, recipe: Any, words: str) -> None:
    frames = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    write_video(Path("x.mp4"), [frames], VideoSize(64, 64, 1, Fraction(12)), recipe=recipe)
    ended = cli("replay", "x.mp4")
    assert ended.code == 2 and words in ended.err


def test_a_recipe_is_not_trusted(cli: Any, ask: Any) -> None:
    request = {**ask().to_dict(), "num_steps": 10**9}
    frames = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    write_video(Path("x.mp4"), [frames], VideoSize(64, 64, 1, Fraction(12)), recipe={"recipe": 1, "request": request})
    ended = cli("replay", "x.mp4")
    assert ended.code == 2 and "--steps 1000000000 is out of range" in ended.err
    assert cli("replay", "x.mp4", "--seed", "x").code == 2
    assert cli("replay", "none.mp4").code == 2


def test_a_picture_from_a_sentence(cli: Any, tiny: Path) -> None:
    options = ["--model", str(tiny), "--size", "127x129", "--steps", "2", "--seed", "3"]
    ended = cli("image", "a red ball", *options)
    assert (ended.code, ended.out) == (0, "a-red-ball-3.png\n")
    facts = video_facts(Path("a-red-ball-3.png"))
    assert (facts.codec, facts.width, facts.height, facts.num_frames) == ("png", 127, 129, 1)
    for suffix in ("jpg", "webp"):
        assert cli("image", "a red ball", *options, "-o", f"a.{suffix}").code == 0
        assert request_of(f"a.{suffix}") == request_of("a-red-ball-3.png")
    again = cli("replay", "a-red-ball-3.png")
    assert again.out == "a-red-ball-3-2.png\n"
    assert Path("a-red-ball-3-2.png").read_bytes() == Path("a-red-ball-3.png").read_bytes()


def test_a_picture_is_no_video(cli: Any, tiny: Path) -> None:
    ended = cli("image", "a red ball", "-o", "a.mp4")
    assert ended.code == 2 and "output 'a.mp4' is not a picture" in ended.err
    assert cli("image", "a red ball", "--seconds", "1").code == 2
    ended = cli("generate", "a red ball", "-o", "a.png")
    assert ended.code == 2 and "hint: use .mp4, or soragen image for one frame" in ended.err
