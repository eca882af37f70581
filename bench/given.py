"""The clips that the verbs are tried on: renders that training never sees, and pictures that ffmpeg makes by itself."""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

from soragen.size import VideoSize
from soragen.video.ffmpeg import find_ffmpeg
from soragen.video.read import read_video
from soragen.video.write import write_video
from training.clips import CLIP_FRAMES, FPS, read_shard
from training.world.captions import describe
from training.world.scene import ATTRIBUTES, TIMES, Scene

SIDE = 128
MADE = {
    "testsrc2": "testsrc2",
    "mandelbrot": "mandelbrot=start_scale=0.5:end_scale=0.05:end_pts=60",
    "life": "life=mold=10:ratio=0.2:life_color=#ffd060:death_color=#204080:random_seed=1",
}
"""Sources of ffmpeg: sharp figures that slide and jump, a slow zoom, and cells that flicker."""


@dataclass(frozen=True, eq=False)
class Clip:
    """frames: uint8 [25, 128, 128, 3] at 12 a second. scene: of a render, else None."""

    name: str
    frames: Tensor
    scene: Scene | None = None

    @property
    def prompt(self) -> str:
        return "" if self.scene is None else sentence(self.scene)


def sentence(scene: Scene) -> str:
    """A caption that names every attribute."""
    return describe(scene, random.Random(0), dict.fromkeys(ATTRIBUTES, True))


def other_time(scene: Scene) -> Scene:
    """The same scene at another time of day."""
    return replace(scene, time=TIMES[(TIMES.index(scene.time) + 2) % len(TIMES)])


def held_out(run: Path, count: int) -> list[Clip]:
    """`count` renders of RUN/held_out, of all its subjects in turn; fewer where there are not so many."""
    shards = [read_shard(path) for path in sorted((run / "held_out").glob(f"clips-{SIDE}x{SIDE}x{CLIP_FRAMES}-*"))]
    if not shards:
        sys.exit(f"no clips in {run / 'held_out'}: python -m training.clips RUN --area {SIDE} --clips 56 --held-out")
    most = max(len(scenes) for _, scenes in shards)
    clips = [
        Clip(f"render {row}.{number}", tensors["frames"][row], scenes[row])
        for row in range(most) for number, (tensors, scenes) in enumerate(shards) if row < len(scenes)
    ]  # fmt: skip
    if len(clips) < count:
        print(f"{len(clips)} held-out renders, not {count}", file=sys.stderr)
    return clips[:count]


def made() -> list[Clip]:
    """A clip of each of ffmpeg's sources."""
    clips = []
    for name, source in MADE.items():
        sides = f"{'=' if '=' not in source else ':'}size={SIDE}x{SIDE}:rate={FPS}"
        done = subprocess.run(
            [find_ffmpeg(), "-v", "error", "-f", "lavfi", "-i", source + sides, "-frames:v", str(CLIP_FRAMES),
             "-f", "rawvideo", "-pix_fmt", "rgb24", "-"],
            capture_output=True, check=True,
        )  # fmt: skip
        frames = torch.frombuffer(bytearray(done.stdout), dtype=torch.uint8)
        clips.append(Clip(name, frames.view(CLIP_FRAMES, SIDE, SIDE, 3)))
    return clips


def write(path: Path, frames: Tensor) -> Path:
    """Frames uint8 [T, H, W, 3] in a file that holds them exactly: .mkv, or .png of one frame."""
    size = VideoSize(frames.shape[2], frames.shape[1], len(frames), Fraction(FPS))
    return write_video(path, [frames], size, recipe=None, lossless=path.suffix == ".mkv", overwrite=True)


def read(path: Path) -> Tensor:
    return torch.cat(list(read_video(path)[1]))
