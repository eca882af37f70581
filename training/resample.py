"""Takes training clips part of the way back to noise and lets the transformer denoise them again, to teach the VAE.

    python -m training.resample RUN --clips 256

RUN/sampled holds a shard for each of RUN/pixels that was used: its frames and masks, and `latents` [n, z, T, h, w] as
the transformer leaves them. Their layout is that of the clip, their detail is the transformer's own, with its mistakes;
`training.vae` trains the decoder to give the true frames for them (`--sampled`), so that it mends what it can.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from soragen.diffusion.guidance import guided
from soragen.diffusion.sampler import denoise
from soragen.diffusion.schedule import make_schedule
from soragen.diffusion.solver import make_solver
from soragen.models.family import Context
from training.clips import read_shard
from training.precision import autocast
from training.sample import Model, bind_all, grid_of, load_model
from training.world.captions import caption

NUM_STEPS, FIRST_STEPS = 12, (6, 8, 9, 10)
"""Of the schedule that users get; the levels at which the clips lie are 0.75, 0.6, 0.5 and 0.375 of noise."""
PER_SHARD = 4


@torch.inference_mode()
def resample(model: Model, latents: Tensor, captions: list[str], first_step: int, seed: int) -> Tensor:
    """Latents [n, z, T, h, w] after noise to the level of `first_step`, and the steps from there on."""
    defaults, grid = model.checkpoint.defaults, grid_of(model, latents)
    contexts: list[Context] = model.text_encoder.encode(captions)
    empty = model.text_encoder.encode([defaults.negative_prompt] * len(captions))
    denoiser = guided(
        bind_all(model.transformer, contexts, grid),
        bind_all(model.transformer, empty, grid),
        defaults.guidance_scale,
    )
    schedule = make_schedule(defaults.schedule, NUM_STEPS, defaults.shift, grid.num_tokens)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed)).to(latents)
    level = schedule[first_step]
    mixed = level.alpha * latents + level.sigma * noise
    solver = make_solver(defaults.solver, schedule)
    for step in denoise(denoiser, mixed, schedule, solver, first_step=first_step, noise=noise):
        mixed = step.latents
    return model.transformer.refine(mixed, torch.ones(mixed.shape[2], dtype=torch.bool))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--model", default="pocket", help="a folder that training.export wrote, or a name")
    parser.add_argument("--clips", type=int, default=256)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    if options.device == "cpu":
        torch.set_num_threads(1)
    model, folder = load_model(options.model, torch.device(options.device)), options.run / "sampled"
    folder.mkdir(exist_ok=True)
    rng = random.Random(0)
    paths = sorted((options.run / "latents").glob("clips-*"))
    rng.shuffle(paths)
    began = time.time()
    for number, path in enumerate(paths[: -(-options.clips // PER_SHARD)]):
        target, first_step = folder / path.name, FIRST_STEPS[number % len(FIRST_STEPS)]
        tensors, scenes = read_shard(options.run / "pixels" / path.name)
        rows = rng.sample(range(len(scenes)), min(PER_SHARD, len(scenes)))
        captions = [caption(scenes[row], rng) for row in rows]
        if target.exists():
            continue
        true = load_file(path)["latents"][rows].float().to(options.device)
        with autocast(options.device):
            latents = resample(model, true, captions, first_step, number).cpu()
        part = target.with_suffix(".part")
        kept = {name: tensors[name][rows].contiguous() for name in ("frames", "mask")}
        save_file(kept | {"latents": latents.bfloat16()}, part)
        part.rename(target)
        print(f"{number + 1} shards, {(time.time() - began) / 60:.1f} min", flush=True)


if __name__ == "__main__":
    main()
