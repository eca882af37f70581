"""Makes videos of prompts with the shipped command's own engine and lays them on one contact sheet.

    python docs/pocket_sheet.py docs/pocket.png [--model FOLDER] [--gif docs/pocket.gif] [--probe RUN]

With `--probe` it also prints what the probe of a training run sees in each video; the probe is not told the prompt.
One row a prompt: the seed is 0 for the first prompt, 1 for the second, and so on; no video is chosen or left out.
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
from training.probe import answers, load_probe
from training.views import view
from training.world.scene import ATTRIBUTES

PROMPTS = Path(__file__).parents[1] / "training" / "prompts.txt"


def make_video(prompt: str, seed: int, model: str, size: str, steps: int | None, folder: Path) -> Tensor:
    """Frames uint8 [T, H, W, 3] of one prompt."""
    request = resolve(prompt, listen=lambda event: None, model=model, size=size, seed=seed, steps=steps)
    result = generate(request, folder / f"{seed}.mp4", listen=lambda event: None)
    return torch.cat(list(read_video(result.path)[1]))


def seen(run: Path, video: Tensor) -> str:
    """What the probe sees in frames uint8 [24 or 25, H, W, 3]; the last one is held where there are 24."""
    held = torch.cat([video, video[-1:]])[:25]
    (found,) = answers(load_probe(run), view(held[None])).tolist()
    return ", ".join(values[i] for values, i in zip(ATTRIBUTES.values(), found, strict=True))


def contact_sheet(videos: list[Tensor], prompts: list[str], num_frames: int, columns: int) -> Image.Image:
    """One cell a video: `num_frames` of its frames in a row and its prompt below."""
    height, width = videos[0].shape[1:3]
    cell_width, cell_height = width * num_frames + 8, height + 18
    rows = -(-len(videos) // columns)
    sheet = Image.new("RGB", (cell_width * columns, cell_height * rows), "white")
    draw = ImageDraw.Draw(sheet)
    for n, (video, prompt) in enumerate(zip(videos, prompts, strict=True)):
        left, top = (n % columns) * cell_width, (n // columns) * cell_height
        for i in range(num_frames):
            frame = video[round(i * (len(video) - 1) / max(1, num_frames - 1))]
            sheet.paste(Image.fromarray(frame.numpy()), (left + i * width, top))
        draw.text((left + 2, top + height + 3), prompt, fill="black")
    return sheet


def preview(videos: list[Tensor], columns: int) -> list[Image.Image]:
    """The videos side by side, frame by frame."""
    height, width = videos[0].shape[1:3]
    frames = []
    for t in range(min(len(video) for video in videos)):
        picture = Image.new("RGB", (width * columns, height * -(-len(videos) // columns)), "white")
        for n, video in enumerate(videos):
            picture.paste(Image.fromarray(video[t].numpy()), ((n % columns) * width, (n // columns) * height))
        frames.append(picture)
    return frames


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sheet", type=Path)
    parser.add_argument("--gif", type=Path)
    parser.add_argument("--probe", type=Path, metavar="RUN")
    parser.add_argument("--gif-rows", type=int, nargs="*", default=[0, 2, 3, 5, 6, 17])
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--size", default="128x128")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--prompts", type=Path, default=PROMPTS)
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--columns", type=int, default=2)
    options = parser.parse_args(arguments)
    prompts = options.prompts.read_text(encoding="utf-8").splitlines()
    with tempfile.TemporaryDirectory() as folder:
        videos = [
            make_video(prompt, seed, options.model, options.size, options.steps, Path(folder))
            for seed, prompt in enumerate(prompts)
        ]
    if options.probe:
        for prompt, video in zip(prompts, videos, strict=True):
            print(f"{seen(options.probe, video)} | {prompt}")
    contact_sheet(videos, prompts, options.frames, options.columns).save(options.sheet, optimize=True)
    if options.gif:
        frames = preview([videos[row] for row in options.gif_rows], 3)
        frames[0].save(options.gif, save_all=True, append_images=frames[1:], duration=1000 // 12, loop=0, optimize=True)


if __name__ == "__main__":
    main()
