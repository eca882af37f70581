"""The verbs in lists, and made again from their own files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from footage import film, picture, read

from soragen.pipeline import run
from soragen.video.facts import video_facts
from soragen.video.recipe import read_recipe

EVERY = [
    {"command": "extend", "video": "a.mkv", "prompt": "on", "frames": 4, "seed": 1},
    {"command": "extend", "video": "a.mkv", "frames": 4, "backward": True, "seed": 2, "output": "before.mp4"},
    {"command": "connect", "video": "a.mkv", "after": "b.mkv", "frames": 4, "fit": "pad", "seed": 3},
    {"command": "loop", "video": "a.mkv", "frames": 4, "seed": 4},
    {"command": "loop", "prompt": "a wheel", "frames": 8, "size": "64x64", "seed": 5},
    {"command": "animate", "image": "p.png", "last": "q.png", "frames": 9, "size": "64x64", "seed": 6},
    {"command": "restyle", "video": "a.mkv", "prompt": "night", "strength": 0.5, "seed": 7},
    {"prompt": "a ball", "frames": 5, "size": "64x64", "seed": 8},
]
NAMES = [
    "a-extended-1.mp4", "before.mp4", "a-to-b-3.mp4", "a-looped-4.mp4", "a-wheel-5.mp4", "p-animated-6.mp4",
    "a-restyled-7.mp4", "a-ball-8.mp4",
]  # fmt: skip


MADE = [
    {"command": "replay", "file": "b-ball.mkv"},
    {"command": "replay", "file": "b-ball.mkv", "seed": 12, "output": "again.mp4"},
    {"command": "replay", "file": "a-extended-1.mp4"},
    {"command": "storyboard", "file": "film.toml", "seed": 21},
    {"command": "storyboard", "file": "film.toml", "seed": 22, "lossless": True},
    {"command": "extend", "video": "a.mkv", "prompt": "on", "frames": 4, "seed": 1, "lossless": True},
]
MADE_NAMES = ["a-ball-8.mkv", "again.mp4", "a-extended-1-2.mp4", "a-extended-1.mkv", "film.mp4", "film.mkv"]


@pytest.fixture
def made_before(batch: Any, cli: Any, files: None, tiny: Path) -> None:
    """What `MADE` is made of."""
    write(EVERY[0], {**EVERY[-1], "output": "b-ball.mkv", "lossless": True})
    assert batch().code == 0
    Path("film.toml").write_text(
        f'size = "64x64"\nsteps = 1\nmodel = "{tiny}"\n[[shot]]\nprompt = "a"\nframes = 5\n'
        '[[shot]]\nprompt = "b"\nframes = 4\ncontinued = true\n'
    )


@pytest.fixture
def batch(cli: Any, tiny: Path) -> Callable[..., Any]:
    def command(*arguments: str) -> Any:
        return cli("batch", "list.jsonl", "--model", str(tiny), "--steps", "1", "--device", "cpu", *arguments)

    return command


@pytest.fixture
def files() -> None:
    film("a.mkv", 6)
    film("b.mkv", 5, 96, 96, shade=50)
    picture("p.png")
    picture("q.png", shade=90)


def write(*lines: dict[str, Any]) -> None:
    Path("list.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_list_of_every_verb(batch: Any, cli: Any, files: None, calls: Any, tiny: Path) -> None:
    write(*EVERY)
    ended = batch()
    assert ended.code == 0, ended.err
    assert ended.out.split() == NAMES
    assert calls.loaded == ["text_encoder", "t5", "vae", "transformer", "vae"]  # one reads, one decodes
    assert calls.alive["transformer"] == []
    assert [video_facts(Path(name)).num_frames for name in NAMES] == [10, 10, 15, 10, 8, 9, 6, 5]
    assert "line 3: b.mkv has 96x96, brought to 64x48 (pad)" in ended.err and "line 5: seam " in ended.err
    alone = ["--model", str(tiny), "--steps", "1", "--device", "cpu", "--frames", "4", "--seed", "3", "--fit", "pad"]
    assert cli("connect", "a.mkv", "b.mkv", *alone, "-o", "alone.mp4").code == 0
    assert Path("alone.mp4").read_bytes() == Path(NAMES[2]).read_bytes()  # the same seed, the same video


def test_a_list_of_what_files_say(batch: Any, cli: Any, made_before: None, calls: Any) -> None:
    write(*MADE)
    calls.loaded.clear()
    plans = json.loads(batch("--dry-run", "--json").out)
    assert [plan["line"] for plan in plans] == [1, 2, 3, 6, 4, 5] and len(plans[4]["shots"]) == 2
    ended = batch("--steps", "3")  # of the lines alone that say no other thing
    assert ended.code == 0, ended.err
    assert ended.out.split() == MADE_NAMES
    assert Path("a-ball-8.mkv").read_bytes() == Path("b-ball.mkv").read_bytes()
    assert Path("a-extended-1-2.mp4").read_bytes() == Path("a-extended-1.mp4").read_bytes()
    recipes = [read_recipe(Path(name)) or {} for name in MADE_NAMES]
    assert [recipe["request"]["num_steps"] for recipe in recipes[:4]] == [1, 1, 1, 3]
    assert [recipe["request"]["seed"] for recipe in recipes[:4]] == [8, 12, 1, 1]
    assert [[shot["seed"] for shot in recipe["storyboard"]] for recipe in recipes[4:]] == [[21, 22], [22, 23]]
    codecs = [video_facts(Path(name)).codec for name in MADE_NAMES]
    assert codecs == ["ffv1", "h264", "h264", "ffv1", "h264", "ffv1"]
    alone = cli("storyboard", "film.toml", "--seed", "22", "--lossless", "-o", "alone.mkv")
    assert alone.code == 0 and Path("alone.mkv").read_bytes() == Path("film.mkv").read_bytes()


@pytest.mark.parametrize("at", range(1, 7))
def test_going_on_with_what_files_say(
    at: int, batch: Any, made_before: None, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    """Whatever was being decoded as it was stopped: the second run makes the rest, and the first one's names."""
    write(*MADE)
    decode, count = run.decode_to_file, iter(range(1, 99))

    def stopped(*arguments: Any, **options: Any) -> Path:
        if next(count) == at:
            raise KeyboardInterrupt
        return decode(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(run, "decode_to_file", stopped)
        assert batch().code == 130
    ended = batch("--resume")
    assert ended.code == 0, ended.err
    assert ended.out.split() == MADE_NAMES[min(at, 5) - 1 :]
    assert not list(home.glob("*.safetensors")) and not list(home.glob(".*.shots"))
    assert batch("--resume").out == ""


def test_a_storyboard_in_place_is_done_even_if_the_journal_does_not_say_so(batch: Any, made_before: None) -> None:
    write(MADE[3])
    assert batch().code == 0
    journal = Path("list.jsonl.journal")
    journal.write_text("".join(line for line in journal.read_text().splitlines(True) if '"done"' not in line
                               and '"end"' not in line))  # fmt: skip
    ended = batch("--resume")
    assert (ended.code, ended.out) == (0, "") and "1 of 1 are done already" in ended.err, ended.err


def test_going_on_with_a_list(batch: Any, files: None, calls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    write(EVERY[0], EVERY[2], EVERY[6])
    decode, count = run.decode_to_file, iter(range(9))

    def stops(*arguments: Any) -> Path:
        if next(count) == 1:
            raise KeyboardInterrupt
        return decode(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(run, "decode_to_file", stops)
        assert batch().code == 130
    Path("b.mkv").rename("away.mkv")
    ended = batch("--resume")
    assert ended.code == 2 and ended.out.split() == [NAMES[6]] and "line 2: b.mkv is gone" in ended.err
    Path("away.mkv").rename("b.mkv")
    calls.forwards = 0
    assert batch("--resume").out.split() == [NAMES[2]] and calls.forwards == 0


def test_a_line_that_is_done_needs_its_files_no_more(batch: Any, files: None) -> None:
    write(EVERY[0])
    assert batch().code == 0
    Path("a.mkv").unlink()
    ended = batch("--resume")
    assert (ended.code, ended.out) == (0, "") and "1 of 1 are done already" in ended.err


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"command": "extend", "video": "none.mp4"}, "no file none.mp4"),
        ({"command": "restyle", "video": "a.mkv"}, "no prompt"),
        ({"command": "restyle", "video": "a.mkv", "prompt": "x", "strength": 2}, "--strength 2.0 is out of range"),
        ({"command": "connect", "video": "a.mkv", "after": "b.mkv", "fit": "zoom"}, "no fit named 'zoom'"),
        ({"command": "connect", "video": "a.mkv"}, "no after"),
        ({"command": "extend", "video": "a.mkv", "backward": "maybe"}, "backward 'maybe' is not true or false"),
        ({"command": "extend", "video": "a.mkv", "size": "64x64"}, "extend takes no size"),
        ({"command": "animate", "image": "a.mkv"}, "is a video of 6 frames where a picture is needed"),
        ({"command": "loop", "prompt": "x", "frames": 9}, "a loop of 9 frames cannot close"),
        ({"command": "loop", "seed": 3}, "no prompt"),
        ({"prompt": "x", "continued": True}, "generate takes no continued"),
    ],
)
def test_a_bad_line_is_named(line: dict[str, Any], words: str, batch: Any, files: None) -> None:
    write(line)
    ended = batch("--dry-run")
    assert ended.code == 2 and f"line 1: {words}" in ended.err.replace("line 1: a.mkv ", "line 1: ")


@pytest.fixture
def made(cli: Any, tiny: Path, files: None) -> str:
    """An extended video, its source beside it."""
    options = ["--model", str(tiny), "--steps", "1", "--seed", "1", "--device", "cpu"]
    ended = cli("extend", "a.mkv", "on", "--frames", "3", "--lossless", *options)
    assert ended.out == "a-extended-1.mkv\n", ended.err
    return str(ended.out.strip())


def test_replaying_a_verb(made: str, cli: Any, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = cli("replay", made)
    assert ended.out == "a-extended-1-2.mkv\n", ended.err
    assert Path("a-extended-1-2.mkv").read_bytes() == Path(made).read_bytes()
    ended = cli("replay", made, "--prompt", "off", "--seed", "2", "-o", "other.mp4")
    assert ended.code == 0 and video_facts(Path("other.mp4")).codec == "h264"
    before, after = ((read_recipe(Path(name)) or {})["request"] for name in (made, "other.mp4"))
    assert {**after, "prompt": "on", "seed": 1} == before
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # the source lies beside the video, wherever one is
    assert json.loads(cli("replay", str(home / made), "--dry-run", "--json").out)["request"] == before


def test_replaying_a_verb_whose_source_is_not_there(made: str, cli: Any) -> None:
    ended = cli("replay", made, "--seconds", "3")
    assert ended.code == 2 and "is made of other files, its seconds is theirs" in ended.err
    shutil.copy("a.mkv", "kept.mkv")
    film("a.mkv", shade=9)
    ended = cli("replay", made)
    assert ended.code == 2 and "a.mkv is not the file that this video was made of" in ended.err
    Path("a.mkv").unlink()
    ended = cli("replay", made)
    assert ended.code == 2 and "a.mkv is gone" in ended.err and len(ended.err.splitlines()) == 2


def test_replaying_a_loop_and_odd_sides(cli: Any, tiny: Path) -> None:
    options = ["--model", str(tiny), "--steps", "1", "--seed", "1", "--device", "cpu", "--lossless"]
    cli("loop", "a wheel", "--frames", "8", "--size", "65x67", "-o", "a.mkv", *options)
    again = cli("replay", "a.mkv", "-o", "b.mkv")
    assert again.code == 0 and "note: seam " in again.err
    assert torch.equal(read("a.mkv"), read("b.mkv")) and read("b.mkv").shape == (8, 67, 65, 3)
    plan = json.loads(cli("replay", "a.mkv", "--frames", "12", "--dry-run", "--json").out)
    assert plan["request"]["num_frames"] == 12 and plan["request"]["edit"]["verb"] == "loop"
