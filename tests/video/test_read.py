"""Reading: any video or image, the right way up, in true colours, a few frames at a time."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from clips import BLUE, RED, make, near, png, read_all, red_over_blue, source

from soragen.errors import InputError
from soragen.size import VideoSize
from soragen.video.read import read_video
from soragen.video.write import write_video


def test_frames_come_back_in_order(tmp_path: Path) -> None:
    size = VideoSize(64, 64, 37, Fraction(24000, 1001))
    shades = torch.arange(37) * 6
    frames = shades.to(torch.uint8)[:, None, None, None].expand(37, 64, 64, 3)
    found, pixels = read_all(write_video(tmp_path / "a.mp4", [frames], size, recipe=None))
    assert found == size
    assert (pixels.mean((1, 2, 3)) - shades).abs().max() < 1.5


def test_read_is_lazy_and_can_be_left(tmp_path: Path) -> None:
    path = make(tmp_path / "a.mp4", *source(seconds="10"))
    size, frames = read_video(path)
    assert size.num_frames == 300
    assert isinstance(frames, Iterator) and len(next(frames)) <= 16
    frames.close()  # type: ignore[attr-defined]
    assert list(frames) == []


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("ten.mp4", ["-c:v", "libx264", "-pix_fmt", "yuv420p10le"]),
        ("a.mkv", ["-c:v", "libx264", "-pix_fmt", "yuv420p"]),
        ("lossless.mkv", ["-c:v", "ffv1"]),
        ("a.webm", ["-c:v", "libvpx-vp9", "-deadline", "realtime", "-pix_fmt", "yuv420p"]),
        ("a.mov", ["-c:v", "prores"]),
        ("a.gif", ["-vf", "split[a][b];[a]palettegen[p];[b][p]paletteuse"]),
        ("frag.mp4", ["-c:v", "libx264", "-movflags", "frag_keyframe+empty_moov"]),
    ],
)
def test_containers_and_codecs(tmp_path: Path, name: str, arguments: list[str]) -> None:
    path = make(tmp_path / name, "-f", "lavfi", "-i", "color=red:s=64x24:r=25:d=1,pad=64:48:0:0:blue", *arguments)
    size, pixels = read_all(path)
    assert size == VideoSize(64, 48, 25, Fraction(25))
    assert near(pixels[-1, 8, 32], RED) and near(pixels[-1, 40, 32], BLUE)


def test_varying_frame_rate_becomes_constant(tmp_path: Path) -> None:
    path = make(tmp_path / "a.mp4", *source(), "-vf", "select='lt(mod(n,5),2)'", "-fps_mode", "vfr")
    size, _ = read_all(path, fps=Fraction(30))
    assert size.fps == 30 and 27 <= size.num_frames <= 30
    size, _ = read_all(path)
    assert abs(size.seconds - 1) < Fraction(1, 10)


def test_frame_rate_is_changed(tmp_path: Path) -> None:
    size, _ = read_all(make(tmp_path / "a.mp4", *source()), fps=Fraction(24))
    assert size == VideoSize(96, 64, 24, Fraction(24))


def test_rotation_is_undone(tmp_path: Path) -> None:
    upright = red_over_blue(tmp_path / "up.mp4", "-pix_fmt", "yuv420p")
    turned = make(tmp_path / "turned.mp4", "-display_rotation", "90", "-i", str(upright), "-c", "copy")
    size, pixels = read_all(turned)
    assert (size.width, size.height) == (48, 64)
    assert near(pixels[0, 32, 4], RED) and near(pixels[0, 32, 44], BLUE)  # 90 degrees against the clock


def exif(orientation: int) -> bytes:
    return b"MM\0*\0\0\0\x08" + struct.pack(">HHHIHHI", 1, 0x112, 3, 1, orientation, 0, 0)


def test_exif_rotation_of_images_is_undone(tmp_path: Path) -> None:
    """Orientation 6: the picture is to be turned by 90 degrees with the clock."""
    jpeg = red_over_blue(tmp_path / "plain.jpg", "-frames:v", "1", "-update", "1", "-q:v", "1").read_bytes()
    body = b"Exif\0\0" + exif(6)
    (tmp_path / "turned.jpg").write_bytes(jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + jpeg[2:])
    pixels = torch.zeros(48, 64, 3, dtype=torch.uint8)
    pixels[:24, :, 0], pixels[24:, :, 2] = 254, 254
    png(tmp_path / "turned.png", pixels, (b"eXIf", exif(6)))
    for name in ("turned.jpg", "turned.png"):
        size, found = read_all(tmp_path / name)
        assert (size.width, size.height, size.num_frames) == (48, 64, 1), name
        assert near(found[0, 32, 44], RED) and near(found[0, 32, 4], BLUE), name


def test_image_is_exact_whatever_its_name(tmp_path: Path) -> None:
    pixels = torch.randint(0, 256, (33, 47, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for name in ("-i.png", "100%d.png", "concat:a|b.png", "it's; [0:v] 😀.png", "photo"):
        _, found = read_all(png(tmp_path / name, pixels))
        assert torch.equal(found[0], pixels.float()), name


def test_transparent_pixels_are_shown_on_white(tmp_path: Path) -> None:
    pixels = torch.tensor([[200, 0, 0, 255], [0, 0, 0, 0], [0, 255, 0, 0], [255, 0, 0, 128]], dtype=torch.uint8)
    _, found = read_all(png(tmp_path / "a.png", pixels.expand(2, 4, 4)))
    expected = torch.tensor([[200, 0, 0], [255, 255, 255], [255, 255, 255], [255, 127, 127]])
    assert (found[0, 0] - expected).abs().max() <= 1


def test_size_is_covered_not_stretched(tmp_path: Path) -> None:
    path = red_over_blue(tmp_path / "a.png", "-frames:v", "1", "-update", "1")  # 64x48
    assert read_all(path, width=32)[0].height == 24
    assert read_all(path, height=96)[0].width == 128
    size, pixels = read_all(path, width=128, height=32)  # 128x96, its middle third
    assert (size.width, size.height) == (128, 32)
    assert near(pixels[0, 4, 64], RED) and near(pixels[0, 28, 64], BLUE)


def test_pixels_that_are_not_square(tmp_path: Path) -> None:
    size, _ = read_all(make(tmp_path / "a.mp4", *source("72x64"), "-vf", "setsar=4/3"))
    assert (size.width, size.height) == (96, 64)


def test_untagged_high_definition_is_bt709(tmp_path: Path) -> None:
    """A red that was stored as bt709 without saying so; read as bt601 its green would be some 20 levels off."""
    filters = "format=rgb24,scale=out_color_matrix=bt709:out_range=limited,format=yuv420p,setparams=colorspace=unknown"
    for size, true in (("1280x720", True), ("320x240", False)):
        path = make(
            tmp_path / "a.mp4",
            "-f",
            "lavfi",
            "-i",
            f"color=0x40c020:s={size}:r=8:d=0.25",
            "-vf",
            filters,
            "-c:v",
            "libx264",
        )
        _, pixels = read_all(path)
        assert near(pixels[0, 100, 100], torch.tensor([64.0, 192.0, 32.0])) is true, size


def test_damaged_videos_are_one_line(tmp_path: Path) -> None:
    whole = make(tmp_path / "a.mp4", *source("320x240"), "-c:v", "libx264", "-pix_fmt", "yuv420p").read_bytes()
    middle = len(whole) // 2
    noise = bytes(torch.randint(0, 256, (2000,), generator=torch.Generator().manual_seed(0)).tolist())
    damaged = {
        "cut.mp4": whole[:middle],
        "noise.mp4": whole[: middle - 1000] + noise + whole[middle + 1000 :],
        "text.mp4": b"hello\n" * 50,
        "empty.mp4": b"",
    }
    sound = make(tmp_path / "sound.m4a", "-f", "lavfi", "-i", "sine=d=1").read_bytes()
    for name, data in {**damaged, "sound.mp4": sound}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError) as caught:
            read_video(tmp_path / name)
        assert "\n" not in caught.value.message and name in caught.value.message


def test_addresses_and_missing_files(tmp_path: Path) -> None:
    for path in (Path("https://example.org/a.mp4"), Path("rtsp://example.org/a"), tmp_path / "none.png", tmp_path):
        with pytest.raises(InputError):
            read_video(path)


def test_file_that_shrinks_between_the_two_passes(tmp_path: Path) -> None:
    path = make(tmp_path / "a.mp4", *source(), "-c:v", "libx264")
    _, frames = read_video(path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(InputError, match="to its end"):
        list(frames)
