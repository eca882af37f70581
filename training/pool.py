"""Latents on disk, and which of them a training step sees: images or clips, how long, and what of them is given."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from training.clips import read_shard
from training.world.scene import Scene

CLIP_LATENT_FRAMES = 7
KNOWN_FRAMES = 0.5


@dataclass
class Shard:
    """`latents` [n, z, T, h, w] and `mask` [n, T, h, w]; one entry of `scenes` for each.

    odds: how often each is drawn, against others.
    """

    latents: Tensor
    mask: Tensor
    scenes: list[Scene]
    odds: list[float]


class Pool:
    """All latent shards on disk, by kind and shape; `refresh` takes in those that have appeared since.

    more_often: how often scenes are drawn in which some subject, motion and camera meet, against 1 for all others.
    """

    def __init__(self, folder: Path, more_often: dict[tuple[str, ...], float] | None = None) -> None:
        self.folder, self.more_often = folder, more_often or {}
        self.shards: dict[str, dict[tuple[int, int], list[Shard]]] = {
            "images": defaultdict(list),
            "clips": defaultdict(list),
        }
        self.seen: set[str] = set()

    def refresh(self) -> None:
        for path in sorted(self.folder.glob("*.safetensors")):
            if path.name in self.seen:
                continue
            self.seen.add(path.name)
            tensors, scenes = read_shard(path)
            kind = path.name.split("-")[0]
            odds = [self.odds(scene) for scene in scenes]
            whole = Shard(tensors["latents"], tensors["mask"], scenes, odds)
            rows = [i for i, scene in enumerate(scenes) if not scene.is_handed]
            flipped = Shard(
                tensors["mirrored"][rows], tensors["mirrored_mask"][rows], [scenes[i].mirrored() for i in rows],
                [self.odds(scenes[i].mirrored()) for i in rows],
            )  # fmt: skip
            for shard in (whole, flipped):
                if shard.scenes:
                    self.shards[kind][shard.latents.shape[-2], shard.latents.shape[-1]].append(shard)

    def odds(self, scene: Scene) -> float:
        shown = {scene.subject, scene.motion, scene.camera}
        return math.prod(times for values, times in self.more_often.items() if shown.issuperset(values))

    def count(self, kind: str) -> int:
        return sum(len(shard.scenes) for shards in self.shards[kind].values() for shard in shards)

    def draw(self, rng: random.Random, kind: str, frames: slice, tokens: int) -> tuple[Tensor, Tensor, list[Scene]]:
        """A batch of one shape with about `tokens` tokens: latents [B, z, T, h, w], mask [B, T, h, w], scenes.

        frames: which latent frames of a clip. Where there are no images, first frames of clips are.
        """
        shapes = self.shards[kind] or self.shards["clips"]
        shape = rng.choices(list(shapes), [len(shards) for shards in shapes.values()])[0]
        batch = max(1, tokens * 4 // (shape[0] * shape[1] * (frames.stop - frames.start)))
        picks = rng.choices(shapes[shape], [sum(shard.odds) for shard in shapes[shape]], k=batch)
        rows = [(shard, rng.choices(range(len(shard.scenes)), shard.odds)[0]) for shard in picks]
        latents = torch.stack([shard.latents[i, :, frames] for shard, i in rows]).float()
        mask = torch.stack([shard.mask[i, frames] for shard, i in rows]).float()
        return latents, mask, [shard.scenes[i] for shard, i in rows]


def draw_shape(rng: random.Random, share: float, clips: bool) -> tuple[str, int]:
    """Images or clips, and of how many latent frames, at `share` (0..1) of the training."""
    if not clips or rng.random() < 0.85 - 0.8 * share:
        return "images", 1
    return "clips", rng.choices([2, 3, 5, 7], [3 - 2.7 * share, 2 - 1.4 * share, 1 + share, 0.5 + 7 * share])[0]


def draw_known(rng: random.Random, num_frames: int, start: int) -> list[float]:
    """1 for each free frame, 0 for each given one; at least one is free.

    A window that does not begin with the clip (start > 0) continues it: its first frames are given.
    """
    free = [1.0] * num_frames
    if num_frames == 1 or (start == 0 and rng.random() >= KNOWN_FRAMES):
        return free
    which = rng.choice(("first", "both")) if start else rng.choice(("first", "last", "both", "any"))
    count = rng.randint(1, (num_frames + 1) // 2)
    if which == "any":
        for i in rng.sample(range(num_frames), count):
            free[i] = 0.0
    if which in ("first", "both"):
        free[:count] = [0.0] * count
    if which == "last":
        free[-count:] = [0.0] * count
    if which == "both" and num_frames > count + 1:
        free[-1] = 0.0
    return free
