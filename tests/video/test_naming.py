"""The name made of a prompt."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from soragen.video.naming import default_output, slug


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("A red ball, bouncing on green grass!", "a-red-ball-bouncing-on-green-grass"),
        ("The robot's hat", "the-robots-hat"),
        ("../../etc/passwd", "etc-passwd"),
        ('a<b>c:d"e/f\\g|h?i*j', "a-b-c-d-e-f-g-h-i-j"),
        ("tab\tnew\nline \0 nul\x7f", "tab-new-line-nul"),
        ("-rf . ..", "rf"),
        ("café CAFE\u0301", "café-café"),
        ("红球 在 草地", "红球-在-草地"),
        ("लाल गेंद", "लाल-गेंद"),
        ("😀🎈", ""),
        ("كرة حمراء", ""),
        ("", ""),
    ],
)
def test_slug(prompt: str, expected: str) -> None:
    assert slug(prompt) == expected


@pytest.mark.parametrize(
    "prompt", ["word " * 20_000, "x" * 100_000, "球" * 100_000, "ß" * 300, "é " * 500, "CON", "com1."]
)
def test_name_is_valid_everywhere(tmp_path: Path, prompt: str) -> None:
    path = default_output(prompt, 2**63 - 1, tmp_path)
    path.touch()
    assert len(path.name) <= 80 and len(path.name.encode()) <= 200
    assert not re.match(r"(?i)(con|prn|aux|nul|com\d|lpt\d)\.", path.name)
    assert not re.search(r'[<>:"/\\|?*\s\x00-\x1f]|[. ]$', path.name)


def test_words_are_not_cut(tmp_path: Path) -> None:
    prompt = "an astronaut walking a small dog along the beach of an ocean at the end of the day"
    assert prompt.replace(" ", "-").startswith(slug(prompt) + "-")


def test_taken_names_are_counted(tmp_path: Path) -> None:
    names = []
    for _ in range(3):
        path = default_output("A ball", 5, tmp_path)
        path.touch()
        names.append(path.name)
    (tmp_path / "a-ball-5-4.mp4").symlink_to(tmp_path / "nowhere")
    assert names == ["a-ball-5.mp4", "a-ball-5-2.mp4", "a-ball-5-3.mp4"]
    assert default_output("A ball", 5, tmp_path).name == "a-ball-5-5.mp4"
    assert default_output("🎈", 5, tmp_path).name == "video-5.mp4"
