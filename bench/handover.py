"""Measures how visible the step from a source's frames to decoded ones is, without and with the handover.

    python bench/handover.py RUN --count 24

Held-out renders play both parts: the first half of each as it came, then the second half through the VAE alone, as the
best of all generators would give it. The step at the join is told in medians of the steps of the same clip as it came.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median

import torch
from given import held_out
from page import table
from torch import Tensor

from soragen.catalog import checkpoint_folder, find
from soragen.families import family_of
from soragen.models.family import Vae
from soragen.pipeline.handover import Join, hand_over

HALF = 13
FPS = 12.0


def step(frames: Tensor, at: int, usual: float) -> float:
    return float((frames[at] - frames[at - 1]).abs().mean()) / usual


def steps(frames: Tensor, vae: Vae) -> tuple[float, float, float]:
    """The step at the join of frames [T, H, W, 3] in 0..1: as they came, without the handover, and with it."""
    usual = max(1e-4, float(frames.diff(dim=0).abs().mean(dim=(1, 2, 3)).median()))
    decoded = torch.cat(list(vae.decode(vae.encode([frames]))))
    join = Join(decoded[HALF - 1], frames[HALF - 1])
    joined = torch.cat(list(hand_over([decoded[HALF:]], lambda: join, None, FPS)))
    halves = (frames[HALF:], decoded[HALF:], joined)
    cut, plain, handed = (step(torch.cat([frames[:HALF], half]), HALF, usual) for half in halves)
    return cut, plain, handed


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--count", type=int, default=24)
    options = parser.parse_args(arguments)
    checkpoint = find("pocket")
    vae = family_of(checkpoint).load_vae(checkpoint_folder(checkpoint), torch.device("cpu"), torch.float32)
    clips = [clip.frames.float() / 255 for clip in held_out(options.run, options.count)]
    found = [steps(frames, vae) for frames in clips]
    names = ("as it came", "without", "with the handover")
    rows = [
        [name, f"{median(values):.2f}", f"{max(values):.2f}"]
        for name, values in zip(names, zip(*found, strict=True), strict=True)
    ]
    print(table(("step at the join, in usual steps", "median", "worst"), rows))


if __name__ == "__main__":
    main()
