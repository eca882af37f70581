"""Measures how visible the step from a source's frames to decoded ones is, and whether the movement goes on across it,
without and with the handover.

    python bench/handover.py RUN --count 24

Held-out renders play both parts: the first half of each as it came, then the second half through the VAE alone, as the
best of all generators would give it. The step at the join is told in medians of the steps of the same clip as it came;
movement across it in medians of that of the eight steps around it (`bench/verbs.py`).
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from statistics import median

import torch
from given import held_out
from page import table
from torch import Tensor
from verbs import join_movement

from soragen.catalog import checkpoint_folder, find
from soragen.families import family_of
from soragen.models.family import Vae
from soragen.pipeline.handover import Join, hand_over
from soragen.video.motion import difference, differences
from soragen.video.write import to_uint8

HALF = 13
FPS = 12.0


def joined(frames: Tensor, vae: Vae) -> dict[str, Tensor]:
    """Frames [T, H, W, 3] in 0..1, whose second half is as it came, decoded, and handed over to."""
    decoded = torch.cat(list(vae.decode(vae.encode([frames]))))
    join = Join.of(decoded[HALF - 1], frames[HALF - 1], frames[HALF - 2])
    handed = torch.cat(list(hand_over([decoded[HALF:]], lambda: join, None, FPS)))
    halves = {"as it came": frames[HALF:], "without": decoded[HALF:], "with the handover": handed}
    return {name: to_uint8(torch.cat([frames[:HALF], half])) for name, half in halves.items()}


def step(frames: Tensor, usual: float) -> float:
    return difference(frames[HALF - 1], frames[HALF]) / usual


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--count", type=int, default=24)
    options = parser.parse_args(arguments)
    checkpoint = find("pocket")
    vae = family_of(checkpoint).load_vae(checkpoint_folder(checkpoint), torch.device("cpu"), torch.float32)
    clips = [clip.frames.float() / 255 for clip in held_out(options.run, options.count)]
    steps, moves = defaultdict[str, list[float]](list), defaultdict[str, list[float]](list)
    for frames in clips:
        videos = joined(frames, vae)
        usual = max(1e-4, median(differences([videos["as it came"]])))
        for name, video in videos.items():
            steps[name].append(step(video, usual))
            moves[name].append(join_movement(video, HALF))
    rows = [
        [name, f"{median(steps[name]):.2f}", f"{max(steps[name]):.2f}", f"{median(moves[name]):.2f}"] for name in steps
    ]
    print(table(("second half", "step, median", "step, worst", "movement across / around, median"), rows))


if __name__ == "__main__":
    main()
