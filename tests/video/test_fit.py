"""Pictures and clips of one shape in frames of another, and the part of a clip that is asked for."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
import torch
from clips import BLUE, RED, make, near, png, read_all, red_over_blue, source
from PIL import Image

from soragen.errors import InputError
from soragen.size import VideoSize
from soragen.video.picture_input import picture_size, read_picture
from soragen.video.read import read_video
from soragen.video.write import write_video

NOISE = torch.randint(0, 256, (48, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_three_ways_to_fit(tmp_path: Path) -> None:
    path = png(tmp_path / "a.png", torch.cat([torch.full((24, 64, 3), 200), torch.zeros(24, 64, 3)]).byte())
    frames = {fit: read_picture(path, width=96, height=24, fit=fit) for fit in ("crop", "pad", "stretch")}  # type: ignore[arg-type]
    for fit, frame in frames.items():
        assert frame.shape == (24, 96, 3) and frame.dtype == torch.uint8, fit
    # crop: 96x72, of which rows 24..48 are left; stretch: the whole; both change from light to dark in the middle
    for fit in ("crop", "stretch"):
        assert (frames[fit][:4].int() - 200).abs().max() <= 2 and frames[fit][-4:].max() <= 2, fit
    # pad: 32x24 in the middle, beside it the mean of the border: half of its pixels are light
    assert (frames["pad"][:4, 32:64].int() - 200).abs().max() <= 2 and frames["pad"][-4:, 32:64].max() <= 2
    beside = torch.cat([frames["pad"][:, :32], frames["pad"][:, 64:]])
    assert len(beside.unique()) == 1 and abs(int(beside[0, 0, 0]) - 100) <= 2


def test_padding_has_one_colour_through_a_clip(tmp_path: Path) -> None:
    shades = torch.arange(20).mul(10).to(torch.uint8)[:, None, None, None].expand(20, 64, 64, 3)
    path = write_video(tmp_path / "a.mkv", [shades], VideoSize(64, 64, 20, Fraction(8)), recipe=None, lossless=True)
    size, pixels = read_all(path, width=100, height=64, fit="pad")
    assert size == VideoSize(100, 64, 20, Fraction(8))
    assert (pixels[:, :, :18] == 0).all() and (pixels[:, :, 82:] == 0).all()
    assert torch.equal(pixels[:, :, 18:82], shades.float())


def test_a_clip_of_another_shape_is_stretched(tmp_path: Path) -> None:
    size, pixels = read_all(red_over_blue(tmp_path / "a.mp4"), width=32, height=128, fit="stretch")
    assert (size.width, size.height, size.num_frames) == (32, 128, 8)
    assert near(pixels[-1, 4, 16], RED) and near(pixels[-1, 124, 16], BLUE)


def test_an_unknown_fit(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="crop, pad, stretch"):
        read_picture(png(tmp_path / "a.png", NOISE), width=8, height=8, fit="zoom")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frame n has the shade n."""
    shades = torch.arange(40).to(torch.uint8)[:, None, None, None].expand(40, 64, 64, 3)
    size = VideoSize(64, 64, 40, Fraction(24))
    return write_video(tmp_path_factory.mktemp("clip") / "a.mkv", [shades], size, recipe=None, lossless=True)


@pytest.mark.parametrize(
    ("first", "count", "expected"),
    [
        (0, None, range(40)),
        (0, 1, range(1)),
        (7, 20, range(7, 27)),
        (39, None, range(39, 40)),
        (-5, None, range(35, 40)),
        (-40, 2, range(2)),
        (-24, 24, range(16, 40)),
    ],
)
def test_a_part_of_a_clip(clip: Path, first: int, count: int | None, expected: range) -> None:
    size, pixels = read_all(clip, first=first, count=count)
    assert size == VideoSize(64, 64, len(expected), Fraction(24))
    assert pixels[:, 5, 5, 0].tolist() == list(expected)


@pytest.mark.parametrize(("first", "count"), [(0, 41), (-41, None), (-5, 6), (40, None), (30, 11), (0, 0)])
def test_a_part_that_is_not_there(clip: Path, first: int, count: int | None) -> None:
    with pytest.raises(InputError, match="40 frames, fewer than are needed"):
        read_video(clip, first=first, count=count)


def test_a_part_at_another_frame_rate(clip: Path) -> None:
    """The part is of the frames that are given, not of those in the file."""
    size, pixels = read_all(clip, fps=Fraction(12), first=-4)
    assert size.num_frames == 4 and (pixels[:, 5, 5, 0].diff() == 2).all()


@pytest.mark.parametrize(
    "name",
    ["a.png", "a.jpg", "a.webp", "a.bmp", "a.tif", "grey.png", "p.png", "p.gif", "16.png", "16grey.png", "a.la.png"],
)
def test_pictures_of_every_kind(tmp_path: Path, name: str) -> None:
    smooth = torch.linspace(0, 240, 64).round().byte()[None, :, None].expand(48, 64, 3).contiguous()
    path = tmp_path / name
    image = Image.frombytes("RGB", (64, 48), smooth.numpy().tobytes())
    if name.startswith("16"):
        pixel = "gray16be" if "grey" in name else "rgb48be"
        image.save(tmp_path / "8.png")
        make(path, "-i", str(tmp_path / "8.png"), "-pix_fmt", pixel, "-update", "1")
    else:
        mode = {"grey": "L"}.get(path.stem, "LA" if ".la." in name else "RGB")
        image = image.quantize(256) if path.stem == "p" else image.convert(mode)
        image.save(path, **({"quality": 95} if path.suffix in (".jpg", ".webp") else {}))
    frame = read_picture(path, width=64, height=48)
    assert (frame.int() - smooth.int()).abs().max() <= (12 if path.stem == "p" else 4)


def test_a_picture_is_turned_and_laid_on_white(tmp_path: Path) -> None:
    pixels = torch.zeros(48, 64, 4, dtype=torch.uint8)
    pixels[:24] = torch.tensor([254, 0, 0, 255])  # above red, below transparent
    image, exif = Image.frombytes("RGBA", (64, 48), pixels.numpy().tobytes()), Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees with the clock
    image.save(tmp_path / "a.png", exif=exif.tobytes())
    assert picture_size(tmp_path / "a.png") == VideoSize(48, 64, 1, Fraction(25))
    frame = read_picture(tmp_path / "a.png", width=48, height=64).float()
    assert near(frame[32, 44], RED) and near(frame[32, 4], torch.full((3,), 255.0))


def test_thin_pictures(tmp_path: Path) -> None:
    thin = png(tmp_path / "a.png", NOISE[:, :1])
    assert torch.equal(read_picture(thin, width=1, height=48), NOISE[:, :1])
    for fit in ("crop", "pad", "stretch"):
        assert read_picture(thin, width=64, height=64, fit=fit).shape == (64, 64, 3)  # type: ignore[arg-type]
    wide = png(tmp_path / "b.png", NOISE[:1].expand(1, 64, 3))
    assert read_picture(wide, width=64, height=64, fit="pad").shape == (64, 64, 3)


@pytest.mark.parametrize("name", ["a.gif", "a.apng"])
def test_the_first_frame_of_an_animated_picture(tmp_path: Path, name: str) -> None:
    path = make(tmp_path / name, "-f", "lavfi", "-i", "color=red:s=64x48:r=8:d=0.5,fade=out:0:4:color=blue")
    assert near(read_picture(path, width=64, height=48)[20, 20].float(), RED)


def test_a_video_is_no_picture(tmp_path: Path) -> None:
    path = make(tmp_path / "a.mp4", *source(fps="8"))
    with pytest.raises(InputError, match="a video of 8 frames where a picture is needed") as caught:
        read_picture(path, width=64, height=64)
    assert "soragen extend" in (caught.value.hint or "")
    (tmp_path / "text.png").write_text("hello\n" * 20)
    with pytest.raises(InputError, match="not a readable"):
        read_picture(tmp_path / "text.png", width=64, height=64)
