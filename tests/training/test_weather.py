"""Fog and snowfall: what they change in the picture, what they leave alone, and what captions say of them."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from training import text
from training.clips import read_shard, render_shard
from training.pool import Pool
from training.world import render as rendering
from training.world.captions import SYNONYMS, caption, describe
from training.world.render import render
from training.world.scene import ATTRIBUTES, WEATHERS, sample_scene
from training.world.weather import ROWS, SPEED, snow
from training.world.weather_words import PHRASES, SENTENCES

SCENE = replace(
    sample_scene(random.Random(4)), subject="robot", colour="red", motion="still", ground="grass", camera="static"
)
WORDS = {name: [p.split("{")[0] for p in (*PHRASES[name], *SENTENCES[name])] for name in WEATHERS[1:]}


def shown(weather: str, time: str = "day", frames: int = 1, start: float = 0.0) -> tuple[Tensor, Tensor]:
    """Frames [T, 96, 96, 3] in 0..1 and the subject's mask [T, 96, 96], eight frames a second."""
    scene = replace(SCENE, weather=weather, time=time)
    pixels, mask = render([scene], width=96, height=96, num_frames=frames, fps=8, start_seconds=start)
    return pixels[0].float() / 255, mask[0]


def told(words: str) -> set[str]:
    return {name for name, phrases in WORDS.items() if any(phrase in words.lower() for phrase in phrases)}


def test_weather_is_drawn_last_and_in_a_quarter_of_scenes() -> None:
    drawn = []
    for seed in range(600):
        scene = sample_scene(random.Random(seed), weather=True)
        assert replace(scene, weather="clear") == sample_scene(random.Random(seed))
        drawn.append(scene.weather)
    assert all(50 < drawn.count(weather) < 100 for weather in WEATHERS[1:])


def test_clear_frames_are_as_without_weather(monkeypatch: pytest.MonkeyPatch) -> None:
    frames, _ = shown("clear", frames=2)
    monkeypatch.setattr(rendering, "dull", lambda light, weather: light)
    for name in ("fog", "snow"):
        monkeypatch.delattr(rendering, name)
    assert torch.equal(shown("clear", frames=2)[0], frames)


@pytest.mark.parametrize("time", ATTRIBUTES["time"])
@pytest.mark.parametrize("weather", WEATHERS[1:])
def test_weather_is_seen_and_the_mask_stays(weather: str, time: str) -> None:
    (clear, mask), (frames, same) = shown("clear", time), shown(weather, time)
    assert torch.equal(same, mask)
    assert (frames - clear).abs().mean() > 0.02


@pytest.mark.parametrize("time", ATTRIBUTES["time"])
def test_fog_hides_what_is_far_more_than_the_subject(time: str) -> None:
    (clear, mask), (foggy, _) = shown("clear", time), shown("fog", time)
    inside = mask > 250
    assert foggy[inside].std(0).mean() > 0.6 * clear[inside].std(0).mean()
    left = (mask.sum((0, 1)) == 0).nonzero().flatten()  # columns beside the subject
    far = [frames[0, 20:60, left].std(0).mean() for frames in (foggy, clear)]  # hills, horizon and what lies before it
    assert far[0] < 0.6 * far[1]


@pytest.mark.parametrize("size", [(128, 128), (96, 176), (256, 256)])
def test_snow_goes_down_and_covers_as_much_at_every_size(size: tuple[int, int]) -> None:
    scene = replace(SCENE, weather="snowfall")
    black, nothing = torch.zeros(2, 3, *size), torch.zeros(2, 1, *size)
    before, after = snow(scene, black, nothing, torch.tensor([1.0, 1.0 + 1 / 6]))[:, 1]
    reach = min(size) // 8
    alike = {shift: float((before.roll(shift, 0) * after)[reach:-reach].mean()) for shift in range(-reach, reach + 1)}
    assert max(alike, key=alike.__getitem__) > 0
    assert 0.015 < before.mean() < 0.08
    assert (before > 0.25).float().mean() > 0.01


def test_snow_comes_again_and_lies_elsewhere_in_other_scenes() -> None:
    black, nothing = torch.zeros(3, 3, 64, 64), torch.zeros(3, 1, 64, 64)
    scenes = [replace(SCENE, weather="snowfall", jitter=tuple(each for _ in SCENE.jitter)) for each in (0.1, 0.6)]
    here, there = (snow(scene, black, nothing, torch.tensor([0.0, 0.5, 1.0]) * ROWS / SPEED) for scene in scenes)
    torch.testing.assert_close(here[0], here[2], atol=1e-3, rtol=0)
    torch.testing.assert_close(here[1], there[0], atol=1e-3, rtol=0)
    assert (here[0] - here[1]).abs().mean() > 0.01


@pytest.mark.parametrize("weather", WEATHERS[1:])
def test_a_clip_that_begins_later_goes_on(weather: str) -> None:
    whole, rest = shown(weather, frames=4)[0], shown(weather, frames=2, start=0.25)[0]
    assert torch.equal(shown(weather, frames=4)[0], whole)
    torch.testing.assert_close(rest, whole[2:], atol=2 / 255, rtol=0)


def test_captions_name_the_weather_where_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.world.captions._MISSPELT", 0.0)
    rng = random.Random(0)
    everything = dict.fromkeys((*ATTRIBUTES, "weather"), True)
    for _ in range(400):
        scene = sample_scene(rng, weather=True)
        expected = set() if scene.weather == "clear" else {scene.weather}
        assert told(describe(scene, rng, everything)) == expected
        assert told(describe(scene, rng, everything | {"weather": False})) == set()


@pytest.mark.parametrize("weather", WEATHERS[1:])
def test_most_captions_of_weather_name_it_and_only_it(weather: str) -> None:
    rng = random.Random(1)
    said = [told(caption(replace(sample_scene(rng), weather=weather), rng)) for _ in range(200)]
    assert all(found <= {weather} for found in said)
    assert 160 < said.count({weather}) < 200


def test_snow_that_lies_is_not_snow_that_falls() -> None:
    for lying in SYNONYMS["ground"]["snow"]:
        assert not any(falls in lying or lying in falls for falls in WORDS["snowfall"])


def test_no_snow_from_a_blue_sky() -> None:
    rng = random.Random(2)
    for _ in range(200):
        words = caption(replace(sample_scene(rng), time="day", weather="snowfall"), rng)
        assert "blue sky" not in words and "sunny" not in words


def test_shards_with_weather_lie_beside_the_clear_ones(tmp_path: Path) -> None:
    clear, weather = (render_shard(tmp_path, "images", 96, 0, 2, "cpu", False, some) for some in (False, True))
    assert clear != weather and all(scene.weather == "clear" for scene in read_shard(clear)[1])
    scenes = read_shard(weather)[1]
    assert all(scene.weather in WEATHERS[1:] for scene in scenes)
    assert text.labels(scenes).shape == (2, 6) and text.labels(scenes, text.NAMED).shape == (2, 7)
    latents = {name: torch.zeros(2, 3, 1, 4, 4) for name in ("latents", "mirrored")}
    masks = {name: torch.zeros(2, 1, 4, 4) for name in ("mask", "mirrored_mask")}
    for path in (clear, weather):
        (tmp_path / "latents").mkdir(exist_ok=True)
        save_file(latents | masks, tmp_path / "latents" / path.name,
                  {"scenes": json.dumps([asdict(scene) for scene in read_shard(path)[1]])})  # fmt: skip
    pool = Pool(tmp_path / "latents")
    pool.refresh()
    assert pool.count("images") >= 4


def test_shards_of_before_the_weather_can_be_read(tmp_path: Path) -> None:
    old = {name: value for name, value in asdict(SCENE).items() if name != "weather"}
    save_file({"frames": torch.zeros(1)}, tmp_path / "old.safetensors", {"scenes": json.dumps([old])})
    assert read_shard(tmp_path / "old.safetensors")[1] == [SCENE]


def test_an_encoder_that_is_not_there_cannot_be_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        text.main([str(tmp_path), "--keep", "10"])
    assert "training.restore" in capsys.readouterr().err and not (tmp_path / "text").exists()


def test_an_encoder_that_is_there_is_trained_on(tmp_path: Path) -> None:
    """As after training.restore: no state, no heads."""
    threads = torch.get_num_threads()
    try:
        text.main([str(tmp_path), "--steps", "2", "--batch", "4", "--captions", "300"])
        before = load_file(tmp_path / "text" / "model.safetensors")
        for name in ("state.pt", "heads.safetensors"):
            (tmp_path / "text" / name).unlink()
        text.main([str(tmp_path), "--steps", "1", "--batch", "4", "--keep", "10"])
    finally:
        torch.set_num_threads(threads)
    after = load_file(tmp_path / "text" / "model.safetensors")
    assert all(torch.allclose(after[name], tensor, atol=1e-4) for name, tensor in before.items())
    where = torch.tensor([[True, False]])
    assert text.change(torch.ones(1, 2, 3), torch.tensor([1.5, 9.0]).view(1, 2, 1), where) == 0.25
    assert load_file(tmp_path / "text" / "heads.safetensors")["heads.6.weight"].shape[0] == len(WEATHERS)
