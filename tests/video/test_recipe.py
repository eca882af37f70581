"""The recipe comes back as it went in; what is not a video says so."""

from __future__ import annotations

import subprocess
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

from soragen.errors import InputError
from soragen.size import VideoSize
from soragen.video.ffmpeg import find_ffmpeg
from soragen.video.recipe import read_recipe
from soragen.video.write import write_video

SIZE = VideoSize(64, 64, 2, Fraction(24))
FRAMES = torch.zeros(2, 64, 64, 3, dtype=torch.uint8)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "a.mp4", [FRAMES], SIZE, recipe={"seed": 7})


@pytest.mark.parametrize(
    "recipe",
    [
        {},
        {"request": {"prompt": "a red ball", "fps": "30000/1001", "seed": 2**63 - 1}, "steps": [1.5, None, True]},
        {"prompt": "quote \" ' back \\ slash \\n equals = semi ; hash # [chapter]\nline\r\n\ttab"},
        {"prompt": "".join(map(chr, range(1, 32))) + "\x7f\x85\u2028 \ud800"},
        {"prompt": "😀 👩‍🚀 كرة حمراء 红球 é e\u0301"},
        {"prompt": "sunset 🌅\n" * 10_000},
    ],
    ids=["empty", "nested", "escapes", "control", "scripts", "100,000 letters"],
)
def test_round_trip(tmp_path: Path, recipe: dict[str, Any]) -> None:
    assert read_recipe(write_video(tmp_path / "a.mp4", [FRAMES], SIZE, recipe=recipe)) == recipe


def test_none_leaves_no_trace(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", [FRAMES], SIZE, recipe=None)
    assert read_recipe(path) is None
    assert b"soragen" not in path.read_bytes() and b"\xa9cmt" not in path.read_bytes()


def test_recipe_survives_a_remux(tmp_path: Path, video: Path) -> None:
    copy = tmp_path / "copy.mp4"
    subprocess.run([find_ffmpeg(), "-loglevel", "error", "-i", video, "-c", "copy", copy], check=True)
    assert read_recipe(copy) == {"seed": 7}


@pytest.mark.parametrize("comment", ["made by hand", '{"prompt": 1}', '{"soragen": 3}', "[" * 100_000])
def test_comment_of_others_is_no_recipe(tmp_path: Path, video: Path, comment: str) -> None:
    path, metadata = tmp_path / "other.mp4", tmp_path / "metadata.txt"
    metadata.write_text(f";FFMETADATA1\ncomment={comment}\n")
    command = [
        find_ffmpeg(),
        "-loglevel",
        "error",
        "-i",
        video,
        "-i",
        metadata,
        "-map_metadata",
        "1",
        "-c",
        "copy",
        path,
    ]
    subprocess.run(command, check=True)
    assert read_recipe(path) is None


def test_video_of_another_kind_has_none(tmp_path: Path, video: Path) -> None:
    path = tmp_path / "a.gif"
    subprocess.run([find_ffmpeg(), "-loglevel", "error", "-i", video, path], check=True)
    assert read_recipe(path) is None


def test_every_cut_is_noticed(tmp_path: Path, video: Path) -> None:
    whole = video.read_bytes()
    path = tmp_path / "cut.mp4"
    for length in (*range(1, 40), *range(40, len(whole), 97), len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError):
            read_recipe(path)


def test_what_is_not_a_video(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("hello\n" * 100)
    (tmp_path / "text.txt").write_text("hello\n" * 100)
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXTINF:1,\n/etc/hostname\n")
    for path, words in [
        (tmp_path / "empty.mp4", "is empty"),
        (tmp_path / "text.mp4", "not a readable video"),
        (tmp_path / "text.txt", "not a readable video"),
        (tmp_path / "list.m3u8", "not a readable video"),
        (tmp_path / "none.mp4", "no file"),
        (tmp_path / "empty.mp4" / "x.mp4", "no file"),
        (tmp_path, "is a folder"),
        (Path("https://example.org/a.mp4"), "not a file on this machine"),
        (Path("nul\0.mp4"), "cannot read"),
    ]:
        with pytest.raises(InputError, match=words) as caught:
            read_recipe(path)
        assert "\n" not in caught.value.message
