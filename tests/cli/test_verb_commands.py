"""soragen extend, loop, animate, connect, restyle: what reaches the pipeline, what reaches stdout, names and help."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from fakes import Cli, FakeRun

from soragen.request import Request
from soragen.size import VideoSize
from soragen.video.write import write_video

VERBS = {
    "extend": ["a.mkv", "on", "--frames", "4"],
    "loop": ["a.mkv", "on", "--frames", "4"],
    "animate": ["p.png", "on", "--size", "64x64", "--frames", "9"],
    "connect": ["a.mkv", "b.mkv", "on", "--frames", "4"],
    "restyle": ["a.mkv", "on"],
}
NAMES = {
    "extend": "a-extended-7.mp4",
    "loop": "a-looped-7.mp4",
    "animate": "p-animated-7.mp4",
    "connect": "a-to-b-7.mp4",
    "restyle": "a-restyled-7.mp4",
}
FRAMES = {"extend": 10, "loop": 10, "animate": 9, "connect": 16, "restyle": 6}


@pytest.fixture(autouse=True)
def files(tmp_path: Path) -> None:
    for name, count in (("a.mkv", 6), ("b.mkv", 6), ("p.png", 1)):
        frames = torch.arange(count * 48 * 64 * 3).remainder(251).byte().view(count, 48, 64, 3)
        write_video(tmp_path / name, [frames], VideoSize(64, 48, count, 12), recipe=None, lossless=name != "p.png")  # type: ignore[arg-type]


@pytest.mark.parametrize("verb", VERBS)
def test_stdout_is_the_path_alone(verb: str, cli: Cli, fake_run: FakeRun, tmp_path: Path) -> None:
    ended = cli(verb, *VERBS[verb], "--seed", "7")
    assert (ended.code, ended.out) == (0, f"{NAMES[verb]}\n"), ended.err
    (call,) = fake_run.calls
    assert call.request.edit.verb == verb and call.request.prompt == "on" and not call.lossless
    assert call.request.size.num_frames == FRAMES[verb]
    again = cli(verb, *VERBS[verb], "--seed", "7", "--lossless", "--quiet")
    assert (again.out, again.err) == (f"{NAMES[verb].replace('.mp4', '.mkv')}\n", "")
    assert fake_run.calls[-1].lossless


@pytest.mark.parametrize("verb", VERBS)
def test_json_is_one_object(verb: str, cli: Cli, fake_run: FakeRun) -> None:
    values = json.loads(cli(verb, *VERBS[verb], "--seed", "7", "--json").out)
    assert (values["path"], values["num_frames"], values["seed"]) == (NAMES[verb], FRAMES[verb], 7)


@pytest.mark.parametrize("verb", VERBS)
def test_a_plan_makes_nothing(verb: str, cli: Cli, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    plan = json.loads(cli(verb, *VERBS[verb], "--device", "cpu", "--dry-run", "--json").out)
    request = Request.from_dict(plan["request"])
    assert request.edit is not None and request.edit.verb == verb and request.size.num_frames == FRAMES[verb]
    assert plan["num_windows"] == 1 and plan["flops"] > 0
    said = cli(verb, *VERBS[verb], "--device", "cpu", "--dry-run")
    assert said.code == 0 and f"{FRAMES[verb]} frames at 12 fps" in said.out
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("verb", [*VERBS, "storyboard"])
def test_help_names_every_option_once(verb: str, cli: Cli) -> None:
    ended = cli(verb, "--help")
    assert ended.code == 0 and ended.err == ""
    options = [line.split()[0] for line in ended.out.splitlines() if line.strip().startswith("--")]
    assert len(options) == len(set(options)) and "--lossless" in ended.out
    assert "Default: None" not in ended.out


def test_options_of_their_own_reach_the_request(cli: Cli, fake_run: FakeRun) -> None:
    cli("extend", "a.mkv", "on", "--seconds", "0.5", "--backward")
    cli("restyle", "a.mkv", "on", "--strength", "0.25")
    cli("animate", "p.png", "on", "--last", "p.png", "--fit", "pad")
    backward, weak, both = (call.request.edit for call in fake_run.calls)
    assert backward.backward and weak.strength == 0.25 and both.fit == "pad" and len(both.sources) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["extend", "none.mp4"], "error: no file none.mp4"),
        (["extend"], "error: Missing argument 'VIDEO'"),
        (["extend", "a.mkv", "--strength", "1"], "error: No such option: --strength"),
        (["restyle", "a.mkv", "on", "--strength", "2"], "error: --strength 2.0 is out of range"),
        (["restyle", "a.mkv", "on", "--strength", "much"], "error: Invalid value for '--strength'"),
        (["connect", "a.mkv"], "error: Missing argument 'B'"),
        (["animate", "a.mkv"], "where a picture is needed"),
        (["loop", "none.mp4"], "error: no file none.mp4"),
        (["extend", "a.mkv", "--frames", "4", "-o", "a.mkv"], "error: output a.mkv exists already"),
        (["extend", "a.mkv", "--frames", "4", "--lossless", "-o", "b.mp4"], "cannot hold a lossless video"),
        (["storyboard", "none.toml"], "error: cannot read none.toml"),
        (["storyboard", "a.mkv"], "error: cannot read a.mkv"),
    ],
)
def test_what_is_wrong_is_one_line_and_a_hint(arguments: list[str], words: str, cli: Cli) -> None:
    ended = cli(*arguments)
    assert ended.code in (2, 5) and ended.out == ""
    error, hint = ended.err.splitlines()[-2:]
    assert words in error and hint.startswith("hint: ")
