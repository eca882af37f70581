"""Trains pocket's transformer with one, four and sixteen times the compute and shows what that buys.

    python docs/scaling.py RUN docs/scaling.png [--minutes 2 8 32]

Three trainings from nothing with the recipe as it stands, on the data of RUN, on one core, each with its own schedule
from start to end; then RUN's own transformer as the last point. Above: the held-out loss, at high noise with right and
with shuffled captions and at low noise, against compute, both axes logarithmic. Below: the same prompts with the same
seeds at each budget, nothing chosen. Trainings go on in RUN/scaling where they were stopped, and are not done again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch.utils.flop_counter import FlopCounterMode

from soragen.families.pocket.transformer import PocketTransformer
from training import export, transformer
from training.pool import Pool
from training.sample import decode, generate, load_model
from training.text import Reader, embed, load_encoder
from training.transformer import Clock

PROMPTS = [
    "a red ball bouncing on green grass at sunset",
    "a blue car driving to the right through the desert",
    "a white boat on the ocean at night, the camera zooms in",
    "a yellow house on snow on a cloudy day, the camera orbits around it",
]
NUM_FRAMES = 4
WIDTH, HEIGHT, MARGIN, LEGEND = 1400, 460, 70, 380
INK, FAINT = "#222222", "#dddddd"
CURVES = {
    "detail": ("noise 0.1 to 0.5, right captions", "#3a8f5c"),
    "shuffled": ("noise 0.6 to 0.98, captions of other scenes", "#c8553d"),
    "right": ("noise 0.6 to 0.98, right captions", "#1f6fb4"),
}
NUM_BATCHES = 16


@dataclass(frozen=True)
class Point:
    """One training: floating-point operations of its matrix products, minutes, samples, held-out losses."""

    name: str
    flops: float
    minutes: float
    samples: int
    losses: dict[str, float]


def train(run: Path, minutes: float) -> Path:
    """A training of `minutes` from nothing in a folder of its own, on the data of `run`."""
    folder = run / "scaling" / f"{minutes:g}"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("latents", "held_out_latents", "text", "vae", "upscaler"):
        if (run / name).exists() and not (folder / name).exists():
            (folder / name).symlink_to((run / name).resolve())
    state = folder / "transformer" / "state.pt"
    if not state.exists() or torch.load(state, weights_only=True)["seconds"] < minutes * 60:
        transformer.main([str(folder), "--minutes", str(minutes)])
    return folder


def measure(run: Path, name: str) -> Point:
    """What the training in `run` spent and reached."""
    state = torch.load(run / "transformer" / "state.pt", weights_only=True)
    config = json.loads((run / "transformer" / "config.json").read_text())
    config.pop("_class_name")
    network = PocketTransformer(transformer.TransformerConfig(**config))
    network.load_state_dict(state["average"])
    held_out = Pool(run / "held_out_latents")
    held_out.refresh()
    read = load_encoder(run)
    losses = transformer.evaluate(network, held_out, Clock(network.config, "cpu"), read, "cpu", NUM_BATCHES)
    flops = state["step"] * count_flops(network, held_out, read)
    return Point(name, flops, state["seconds"] / 60, state["seen"], losses)


def count_flops(network: PocketTransformer, pool: Pool, read: Reader) -> int:
    """Floating-point operations of the matrix products of one training step on whole clips, forward and backward."""
    frames = slice(0, transformer.CLIP_LATENT_FRAMES)
    latents, mask, scenes = pool.draw(random.Random(0), "clips", frames, transformer.TOKENS_PER_STEP)
    sigma, free = torch.linspace(0.6, 1, len(latents)), torch.ones(latents.shape[0], latents.shape[2])
    context = embed(read, [scene.subject for scene in scenes], "cpu")
    with FlopCounterMode(display=False) as counter:
        positions = Clock(network.config, "cpu")(latents)
        noise = torch.randn_like(latents)
        transformer.flow_loss(network, latents, mask, sigma, noise, free, positions, context).mean().backward()
    return counter.get_total_flops()


def plot(points: list[Point]) -> Image.Image:
    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(14)
    losses = [loss for point in points for loss in point.losses.values()]
    ends_x = math.log10(min(p.flops for p in points)) - 0.15, math.log10(max(p.flops for p in points)) + 0.3
    ends_y = math.log10(min(losses)) - 0.05, math.log10(max(losses)) + 0.05

    def place(flops: float, loss: float) -> tuple[float, float]:
        x = (math.log10(flops) - ends_x[0]) / (ends_x[1] - ends_x[0])
        y = (math.log10(loss) - ends_y[0]) / (ends_y[1] - ends_y[0])
        return MARGIN + x * (WIDTH - MARGIN - LEGEND), HEIGHT - MARGIN - y * (HEIGHT - 1.6 * MARGIN)

    for power in range(math.ceil(ends_x[0]), math.floor(ends_x[1]) + 1):
        x = place(10.0**power, 1)[0]
        draw.line([(x, 0.6 * MARGIN), (x, HEIGHT - MARGIN)], FAINT)
        draw.text((x, HEIGHT - MARGIN + 6), f"1e{power}", INK, font, anchor="ma")
    for loss in (0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6):
        if ends_y[0] < math.log10(loss) < ends_y[1]:
            y = place(10 ** ends_x[0], loss)[1]
            draw.line([(MARGIN, y), (WIDTH - LEGEND, y)], FAINT)
            draw.text((MARGIN - 6, y), f"{loss:.2f}", INK, font, anchor="rm")
    draw.text(
        ((MARGIN + WIDTH - LEGEND) / 2, HEIGHT - 18),
        "training compute, floating-point operations",
        INK,
        font,
        anchor="mm",
    )
    draw.text((MARGIN, 12), "held-out loss", INK, font)
    for kind, (words, colour) in CURVES.items():
        values = [point.losses[kind] for point in points]
        dots = [place(p.flops, value) for p, value in zip(points, values, strict=True)]
        draw.line(dots, colour, 2)
        for (x, y), value in zip(dots, values, strict=True):
            draw.ellipse((x - 4, y - 4, x + 4, y + 4), colour)
            draw.text((x + 7, y - 10), f"{value:.4f}", colour, font, anchor="lm")
        draw.text((WIDTH - LEGEND + 20, dots[-1][1]), words, colour, font, anchor="lm")
    for point in points:
        x = place(point.flops, 1)[0]
        draw.text((x, HEIGHT - MARGIN + 24), point.name, INK, font, anchor="ma")
    return picture


def strips(run: Path, seed: int) -> list[Image.Image]:
    """The first to the last frame of a clip of each prompt, made by the transformer of `run`."""
    checkpoint = run / "checkpoint"
    with contextlib.redirect_stdout(None):  # its table of files is of no use here
        export.main([str(run), str(checkpoint)])
    model = load_model(str(checkpoint), torch.device("cpu"))
    latents = generate(model, PROMPTS, [seed] * len(PROMPTS), model.checkpoint.defaults.num_steps)
    rows = []
    for video in decode(model.vae, latents):
        frames = video[torch.linspace(0, len(video) - 1, NUM_FRAMES).round().long()]
        rows.append(Image.fromarray(torch.cat(list(frames), dim=1).numpy()))
    shutil.rmtree(checkpoint)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--minutes", type=float, nargs="+", default=[2, 8, 32])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs = {f"{minutes:g} min": train(options.run, minutes) for minutes in options.minutes} | {"pocket": options.run}
    points = [measure(run, name) for name, run in runs.items()]
    print(f"| training | operations | minutes | samples | {' | '.join(words for words, _ in CURVES.values())} |")
    print("|---" * (4 + len(CURVES)) + "|")
    for p in points:
        cells = " | ".join(f"{p.losses[kind]:.4f}" for kind in CURVES)
        print(f"| {p.name} | {p.flops:.2e} | {p.minutes:.0f} | {p.samples} | {cells} |")

    columns = [strips(run, options.seed) for run in runs.values()]
    width, height = columns[0][0].size
    top, label = HEIGHT, 18
    sheet = Image.new("RGB", (len(columns) * (width + 8), top + label + len(PROMPTS) * (height + label)), "white")
    sheet.paste(plot(points), (0, 0))
    draw = ImageDraw.Draw(sheet)
    for i, (name, column) in enumerate(zip(runs, columns, strict=True)):
        draw.text((i * (width + 8) + 2, top), name, INK, ImageFont.load_default(14))
        for j, row in enumerate(column):
            sheet.paste(row, (i * (width + 8), top + label + j * (height + label)))
    for j, prompt in enumerate(PROMPTS):
        draw.text((2, top + label + j * (height + label) + height), prompt, INK, ImageFont.load_default(13))
    sheet.save(options.output, optimize=True)


if __name__ == "__main__":
    main()
