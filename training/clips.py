"""Renders captioned clips and single images to disk, shard by shard, until as many are there as were asked for.

    python -m training.clips RUN --clips 2000 --images 20000

A shard is a safetensors file of one size and one subject: `frames` uint8 [n, T, H, W, 3], `mask` uint8 [n, T, H, W]
(how much of a pixel is the subject), and the scenes as JSON in its metadata. Its number is its seed, so a stopped run
goes on where it was, and several processes (`--part 0/2`, `--part 1/2`) share the work. With `--weather` every scene
has fog, rain or snowfall, in shards of their own beside the clear ones.
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from training.world.render import render
from training.world.scene import SUBJECTS, Scene, sample_scene

FPS = 12
CLIP_FRAMES = 25
# (width, height, how often): squares and the aspects that people ask for. Sides are multiples of 16.
SIZES = {
    96: ((96, 96, 4), (128, 80, 1), (80, 128, 1), (112, 80, 1)),
    128: ((128, 128, 4), (176, 96, 2), (96, 176, 2), (144, 112, 1)),
}


def shard_name(kind: str, width: int, height: int, frames: int, number: int) -> str:
    return f"{kind}-{width}x{height}x{frames}-{number:06d}.safetensors"


def render_shard(
    folder: Path, kind: str, area: int, number: int, count: int, device: str, held_out: bool, weather: bool = False
) -> Path:
    """One shard; the same number always gives the same scenes."""
    rng = random.Random(f"{kind}-{area}-{number}-{held_out}" + "-weather" * weather)
    sizes = [size for size in SIZES[area] for _ in range(size[2])]
    width, height, _ = sizes[number % len(sizes)] if not held_out else SIZES[area][0]
    subject = SUBJECTS[rng.randrange(len(SUBJECTS))]
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = sample_scene(rng, held_out=held_out, weather=weather)
        if scene.subject == subject and weather == (scene.weather != "clear"):
            scenes.append(scene)
    num_frames = 1 if kind == "images" else CLIP_FRAMES
    start = rng.uniform(0.0, 1.5) if kind == "images" else 0.0
    path = folder / shard_name(kind + "-weather" * weather, width, height, num_frames, number)
    if path.exists():
        return path
    frames, mask = render(
        scenes, width=width, height=height, num_frames=num_frames, fps=FPS, start_seconds=start, device=device
    )
    metadata = {"scenes": json.dumps([asdict(scene) for scene in scenes])}
    part = path.with_suffix(f".{kind}.part")
    save_file({"frames": frames.cpu().contiguous(), "mask": mask.cpu().contiguous()}, part, metadata)
    part.rename(path)
    return path


def read_shard(path: Path) -> tuple[dict[str, Tensor], list[Scene]]:
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        scenes = json.loads(file.metadata()["scenes"])
    return tensors, [Scene(**{**scene, "jitter": tuple(scene["jitter"])}) for scene in scenes]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--area", type=int, default=96, choices=SIZES)
    parser.add_argument("--clips", type=int, default=0)
    parser.add_argument("--images", type=int, default=0)
    parser.add_argument("--held-out", action="store_true", help="combinations that training never sees, squares only")
    parser.add_argument("--weather", action="store_true", help="in every scene; beside the clear ones")
    parser.add_argument("--part", default="0/1", help="this process of so many, such as 1/2")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    part, parts = map(int, options.part.split("/"))
    folder = options.run / ("held_out" if options.held_out else "pixels")
    folder.mkdir(parents=True, exist_ok=True)
    todo = [("clips", n, 8) for n in range(-(-options.clips // 8))]
    todo += [("images", n, 64) for n in range(-(-options.images // 64))]
    # Both kinds grow side by side: a training run may start on what is there.
    todo.sort(key=lambda item: item[1] / max(1, (options.clips // 8 if item[0] == "clips" else options.images // 64)))
    for n, (kind, number, count) in enumerate(todo):
        if number % parts == part:
            path = render_shard(
                folder, kind, options.area, number, count, options.device, options.held_out, options.weather
            )
            print(f"{n + 1}/{len(todo)} {path.name}", flush=True)


if __name__ == "__main__":
    main()
