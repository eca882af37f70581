"""Contact sheet of random clips: python -m training.world SHEET.png"""

from __future__ import annotations

import argparse
import math
import random
import textwrap
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image, ImageDraw

from .captions import caption
from .render import render
from .scene import ATTRIBUTES, WEATHERS, Scene, sample_scene


def clip_row(scene: Scene, text: str, width: int, height: int, frames: int, seconds: float) -> Image.Image:
    """Frames of one clip from left to right, the caption under them."""
    fps = frames / seconds
    pixels, _ = render([scene], width=width, height=height, num_frames=frames, fps=fps)
    strip = np.concatenate(list(pixels[0].numpy()), axis=1)
    lines = textwrap.wrap(text, max(strip.shape[1] // 6, 10))[:2]
    row = Image.new("RGB", (strip.shape[1], height + 26), "white")
    row.paste(Image.fromarray(strip), (0, 0))
    ImageDraw.Draw(row).text((2, height + 1), "\n".join(lines), fill="black", spacing=1)
    return row


def sheet(rows: Sequence[Image.Image], gap: int = 6) -> Image.Image:
    """Lay the rows out in as many columns as make the sheet roughly square."""
    w, h = rows[0].width + gap, rows[0].height + gap
    columns = min(max(round(math.sqrt(len(rows) * h / w)), 1), len(rows))
    lines = math.ceil(len(rows) / columns)
    out = Image.new("RGB", (columns * w, lines * h), "white")
    for i, row in enumerate(rows):
        out.paste(row, ((i // lines) * w, (i % lines) * h))
    return out


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m training.world", description=__doc__)
    parser.add_argument("sheet", help="PNG file to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=24, help="clips")
    parser.add_argument("--frames", type=int, default=4, help="frames shown of each clip")
    parser.add_argument("--seconds", type=float, default=2.0, help="time that the shown frames span")
    parser.add_argument("--size", default="128x128", help="WIDTHxHEIGHT of a frame")
    known = ATTRIBUTES | {"weather": WEATHERS}
    for name, values in known.items():
        parser.add_argument(f"--{name}", choices=values, help="the same for every clip")
    args = parser.parse_args(argv)
    width, height = (int(n) for n in args.size.split("x"))
    rng = random.Random(args.seed)
    rows = []
    for _ in range(args.count):
        fixed = {name: getattr(args, name) for name in known if getattr(args, name)}
        scene = replace(sample_scene(rng), **fixed)
        rows.append(clip_row(scene, caption(scene, rng), width, height, args.frames, args.seconds))
    sheet(rows).save(args.sheet)


if __name__ == "__main__":
    main()
