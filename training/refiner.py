"""Trains the network that tells the fine of latents from the coarse (soragen/families/pocket/refiner.py).

    python -m training.refiner RUN --minutes 30

On the whole clips of RUN/latents, in most of which some frames are given. What it will see of the others was made by a
transformer, so their coarse channels are a little noisy; or, in a share of the clips (`--sampled`), they are what a
transformer left in RUN/sampled (training.resample). Goes on from RUN/refiner/state.pt where it was stopped; `--minutes`
counts all the time spent on it. Prints which share of the fine it tells right on RUN/held_out_latents, of the squared
differences of pixels: 1 is all of it, 0 is a picture without any; where no frame is given, and in the frame that
follows three given ones.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from soragen.families.pocket.refiner import PocketRefiner, RefinerConfig
from soragen.families.pocket.vae import PocketVae
from training.latents import encode, latent_mask
from training.pool import CLIP_LATENT_FRAMES, Pool
from training.precision import autocast
from training.vae import SUBJECT_WEIGHT, load_vae

TOKENS_PER_STEP = 3072
RATE = 2e-3
NOISE = 0.5
"""In the coarse channels, at most, in units of their spread; most draws are far smaller."""
WHOLE = slice(0, CLIP_LATENT_FRAMES)
SOME_GIVEN = 0.7
"""Share of the clips in which some frames are given."""
GIVEN = 3
"""Latent frames that are given where what follows them is scored."""


def tell(network: PocketRefiner, latents: Tensor, free: Tensor, coarse: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The fine channels that are told and the true ones, both [B, C - K, T, H, W] in units of `latent_std`.

    latents: [B, C, T, H, W] of clips from their beginning. free: [B, T], 0 for given frames. coarse: [B, K, T, H, W],
    how the coarse channels of the others were made, if not as they are.
    """
    num_coarse, spread = network.config.coarse_channels, network.latent_std.view(1, -1, 1, 1, 1)
    made = latents
    if coarse is not None:
        made = latents.clone()
        made[:, :num_coarse].lerp_(coarse, free[:, None, :, None, None])
    seen = torch.stack([network.look(made, free, k) for k in range(latents.shape[2])], dim=1)
    told = network(seen.flatten(0, 1)).unflatten(0, seen.shape[:2]).transpose(1, 2)
    return told, (latents / spread)[:, num_coarse:]


class Sampled:
    """The clips of RUN/sampled: what they are, and the coarse channels that a transformer left of them."""

    def __init__(self, run: Path, vae: PocketVae, num_coarse: int) -> None:
        self.shards: list[tuple[Tensor, Tensor, Tensor]] = []
        for path in sorted((run / "sampled").glob("clips-*")):
            tensors = load_file(path)
            true = encode(vae, tensors["frames"], "cpu")
            self.shards.append((true, latent_mask(tensors["mask"]), tensors["latents"][:, :num_coarse]))

    def draw(self, rng: random.Random, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
        """A batch of one shape with about `tokens` tokens: latents [B, C, T, h, w], mask [B, T, h, w], and the coarse
        channels as they were left [B, K, T, h, w]."""
        shard = rng.choice(self.shards)
        clip = shard[0][0, 0].numel() // 4
        rows = rng.choices(range(len(shard[0])), k=max(1, tokens // clip))
        latents, mask, coarse = (part[rows].float() for part in shard)
        return latents, mask, coarse


@torch.no_grad()
def score(network: PocketRefiner, held_out: Pool, pixels: Tensor, num_static: int, device: str) -> dict[str, float]:
    """The share of detail and of movement in held-out clips that is told, of all pixels and of the subject's.

    pixels [C - K]: what one unit of each fine channel is in pixels. num_static: channels that are not movement.
    """
    parts = {"detail": slice(0, num_static - network.config.coarse_channels)}
    parts["movement"] = slice(parts["detail"].stop, None)
    which = {"": (0, WHOLE), " after given frames": (GIVEN, slice(GIVEN, GIVEN + 1))}
    squares = torch.zeros(len(which), len(parts), 2, 2)
    for shard in (shard for shards in held_out.shards["clips"].values() for shard in shards):
        latents, mask = shard.latents.float().to(device), shard.mask[:, None].float().to(device)
        for m, (num_given, frames) in enumerate(which.values()):
            free = torch.ones(len(latents), latents.shape[2], device=device)
            free[:, :num_given] = 0
            told, true = tell(network, latents, free)
            for row, values in enumerate((told - true, true)):
                energy = (values * pixels.view(1, -1, 1, 1, 1)).square()[:, :, frames]
                for n, part in enumerate(parts.values()):
                    shown = energy[:, part].sum(), (energy[:, part] * mask[:, :, frames]).sum()
                    squares[m, n, row] += torch.stack(shown).cpu()
    shares = 1 - squares[:, :, 0] / squares[:, :, 1].clamp(min=1e-9)
    whole = ("", " of the subject")
    return {
        f"{name}{of}{where}": round(float(shares[m, n, column]), 3)
        for m, where in enumerate(which) for n, name in enumerate(parts) for column, of in enumerate(whole)
    }  # fmt: skip


def draw_free(rng: random.Random) -> list[float]:
    """1 for each frame that was made, 0 for each given one."""
    num_frames = WHOLE.stop
    if rng.random() >= SOME_GIVEN:
        return [1.0] * num_frames
    given = rng.sample(range(num_frames), rng.randint(1, num_frames - 1))
    return [0.0 if k in given else 1.0 for k in range(num_frames)]


def save(network: PocketRefiner, folder: Path) -> None:
    tensors = {name: p.detach().cpu().contiguous() for name, p in network.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")
    values = {"_class_name": "PocketRefiner"} | asdict(network.config)
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--spent", type=float, default=0, help="minutes that are in restored weights already")
    parser.add_argument("--coarse", type=int, default=RefinerConfig.coarse_channels, help="channels given")
    parser.add_argument("--tokens", type=int, default=TOKENS_PER_STEP)
    parser.add_argument("--sampled", type=float, default=0.0, help="share of clips with latents of training.resample")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    device = options.device
    if device == "cpu":
        torch.set_num_threads(1)
    folder, state_path = options.run / "refiner", options.run / "refiner" / "state.pt"
    folder.mkdir(exist_ok=True)
    vae = load_vae(options.run).requires_grad_(False)
    torch.manual_seed(0)
    network = PocketRefiner(RefinerConfig(vae.config.latent_channels, options.coarse))
    with torch.no_grad():
        network.latent_std.copy_(vae.latent_std)
    network.latent_std.requires_grad_(False)
    if (restored := folder / "model.safetensors").exists() and not state_path.exists():
        network.load_state_dict(load_file(restored))
    network.to(device)
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=RATE, weight_decay=0.01)
    step, seconds = 0, 60 * options.spent
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        step, seconds = state["step"], state["seconds"]
    pool, held_out = Pool(options.run / "latents"), Pool(options.run / "held_out_latents")
    pool.refresh()
    held_out.refresh()
    sampled = Sampled(options.run, vae, options.coarse) if options.sampled else None
    spread = network.latent_std[: options.coarse].view(1, -1, 1, 1, 1)
    pixels = vae.spread.flatten()[options.coarse :].to(device)
    # Strong channels count more, but not by their square: faint ones hold the finest.
    weight = (pixels / pixels.square().mean().sqrt()).view(1, -1, 1, 1, 1)

    total, began, saved = options.minutes * 60, time.time(), time.time()
    losses: list[float] = []
    while (spent := seconds + time.time() - began) < total:
        rng = random.Random(step)
        torch.manual_seed(step)
        if sampled and rng.random() < options.sampled:
            latents, mask, coarse = (part.to(device) for part in sampled.draw(rng, options.tokens))
        else:
            latents, mask = (part.to(device) for part in pool.draw(rng, "clips", WHOLE, options.tokens)[:2])
            coarse = latents[:, : options.coarse]
            level = NOISE * torch.rand(len(latents), 1, 1, 1, 1, device=device).square()
            coarse = coarse + level * spread * torch.randn_like(coarse)
        free = torch.tensor([draw_free(rng) for _ in latents], device=device)
        with autocast(device):
            out, true = tell(network, latents, free, coarse)
        counts = free[:, None, :, None, None]
        loss = ((out - true).square() * weight * (1 + SUBJECT_WEIGHT * mask[:, None]) * counts).mean() / counts.mean()
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 100) * max(0.02, 1 - spent / total)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        step += 1
        losses.append(float(loss.detach()))
        spent = seconds + time.time() - began
        if time.time() - saved > 120 or spent >= total:
            saved = time.time()
            shown = f"{spent / 60:.1f} min loss {sum(losses) / len(losses):.4f}"
            shares = score(network, held_out, pixels, vae.config.static_channels, device)
            print(f"step {step} {shown} told {shares}", flush=True)
            losses.clear()
            save(network, folder)
            state = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            torch.save(state | {"seconds": spent}, state_path.with_suffix(".part"))
            state_path.with_suffix(".part").rename(state_path)


if __name__ == "__main__":
    main()
