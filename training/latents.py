"""Encodes rendered shards once with the finished VAE, as they are and mirrored, for the transformer to train on.

    python -m training.latents RUN [--watch]

RUN/latents holds a file for each shard of RUN/pixels (RUN/held_out_latents of RUN/held_out): `latents` and `mirrored`
bfloat16 [n, z, T, h, w], `mask` and `mirrored_mask` float16 [n, T, h, w], the subject's share of each latent. With
`--watch` it waits for more shards until it is stopped.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from soragen.families.pocket.vae import GROUP, PATCH, PocketVae
from training.clips import read_shard
from training.precision import autocast
from training.vae import load_vae, to_groups


@torch.inference_mode()
def encode(vae: PocketVae, frames: Tensor, device: str) -> Tensor:
    """Frames uint8 [n, T, H, W, 3] -> normalised latents bfloat16 [n, z, G, h, w]."""
    with autocast(device):
        raw = vae.encode_groups(to_groups(frames.to(device)))
    return vae.normalise(raw.float()).bfloat16().cpu().contiguous()


def latent_mask(mask: Tensor) -> Tensor:
    """Coverage uint8 [n, 1 + 4k, H, W] -> float16 [n, 1 + k, h, w] in 0..1."""
    share = F.avg_pool2d(mask.float() / 255, PATCH)
    first, rest = share[:, :1], share[:, 1:]
    return torch.cat([first, rest.unflatten(1, (-1, GROUP)).mean(2)], dim=1).half()


def encode_shard(vae: PocketVae, path: Path, target: Path, device: str) -> None:
    tensors, scenes = read_shard(path)
    frames, mask = tensors["frames"], tensors["mask"]
    part = target.with_suffix(".part")
    save_file(
        {
            "latents": encode(vae, frames, device),
            "mirrored": encode(vae, frames.flip(3), device),
            "mask": latent_mask(mask),
            "mirrored_mask": latent_mask(mask.flip(3)),
        },
        part,
        {"scenes": json.dumps([asdict(scene) for scene in scenes])},
    )
    part.rename(target)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--watch", action="store_true")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    if options.device == "cpu":
        torch.set_num_threads(1)
    vae = load_vae(options.run).to(options.device)
    while True:
        for source, folder in (("held_out", "held_out_latents"), ("pixels", "latents")):
            (options.run / folder).mkdir(exist_ok=True)
            done = {path.name for path in (options.run / folder).glob("*.safetensors")}
            for path in sorted((options.run / source).glob("*.safetensors")):
                if path.name not in done:
                    encode_shard(vae, path, options.run / folder / path.name, options.device)
        if not options.watch:
            break
        time.sleep(20)


if __name__ == "__main__":
    main()
