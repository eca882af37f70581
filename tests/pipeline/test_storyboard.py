"""Several shots in one file: what stands where, what is refused, and what a failure loses (nothing)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from footage import film, picture, read
from safetensors.torch import save_file

from soragen.errors import InputError, NumericalError
from soragen.families import load_family
from soragen.models.device import Memory
from soragen.pipeline import run
from soragen.pipeline.events import Event, Note
from soragen.pipeline.latents import load_latents
from soragen.pipeline.shots import make_storyboard, plan_shots
from soragen.pipeline.storyboard import Storyboard, read_storyboard
from soragen.request import RECIPE_VERSION
from soragen.size import VideoSize
from soragen.video.facts import video_facts
from soragen.video.recipe import read_recipe
from soragen.video.write import write_video

HEAD = 'size = "64x64"\nfps = 12\nsteps = 1\nmodel = "{model}"\n'
SHOTS = """
[[shot]]
prompt = "a red ball"
frames = 6

[[shot]]
prompt = "it rolls away"
frames = 5
continued = true
negative = "blur"

[[shot]]
prompt = "a blue cube"
seconds = 0.5
seed = 99
guidance = 2
"""


@pytest.fixture
def board(tiny: Path) -> Callable[..., Storyboard]:
    def read_it(text: str = SHOTS, head: str = HEAD, **options: Any) -> Storyboard:
        Path("film.toml").write_text(head.replace("{model}", str(tiny)) + text)
        return read_storyboard(Path("film.toml"), Path("film.mkv"), **{"listen": lambda event: None, **options})

    return read_it


@pytest.fixture
def produce(events: list[Event]) -> Callable[[Storyboard], run.Result]:
    return lambda board: make_storyboard(board, device="cpu", lossless=True, listen=events.append)


def test_what_a_file_says(board: Any) -> None:
    shots = board(seed=7)
    assert shots.seed == 7 and shots.size.num_frames == 17 and shots.folder == Path(".film.mkv.shots")
    assert [(shot.prompt, shot.size.num_frames, shot.seed) for shot in shots.shots] == [
        ("a red ball", 6, 7), ("it rolls away", 5, 8), ("a blue cube", 6, 99),
    ]  # fmt: skip
    first, second, third = shots.shots
    assert first.edit is third.edit is None
    assert second.edit is not None and second.edit.sources[0].path == shots.file(1)
    assert (second.negative_prompt, third.negative_prompt, third.guidance_scale) == ("blur", "", 2)
    assert {shot.num_steps for shot in shots.shots} == {1}
    notes: list[Event] = []
    board('[[shot]]\nprompt = "a"\nseconds = 0.7\n', listen=notes.append)
    assert notes == [Note("shot 1: 0.7 s at 12 fps becomes 8 frames, 0.666667 s")]


def test_what_holds_for_all_shots_is_said_in_the_file_or_instead_of_it(board: Any) -> None:
    for name in ("style", "light"):
        Path(f"{name}.safetensors").write_bytes(b"of any content")
    head = HEAD + 'quantize = "int8"\nattention = "flash3"\nlora = ["style.safetensors:0.5", "light.safetensors"]\n'
    for shot in board(head=head).shots:
        assert (shot.quantize, shot.attention) == ("int8", "flash3")
        assert [lora.spelled for lora in shot.loras] == ["style.safetensors:0.5", "light.safetensors"]
    instead = {"quantize": "fp8", "attention": None, "lora": ["light.safetensors:2"], "lora_partial": True}
    for shot in board(head=head, instead=instead).shots:
        assert (shot.quantize, shot.attention) == ("fp8", "flash3")
        assert [(lora.spelled, lora.partial) for lora in shot.loras] == [("light.safetensors:2", True)]
    head = HEAD.replace("{model}", "no such model")
    assert {shot.checkpoint for shot in board(head=head, instead={"model": "pocket"}).shots} == {"pocket"}
    with pytest.raises(InputError, match="shot 1 has an unknown key 'quantize'"):
        board('[[shot]]\nprompt = "a"\nquantize = "int8"\n')


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "film.toml has no shot"),
        ("shot = 3", "film.toml has no shot"),
        ("[[shot]]\nprompt = ", "cannot read film.toml"),
        ('[[shot]]\nprompt = "a"\n[[shot]]\nseconds = 1\n', "shot 2 has no prompt"),
        ('[[shot]]\nprompt = "a"\ncontinued = true\n', "shot 1 cannot be continued"),
        ('[[shot]]\nprompt = "a"\nlenght = 1\n', "shot 1 has an unknown key 'lenght'"),
        ('[[shot]]\nprompt = "a"\nsize = "64x64"\n', "shot 1 has an unknown key 'size'"),
        ('[[shot]]\nprompt = "a"\n[[shot]]\nprompt = ""\n', "shot 2: the prompt is empty"),
        ('[[shot]]\nprompt = "a"\n[[shot]]\nprompt = 3\n', "shot 2: prompt 3 is not text"),
        ('[[shot]]\nprompt = "a"\nseconds = 1\nframes = 2\n', "shot 1: --seconds and --frames were both given"),
        ('[[shot]]\nprompt = "a"\nseconds = -1\n', "shot 1: '-1' is not a positive number of seconds"),
        ('[[shot]]\nprompt = "a"\nframes = 1.5\n', "shot 1: frames 1.5 is not a whole number"),
        ('[[shot]]\nprompt = "a"\nseed = -1\n', "shot 1: --seed -1 is out of range"),
        ('[[shot]]\nprompt = "a"\ncontinued = "perhaps"\n', "shot 1: continued 'perhaps' is not true or false"),
        ('[[shot]]\nprompt = "a"\nimage = "none.png"\n', "shot 1: no file none.png"),
        ('[[shot]]\nprompt = "a"\nimage = 3\n', "shot 1: image 3 is not text"),
        ('[[shot]]\nprompt = "a"\nfit = "pad"\n', "shot 1: it has a fit and no image"),
        (
            '[[shot]]\nprompt = "a"\n[[shot]]\nprompt = "b"\nimage = "a.png"\ncontinued = true\n',
            "shot 2: it is continued",
        ),
        ('[[shot]]\nprompt = "a"\nseconds = 2000\n[[shot]]\nprompt = "b"\nseconds = 2000\n', "more than an hour"),
    ],
)
def test_what_is_wrong_is_said_with_the_number_of_the_shot(text: str, words: str, board: Any, home: Path) -> None:
    with pytest.raises(InputError, match=words.replace("(", r"\(")) as raised:
        board(text)
    assert "\n" not in raised.value.message and raised.value.hint
    assert [path.name for path in home.iterdir()] == ["film.toml"]


@pytest.mark.parametrize(
    ("head", "words"),
    [
        ('sise = "64x64"\n', "unknown key 'sise'"),
        ("steps = true\n", "steps True is not"),
        ("size = 64\n", "not text"),
        ("quantize = 8\n", "quantize 8 is not text"),
        ('quantize = "int4"\n', "no --quantize named 'int4'"),
        ('attention = "xformers"\n', "no --attention named 'xformers'"),
        ("lora = [1]\n", "is not text, or a list of texts"),
        ('lora = "none.safetensors"\n', "--lora none.safetensors is not a file"),
    ],
)
def test_what_is_wrong_for_all_shots(head: str, words: str, board: Any) -> None:
    with pytest.raises(InputError, match=words):
        board(head=head)
    with pytest.raises(InputError, match=r"cannot read none\.toml"):
        read_storyboard(Path("none.toml"), Path("a.mp4"), listen=lambda event: None)


def test_shots_are_joined_in_order(board: Any, produce: Any, make: Any, home: Path, events: list[Event]) -> None:
    kept: dict[str, Any] = {}
    storyboard = board(seed=7)
    join = run.make_recipe

    def watched(plan: Any) -> Any:
        kept.update({path.name: read(path) for path in storyboard.folder.glob("*.mkv") if path.name not in kept})
        return join(plan)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "make_recipe", watched)
        result = produce(storyboard)
    assert sorted(path.name for path in home.iterdir()) == ["film.mkv", "film.toml"]
    frames = read(result.path)
    assert len(frames) == 17 and sorted(kept) == ["001.mkv", "002.mkv", "003.mkv"]
    assert torch.equal(frames, torch.cat([kept[name] for name in sorted(kept)]))
    alone = make(storyboard.shots[2], "alone.mkv", lossless=True)  # a shot is what it would be by itself
    assert torch.equal(frames[11:], read(alone.path))
    recipe = read_recipe(result.path) or {}
    assert [shot["prompt"] for shot in recipe["storyboard"]] == ["a red ball", "it rolls away", "a blue cube"]
    assert recipe["storyboard"][1]["edit"]["sources"][0]["name"] == "001.mkv" and "request" not in recipe
    assert sum(result.seconds.values()) > 0 and result.request.size.num_frames == 17


def test_a_continued_shot_sees_the_end_of_the_one_before(
    board: Any, produce: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    encode = run.encode_given

    def watched(plan: Any, *rest: Any) -> Any:
        given.append((plan, encode(plan, *rest)))
        return given[-1][1]

    monkeypatch.setattr(run, "encode_given", watched)
    produce(board(seed=7))
    conditions = [conditions.known for _, (conditions, _) in given]
    assert conditions[0] is conditions[2] is None and conditions[1] is not None
    assert conditions[1].mask.tolist() == [0, 0, 1, 1]  # five frames of six, then five new ones


def test_the_prompts_of_all_shots_are_encoded_at_once(board: Any, produce: Any, calls: Any, home: Path) -> None:
    produce(board(seed=7))
    assert calls.loaded[0] == "text_encoder" and calls.loaded.count("text_encoder") == 1
    assert calls.loaded.count("transformer") == 1


def test_a_prompt_that_is_too_long_is_said_with_the_number_of_its_shot(board: Any) -> None:
    long = board(SHOTS.replace("a blue cube", "a blue cube " * 200), seed=7)
    with pytest.raises(InputError) as raised:
        make_storyboard(long, device="cpu", strict_prompt=True, listen=lambda event: None)
    assert raised.value.message.startswith("shot 3: the prompt is too long")
    assert not list(long.folder.glob("*.mkv"))  # before the first shot is made


def failing(monkeypatch: pytest.MonkeyPatch, name: str, at: int, error: BaseException) -> None:
    function, count = getattr(run, name), iter(range(1, 99))

    def counted(*arguments: Any, **options: Any) -> Any:
        if next(count) == at:
            raise error
        return function(*arguments, **options)

    monkeypatch.setattr(run, name, counted)


@pytest.mark.parametrize("stage", ["denoise_windows", "decode_to_file"])
def test_a_failure_loses_nothing(
    stage: str, board: Any, produce: Any, calls: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        failing(patch, stage, 2, NumericalError("not finite", "try another seed"))
        with pytest.raises(NumericalError) as raised:
            produce(board())  # of no said seed
    assert f"kept in {Path('.film.mkv.shots')}: run the same command again" in raised.value.__notes__[-1]
    folder = home / ".film.mkv.shots"
    assert (folder / "001.mkv").exists() and not (folder / "002.mkv").exists() and not (home / "film.mkv").exists()
    calls.forwards = 0
    result = produce(board())
    assert calls.forwards == {"denoise_windows": 4, "decode_to_file": 2}[stage]  # of each shot, its step with guidance
    assert len(read(result.path)) == 17 and not folder.exists()


def test_what_has_changed_is_made_again(board: Any, produce: Any, calls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        failing(patch, "decode_to_file", 3, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            produce(board(seed=1))
    left = load_latents(Path(".film.mkv.shots/003.latents.safetensors"))
    assert left.recipe["request"]["prompt"] == "a blue cube"
    calls.loaded.clear()
    result = produce(board(SHOTS.replace("a blue cube", "a green cone"), seed=1))
    assert calls.loaded.count("transformer") == 1 and calls.loaded.count("vae") == 1  # of the third shot alone
    recipe = read_recipe(result.path) or {}
    assert recipe["storyboard"][2]["prompt"] == "a green cone" and not Path(".film.mkv.shots").exists()


def test_a_shot_that_goes_on_from_a_changed_one_is_made_again(
    board: Any, produce: Any, calls: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        failing(patch, "denoise_windows", 3, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            produce(board(seed=1))
    calls.loaded.clear()
    produce(board(SHOTS.replace("a red ball", "a red box"), seed=1))
    assert calls.loaded.count("transformer") == 1  # the three shots share it


@pytest.mark.parametrize("room", [True, False])
def test_networks_stay_where_memory_has_room_for_all_of_them(
    room: bool, board: Any, produce: Any, calls: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the video is the same."""
    first = produce(board(seed=1)).path.read_bytes()
    calls.loaded.clear()
    if not room:
        plan = plan_shots(board(seed=1), None, None)[1]
        least = Memory(10**12, max(plan.peak_bytes.values()) + plan.peak_bytes["encode"])
        monkeypatch.setattr("soragen.pipeline.shots.memory_budget", lambda device: least)
    Path("film.mkv").unlink()
    assert produce(board(seed=1)).path.read_bytes() == first
    assert calls.loaded.count("transformer") == (1 if room else 3)
    assert calls.loaded.count("vae") == (1 if room else 4)  # one shot is given frames


def test_on_the_command_line(board: Any, cli: Any, tiny: Path, home: Path) -> None:
    board()
    plans = json.loads(cli("storyboard", "film.toml", "--dry-run", "--json").out)
    assert [(plan["shot"], plan["request"]["num_frames"]) for plan in plans] == [(1, 6), (2, 5), (3, 6)]
    said = cli("storyboard", "film.toml", "--dry-run").out
    assert [line for line in said.splitlines() if line.startswith("shot")] == ["shot 1", "shot 2", "shot 3"]
    assert [path.name for path in home.iterdir()] == ["film.toml"]
    ended = cli("storyboard", "film.toml", "--seed", "5")
    assert (ended.code, ended.out) == (0, "film.mp4\n"), ended.err
    assert "note: seed 5" in ended.err and "denoise: shot 2 of 3, 1 steps" in ended.err
    facts = video_facts(Path("film.mp4"))
    assert (facts.num_frames, facts.width, facts.codec, facts.fps) == (17, 64, "h264", 12)
    values = json.loads(cli("storyboard", "film.toml", "--json", "-q", "--no-metadata").out)
    assert (values["path"], values["num_frames"]) == ("film-2.mp4", 17)
    assert read_recipe(Path("film-2.mp4")) is None


def test_replaying_all_shots(board: Any, cli: Any, home: Path) -> None:
    """From the video alone: its shots are gone, its file may be."""
    board()
    assert cli("storyboard", "film.toml", "--seed", "5", "--lossless", "-o", "film.mkv").code == 0
    Path("film.toml").unlink()
    plans = json.loads(cli("replay", "film.mkv", "--dry-run", "--json").out)
    assert [(plan["shot"], plan["request"]["seed"]) for plan in plans] == [(1, 5), (2, 6), (3, 99)]
    ended = cli("replay", "film.mkv")
    assert (ended.code, ended.out) == (0, "film-2.mkv\n") and "note: seed 5" in ended.err, ended.err
    assert torch.equal(read(Path("film-2.mkv")), read(Path("film.mkv")))
    again, first = (read_recipe(Path(name)) or {} for name in ("film-2.mkv", "film.mkv"))
    assert again["storyboard"] == first["storyboard"]

    ended = cli("replay", "film.mkv", "--seed", "11", "-o", "other.mp4")
    assert (ended.code, ended.out) == (0, "other.mp4\n"), ended.err
    shots = (read_recipe(Path("other.mp4")) or {})["storyboard"]
    assert [shot["seed"] for shot in shots] == [11, 12, 105] and shots[1]["edit"]["verb"] == "continue"
    assert sorted(path.name for path in home.iterdir()) == ["film-2.mkv", "film.mkv", "other.mp4"]

    ended = cli("replay", "film.mkv", "--prompt", "a dog")
    assert ended.code == 2 and "joined of several shots: --prompt is not for all of them" in ended.err


def test_a_shot_that_begins_with_a_picture(board: Any, cli: Any, make: Any, home: Path) -> None:
    picture("p.png", 96, 64, 60)
    shots = '[[shot]]\nprompt = "it turns"\nframes = 5\nimage = "p.png"\nfit = "pad"\n'
    storyboard = board(shots + '[[shot]]\nprompt = "and on"\nframes = 4\ncontinued = true\n', seed=5)
    first, second = storyboard.shots
    assert first.edit is not None and (first.edit.verb, first.edit.fit) == ("animate", "pad")
    assert second.edit is not None and second.edit.verb == "continue" and second.edit.sources[0].num_frames == 5
    assert cli("storyboard", "film.toml", "--seed", "5", "--lossless", "-o", "film.mkv").code == 0
    frames = read(Path("film.mkv"))
    alone = make(first, "alone.mkv", lossless=True)
    assert len(frames) == 9 and torch.equal(frames[:5], read(alone.path))

    again = cli("replay", "film.mkv", "-o", "again.mkv")
    assert again.code == 0 and torch.equal(read(Path("again.mkv")), frames), again.err
    picture("p.png", 96, 64, 90)
    ended = cli("replay", "film.mkv")
    assert ended.code == 2 and "p.png is not the file that this video was made of" in ended.err
    board(shots.replace('fit = "pad"', ""), head=HEAD.replace('size = "64x64"\n', ""))
    assert cli("storyboard", "film.toml", "--dry-run").code == 0
    # The picture does not decide the size: the other shots have the model's own.
    (shot,) = board(shots, head=HEAD.replace('size = "64x64"\n', "")).shots
    plain = board('[[shot]]\nprompt = "it turns"\nframes = 5\n', head=HEAD.replace('size = "64x64"\n', "")).shots[0]
    assert (shot.size.width, shot.size.height) == (plain.size.width, plain.size.height)


@pytest.mark.parametrize(
    "wrong",
    [(), ("x",), ({"prompt": None, "seed": "x"},), ({"num_frames": 10**9},), ({"edit": "x"},), ({}, {"width": 256}),
     ({"edit": {"verb": "extend", "sources": []}},), ({"edit": {"verb": "animate", "sources": []}},),
     ({"edit": {"verb": "continue", "sources": []}},)],
)  # fmt: skip
def test_the_recipe_of_shots_is_not_trusted(wrong: Any, ask: Any, cli: Any) -> None:
    shots = [shot if shot == "x" else {**ask().to_dict(), **shot} for shot in wrong]
    frames = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    recipe = {"recipe": RECIPE_VERSION, "storyboard": shots}
    write_video(Path("x.mp4"), [frames], VideoSize(64, 64, 1, Fraction(12)), recipe=recipe)
    ended = cli("replay", "x.mp4")
    assert ended.code == 2 and re.search("not whole|hour|cannot be continued", ended.err), ended.err


def test_a_lora_and_other_weights_on_the_command_line(board: Any, cli: Any, tiny: Path, home: Path) -> None:
    rows, columns = load_family("pocket").lora_targets(tiny)[""].shapes["summary.weight"]
    save_file({"transformer.summary.lora_A.weight": torch.ones(1, columns),
               "transformer.summary.lora_B.weight": torch.ones(rows, 1)}, "style.safetensors")  # fmt: skip
    board('[[shot]]\nprompt = "a"\nframes = 5\n[[shot]]\nprompt = "b"\nframes = 5\n')
    ended = cli("storyboard", "film.toml", "--lora", "style.safetensors:2", "--lora", "style.safetensors")
    assert ended.code == 0 and "shot 2: LoRA style.safetensors at 2: applied 1 of 1" in ended.err, ended.err
    shots = (read_recipe(Path("film.mp4")) or {})["storyboard"]
    assert [[lora["scale"] for lora in shot["loras"]] for shot in shots] == [[2, 1], [2, 1]]
    pytest.importorskip("torchao")
    plans = json.loads(cli("storyboard", "film.toml", "--quantize", "int8", "--dry-run", "--json").out)
    assert [plan["request"]["quantize"] for plan in plans] == ["int8", "int8"]
    ended = cli("storyboard", "film.toml", "--attention", "sage")
    assert ended.code == 2 and "shot 1: --attention sage needs sageattention" in ended.err


def test_refused_before_anything_is_made(board: Any, cli: Any, home: Path, tiny: Path) -> None:
    board()
    film("film.mp4")
    for options in (["-o", "film.mp4"], ["-o", "no/film.mp4"], ["-o", "film.txt"], ["--lossless", "-o", "a.mp4"]):
        ended = cli("storyboard", "film.toml", *options)
        assert ended.code in (2, 5) and len(ended.err.splitlines()[-2:]) == 2, ended.err
    Path("film.toml").write_text('model = "wan2.1-i2v-14b-480p"\n' + SHOTS)
    ended = cli("storyboard", "film.toml")
    assert ended.code == 2 and "shot 1: wan2.1-i2v-14b-480p makes videos from an image" in ended.err
    assert sorted(path.name for path in home.iterdir()) == ["film.mp4", "film.toml"]


def test_every_shot_has_a_plan(board: Any, tiny: Path) -> None:
    plans = plan_shots(board(), "cpu", None)
    assert [plan.timeline.num_frames for plan in plans] == [6, 5 + 5, 6]
