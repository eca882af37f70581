"""Trains pocket's upscaler on pairs of renders: the same scene at the size that pocket makes, and at twice that.

    python -m training.upscaler RUN --scenes 1024 --minutes 25

Renders the pairs that RUN/pairs lacks, then goes on from RUN/upscaler/state.pt where it was stopped. `--minutes` counts
all of the processor's time spent on training, so that a busy machine takes longer and learns the same; with none it
only measures what is in RUN/upscaler. Needs the VAE of RUN/vae: most of what the network sees went through it, with the
noise that its decoder was trained on, because that is what it will be given.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from soragen.families.pocket.upscaler import FACTOR, PocketUpscaler, UpscalerConfig
from soragen.families.pocket.vae import GROUP, PocketVae
from training.clips import FPS, SIZES
from training.precision import autocast
from training.vae import NOISE, load_vae, to_groups
from training.world.render import render
from training.world.scene import sample_scene

SHARD = 8
HELD_OUT_SCENES = 64
PAIR_FRAMES = 1 + GROUP
"""Small frames of a pair: the VAE's first group and one that moves."""
SUPERSAMPLE = 2.0
"""Of the large render: finer than that of the small one, so that the network also learns smoother outlines."""
RATE = 5e-3
INPUTS = {"mean": 0.2, "render": 0.3, "vae": 0.5}
"""What is enlarged, and how often: the means of 2 x 2 large pixels, a small render, the VAE's picture of one."""


def render_pairs(folder: Path, number: int, held_out: bool) -> None:
    """One shard: `small` uint8 [n, 5, h, w, 3] and `large` uint8 [n, k, 2h, 2w, 3], the same scenes and times.

    Frames of a twelfth of a second. k is 2 (the first and the last of the small ones), or all 5 where held out. The
    same number always gives the same scenes.
    """
    rng = random.Random(f"pairs-{number}-{held_out}")
    sizes = [size[:2] for size in SIZES[128] for _ in range(size[2])]
    width, height = sizes[number % len(sizes)]
    path = folder / f"pairs-{width}x{height}-{number:06d}.safetensors"
    if path.exists():
        return
    stride = 1 if held_out else PAIR_FRAMES - 1
    pairs: list[tuple[Tensor, Tensor]] = []
    for _ in range(SHARD):
        scene, start = [sample_scene(rng, held_out=held_out)], rng.uniform(0.0, 1.5)
        small, _ = render(
            scene, width=width, height=height, num_frames=PAIR_FRAMES, fps=FPS, start_seconds=start
        )  # fmt: skip
        large, _ = render(
            scene, width=FACTOR * width, height=FACTOR * height, num_frames=1 + (PAIR_FRAMES - 1) // stride,
            fps=FPS / stride, start_seconds=start, supersample=SUPERSAMPLE,
        )  # fmt: skip
        pairs.append((small[0], large[0]))
    small, large = (torch.stack(frames) for frames in zip(*pairs, strict=True))
    part = path.with_suffix(".part")
    save_file({"small": small, "large": large}, part)
    part.rename(path)


@torch.no_grad()
def through_vae(vae: PocketVae, frames: Tensor, level: Tensor) -> Tensor:
    """Frames uint8 [B, 1 + 4k, H, W, 3] encoded and decoded, to [B, 1 + 4k, 3, H, W] in 0..1.

    level [B]: standard deviation of the noise in the normalised latents.
    """
    with autocast(frames.device.type):
        raw = vae.encode_groups(to_groups(frames)).float()
        noise = torch.randn(raw.shape).to(raw) * vae.latent_scale.view(1, 1, -1, 1, 1)
        out, _ = vae.decode_groups(raw + level.to(raw).view(-1, 1, 1, 1, 1) * noise)
    return (out.float().flatten(1, 2)[:, GROUP - 1 :] / 2 + 0.5).clamp(0, 1)


def planes(frames: Tensor) -> Tensor:
    """uint8 [..., H, W, 3] -> float32 [..., 3, H, W] in 0..1."""
    return frames.movedim(-1, -3).float() / 255


def make_input(kind: str, vae: PocketVae, small: Tensor, large: Tensor) -> Tensor:
    """What is to be enlarged to `large` [B, k, 3, 2H, 2W]: [B, k, 3, H, W] of small frames uint8 [B, 5, H, W, 3]."""
    stride = (PAIR_FRAMES - 1) // (large.shape[1] - 1)
    if kind == "mean":
        return F.avg_pool2d(large.flatten(0, 1), FACTOR).unflatten(0, large.shape[:2])
    if kind == "render":
        return planes(small[:, ::stride])
    return through_vae(vae, small, NOISE * torch.rand(len(small)).square())[:, ::stride]


def lanczos(frames: Tensor) -> Tensor:
    """[B, 3, H, W] in 0..1 enlarged by Lanczos' filter of three lobes, as ffmpeg does it, in 8 bits."""
    size = (FACTOR * frames.shape[-1], FACTOR * frames.shape[-2])
    pixels = (frames.clamp(0, 1) * 255).round().byte().movedim(-3, -1).cpu().numpy()
    large = [torch.frombuffer(bytearray(Image.fromarray(p).resize(size, Image.Resampling.LANCZOS).tobytes()),
                              dtype=torch.uint8).view(size[1], size[0], 3) for p in pixels]  # fmt: skip
    return planes(torch.stack(large)).to(frames.device)


def enlargement_loss(out: Tensor, target: Tensor) -> Tensor:
    """L1 of pixels and of their gradients; [B, 3, H, W]."""
    error = out - target
    return error.abs().mean() + 0.5 * (error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean())


@torch.no_grad()
def score(network: PocketUpscaler, vae: PocketVae, shards: list[Path]) -> dict[str, dict[str, float]]:
    """Mean PSNR of held-out frames for each kind of input, in decibels, by Lanczos and by the network.

    "change": PSNR of the difference between neighbouring frames of the kind "vae"; flicker lowers it.
    """
    errors: dict[str, dict[str, list[Tensor]]] = {"lanczos": {}, "ours": {}}
    torch.manual_seed(0)
    for path in shards:
        tensors = load_file(path)
        for small, large in zip(tensors["small"].split(4), tensors["large"].split(4), strict=True):
            target = planes(large)
            for kind in INPUTS:
                given = make_input(kind, vae, small, target)
                for name, enlarge in (("lanczos", lanczos), ("ours", network.enlarge)):
                    out = enlarge(given.flatten(0, 1)).clamp(0, 1).unflatten(0, given.shape[:2])
                    error = out - target
                    errors[name].setdefault(kind, []).append(error.square().mean(dim=(2, 3, 4)))
                    if kind == "vae":
                        errors[name].setdefault("change", []).append(error.diff(dim=1).square().mean(dim=(2, 3, 4)))
    return {
        name: {kind: round(float(-10 * torch.log10(torch.cat(v) + 1e-8).mean()), 2) for kind, v in kinds.items()}
        for name, kinds in errors.items()
    }


class Pairs:
    """All shards in memory; `draw` cuts windows out of them."""

    def __init__(self, paths: list[Path]) -> None:
        self.shards = [load_file(path) for path in paths]

    def draw(self, rng: random.Random, batch: int, crop: int) -> tuple[Tensor, Tensor]:
        """Small uint8 [B, 5, crop, crop, 3] and large float [B, 2, 3, 2 crop, 2 crop], some of them mirrored.

        Of three windows the one with the most outline is taken: sky teaches nothing.
        """
        windows = []
        for _ in range(batch):
            shard = rng.choice(self.shards)
            small, large = shard["small"], shard["large"]
            n, choices = rng.randrange(len(small)), []
            for _ in range(3):
                y, x = rng.randint(0, small.shape[2] - crop), rng.randint(0, small.shape[3] - crop)
                window = small[n, :, y : y + crop, x : x + crop]
                choices.append((float(window[0].float().diff(dim=0).square().mean()), y, x))
            _, y, x = max(choices)
            y2, x2, crop2 = FACTOR * y, FACTOR * x, FACTOR * crop
            pair = (small[n, :, y : y + crop, x : x + crop], large[n, :, y2 : y2 + crop2, x2 : x2 + crop2])
            windows.append(tuple(frames.flip(2) for frames in pair) if rng.random() < 0.5 else pair)
        small, large = (torch.stack(frames) for frames in zip(*windows, strict=True))
        return small, planes(large)


def save(network: PocketUpscaler, folder: Path) -> None:
    tensors = {name: p.detach().cpu().contiguous() for name, p in network.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")
    values = {"_class_name": "PocketUpscaler"} | asdict(network.config)
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--scenes", type=int, default=1024)
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--crop", type=int, default=48)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    device = options.device
    if device == "cpu":
        torch.set_num_threads(1)
    for name, scenes in (("held_out_pairs", HELD_OUT_SCENES), ("pairs", options.scenes)):
        (options.run / name).mkdir(exist_ok=True)
        for number in range(-(-scenes // SHARD)):
            render_pairs(options.run / name, number, held_out=name == "held_out_pairs")
    pairs = Pairs(sorted((options.run / "pairs").glob("*.safetensors")))
    held_out = sorted((options.run / "held_out_pairs").glob("*.safetensors"))
    vae = load_vae(options.run).to(device).requires_grad_(False)

    torch.manual_seed(0)
    network = PocketUpscaler(UpscalerConfig()).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, betas=(0.9, 0.99), weight_decay=0.0)
    folder, step, seconds = options.run / "upscaler", 0, 0.0
    folder.mkdir(exist_ok=True)
    state_path = folder / "state.pt"
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        step, seconds = state["step"], state["seconds"]
    elif (restored := folder / "model.safetensors").exists():
        network.load_state_dict(load_file(restored))
    total, saved, losses = options.minutes * 60, seconds, list[float]()
    while seconds < total:
        began = time.process_time()
        rng = random.Random(step)
        torch.manual_seed(step)
        small, large = (frames.to(device) for frames in pairs.draw(rng, options.batch, options.crop))
        kind = rng.choices(list(INPUTS), list(INPUTS.values()))[0]
        given, target = make_input(kind, vae, small, large).flatten(0, 1), large.flatten(0, 1)
        with autocast(device):
            out = network.enlarge(given)
        loss = enlargement_loss(out, target)
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 100) * max(0.02, 1 - seconds / total)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        step, seconds = step + 1, seconds + time.process_time() - began
        if step % 100 == 0:
            print(f"step {step} {seconds / 60:.1f} min loss {sum(losses) / len(losses):.5f}", flush=True)
            losses.clear()
        if seconds - saved > 60 or seconds >= total:
            saved = seconds
            save(network, folder)
            state = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state | {"step": step, "seconds": seconds}, state_path.with_suffix(".part"))
            state_path.with_suffix(".part").rename(state_path)
            print(f"step {step} held out {score(network, vae, held_out[:1])}", flush=True)
    print(f"held out {score(network, vae, held_out)}", flush=True)


if __name__ == "__main__":
    main()
