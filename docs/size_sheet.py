"""Makes one prompt in many shapes and lays the videos on one sheet: python docs/size_sheet.py docs/sizes.png

Four aspects of the area that pocket was trained on at one, two and four seconds, then twice that area as one grid
(`--direct`). Six frames of each, seed 0 throughout; nothing is chosen.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from soragen.pipeline.resolve import resolve
from soragen.pipeline.run import generate
from soragen.video.read import read_video

PROMPT = "a blue car driving through the desert under a clear blue sky"
SHAPES = [
    *((size, seconds, False) for size in ("128x128", "176x96", "96x176", "144x112") for seconds in ("1", "2", "4")),
    *((size, "2", True) for size in ("176x176", "240x128")),
]
NUM_FRAMES = 6


def make_video(size: str, seconds: str, direct: bool, file: Path) -> Tensor:
    """Frames uint8 [T, H, W, 3]."""
    request = resolve(PROMPT, listen=lambda event: None, size=size, seconds=seconds, seed=0, direct=direct)
    generate(request, file, lossless=True, overwrite=True, listen=lambda event: None)
    return torch.cat(list(read_video(file)[1]))


def strip(video: Tensor, words: str) -> Image.Image:
    """Frames from the first to the last, evenly, in a row; `words` below."""
    frames = video[torch.linspace(0, len(video) - 1, NUM_FRAMES).round().long()]
    row = torch.cat(list(frames), dim=1)
    picture = Image.new("RGB", (row.shape[1] + 8, row.shape[0] + 18), "white")
    picture.paste(Image.fromarray(row.numpy()), (0, 0))
    ImageDraw.Draw(picture).text((2, row.shape[0] + 3), words, fill="black")
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size, seconds, direct in SHAPES:
            video = make_video(size, seconds, direct, Path(folder) / "video.mkv")
            rows.append(strip(video, f"--size {size} --seconds {seconds}{' --direct' if direct else ''}"))
    sheet = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    sheet.save(options.output, optimize=True)


if __name__ == "__main__":
    main()
