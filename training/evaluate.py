"""Scores what pocket generates: does a clip show what its caption asks for, in the eyes of the probe?

    python -m training.evaluate RUN [--model FOLDER] [--prompts training/freeform.jsonl] [--steps 8]
    python -m training.evaluate RUN --continue --count 100

Prints a table of how often each attribute is right: of generated clips, of renders of the same captions (what the probe
can see at best) and of the generated clips against the captions of the others (what guessing gets). RUN/scores holds
the same as JSON with the answer for every clip, and a sheet of the first clips with what is wrong with each. Clip i is
made with seed i, at the native size.

With `--continue` every clip goes on from the first five frames of a held-out render; those frames must come back.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import time
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from torch import Tensor

from soragen.diffusion.grid import Grid
from soragen.models.device import pick_device
from training.probe import answers, load_probe
from training.prompts import HELD_OUT, Prompt, read_prompts
from training.sample import Model, continue_renders, decode, generate, load_model, render_one
from training.views import FRAMES, STRIDE, shrink, view
from training.world.__main__ import sheet
from training.world.scene import ATTRIBUTES, Scene

GOALS = {"subject": 0.85, "colour": 0.9, "motion": 0.75, "ground": 0.95, "time": 0.95, "camera": 0.75, "all": 0.5}
CONTINUED_GOALS = {"subject": 0.85, "motion": 0.85}
SHOWN = 48
Row = dict[str, float]


def real_views(scenes: list[Scene], grid: Grid, cache: Path) -> Tensor:
    """What the probe sees of a render of each scene, uint8 [n, 7, 3, 64, 64]; kept in `cache`, one file a scene.

    Delete that folder when the world has changed.
    """
    cache.mkdir(parents=True, exist_ok=True)
    views = []
    for scene in scenes:
        key = hashlib.sha256(f"{scene} {grid.width}x{grid.height}".encode()).hexdigest()[:16]
        path = cache / f"{key}.safetensors"
        if not path.exists():
            frames = render_one(scene, grid, FRAMES, float(grid.fps) / STRIDE)
            save_file({"view": shrink(frames)}, path.with_suffix(".part"))
            path.with_suffix(".part").rename(path)
        views.append(load_file(path)["view"])
    return torch.cat(views)


def asked_of(prompts: list[Prompt]) -> Tensor:
    """Index of each attribute that is asked for [n, 6], -1 where the caption leaves it open."""
    return torch.tensor(
        [
            [values.index(asked) if (asked := prompt.attributes[name]) else -1 for name, values in ATTRIBUTES.items()]
            for prompt in prompts
        ]
    )


def score(seen: Tensor, asked: Tensor) -> Row:
    """Share of right answers [n, 6] among those that were asked for, of each attribute and of all at once."""
    counts = asked >= 0
    right = (seen == asked) & counts
    shares = zip(ATTRIBUTES, right.sum(0).tolist(), counts.sum(0).tolist(), strict=True)
    return {name: hits / count for name, hits, count in shares if count} | {
        "all": float((right | ~counts).all(1).float().mean())
    }


def score_mismatched(seen: Tensor, asked: Tensor) -> Row:
    """The mean score against the captions of all other clips: what one gets without reading. Two clips at least."""
    rows = [score(seen, asked.roll(shift, 0)) for shift in range(1, len(asked))]
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def score_values(seen: Tensor, asked: Tensor) -> dict[str, str]:
    """Of each attribute, the share of right answers for every value that is asked for, as a line."""
    lines = {}
    for (name, values), saw, wanted in zip(ATTRIBUTES.items(), seen.T, asked.T, strict=True):
        shares = ((value, saw[wanted == i] == i) for i, value in enumerate(values))
        lines[name] = ", ".join(f"{value} {right.float().mean():.2f}" for value, right in shares if len(right))
    return lines


def to_markdown(rows: dict[str, Row]) -> str:
    lines = ["| | " + " | ".join(GOALS) + " |", "|---" * (len(GOALS) + 1) + "|"]
    for row, values in rows.items():
        lines.append(f"| {row} | " + " | ".join(f"{values[n]:.3f}" if n in values else "" for n in GOALS) + " |")
    return "\n".join(lines)


def verdict(seen: list[str], prompt: Prompt) -> str:
    """What a clip shows in place of what was asked for, then the caption."""
    wrong = [f"{value}!" for value, (name, asked) in zip(seen, prompt.attributes.items(), strict=True)
             if asked not in (None, value)]  # fmt: skip
    return " ".join([*wrong, prompt.caption])


def strip(clip: Tensor, text: str) -> Image.Image:
    """What the probe sees of a clip, uint8 [7, 3, 64, 64], from left to right, and a line below."""
    pixels = clip.permute(2, 0, 3, 1).flatten(1, 2)  #                   [64, 7*64, 3]
    row = Image.new("RGB", (pixels.shape[1], pixels.shape[0] + 14), "white")
    row.paste(Image.fromarray(pixels.numpy()), (0, 0))
    ImageDraw.Draw(row).text((2, pixels.shape[0] + 1), text[: pixels.shape[1] // 6], fill="black")
    return row


def make_views(
    model: Model, prompts: list[Prompt], scenes: list[Scene], num_steps: int, batch: int, continuing: bool
) -> tuple[Tensor, list[float]]:
    """What the probe sees of the generated clips, uint8 [n, 7, 3, 64, 64], and decibels of frames that were given."""
    views, decibels, began = [], [], time.time()
    for start in range(0, len(prompts), batch):
        stop = min(start + batch, len(prompts))
        captions, seeds = [prompt.caption for prompt in prompts[start:stop]], range(start, stop)
        if continuing:
            frames, kept = continue_renders(model, captions, scenes[start:stop], seeds, num_steps)
            decibels += kept
        else:
            frames = decode(model.vae, generate(model, captions, seeds, num_steps))
        views.append(view(frames))
        print(f"{stop}/{len(prompts)} {(time.time() - began) / stop:.2f} s a clip", flush=True)
    return torch.cat(views), decibels


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--model", default="pocket", help="a folder that training.export wrote, or a name")
    parser.add_argument("--prompts", type=Path, default=HELD_OUT)
    parser.add_argument("--count", type=int, help="the first so many prompts")
    parser.add_argument("--steps", type=int, help="the model's default unless given")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--continue", action="store_true", dest="continuing")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    device = pick_device(options.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    prompts = read_prompts(options.prompts)
    if options.continuing:
        prompts = [prompt for prompt in prompts if all(prompt.attributes[name] for name in CONTINUED_GOALS)]
    prompts = prompts[: options.count]
    if len(prompts) < 2:
        parser.error("two prompts are needed, to compare with mismatched ones")
    scenes = [prompt.scene(random.Random(prompt.caption)) for prompt in prompts]
    model, probe = load_model(options.model, device), load_probe(options.run, options.device)
    num_steps = options.steps or model.checkpoint.defaults.num_steps

    folder, kind = options.run / "scores", "continued" if options.continuing else "generated"
    views, decibels = make_views(model, prompts, scenes, num_steps, options.batch, options.continuing)
    seen, asked = answers(probe, views), asked_of(prompts)
    real = answers(probe, real_views(scenes, model.grid, folder / "real"))
    table = {
        kind: score(seen, asked), "real renders": score(real, asked), "mismatched": score_mismatched(seen, asked),
        "goal": CONTINUED_GOALS if options.continuing else GOALS,
    }  # fmt: skip
    print(to_markdown(table))
    for attribute, line in score_values(seen, asked).items():
        print(f"{attribute}: {line}")
    if decibels:
        print(f"given frames against their VAE round trip: {min(decibels):.1f} dB at worst")

    shown = [[values[i] for values, i in zip(ATTRIBUTES.values(), row, strict=True)] for row in seen.tolist()]
    report = {
        "model": model.checkpoint.name, "sha256": model.checkpoint.digest, "prompts": options.prompts.name,
        "num_steps": num_steps, "count": len(prompts), "table": table, "decibels": decibels,
        "clips": [{"caption": p.caption, "asked": p.attributes, "seen": dict(zip(ATTRIBUTES, row, strict=True))}
                  for p, row in zip(prompts, shown, strict=True)],
    }  # fmt: skip
    name = f"{kind}-{options.prompts.stem}-{len(prompts)}-{num_steps}steps-{model.checkpoint.digest[:8]}"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    rows = [strip(clip, verdict(row, prompt)) for clip, row, prompt in zip(views, shown, prompts, strict=True)]
    sheet(rows[:SHOWN]).save(folder / f"{name}.png", optimize=True)
    print(folder / f"{name}.json")


if __name__ == "__main__":
    main()
