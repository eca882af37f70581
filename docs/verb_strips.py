"""Runs every verb once on clips that pocket makes itself, and lays a strip of each on one sheet.

    python docs/verb_strips.py docs/verbs.png [--model FOLDER]

The commands are those printed beside the strips; nothing is chosen: all seeds are 0.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from soragen.video.read import read_video

COMMANDS = (
    'generate "a red ball bouncing on green grass" -o ball.mp4',
    'generate "a blue boat sailing to the left on the ocean at sunset" -o boat.mp4',
    'image "a yellow duck on the ocean in daylight" -o duck.png',
    "extend ball.mp4 --seconds 2 -o longer.mp4",
    "extend boat.mp4 --seconds 2 --backward -o earlier.mp4",
    'loop "a green cube spinning on the checkerboard at noon" -o loop.mp4',
    "loop ball.mp4 -o endless.mp4",
    'animate duck.png "a yellow duck floating on the ocean" -o duck.mp4',
    'image "a yellow duck on the ocean at sunset" -o dusk.png',
    'animate duck.png "the sun sets" --last dusk.png -o evening.mp4',
    "connect ball.mp4 boat.mp4 -o both.mp4",
    'restyle boat.mp4 "a red boat on the ocean at night" -o night.mp4',
    "storyboard examples/storyboard.toml -o shots.mp4",
)
SIDE, FRAMES = 96, 12


@contextlib.contextmanager
def within(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def run(command: str, model: str) -> Path:
    """The file that the command wrote."""
    program = [sys.executable, "-m", "soragen", *shlex.split(command), "--seed", "0", "--model", model, "--quiet"]
    return Path(subprocess.run(program, check=True, capture_output=True, text=True).stdout.strip())


def strip(path: Path) -> Tensor:
    """`FRAMES` frames of a video in a row, evenly spaced, the first and the last among them; a picture once."""
    frames = torch.cat(list(read_video(path, width=SIDE, height=SIDE)[1]))
    places = torch.linspace(0, len(frames) - 1, min(FRAMES, len(frames))).round().long()
    return torch.cat(list(frames[places]), dim=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sheet", type=Path)
    parser.add_argument("--model", default="pocket")
    options = parser.parse_args()
    model = str(Path(options.model).resolve()) if Path(options.model).is_dir() else options.model
    sheet = Image.new("RGB", (SIDE * FRAMES, (SIDE + 18) * len(COMMANDS)), "white")
    draw = ImageDraw.Draw(sheet)
    examples = Path(__file__).resolve().parents[1] / "examples"
    with tempfile.TemporaryDirectory() as folder, within(Path(folder)):
        Path("examples").symlink_to(examples)
        for row, command in enumerate(COMMANDS):
            picture = Image.fromarray(strip(run(command, model)).numpy())
            sheet.paste(picture, (0, row * (SIDE + 18) + 16))
            draw.text((2, row * (SIDE + 18) + 3), f"soragen {command}", fill="black")
            print(f"{row + 1}/{len(COMMANDS)} {command}", file=sys.stderr, flush=True)
    sheet.save(options.sheet)


if __name__ == "__main__":
    main()
