"""Matroska and GIF: bit-exact where that is promised, with the recipe inside."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from clips import make
from PIL import Image

from soragen.errors import InputError
from soragen.size import VideoSize
from soragen.video.facts import video_facts
from soragen.video.read import read_video
from soragen.video.recipe import read_recipe
from soragen.video.write import check_output, write_video

RECIPE: dict[str, Any] = {"prompt": "a ball; 100 % #red \\ = «красный» 🟢\n" + "word " * 5000, "seed": 2**63 - 1}


@pytest.mark.parametrize("size", [(97, 65), (16, 17), (1, 3)])
@pytest.mark.parametrize("fps", [Fraction(24), Fraction(30000, 1001), Fraction(50, 3)])
def test_every_bit_comes_back(tmp_path: Path, size: tuple[int, int], fps: Fraction) -> None:
    asked = VideoSize(*size, 9, fps)
    random = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (9, size[1], size[0], 3), dtype=torch.uint8, generator=random)
    path = write_video(tmp_path / "a.mkv", [frames[:4], frames[4:]], asked, recipe=RECIPE, lossless=True)
    found, chunks = read_video(path)
    assert found == asked and torch.equal(torch.cat(list(chunks)), frames)
    assert read_recipe(path) == RECIPE
    assert list(tmp_path.iterdir()) == [path]


def test_mkv_is_h264_like_mp4(tmp_path: Path) -> None:
    size = VideoSize(64, 64, 12, Fraction(24000, 1001))
    frames = torch.zeros(12, 64, 64, 3, dtype=torch.uint8)
    one, two, bare = (
        write_video(tmp_path / name, [frames], size, recipe=recipe)
        for name, recipe in (("a.mkv", RECIPE), ("b.mkv", RECIPE), ("c.mkv", None))
    )
    facts = video_facts(one)
    assert (facts.codec, facts.profile, facts.pix_fmt) == ("h264", "High", "yuv420p")
    assert facts.colour.split(", ")[:2] == ["tv", "bt709"]
    assert (facts.fps, facts.constant_fps, facts.num_frames) == (size.fps, True, 12)
    assert read_recipe(one) == RECIPE and read_recipe(bare) is None and b"soragen" not in bare.read_bytes()
    assert one.read_bytes() == two.read_bytes()
    with pytest.raises(InputError, match="odd side"):
        check_output(tmp_path / "d.mkv", size=VideoSize(65, 64, 1, Fraction(24)))


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a.png"])
def test_lossless_is_mkv(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="lossless") as caught:
        check_output(tmp_path / name, size=VideoSize(64, 64, 1, Fraction(24)), lossless=True)
    assert "a.mkv" in (caught.value.hint or "")
    check_output(tmp_path / "a.mkv", size=VideoSize(65, 63, 1, Fraction(24)), lossless=True)
    assert not list(tmp_path.iterdir())


def test_recipe_survives_a_remux(tmp_path: Path) -> None:
    size = VideoSize(64, 64, 2, Fraction(24))
    path = write_video(tmp_path / "a.mp4", [torch.zeros(2, 64, 64, 3, dtype=torch.uint8)], size, recipe={"seed": 7})
    assert read_recipe(make(tmp_path / "b.mkv", "-i", str(path), "-c", "copy")) == {"seed": 7}


@pytest.mark.parametrize(
    ("fps", "delays"),
    [
        (Fraction(25), {40}),
        (Fraction(24), {40, 50}),
        (Fraction(8), {120, 130}),
        (Fraction(60), {20}),
        (Fraction(1, 2), {2000}),
    ],
)
def test_gif(tmp_path: Path, fps: Fraction, delays: set[int]) -> None:
    size = VideoSize(97, 65, 24, fps)
    ramp = torch.arange(97).mul(2).expand(65, 97)
    frames = torch.stack([ramp, ramp.flip(1), ramp // 2], -1).to(torch.uint8).repeat(24, 1, 1, 1)
    frames += (torch.arange(24) // 2 * 5).to(torch.uint8)[:, None, None, None]  # each frame twice
    path = write_video(tmp_path / "a.gif", [frames[:20], frames[20:]], size, recipe=RECIPE)
    assert list(tmp_path.iterdir()) == [path] and read_recipe(path) == RECIPE
    found, chunks = read_video(path)
    assert (found.width, found.height, found.num_frames) == (97, 65, 24) and found.fps == min(fps, 50)
    assert (torch.cat(list(chunks)).float() - frames.float()).abs().mean() < 6
    with Image.open(path) as image:  # another reader sees an endless loop of the right length
        assert image.info["loop"] == 0 and image.info["comment"].startswith(b'{"soragen":')
        found_delays = []
        for number in range(image.n_frames):
            image.seek(number)
            found_delays.append(image.info["duration"])
    assert set(found_delays) <= {*delays, *(2 * delay for delay in delays), sum(delays)}  # two alike are shown as one
    assert abs(sum(found_delays) - 1000 * 24 / min(fps, 50)) <= 10


def test_gif_without_recipe_and_of_one_frame(tmp_path: Path) -> None:
    size = VideoSize(64, 64, 1, Fraction(24))
    path = write_video(tmp_path / "a.gif", [torch.full((1, 64, 64, 3), 99, dtype=torch.uint8)], size, recipe=None)
    assert read_recipe(path) is None and b"soragen" not in path.read_bytes()
    assert (next(read_video(path)[1]) == 99).all()


@pytest.mark.parametrize("name", ["a.mkv", "a.gif"])
def test_every_cut_is_noticed(tmp_path: Path, name: str) -> None:
    size = VideoSize(64, 64, 3, Fraction(24))
    frames = torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole = write_video(tmp_path / name, [frames], size, recipe={"seed": 1}).read_bytes()
    path = tmp_path / f"cut{name}"
    for length in (*range(6, 400, 5), *range(400, len(whole), 97), len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match="cut off"):
            read_recipe(path)


def test_other_endings_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        check_output(tmp_path / "a.avi")
    assert re.search(r"\.mp4, \.mkv, \.gif", caught.value.hint or "")
