"""Measures the steps from frame to frame where latent frames meet and inside of them, apart and joined.

    python bench/steps.py RUN --count 12

Of renders that training never sees, as they came and through pocket's VAE alone, and of clips that pocket makes of
held-out captions. Drawn is the detail and movement that the transformer draws, told what its refiner makes of it
(`soragen.families.pocket.refiner`). Apart is what the decoder gives, joined what `soragen.families.pocket.vae.follow`
makes of it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from given import held_out
from page import table
from torch import Tensor

from soragen.catalog import find
from soragen.families.pocket.vae import GROUP
from training.prompts import HELD_OUT, read_prompts
from training.sample import Model, generate, load_model
from training.vae import psnr

BATCH = 4


def steps(frames: Tensor) -> tuple[float, float]:
    """The mean step of 255 where groups meet, but for the first frame's, and inside of them; frames [T, H, W, 3]."""
    size = 255 * frames.diff(dim=0).abs().mean(dim=(1, 2, 3))[GROUP:]
    meet = torch.arange(len(size)) % GROUP == 0
    return float(size[meet].mean()), float(size[~meet].mean())


@torch.inference_mode()
def decoded(model: Model, latents: Tensor) -> dict[str, Tensor]:
    """Frames [T, H, W, 3] of one clip, in 0..1."""
    return {
        "apart": torch.cat(list(model.vae.decode_apart(latents))), "joined": torch.cat(list(model.vae.decode(latents)))
    }  # fmt: skip


def row(name: str, clips: list[Tensor], truth: list[Tensor] | None = None) -> list[str]:
    meet, inside = torch.tensor([steps(clip) for clip in clips]).mean(dim=0).tolist()
    quality = "" if truth is None else f"{psnr(torch.stack(clips) - torch.stack(truth)):.2f}"
    return [name, f"{meet:.2f}", f"{inside:.2f}", f"{meet / inside:.2f}", quality]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--count", type=int, default=12)
    parser.add_argument("--model", default="pocket")
    options = parser.parse_args(arguments)
    model = load_model(options.model, torch.device("cpu"))
    num_steps = find(options.model).defaults.num_steps
    real = [clip.frames.float() / 255 for clip in held_out(options.run, options.count)]
    captions = [prompt.caption for prompt in read_prompts(HELD_OUT)[: options.count]]
    refiner, model.transformer.refiner = model.transformer.refiner, None
    drawn: list[Tensor] = []
    for start in range(0, len(captions), BATCH):
        part = captions[start : start + BATCH]
        drawn += generate(model, part, range(start, start + len(part)), num_steps).split(1)
    model.transformer.refiner = refiner
    rows, encoded = [row("renders", real)], [model.vae.encode([clip]) for clip in real]
    for what, videos, truth in (("renders through the VAE", encoded, real), ("generated", drawn, None)):
        told = [
            model.transformer.refine(latents.clone(), torch.ones(latents.shape[2], dtype=torch.bool))
            for latents in videos
        ]
        for whose, movement in (("drawn" if truth is None else "true", videos), ("told", told)):
            clips = [decoded(model, latents) for latents in movement]
            rows += [row(f"{what}, {whose}, {how}", [clip[how] for clip in clips], truth) for how in clips[0]]
    print(table(["clips", "step between, of 255", "step inside", "between / inside", "dB"], rows))


if __name__ == "__main__":
    main()
