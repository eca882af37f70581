"""What the user types for a verb: the request it becomes, and the one line that each mistake gets."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from footage import film, picture, uneven

from soragen.catalog import find
from soragen.errors import InputError
from soragen.pipeline import edits
from soragen.pipeline.events import Event, Note
from soragen.pipeline.sources import beside, hash_of, with_sources
from soragen.request import Edit, Request
from soragen.size import VideoSize
from soragen.video.ffmpeg import find_ffmpeg
from soragen.video.write import write_video

POCKET = find("pocket")


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def typed(told: list[str]) -> Callable[..., Request]:
    """typed("extend", …) as the command line calls it; its notes are in `told`."""

    def ask(verb: str, *arguments: Any, **options: Any) -> Request:
        def listen(event: Event) -> None:
            assert isinstance(event, Note)
            told.append(event.text)

        return getattr(edits, verb)(*arguments, listen=listen, **options)  # type: ignore[no-any-return]

    return ask


def with_recipe(path: str, prompt: str) -> Path:
    size = VideoSize(64, 48, 1, Fraction(12))
    frames = torch.zeros(1, 48, 64, 3, dtype=torch.uint8)
    return write_video(Path(path), [frames], size, recipe={"request": {"prompt": prompt}}, overwrite=True)


def test_extend(typed: Any, told: list[str]) -> None:
    clip = film("a.mp4", 9, fps="30000/1001")
    request = typed("extend", clip, "a ball", seconds="0.5", backward=True, seed=3, steps=4)
    assert request.size == VideoSize(64, 48, 9 + 15, Fraction(30000, 1001))
    (source,) = request.edit.sources
    assert (source.path, source.sha256, source.num_frames) == (clip, hash_of(clip), 9)
    assert request.edit.backward and (request.prompt, request.seed, request.num_steps) == ("a ball", 3, 4)
    assert told == ["0.5 s at 29.970 fps becomes 15 frames, 0.5005 s"]
    assert typed("extend", clip, "a").size.num_frames == 9 + round(POCKET.native.seconds * Fraction(30000, 1001))
    assert Request.from_dict(request.to_dict()).to_dict() == request.to_dict()


def test_a_prompt_that_is_not_given_is_that_of_the_file(typed: Any, told: list[str]) -> None:
    assert typed("extend", with_recipe("a.mp4", "a cube"), None, frames=4).prompt == "a cube"
    assert told == ["prompt of a.mp4: a cube"]
    assert typed("extend", film("b.mp4"), None, frames=4).prompt == ""
    assert typed("extend", with_recipe("a.mp4", "-"), None, frames=4).prompt == ""  # and nothing is read from stdin
    assert typed("animate", with_recipe("a.png", "a cone"), None).prompt == "a cone"


def test_connect_brings_the_second_to_the_first(typed: Any, told: list[str]) -> None:
    one, other = film("a.mkv", 9), film("b.mkv", 10, 96, 96, fps="24")
    request = typed("connect", one, other, "a ball", frames=7, fit="pad")
    assert request.size == VideoSize(64, 48, 9 + 7 + 5, Fraction(12))
    assert [source.num_frames for source in request.edit.sources] == [9, 5] and request.edit.fit == "pad"
    assert told == ["b.mkv has 96x96 and 24 fps, brought to 64x48 (pad) and 12 fps"]
    told.clear()
    assert typed("connect", one, film("c.mkv", 5), "a ball").size.num_frames == 9 + 12 + 5 and told == []


def test_loop(typed: Any) -> None:
    request = typed("loop", str(film("a.mkv")), None, frames=6)
    assert request.size == VideoSize(64, 48, 15, Fraction(12)) and len(request.edit.sources) == 1
    request = typed("loop", "a turning wheel", None, seed=4)
    assert request.edit == Edit("loop") and request.size.num_frames == 24 and request.seed == 4
    for fps, num_frames in (("25", 48), ("1", 16)):
        assert typed("loop", "a wheel", None, fps=fps).size.num_frames == num_frames
    assert typed("loop", "a wheel " * 1000, None).edit == Edit("loop")


def test_a_prompt_is_read_from_standard_input_once(typed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for verb, first in (("loop", ()), ("extend", (film("a.mkv"),)), ("animate", (picture("a.png"),))):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a wheel")))
        arguments = ("-", None) if verb == "loop" else (*first, "-")
        assert typed(verb, *arguments, frames=8).prompt == "a wheel"


def test_animate(typed: Any, told: list[str]) -> None:
    wide = picture("a.png", 256, 128)
    request = typed("animate", wide, "it turns")
    area = POCKET.defaults.width * POCKET.defaults.height
    assert request.size.width == pytest.approx(2 * request.size.height, rel=0.03)
    assert request.size.area == pytest.approx(area, rel=0.05) and request.size.fps == POCKET.native.fps
    assert request.size.width % 2 == request.size.height % 2 == 0
    request = typed("animate", wide, "", last=picture("b.png"), size="65x96", frames=2, fps="24", fit="stretch")
    assert request.size == VideoSize(66, 96, 2, Fraction(24)) and len(request.edit.sources) == 2
    assert told == ["65x96 becomes 66x96: the sides of an H.264 video are even"]
    assert typed("animate", wide, "", size="65x96", odd_sides=True).size.width == 65


def test_restyle(typed: Any, told: list[str]) -> None:
    request = typed("restyle", film("a.mkv", 5, 65, 47), "at night", strength=0)
    assert request.size == VideoSize(64, 46, 5, Fraction(12)) and request.edit.strength == 0
    assert "65x47 loses its last row or column" in told[0]
    assert typed("restyle", Path("a.mkv"), "at night", odd_sides=True).size.width == 65
    assert Request.from_dict(request.to_dict()).edit.strength == 0  # type: ignore[union-attr]


MISTAKES: dict[str, tuple[str, tuple[Any, ...], dict[str, Any], str]] = {
    "missing": ("extend", (Path("none.mp4"), ""), {}, "no file none.mp4"),
    "picture": ("extend", (Path("p.png"), ""), {}, "p.png is a picture where a video is needed"),
    "picture to restyle": ("restyle", (Path("p.png"), "a"), {}, "is a picture"),
    "video to animate": ("animate", (Path("a.mkv"), ""), {}, "is a video of 9 frames where a picture is needed"),
    "text": ("extend", (Path("text.mp4"), ""), {}, "text.mp4 is not a readable video"),
    "empty": ("extend", (Path("empty.mp4"), ""), {}, "empty.mp4 is empty"),
    "cut off": ("extend", (Path("cut.mp4"), ""), {}, "cut.mp4"),
    "folder": ("extend", (Path(), ""), {}, "is a folder"),
    "address": ("extend", (Path("https://example.org/a.mp4"), ""), {}, "is not a file on this machine"),
    "both": ("extend", (Path("a.mkv"), ""), {"seconds": "1", "frames": 3}, "--seconds and --frames were both given"),
    "both to animate": ("animate", (Path("p.png"), ""), {"seconds": "1", "frames": 3}, "were both given"),
    "none": ("extend", (Path("a.mkv"), ""), {"frames": 0}, "--frames 0 is out of range"),
    "hour": ("extend", (Path("a.mkv"), ""), {"seconds": "3600"}, "is longer than an hour"),
    "hours": ("extend", (Path("a.mkv"), ""), {"seconds": "3601"}, "is longer than an hour"),
    "too strong": ("restyle", (Path("a.mkv"), "a"), {"strength": 1.01}, "--strength 1.01 is out of range"),
    "too weak": ("restyle", (Path("a.mkv"), "a"), {"strength": -0.1}, "--strength -0.1 is out of range"),
    "no strength": ("restyle", (Path("a.mkv"), "a"), {"strength": float("nan")}, "--strength nan is out of range"),
    "fit": ("connect", (Path("a.mkv"), Path("a.mkv"), ""), {"fit": "zoom"}, "no fit named 'zoom'"),
    "fit of a picture": ("animate", (Path("p.png"), ""), {"fit": ""}, "no fit named ''"),
    "second missing": ("connect", (Path("a.mkv"), Path("b.mkv"), ""), {}, "no file b.mkv"),
    "picture missing": ("animate", (Path("q.png"), ""), {}, "no file q.png"),
    "last missing": ("animate", (Path("p.png"), ""), {"last": Path("q.png")}, "no file q.png"),
    "one frame of two": ("animate", (Path("p.png"), ""), {"last": Path("p.png"), "frames": 1}, "cannot hold 2"),
    "small": ("animate", (Path("p.png"), ""), {"size": "10x10"}, "is outside 64..4096"),
    "fps": ("animate", (Path("p.png"), ""), {"fps": "0"}, "is not a frame rate"),
    "tiny": ("extend", (Path("point.mkv"), ""), {}, "a video of 1x1 is too small"),
    "size of a loop": ("loop", ("a.mkv", None), {"size": "64x64"}, "keeps the size and the frame rate"),
    "no such clip": ("loop", ("my clip.mp4", None), {}, "no file my clip.mp4"),
    "address of a loop": ("loop", ("https://example.org/a.mp4", None), {}, "is not a file on this machine"),
    "restyled by nothing": ("restyle", (Path("a.mkv"), " "), {}, "the prompt is empty"),
    "two prompts": ("loop", ("a wheel", "a ball"), {}, "'a wheel' is not a file"),
    "empty loop": ("loop", ("", None), {}, "the prompt is empty"),
    "model": ("extend", (Path("a.mkv"), ""), {"model": "no-such"}, "no model named"),
    "no text": ("restyle", (Path("a.mkv"), "a"), {"model": "wan2.1-i2v-14b-480p"}, "does not follow a prompt alone"),
    "seed": ("extend", (Path("a.mkv"), ""), {"seed": -1, "frames": 4}, "--seed -1 is out of range"),
    "control": ("extend", (Path("a.mkv"), "a \x1b"), {"frames": 4}, "has a control character"),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    film(f"{folder}/a.mkv")
    film(f"{folder}/point.mkv", 3, 1, 1)
    picture(f"{folder}/p.png")
    (folder / "text.mp4").write_text("a ball\n" * 100)
    (folder / "empty.mp4").touch()
    (folder / "cut.mp4").write_bytes(film(f"{folder}/whole.mp4", 30).read_bytes()[:-500])
    return folder


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(name: str, typed: Any, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verb, arguments, options, words = MISTAKES[name]
    monkeypatch.chdir(files)
    with pytest.raises(InputError) as raised:
        typed(verb, *arguments, **options)
    assert words in raised.value.message and "\n" not in raised.value.message
    assert raised.value.hint and "\n" not in raised.value.hint


def test_names_of_files(typed: Any) -> None:
    clip, other = film("A clip.mkv"), film("b.mkv")
    stems = [
        ("A clip extended", typed("extend", clip, "x", frames=4)),
        ("A clip looped", typed("loop", str(clip), "x")),
        ("A clip restyled", typed("restyle", clip, "x")),
        ("A clip to b", typed("connect", clip, other, "x")),
        ("p animated", typed("animate", picture("p.png"), "x")),
        ("", typed("loop", "a wheel", None)),
    ]
    assert [edits.output_stem(request) for _, request in stems] == [stem for stem, _ in stems]


def test_sources_are_found_again_by_name_and_must_be_the_same(typed: Any, tmp_path: Path) -> None:
    asked = Request.from_dict(typed("extend", film("a.mkv"), "x", frames=4).to_dict())
    away = tmp_path / "away"
    away.mkdir()
    assert beside(asked, (away, Path())) == [Path("a.mkv")]
    assert with_sources(asked, [Path("a.mkv")]).edit.sources[0].path == Path("a.mkv")  # type: ignore[union-attr]
    film(f"{away}/a.mkv", shade=9)  # of the same name, but another
    assert beside(asked, (away, Path())) == [Path("a.mkv")]
    film("a.mkv", shade=9)
    with pytest.raises(InputError, match="is not the file that this video was made of"):
        with_sources(asked, [Path("a.mkv")])
    Path("a.mkv").unlink()
    with pytest.raises(InputError, match="is gone"):
        with_sources(asked, [Path("a.mkv")])
    values = asked.to_dict()
    values["edit"]["sources"][0]["name"] = "../../secret.mkv"
    assert beside(Request.from_dict(values), (away,)) == [away / "secret.mkv"]


def test_what_is_not_kept_of_a_clip_is_said(typed: Any, told: list[str]) -> None:
    typed("extend", uneven("a.mp4"), "a ball", frames=4)
    assert [text.partition(":")[0] for text in told] == ["a.mp4 has a varying frame rate"]
    told.clear()
    command = ["-f", "lavfi", "-i", "testsrc=s=64x48:r=12:d=1", "-pix_fmt", "yuv420p10le", "-c:v", "ffv1"]
    subprocess.run([find_ffmpeg(), "-loglevel", "error", "-y", *command, "b.mkv"], check=True)
    typed("extend", Path("b.mkv"), "a ball", frames=4)
    assert told == ["b.mkv has more than 8 bits a colour: read in 8"]


def test_a_loop_of_seconds_is_as_long_as_one_can_be(typed: Any, told: list[str]) -> None:
    assert typed("loop", "a ball", None, seconds="1.5").size.num_frames == 16
    assert told == ["1.5 s become 16 frames: a loop closes after a multiple of 8"]
    told.clear()
    assert typed("loop", "a ball", None, seconds="2").size.num_frames == 24 and told == []
    assert typed("loop", "a ball", None, seconds="0.1").size.num_frames == 16
    assert typed("loop", "a ball", None, frames=20).size.num_frames == 20  # as asked: the model says whether it can
