"""Sound of other files beside new pictures: in its place, never longer than they are, copied where that can be."""

from __future__ import annotations

import re
import subprocess
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from clips import make, source

from soragen.errors import InputError
from soragen.size import VideoSize
from soragen.video.audio import Audio
from soragen.video.facts import video_facts
from soragen.video.ffmpeg import find_ffmpeg
from soragen.video.read import read_video
from soragen.video.write import check_output, write_video

TONE = ["-f", "lavfi", "-i", "sine=f=440:r=48000:d=2"]
FPS = Fraction(24)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds each, with a tone in its name's codec; "late" begins to sound after a second."""
    folder = tmp_path_factory.mktemp("clips")
    picture = source("64x48", "24", "2")
    for name, codec in {"aac.mp4": "aac", "mp3.mp4": "libmp3lame", "ac3.mp4": "ac3", "pcm.mov": "pcm_s16le"}.items():
        make(folder / name, *picture, *TONE, "-c:a", codec)
    make(folder / "opus.webm", *source("64x48", "24", "2"), *TONE, "-c:v", "libvpx", "-c:a", "libopus")
    make(folder / "late.mp4", *picture, "-itsoffset", "1", *TONE, "-c:a", "aac", "-t", "2")
    make(folder / "early.mkv", *TONE, "-itsoffset", "1", *picture, "-map", "1:v", "-map", "0:a", "-c:a", "aac")
    make(folder / "mute.mp4", *picture)
    return folder


def write(path: Path, num_frames: int, *audio: Audio, lossless: bool = False) -> tuple[str, str]:
    """The codec of the sound in the file ("" for none), and where it is heard: "#" or "." for each half second."""
    size = VideoSize(64, 48, num_frames, FPS)
    frames = torch.zeros(num_frames, 48, 64, 3, dtype=torch.uint8)
    check_output(path, size=size, audio=audio, lossless=lossless)
    write_video(path, [frames], size, recipe={"seed": 1}, audio=audio, lossless=lossless)
    facts = video_facts(path)
    assert (facts.num_frames, facts.fps) == (num_frames, FPS)
    run = [find_ffmpeg(), "-hide_banner", "-i", str(path)]
    said = subprocess.run(run, capture_output=True, text=True).stderr
    hours, minutes, seconds = re.search(r"Duration: (\d+):(\d+):([\d.]+)", said).groups()  # type: ignore[union-attr]
    # Matroska cannot say that the first packet of AAC is not heard, so that all begins a packet later there
    assert (int(hours), int(minutes)) == (0, 0) and -0.006 <= float(seconds) - num_frames / 24 <= (
        0.006 if path.suffix == ".mp4" else 0.03
    )
    codec = re.search(r"Audio: (\w+)", said)
    if codec is None:
        return "", ""
    steady = [
        "-map",
        "0:a:0",
        "-af",
        "aresample=async=1:first_pts=0",
        "-ac",
        "1",
        "-ar",
        "8000",
        "-f",
        "f32le",
        "pipe:1",
    ]
    raw = subprocess.run([*run, "-loglevel", "error", *steady], capture_output=True, check=True).stdout
    loudness = torch.frombuffer(bytearray(raw), dtype=torch.float32).abs()
    return codec[1], "".join(
        "#" if part[1500:2500].mean() > 0.02 else "." for part in loudness.split(4000) if len(part) > 2500
    )


@pytest.mark.parametrize(
    ("source_name", "output", "codec"),
    [
        ("aac.mp4", "o.mp4", "aac"),
        ("mp3.mp4", "o.mp4", "mp3"),
        ("ac3.mp4", "o.mp4", "ac3"),
        ("opus.webm", "o.mp4", "opus"),
        ("opus.webm", "o.mkv", "opus"),
        ("pcm.mov", "o.mkv", "pcm_s16le"),
        ("pcm.mov", "o.mp4", "aac"),
    ],
)
def test_one_sound_is_copied_or_encoded(clips: Path, tmp_path: Path, source_name: str, output: str, codec: str) -> None:
    assert write(tmp_path / output, 36, Audio(clips / source_name, Fraction(0))) == (codec, "###")


def test_a_copy_has_the_very_packets(clips: Path, tmp_path: Path) -> None:
    write(tmp_path / "o.mp4", 36, Audio(clips / "aac.mp4", Fraction(0)))

    def packets(path: Path) -> list[str]:
        command = [
            find_ffmpeg(),
            "-loglevel",
            "error",
            "-i",
            str(path),
            "-map",
            "0:a",
            "-c",
            "copy",
            "-f",
            "framecrc",
            "-",
        ]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        return [line.split(",")[5] for line in lines if not line.startswith("#")]

    ours, theirs = packets(tmp_path / "o.mp4"), packets(clips / "aac.mp4")
    assert len(ours) > 60 and ours == theirs[: len(ours)]


def test_sound_that_is_shorter_later_or_cut(clips: Path, tmp_path: Path) -> None:
    aac, opus, mute = clips / "aac.mp4", clips / "opus.webm", clips / "mute.mp4"
    for number, (audio, expected) in enumerate(
        [
            ([Audio(aac, Fraction(1))], "..####.."),
            ([Audio(aac, Fraction(-1))], "##......"),
            ([Audio(aac, Fraction(3))], "......##"),
            ([Audio(aac, Fraction(0)), Audio(opus, Fraction(5, 2))], "####.###"),
            ([Audio(mute, Fraction(0)), Audio(opus, Fraction(1, 2))], ".####..."),
            ([Audio(clips / "late.mp4", Fraction(1))], "....##.."),
        ]
    ):
        assert write(tmp_path / f"{number}.mp4", 96, *audio) == ("aac", expected), audio
    assert write(tmp_path / "short.mp4", 96, Audio(aac, Fraction(0))) == ("aac", "####")  # copied: it ends


def test_sound_keeps_its_place_beside_the_pictures(clips: Path, tmp_path: Path) -> None:
    """Sound that began before the first picture is not heard, one that began later comes as much later."""
    assert write(tmp_path / "a.mp4", 48, Audio(clips / "early.mkv", Fraction(0))) == ("aac", "##..")
    assert write(tmp_path / "b.mp4", 48, Audio(clips / "late.mp4", Fraction(0))) == ("aac", "..##")


def test_mixing_does_not_make_quieter(clips: Path, tmp_path: Path) -> None:
    audio = [Audio(clips / "pcm.mov", Fraction(0)), Audio(clips / "mute.mp4", Fraction(0))]
    audio.append(Audio(clips / "opus.webm", Fraction(1)))
    assert write(tmp_path / "a.mkv", 48, *audio, lossless=True) == ("flac", "####")


def test_nothing_where_there_is_no_sound(clips: Path, tmp_path: Path) -> None:
    mute = Audio(clips / "mute.mp4", Fraction(0))
    assert write(tmp_path / "a.mp4", 12, mute) == ("", "")
    assert write(tmp_path / "b.mp4", 12) == ("", "")
    size = VideoSize(64, 48, 2, FPS)
    frames = torch.zeros(2, 48, 64, 3, dtype=torch.uint8)
    path = write_video(tmp_path / "a.gif", [frames], size, recipe=None, audio=[Audio(clips / "aac.mp4", Fraction(0))])
    assert video_facts(path).num_frames == 2


def test_one_frame_with_sound(clips: Path, tmp_path: Path) -> None:
    assert write(tmp_path / "a.mp4", 1, Audio(clips / "aac.mp4", Fraction(0)))[0] == "aac"


def test_lossless_pictures_with_sound_come_back(clips: Path, tmp_path: Path) -> None:
    frames = torch.randint(0, 256, (24, 33, 47, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    size = VideoSize(47, 33, 24, FPS)
    for number, start in enumerate((0, 1)):
        audio = [Audio(clips / "aac.mp4", Fraction(start, 4))]
        path = write_video(tmp_path / f"{number}.mkv", [frames], size, recipe=None, lossless=True, audio=audio)
        found, chunks = read_video(path)
        assert found == size and torch.equal(torch.cat(list(chunks)), frames)


def test_sound_that_cannot_be_read_is_known_before_any_work(clips: Path, tmp_path: Path) -> None:
    size = VideoSize(64, 48, 48, FPS)
    (tmp_path / "cut.mp4").write_bytes((clips / "aac.mp4").read_bytes()[:-3000])
    (tmp_path / "text.mp4").write_text("hello\n" * 20)
    for name in ("cut.mp4", "text.mp4", "none.mp4"):
        with pytest.raises(InputError) as caught:
            check_output(tmp_path / "o.mp4", size=size, audio=[Audio(tmp_path / name, Fraction(0))])
        assert name in caught.value.message and "\n" not in caught.value.message
    assert not (tmp_path / "o.mp4").exists() and len(list(tmp_path.iterdir())) == 2
