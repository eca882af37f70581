"""Pictures: what is written is what was given, and the recipe comes back from every kind of them."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from soragen.errors import InputError
from soragen.size import VideoSize
from soragen.video.facts import video_facts
from soragen.video.formats import PICTURE_SUFFIXES
from soragen.video.read import read_video
from soragen.video.recipe import read_recipe
from soragen.video.write import check_output, write_video

SIZE = VideoSize(97, 65, 1, Fraction(12))  # odd sides: a picture is no H.264
RAMP = torch.linspace(0, 255, 97).expand(65, 97)
FRAME = torch.stack([RAMP, RAMP.flip(1), torch.linspace(0, 255, 65)[:, None].expand(65, 97)], -1).round().byte()[None]
RECIPE: dict[str, Any] = {"recipe": 1, "request": {"prompt": "a ball; 100 % #red \\ = «красный» 🟢\n", "seed": 7}}


@pytest.mark.parametrize("suffix", PICTURE_SUFFIXES)
@pytest.mark.parametrize("recipe", [RECIPE, {"prompt": "🟢" * 20_000}, None], ids=["short", "long", "none"])
def test_picture_and_recipe_come_back(tmp_path: Path, suffix: str, recipe: dict[str, Any] | None) -> None:
    path = write_video(tmp_path / f"100%d{suffix}", [FRAME], SIZE, recipe=recipe)
    assert [file.name for file in tmp_path.iterdir()] == [f"100%d{suffix}"]
    assert read_recipe(path) == recipe
    facts = video_facts(path)
    assert (facts.width, facts.height, facts.num_frames) == (97, 65, 1)

    _, chunks = read_video(path)
    worst = {".png": 0, ".jpg": 6, ".jpeg": 6, ".webp": 24}[suffix]  # webp has colour at half size
    assert (next(chunks).int() - FRAME.int()).abs().max() <= worst
    with Image.open(path) as image:  # another reader than ffmpeg agrees about the picture
        seen = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8).view(1, 65, 97, 3)
        mean_error = (seen.float() - FRAME.float()).mean().abs()
    assert mean_error < 1  # a wrong matrix or range gives several


def test_other_programs_read_the_comment(tmp_path: Path) -> None:
    said = json.dumps({"soragen": RECIPE}, separators=(",", ":"))
    for suffix in (".png", ".jpg", ".webp"):
        with Image.open(write_video(tmp_path / f"a{suffix}", [FRAME], SIZE, recipe=RECIPE)) as image:
            found = {".png": image.info.get("Comment"), ".jpg": image.info.get("comment")}.get(suffix)
            found = image.getexif()[0x010E] if suffix == ".webp" else found
        assert (found.decode() if isinstance(found, bytes) else found) == said


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_a_cut_picture_is_noticed(tmp_path: Path, suffix: str) -> None:
    whole = write_video(tmp_path / f"a{suffix}", [FRAME], SIZE, recipe=RECIPE).read_bytes()
    cut = tmp_path / f"cut{suffix}"
    for length in range(12, len(whole) - 1, 61):
        cut.write_bytes(whole[:length])
        with pytest.raises(InputError, match="cut off"):
            read_recipe(cut)


def test_pictures_of_others_have_no_recipe(tmp_path: Path) -> None:
    for suffix in (".png", ".jpg", ".webp"):
        path = tmp_path / f"a{suffix}"
        Image.new("RGB", (64, 64)).save(path, comment="a holiday")
        assert read_recipe(path) is None


def test_a_picture_holds_one_frame(tmp_path: Path) -> None:
    check_output(tmp_path / "a.png", size=SIZE)
    with pytest.raises(InputError, match="a picture, which cannot hold 2 frames"):
        check_output(tmp_path / "a.png", size=VideoSize(64, 64, 2, Fraction(12)))
    assert not list(tmp_path.iterdir())


def test_pictures_are_scaled_in_the_stream(tmp_path: Path) -> None:
    size = VideoSize(194, 130, 1, Fraction(12))
    path = write_video(tmp_path / "a.png", [FRAME], size, recipe=None, scale_from=(97, 65))
    assert (video_facts(path).width, video_facts(path).height) == (194, 130)
