"""What the probe sees of a clip: seven frames at 64 x 64, of renders on disk, of new ones, and through the VAE."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from soragen.families.pocket.vae import GROUP, PocketVae
from training.clips import CLIP_FRAMES, FPS, read_shard
from training.precision import autocast
from training.text import labels
from training.vae import join_groups, to_groups
from training.world.render import render
from training.world.scene import SUBJECTS, Scene, sample_scene

SIDE = 64
STRIDE = 4
FRAMES = 1 + (CLIP_FRAMES - 1) // STRIDE
"""What the probe sees of a clip: frames 0, 4, 8 ... 24, three a second."""
THROUGH_VAE = 4
EXTRA = 32


def view(frames: Tensor) -> Tensor:
    """Frames uint8 [B, T, H, W, 3], 25 at 12 a second or a single one -> uint8 [B, 7 or 1, 3, 64, 64]."""
    if frames.shape[1] not in (1, CLIP_FRAMES):
        raise ValueError(f"a clip has {CLIP_FRAMES} frames at {FPS} fps, not {frames.shape[1]}")
    return shrink(frames[:, ::STRIDE])


def shrink(frames: Tensor) -> Tensor:
    """Frames uint8 [B, T, H, W, 3] -> uint8 [B, T, 3, 64, 64], of whatever aspect they were."""
    pictures = frames.flatten(0, 1).permute(0, 3, 1, 2).float()
    small = F.interpolate(pictures, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
    return small.round().clamp(0, 255).byte().contiguous().unflatten(0, frames.shape[:2])


@torch.inference_mode()
def through_vae(vae: PocketVae, frames: Tensor) -> Tensor:
    """Frames uint8 [B, T, H, W, 3] encoded and decoded."""
    device = vae.patch_mean.device
    with autocast(device.type):
        out = join_groups(vae.decode_groups(vae.encode_groups(to_groups(frames.to(device))))[0])
    out = out.float().flatten(1, 2)[:, GROUP - 1 :].permute(0, 1, 3, 4, 2)  # [B, T, H, W, 3]
    return ((out + 1) * 127.5).round().clamp(0, 255).byte().cpu()


def keep(path: Path, views: dict[str, Tensor], scenes: list[Scene]) -> None:
    part = path.with_suffix(".part")
    save_file(views, part, {"scenes": json.dumps([asdict(scene) for scene in scenes])})
    part.rename(path)


def prepare(source: Path, folder: Path, vae: PocketVae, every: int) -> None:
    """Writes what the probe sees of each shard of `source` into `folder`, once; of clips one in `every` decoded too."""
    folder.mkdir(parents=True, exist_ok=True)
    done = {path.name for path in folder.glob("*.safetensors")}
    for number, path in enumerate(sorted(source.glob("*.safetensors"))):
        if path.name in done:
            continue
        tensors, scenes = read_shard(path)
        views = {"render": view(tensors["frames"])}
        if number % every == 0 and path.name.startswith("clips"):
            views["decoded"] = view(through_vae(vae, tensors["frames"]))
        keep(folder / path.name, views, scenes)
        print(f"seen {folder.name}/{path.name}", flush=True)


def render_extra(folder: Path, number: int) -> None:
    """Writes shard `number` of clips that are rendered for the probe alone, small and only the frames that it sees."""
    path = folder / f"clips-extra-{number:06d}.safetensors"
    if path.exists():
        return
    rng = random.Random(f"probe-{number}")
    subject = rng.choice(SUBJECTS)
    drawn = (sample_scene(rng) for _ in itertools.count())
    scenes = list(itertools.islice((scene for scene in drawn if scene.subject == subject), EXTRA))
    frames, _ = render(scenes, width=96, height=96, num_frames=FRAMES, fps=FPS / STRIDE)
    keep(path, {"render": shrink(frames)}, scenes)


class Views:
    """The prepared clips or images of one kind and version in memory: uint8 [n, T, 3, 64, 64] and scenes."""

    def __init__(self, folder: Path, kind: str, versions: Iterable[str]) -> None:
        shards = [read_shard(path) for path in sorted(folder.glob(f"{kind}-*.safetensors"))]
        chosen = [(shard[0][version], shard[1]) for version in versions for shard in shards if version in shard[0]]
        self.frames = torch.cat([frames for frames, _ in chosen]) if chosen else torch.empty(0)
        self.scenes: list[Scene] = [scene for _, scenes in chosen for scene in scenes]
        mirrored = [scene.mirrored() for scene in self.scenes]
        self.truth = (labels(self.scenes), labels(mirrored)) if chosen else (torch.empty(0), torch.empty(0))

    def draw(self, rng: random.Random, count: int) -> tuple[Tensor, Tensor]:
        """A batch in -1..1, some of it mirrored, and what is true of it [count, 6]."""
        rows = torch.tensor([rng.randrange(len(self.scenes)) for _ in range(count)])
        flip = torch.tensor([rng.random() < 0.5 for _ in rows])
        frames = self.frames[rows].float() / 127.5 - 1
        frames = torch.where(flip[:, None, None, None, None], frames.flip(-1), frames)
        return frames, torch.where(flip[:, None], self.truth[1][rows], self.truth[0][rows])


def disturb(clips: Tensor) -> Tensor:
    """Clips [B, T, 3, 64, 64], each a little moved and scaled, tinted, blurred, speckled and made blocky."""
    batch, time_steps = clips.shape[:2]
    scale, move = 1 + 0.08 * torch.randn(batch, 1, 1).clamp(-2, 2), 0.05 * torch.randn(batch, 2, 1)
    affine = torch.cat([torch.eye(2) * scale, move], dim=2).repeat_interleave(time_steps, 0)
    flat = clips.flatten(0, 1)
    grid = F.affine_grid(affine, list(flat.shape), align_corners=False)
    flat = F.grid_sample(flat, grid, padding_mode="border", align_corners=False)
    per_clip = (batch, 1, 1, 1, 1)
    out = flat.unflatten(0, (batch, time_steps))
    blurred = F.avg_pool2d(flat, 3, 1, 1, count_include_pad=False).view_as(out)
    out = out + torch.rand(per_clip) * (torch.rand(per_clip) < 0.6) * (blurred - out)
    out = out * (1 + 0.07 * torch.randn(per_clip)) + 0.04 * torch.randn(batch, 1, 3, 1, 1)
    blocks = F.interpolate(torch.randn(batch * time_steps, 3, 16, 16), SIDE, mode="bilinear").view_as(out)
    return out + 0.06 * torch.rand(per_clip) * torch.randn_like(out) + 0.12 * torch.rand(per_clip) ** 2 * blocks
