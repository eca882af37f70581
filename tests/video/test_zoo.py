"""What users really give: each kind of file is read as it is meant, or refused in one clear line."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from clips import BLUE, RED, make, near, read_all, red_over_blue, source
from PIL import Image

from soragen.errors import InputError
from soragen.video.facts import video_facts
from soragen.video.read import read_video

HALF = ["-f", "lavfi", "-i", "color=red:s=64x48:r=8:d=0.5,format=rgba,geq=r='r(X,Y)':a='255*lt(X,32)'"]


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("prores.mov", ["-c:v", "prores_ks", "-profile:v", "4444", "-pix_fmt", "yuva444p10le"]),
        ("animation.mov", ["-c:v", "qtrle", "-pix_fmt", "argb"]),
        ("a.apng", ["-plays", "0"]),
    ],
)
def test_transparent_videos_are_shown_on_white(tmp_path: Path, name: str, codec: list[str]) -> None:
    size, pixels = read_all(make(tmp_path / name, *HALF, *codec))
    assert (size.width, size.height, size.num_frames) == (64, 48, 4)
    assert near(pixels[-1, 24, 8], RED) and near(pixels[-1, 24, 56], torch.full((3,), 255.0))


def test_animated_webp(tmp_path: Path) -> None:
    shades = [Image.new("RGB", (64, 48), (60 * n, 0, 0)) for n in range(4)]
    shades[0].save(tmp_path / "a.webp", save_all=True, append_images=shades[1:], duration=100, lossless=True)
    try:
        size, pixels = read_all(tmp_path / "a.webp")
    except InputError:  # an ffmpeg that does not know them says so
        return
    assert (size.num_frames, size.fps) == (4, 10)
    assert (pixels.mean((1, 2))[:, 0] - torch.tensor([0.0, 60, 120, 180])).abs().max() <= 3


def test_one_frame_clips(tmp_path: Path) -> None:
    for name in ("a.mp4", "a.mkv", "a.webm", "a.avi"):
        size, pixels = read_all(red_over_blue(tmp_path / name, "-frames:v", "1"))
        assert size.num_frames == 1 and near(pixels[0, 40, 32], BLUE), name


def test_odd_sides(tmp_path: Path) -> None:
    path = make(tmp_path / "a.mp4", *source("97x65", "8"), "-c:v", "libx264", "-pix_fmt", "yuv444p")
    assert read_all(path)[0].width == 97 and read_all(path, width=33, height=1)[0].height == 1


def test_4k_is_read_a_chunk_at_a_time(tmp_path: Path) -> None:
    few = ["-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p10le"]
    path = make(tmp_path / "a.mp4", "-f", "lavfi", "-i", "color=gray:s=3840x2160:r=30:d=0.1", *few)
    size, chunks = read_video(path)
    assert (size.width, size.height, size.num_frames) == (3840, 2160, 3)
    first = next(chunks)
    assert len(first) == 1 and near(first[0, 1000, 1000].float(), torch.full((3,), 128.0))


@pytest.mark.parametrize("name", ["a.mkv", "a.flv", "a.gif", "a.mov"])
def test_a_rounded_frame_rate_is_constant(tmp_path: Path, name: str) -> None:
    """Times in milliseconds, or hundredths of a second: no frame is doubled or left out."""
    path = make(tmp_path / name, *source(fps="24"))
    facts = video_facts(path)
    assert (facts.fps, facts.constant_fps, facts.num_frames) == (24, True, 24)
    assert read_all(path)[0].num_frames == 24


def test_a_varying_frame_rate_is_known_in_every_container(tmp_path: Path) -> None:
    for name in ("a.mkv", "a.gif", "a.mp4"):
        path = make(tmp_path / name, *source(), "-vf", "select='lt(mod(n,5),2)'", "-fps_mode", "vfr")
        assert not video_facts(path).constant_fps, name


@pytest.mark.parametrize("codec", [["-an"], ["-c:a", "aac"]])
def test_audio_or_none(tmp_path: Path, codec: list[str]) -> None:
    path = make(tmp_path / "a.mp4", *source(), "-f", "lavfi", "-i", "sine=d=1", *codec)
    assert video_facts(path).has_audio is (codec[0] != "-an")
    assert read_all(path)[0].num_frames == 30


@pytest.mark.parametrize(
    "name", ["-y.mp4", "100%d %s.mp4", 'it\'s a "clip" ; ｆｉｌｍ 🎬.mp4', "pipe:0.mp4", "http:a.mp4"]
)
def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    make(tmp_path / "a.mp4", *source(fps="5")).rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert read_all(Path(name))[0].num_frames == 5


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="there are no such files")
def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    for path, words in (
        (Path("/dev/zero"), "not a file"),
        (tmp_path / "pipe.mp4", "not a file"),
        (tmp_path, "a folder"),
    ):
        with pytest.raises(InputError, match=words):
            read_video(path)


def test_heic_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.heic"
    path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic\0\0\0\x0cmeta\0\0\0\0\0\0\0\x0cmdat\0\0\0\0")
    with pytest.raises(InputError, match="HEIC"):
        read_video(path)


@pytest.mark.parametrize("transfer", ["smpte2084", "arib-std-b67"])
def test_high_dynamic_range_keeps_the_tones_of_an_ordinary_screen(tmp_path: Path, transfer: str) -> None:
    """A picture brought to 203 cd/m² in HDR comes back; read without a map its grey of 110 would be 123."""
    to_hdr = f"format=gbrpf32le,zscale=t=linear:npl=203,zscale=p=bt2020:t={transfer}:m=bt2020nc:r=limited:npl=203"
    picture = [
        "-f",
        "lavfi",
        "-i",
        "color=0x6e6e6e:s=64x48:r=8:d=0.25,pad=128:48:0:0:0x6e3c28,setparams=colorspace=gbr",
    ]
    tags = f"setparams=color_primaries=bt709:color_trc=bt709:range=pc,{to_hdr},format=yuv420p10le"
    path = make(tmp_path / "a.mkv", *picture, "-vf", f"format=gbrp,{tags}", "-c:v", "ffv1")
    assert transfer in video_facts(path).colour
    _, pixels = read_all(path)
    assert (pixels[0, 24, 20] - torch.tensor([110.0, 110, 110])).abs().max() <= 6
    assert (pixels[0, 24, 100] - torch.tensor([110.0, 60, 40])).abs().max() <= 8


def cut(tmp_path: Path, whole: Path) -> list[Path]:
    data = whole.read_bytes()
    found = []
    for length in (len(data) // 3, len(data) - 200, len(data) - 1):
        found.append(tmp_path / f"cut{length}{whole.suffix}")
        found[-1].write_bytes(data[:length])
    return found


@pytest.mark.parametrize("name", ["a.gif", "a.webm", "a.mkv", "a.avi", "a.mp4", "a.png", "a.jpg", "a.webp"])
def test_a_cut_file_is_never_a_shorter_clip(tmp_path: Path, name: str) -> None:
    still = ["-frames:v", "1"] if name in ("a.png", "a.jpg", "a.webp") else []
    whole = make(tmp_path / name, *source(fps="10"), *still)
    video_facts(whole)
    for path in cut(tmp_path, whole):
        with pytest.raises(InputError, match="is cut off"):
            read_video(path)


def test_a_live_recording_says_no_length(tmp_path: Path) -> None:
    """As browsers record: nothing says how long the whole is, but a frame that is cut is noticed."""
    whole = make(tmp_path / "a.webm", *source(fps="10"), "-c:v", "libvpx", "-live", "1")
    assert read_all(whole)[0].num_frames == 10
    (tmp_path / "cut.webm").write_bytes(whole.read_bytes()[:-50])
    with pytest.raises(InputError, match="cut off"):
        read_video(tmp_path / "cut.webm")


def test_a_photo_with_a_video_behind_it(tmp_path: Path) -> None:
    path = red_over_blue(tmp_path / "a.jpg", "-frames:v", "1", "-update", "1", "-q:v", "1")
    path.write_bytes(path.read_bytes() + b"\0\0\0\x18ftypmp42" + bytes(5000))
    size, pixels = read_all(path)
    assert (size.width, size.height) == (64, 48) and near(pixels[0, 8, 32], RED)


def test_frame_rates_survive_nanoseconds(tmp_path: Path) -> None:
    for fps in ("24000/1001", "30000/1001", "60000/1001", "50/3", "2997/100", "240", "1/2"):
        path = make(tmp_path / "a.mkv", *source(fps=fps, seconds="4" if fps == "1/2" else "0.3"))
        assert video_facts(path).fps == Fraction(fps)
