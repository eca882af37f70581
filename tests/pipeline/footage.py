"""Clips and pictures for verbs: something that moves, of any size, length and rate, stored exactly."""

from __future__ import annotations

import subprocess
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

from soragen.size import VideoSize
from soragen.video.ffmpeg import find_ffmpeg
from soragen.video.read import read_video
from soragen.video.write import write_video


def moving(num_frames: int, width: int, height: int, shade: int = 0) -> Tensor:
    """Frames [T, H, W, 3] uint8 of slanted stripes that move; each frame differs from all others nearby."""
    t, y, x = torch.meshgrid(torch.arange(num_frames), torch.arange(height), torch.arange(width), indexing="ij")
    wave = 100 * torch.sin((x + 2 * y - 3 * t) / 9)
    return torch.stack([120 + wave, 60 + shade + wave / 3, 200 - shade - wave / 2], dim=-1).round().byte()


def film(path: str, num_frames: int = 9, width: int = 64, height: int = 48, fps: str = "12", shade: int = 0) -> Path:
    """A clip; exact where `path` is .mkv."""
    size = VideoSize(width, height, num_frames, Fraction(fps))
    frames = moving(num_frames, width, height, shade)
    exact = Path(path).suffix == ".mkv"
    return write_video(Path(path), [frames], size, recipe=None, lossless=exact, overwrite=True)


def picture(path: str, width: int = 128, height: int = 128, shade: int = 0) -> Path:
    size = VideoSize(width, height, 1, Fraction(1))
    return write_video(Path(path), [moving(1, width, height, shade)], size, recipe=None, overwrite=True)


def sounding(path: str, num_frames: int = 12) -> Path:
    """A clip of 64x48 at 12 fps with a tone."""
    length = str(num_frames / 12)
    tone = ["-f", "lavfi", "-i", f"testsrc=s=64x48:r=12:d={length}", "-f", "lavfi", "-i", f"sine=f=440:d={length}"]
    return _make(path, *tone, "-c:a", "aac")


def uneven(path: str) -> Path:
    """A clip whose frames do not last equally long."""
    return _make(path, "-f", "lavfi", "-i", "testsrc=s=64x48:r=12:d=1", "-vf", "setpts='N*N/40/TB'", "-fps_mode", "vfr")


def _make(path: str, *arguments: str) -> Path:
    subprocess.run([find_ffmpeg(), "-loglevel", "error", "-y", *arguments, path], check=True)
    return Path(path)


def read(path: Path | str, **options: object) -> Tensor:
    """All frames [T, H, W, 3] uint8."""
    return torch.cat(list(read_video(Path(path), **options)[1]))  # type: ignore[arg-type]
