"""Clips and pictures that ffmpeg makes of its own test pictures, and what they look like when they are read."""

from __future__ import annotations

import struct
import subprocess
import zlib
from pathlib import Path

import torch
from torch import Tensor

from soragen.size import VideoSize
from soragen.video.ffmpeg import find_ffmpeg
from soragen.video.read import read_video


def make(path: Path, *arguments: str) -> Path:
    """A file that ffmpeg makes of its own test pictures."""
    subprocess.run([find_ffmpeg(), "-loglevel", "error", "-y", *arguments, str(path)], check=True)
    return path


def source(size: str = "96x64", fps: str = "30", seconds: str = "1") -> list[str]:
    return ["-f", "lavfi", "-i", f"testsrc=s={size}:r={fps}:d={seconds}"]


def red_over_blue(path: Path, *arguments: str) -> Path:
    """A picture or video of 64x48, red above and blue below."""
    return make(path, "-f", "lavfi", "-i", "color=red:s=64x24:r=8:d=1,pad=64:48:0:0:blue", *arguments)


def png(path: Path, pixels: Tensor, *extra: tuple[bytes, bytes]) -> Path:
    """A PNG of [H, W, 3 or 4] uint8, with further chunks."""
    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + bytes(row.flatten().tolist()) for row in pixels)
    head = struct.pack(">IIBBBBB", width, height, 8, 6 if channels == 4 else 2, 0, 0, 0)
    chunks = [(b"IHDR", head), *extra, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    data = b"".join(
        struct.pack(">I", len(body)) + k + body + struct.pack(">I", zlib.crc32(k + body)) for k, body in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    return path


def read_all(path: Path, **options: object) -> tuple[VideoSize, Tensor]:
    size, frames = read_video(path, **options)  # type: ignore[arg-type]
    pixels = torch.cat(list(frames))
    assert pixels.shape == (size.num_frames, size.height, size.width, 3) and pixels.dtype == torch.uint8
    return size, pixels.float()


RED, BLUE = torch.tensor([254.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 254.0])


def near(pixel: Tensor, colour: Tensor) -> bool:
    return bool((pixel - colour).abs().max() <= 5)
