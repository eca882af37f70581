"""Checkpoints that make videos from pictures alone: what each command makes of them, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanImageToVideoPipeline
from footage import film, picture, read
from safetensors import safe_open
from torch import nn
from wan_folder import image_encoder, image_processor, write_checkpoint
from wan_reference import IMAGE_TRANSFORMER

from soragen.catalog import find
from soragen.families.wan import images
from soragen.families.wan.clip import load_clip
from soragen.families.wan.vae import WanVae
from soragen.models.family import ImageCondition
from soragen.pipeline import conditions, run
from soragen.pipeline.clock import Clock
from soragen.pipeline.edits import animate
from soragen.pipeline.memory import weigh
from soragen.pipeline.plan import Plan, make_plan
from soragen.size import VideoSize
from soragen.video.facts import video_facts
from soragen.video.recipe import read_recipe
from soragen.video.write import write_video

NATIVE = {"width": 96, "height": 64, "num_frames": 9, "min_area": 0.5, "max_area": 2.0, "max_num_frames": 81}
MORE = {"wan2.1-i2v-14b-480p": None, "wan2.1-flf2v-14b-720p": 34}
"""Published checkpoints that the small ones are like, and their `pos_embed_seq_len`."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small checkpoint with CLIP for each of `MORE`."""
    made = {}
    for name, length in MORE.items():
        folder = made[name] = tmp_path_factory.mktemp(name)
        write_checkpoint(
            folder, WanImageToVideoPipeline, transformer={**IMAGE_TRANSFORMER, "pos_embed_seq_len": length},
            image_encoder=image_encoder(), image_processor=image_processor(),
        )  # fmt: skip
        own = {"like": name, "native": NATIVE, "defaults": {"width": 96, "height": 64}}
        (folder / "soragen.json").write_text(json.dumps(own))
    return made


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[ImageCondition]:
    """What the transformer is given beside the latents."""
    found: list[ImageCondition] = []
    bind = conditions.bind

    def seeing(transformer: Any, context: Any, grid: Any, given: conditions.Conditions, window: Any) -> Any:
        assert given.image is not None and given.known is None and not given.keyframes
        found.append(given.image)
        return bind(transformer, context, grid, given, window)

    monkeypatch.setattr("soragen.pipeline.denoise.bind", seeing)
    return found


@pytest.fixture
def ask(cli: Any, folders: dict[str, Path]) -> Callable[..., Any]:
    """ask("animate", "p.png", "--frames", "9") on the one that takes a first frame, in one step."""

    def command(name: str, *arguments: str, like: str = "wan2.1-i2v-14b-480p") -> Any:
        return cli(name, *arguments, "--model", str(folders[like]), "--steps", "1", "--seed", "1")

    return command


def test_animate(ask: Callable[..., Any], seen: list[ImageCondition], home: Path) -> None:
    picture("p.png", 96, 64)
    asked = ("animate", "p.png", "it turns", "--frames", "8")
    plan = ask(*asked, "--dry-run")
    assert plan.code == 0, plan.err
    assert "video     96x64, 8 frames at 16 fps" in plan.out
    assert "grid      3 x 4 x 6 = 72 tokens" in plan.out and "TFLOP to denoise" in plan.out
    ended = ask(*asked)
    assert ended.code == 0, ended.err
    (made,) = (Path(line) for line in ended.out.split())
    facts = video_facts(made)
    assert (facts.width, facts.height, facts.num_frames) == (96, 64, 8)
    recipe = read_recipe(made)
    assert recipe is not None and recipe["request"]["edit"]["sources"][0]["name"] == "p.png"
    image = seen[0]
    assert image.channels.shape == (1, 4 + 4, 3, 8, 12) and image.tokens is not None
    mask = image.channels[0, :4, :, 0, 0]
    assert mask.sum(0).tolist() == [4, 0, 0]  # the first latent frame is given, whole


def test_a_long_video_is_a_storyboard_of_shots_that_go_on(
    cli: Any, folders: dict[str, Path], seen: list[ImageCondition], home: Path
) -> None:
    """Each shot has the length that the model was trained on, and begins with the last frame of the one before."""
    picture("p.png", 96, 64)
    Path("film.toml").write_text(
        f'model = "{folders["wan2.1-i2v-14b-480p"]}"\nsteps = 1\nseed = 1\n'
        '[[shot]]\nprompt = "it turns"\nframes = 9\nimage = "p.png"\n'
        '[[shot]]\nprompt = "it turns"\nframes = 8\ncontinued = true\n'
    )
    ended = cli("storyboard", "film.toml", "-o", "film.mkv", "--lossless")
    assert ended.code == 0, ended.err
    frames = read(Path("film.mkv"))
    assert len(frames) == 17
    plan = cli("animate", "p.png", "--frames", "85", "--dry-run", "--model", str(folders["wan2.1-i2v-14b-480p"]))
    assert "more at once may repeat or drift; a storyboard of continued shots goes further" in plan.out
    first, _, second, _ = (image.channels for image in seen)  # each for the prompt and the negative one
    assert first.shape == second.shape and not torch.equal(first[:, 4:], second[:, 4:])


def test_another_picture_makes_another_video(ask: Callable[..., Any], home: Path) -> None:
    for number, shade in enumerate((0, 90)):
        picture(f"{number}.png", 96, 64, shade)
        assert ask("animate", f"{number}.png", "it turns", "--frames", "5", "-o", f"{number}.mp4").code == 0
    assert not torch.equal(read("0.mp4"), read("1.mp4"))


def test_a_prompt_alone_is_refused_with_what_works(ask: Callable[..., Any], home: Path) -> None:
    for name in ("generate", "image", "loop"):
        ended = ask(name, "a red ball")
        assert ended.code == 2 and "makes videos from an image, not from a prompt alone" in ended.err
        assert "use soragen animate, or a model for a prompt: wan2.1-t2v-1.3b" in ended.err
    assert list(home.iterdir()) == []


def test_extend_gives_the_last_frame_as_the_picture(ask: Callable[..., Any], seen: list[ImageCondition]) -> None:
    source = read(film("a.mkv", 6, 96, 64, fps="16"))
    ended = ask("extend", "a.mkv", "it goes on", "--frames", "4", "--lossless", "-o", "b.mkv")
    assert ended.code == 0, ended.err
    found = read("b.mkv")
    assert len(found) == 10 and torch.equal(found[:6], source)
    size = VideoSize(96, 64, 1, Fraction(1))
    write_video(Path("last.png"), [source[-1:]], size, recipe=None)
    assert ask("animate", "last.png", "it goes on", "--frames", "5", "-o", "c.mp4").code == 0
    assert torch.equal(seen[0].channels, seen[-1].channels)


@pytest.mark.parametrize(
    "asked",
    [("connect", "a.mkv", "b.mkv", "on"), ("loop", "a.mkv", "on"), ("extend", "a.mkv", "on", "--backward"),
     ("animate", "p.png", "on", "--last", "p.png")],
    ids=lambda asked: f"{asked[0]} {asked[-1]}",
)  # fmt: skip
def test_a_given_end_is_refused_with_models_that_can(
    ask: Callable[..., Any], home: Path, asked: tuple[str, ...]
) -> None:
    film("a.mkv", 6, fps="16")
    film("b.mkv", 6, fps="16", shade=50)
    picture("p.png", 96, 64)
    before = sorted(home.iterdir())
    ended = ask(*asked, "--frames", "4")
    assert ended.code == 2 and "takes given frames at the start alone" in ended.err
    assert "models that can take these: pocket" in ended.err and "wan2.1-flf2v-14b-720p" in ended.err
    assert "wan2.1-i2v" not in ended.err.partition("hint:")[2]
    assert sorted(home.iterdir()) == before


def test_between_two_pictures(ask: Callable[..., Any], seen: list[ImageCondition], home: Path) -> None:
    picture("p.png", 96, 64)
    picture("q.png", 96, 64, shade=90)
    asked = ("animate", "p.png", "it turns", "--last", "q.png", "--frames", "9", "-o", "a.mp4")
    ended = ask(*asked, like="wan2.1-flf2v-14b-720p")
    assert ended.code == 0, ended.err
    assert video_facts(Path("a.mp4")).num_frames == 9
    assert seen[0].channels[0, :4, :, 0, 0].sum(0).tolist() == [4, 0, 1]  # of the last latent frame, the last frame


@pytest.fixture
def planned(folders: dict[str, Path], home: Path) -> Plan:
    """Of a picture, with a VAE in float32 and a text encoder that is not."""
    picture("p.png", 256, 64)
    listen: Any = lambda event: None  # noqa: E731
    asked = animate(
        Path("p.png"), "", size="256x64", frames=9, model=str(folders["wan2.1-i2v-14b-480p"]), listen=listen
    )
    plan = make_plan(replace(asked, direct=True), find(asked.checkpoint), "cpu")
    machine = replace(plan.machine, text_encoder=torch.bfloat16)
    return replace(plan, machine=machine, weight_bytes=weigh(plan.folder, machine))


def test_pictures_are_encoded_in_the_tiles_of_the_plan(planned: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    widths, encode = list[int](), WanVae.encode

    def encoding(self: WanVae, frames: Iterable[torch.Tensor]) -> torch.Tensor:
        clip = list(frames)
        widths.append(clip[0].shape[2])
        return encode(self, clip)

    monkeypatch.setattr(WanVae, "encode", encoding)
    made = [run.encode_given(replace(planned, tile=tile), Clock(lambda event: None)) for tile in (None, (8, 20))]
    assert widths == [256, 160, 160]
    whole, tiled = (given.image.channels for given, _ in made if given.image is not None)
    assert whole.shape == tiled.shape and not torch.equal(whole, tiled)
    assert float((whole - tiled).abs().mean()) < 0.1 * float(whole.abs().mean())


def test_clip_is_loaded_in_the_type_it_is_counted_in(planned: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = list[nn.Module]()

    def loading(*arguments: Any) -> Any:
        loaded.append(load_clip(*arguments))
        return loaded[-1]

    monkeypatch.setattr(images, "load_clip", loading)
    run.encode_given(planned, Clock(lambda event: None))
    (encoder,) = loaded
    widths = {weight.itemsize for weight in encoder.parameters()}
    with safe_open(planned.folder / "image_encoder" / "model.safetensors", framework="pt") as file:
        stored = sum(file.get_tensor(key).numel() for key in file.keys())  # noqa: SIM118 (no iterator)
    assert widths == {4} and planned.weight_bytes["image_encoder"] == 4 * stored
    without = replace(planned, weight_bytes={**planned.weight_bytes, "image_encoder": 0})
    assert planned.peak_bytes["text"] == without.peak_bytes["text"]
    large = replace(planned, weight_bytes={**planned.weight_bytes, "image_encoder": 10**12})
    assert 0 < large.peak_bytes["read"] - 10**12 < without.peak_bytes["read"]


def test_one_picture_where_two_are_needed(ask: Callable[..., Any], home: Path) -> None:
    picture("p.png", 96, 64)
    for more in ((), ("--dry-run",)):
        ended = ask("animate", "p.png", "it turns", "--frames", "9", *more, like="wan2.1-flf2v-14b-720p")
        assert ended.code == 2 and "a first and a last frame" in ended.err
    assert [path.name for path in home.iterdir()] == ["p.png"]
