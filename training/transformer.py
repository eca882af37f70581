"""Trains pocket's diffusion transformer by flow matching on latents of captioned clips and images.

    python -m training.transformer RUN --minutes 90

Goes on from RUN/transformer/state.pt where it was stopped; `--minutes` counts all the time spent on it, so a larger
number continues a finished run. `torchrun --nproc-per-node 2 -m training.transformer` shares the work among processes:
each has its own samples, and their gradients are averaged. What it does beyond the plain recipe:
- many single images among the clips, nearly all of it early: what things look like is learnt on one frame at a seventh
  of a clip's cost, how they move on clips of growing length, at the end most of them whole;
- noise levels drawn from `sigma = sigmoid(N(mean, std))`: high ones, where the sentence decides, and for images as many
  around a half, where detail is decided; higher ones for long clips, whose frames tell each other's layout through more
  noise;
- in half of the clips some frames are given (noise level 0): the first ones, the last ones, both, or any;
- errors on the subject count more than errors on the ground, and what changes from frame to frame more than what does
  not;
- one caption in ten is empty, for classifier-free guidance.
"""

from __future__ import annotations

import argparse
import atexit
import json
import random
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from soragen.families.pocket.transformer import PocketTransformer, Positions, TransformerConfig, lay_positions
from training.clips import FPS
from training.muon import Muon
from training.pool import CLIP_LATENT_FRAMES, Pool, draw_known, draw_shape
from training.precision import autocast
from training.text import Reader, embed, load_encoder
from training.vae import load_vae
from training.world.captions import caption

TOKENS_PER_STEP = 4096
SIGMA_MEAN, SIGMA_STD = 0.3, 1.4
LONG_CLIP, LONG_SIGMA_MEAN = 5, 2.2
EMPTY_CAPTION = 0.1
EMA = 0.997
CONTINUED = 0.25
SUBJECT_WEIGHT = 2.5
MORE_OFTEN: dict[tuple[str, ...], float] = {
    ("still",): 1.5, ("bouncing",): 2.0, ("swaying",): 3.0, ("spinning",): 5.0, ("spinning", "zoom in"): 1.5,
    ("moving left",): 2.5, ("moving right",): 2.5, ("orbit",): 1.5, ("duck",): 3.5, ("robot",): 2.0, ("tree",): 1.5,
    ("still", "pan left"): 2.0, ("still", "pan right"): 2.0, ("bouncing", "pan left"): 1.5,
    ("bouncing", "pan right"): 1.5, ("bouncing", "static"): 1.5, ("moving left", "orbit"): 2.5,
    ("moving right", "orbit"): 2.5, ("moving left", "pan left"): 2.0, ("moving left", "pan right"): 2.0,
    ("moving right", "pan left"): 2.0, ("moving right", "pan right"): 2.0, ("moving left", "static"): 1.5,
    ("moving right", "static"): 1.5, ("swaying", "pan left"): 1.5, ("swaying", "pan right"): 1.5,
    ("growing", "orbit"): 2.0, ("growing", "zoom out"): 1.5, ("shrinking", "zoom in"): 2.5,
    ("shrinking", "orbit"): 1.5, ("rising", "zoom in"): 3.0, ("rising", "orbit"): 1.5,
}  # fmt: skip
"""What is learnt last is drawn more often: values, and values that meet."""
TOLD_SHIFT, TOLD_SHIFT_GIVEN = 1.3, 1.45
"""Of the noise, where videos are made of what was trained: without and with given frames (see `TransformerConfig`)."""
RATE_FALLS = 0.3
"""Share of the training, at its end, over which the learning rate falls to zero."""


@dataclass(frozen=True)
class Emphasis:
    """What counts how much in the loss. Where the answers that are best lie does not depend on it.

    spread: the power of a channel's spread that its squared error counts with; at 2 errors are those of pixels, below
    it faint detail counts for more. change: how often the part of an error that differs from frame to frame counts,
    against 1 for the part that all frames have in common.
    """

    spread: float = 1.0
    change: float = 1.0


MEASURED, LEARNT = Emphasis(), Emphasis(spread=2.0, change=4.0)


def emphasise(error: Tensor, spread: Tensor, emphasis: Emphasis) -> Tensor:
    """Squares of an error [B, z, T, h, w] of channels with a spread [z], as they count.

    By spread, or faint detail would outvote the few channels that carry brightness and shape.
    """
    channel = spread.pow(emphasis.spread)
    common = error.mean(dim=2, keepdim=True)
    counted = common + emphasis.change**0.5 * (error - common)
    return counted.square() * (channel / channel.mean()).view(1, -1, 1, 1, 1)


def flow_loss(
    network: PocketTransformer, latents: Tensor, mask: Tensor, sigma: Tensor, noise: Tensor, free: Tensor,
    positions: Positions, context: tuple[Tensor, Tensor], emphasis: Emphasis = MEASURED,
) -> Tensor:  # fmt: skip
    """Squared error of the velocity, one value a sample [B]; frames that are given do not count.

    latents, noise [B, z, T, h, w]; mask [B, T, h, w]; sigma [B]; free [B, T].
    """
    levels = sigma[:, None] * free  #                                    [B, T]
    level = levels[:, None, :, None, None]
    noisy = (1 - level) * latents + level * noise
    embeddings, words = context
    # On a CPU the fused attention's backward is three times slower than plain matrix products at these lengths.
    kernel = SDPBackend.MATH if latents.device.type == "cpu" else SDPBackend.EFFICIENT_ATTENTION
    with autocast(latents.device.type), sdpa_kernel(kernel):
        clean = network(noisy, levels, positions, network.read(embeddings), network.summarise(embeddings, words), words)
    weight = ((1 + SUBJECT_WEIGHT * mask) * free[:, :, None, None])[:, None]  # [B, 1, T, h, w]
    error = emphasise((clean - latents) / sigma.view(-1, 1, 1, 1, 1), network.latent_std, emphasis) * weight
    return error.mean(dim=1).sum(dim=(1, 2, 3)) / weight.sum(dim=(1, 2, 3, 4))


class Clock:
    """Positions of each shape, laid once."""

    def __init__(self, config: TransformerConfig, device: str) -> None:
        self.config, self.device = config, device
        self.known: dict[tuple[int, int, int], Positions] = {}

    def __call__(self, latents: Tensor) -> Positions:
        shape = (
            latents.shape[2],
            latents.shape[3] // self.config.patch_size,
            latents.shape[4] // self.config.patch_size,
        )
        if shape not in self.known:
            self.known[shape] = lay_positions(self.config, shape, 4 / FPS).to(torch.device(self.device))
        return self.known[shape]


@torch.no_grad()
def evaluate(
    network: PocketTransformer, pool: Pool, clock: Clock, read: Reader, device: str, num_batches: int = 4
) -> dict[str, float]:
    """Held-out loss: at high noise with the right captions and with shuffled ones, whose gap measures reading; and at
    low noise, where detail is decided."""
    totals: dict[str, list[float]] = {"right": [], "shuffled": [], "detail": []}
    for kind, num_frames in (("images", 1), ("clips", 5)):
        if not pool.count(kind):
            continue
        for seed in range(num_batches):
            rng = random.Random(seed)
            torch.manual_seed(seed)
            latents, mask, scenes = pool.draw(rng, kind, slice(0, num_frames), TOKENS_PER_STEP // 2)
            latents, mask = latents.to(device), mask.to(device)
            captions = [caption(scene, rng) for scene in scenes]
            high, low = (torch.linspace(*ends, len(latents), device=device) for ends in ((0.6, 0.98), (0.1, 0.5)))
            noise = torch.randn(latents.shape).to(device)
            free = torch.ones(len(latents), num_frames, device=device)
            for name, texts, sigma in (
                ("right", captions, high),
                ("shuffled", captions[len(captions) // 2 :] + captions[: len(captions) // 2], high),
                ("detail", captions, low),
            ):
                loss = flow_loss(network, latents, mask, sigma, noise, free, clock(latents), embed(read, texts, device))
                totals[name].append(float(loss.mean()))
    return {name: sum(values) / len(values) for name, values in totals.items() if values}


def make_optimizers(network: PocketTransformer) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for the rest (Jordan et al. 2024)."""
    matrices = [
        p
        for name, p in network.named_parameters()
        if name.startswith("blocks") and p.dim() == 2 and "table" not in name
    ]
    ids = {id(p) for p in matrices}
    others = [p for name, p in network.named_parameters() if id(p) not in ids and name != "latent_std"]
    return [
        Muon(matrices, lr=3e-3, momentum=0.95, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.0),
    ]


class Team:
    """The processes that train together: `size` of them; this one is number `rank`. Alone without torchrun."""

    def __init__(self) -> None:
        if dist.is_torchelastic_launched():
            dist.init_process_group("gloo")
            atexit.register(dist.destroy_process_group)  # or a thread of the group may abort the process as it ends
        self.rank, self.size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)

    def agree(self, value: float) -> float:
        """The value of the first process, so that all take the same turns."""
        if self.size == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64)
        dist.broadcast(shared, 0)
        return float(shared)

    def average_gradients(self, network: nn.Module) -> None:
        if self.size > 1:
            for p in network.parameters():
                if p.requires_grad:
                    p.grad = torch.zeros_like(p) if p.grad is None else p.grad  # the others may have used it
                    dist.all_reduce(p.grad)
                    p.grad /= self.size


def save(network: PocketTransformer, folder: Path) -> None:
    save_file(
        {name: p.detach().cpu().contiguous() for name, p in network.state_dict().items()}, folder / "model.safetensors"
    )
    values = {"_class_name": "PocketTransformer"} | asdict(network.config)
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--minutes", type=float, default=90)
    parser.add_argument("--spent", type=float, default=0, help="minutes that are in restored weights already")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--head-width", type=int, default=160)
    parser.add_argument("--head-layers", type=int, default=3)
    parser.add_argument("--head-below", type=float, default=0.8)
    parser.add_argument("--tokens", type=int, default=TOKENS_PER_STEP)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    device = options.device
    if device == "cpu":
        torch.set_num_threads(1)
    team = Team()
    folder, state_path = options.run / "transformer", options.run / "transformer" / "state.pt"
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer, encoder = load_encoder(options.run)
    read = (tokenizer, encoder.to(device))
    vae = load_vae(options.run)
    config = TransformerConfig(
        latent_channels=vae.config.latent_channels, width=options.width, num_layers=options.layers,
        num_heads=options.width // 64, mlp_width=-(-options.width * 8 // 3 // 64) * 64,
        text_width=encoder.config.d_model, head_width=options.head_width, head_layers=options.head_layers,
        head_below=options.head_below, told_shift=TOLD_SHIFT, told_shift_given=TOLD_SHIFT_GIVEN,
    )  # fmt: skip
    torch.manual_seed(0)
    network = PocketTransformer(config)
    network.init_weights()
    with torch.no_grad():
        network.latent_std.copy_(vae.latent_std)
    network.latent_std.requires_grad_(False)
    if (restored := folder / "model.safetensors").exists() and not state_path.exists():
        network.load_state_dict(load_file(restored))
    network.to(device)
    average = PocketTransformer(config).to(device).requires_grad_(False)
    average.load_state_dict(network.state_dict())
    optimizers = make_optimizers(network)
    rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    step, seconds, seen = 0, 60 * options.spent, 0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        network.load_state_dict(state["network"])
        average.load_state_dict(state["average"])
        for optimizer, values in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        step, seconds, seen = state["step"], state["seconds"], state["seen"]

    pool, held_out = Pool(options.run / "latents", MORE_OFTEN), Pool(options.run / "held_out_latents")
    clock = Clock(config, device)
    pool.refresh()
    held_out.refresh()
    total, began = options.minutes * 60, time.time()
    saved = shown = measured = began
    losses: dict[str, list[float]] = defaultdict(list)
    while True:
        spent = team.agree(seconds + time.time() - began)
        share = min(1.0, spent / total)
        kind, num_frames = draw_shape(random.Random(step), share, pool.count("clips") > 0)
        rng = random.Random(f"{step} {team.rank}")
        torch.manual_seed(step * team.size + team.rank)
        start = (
            rng.randint(1, CLIP_LATENT_FRAMES - num_frames)
            if 1 < num_frames < CLIP_LATENT_FRAMES and rng.random() < CONTINUED
            else 0
        )
        latents, mask, scenes = pool.draw(rng, kind, slice(start, start + num_frames), options.tokens)
        latents, mask = latents.to(device), mask.to(device)
        texts = ["" if rng.random() < EMPTY_CAPTION else caption(scene, rng) for scene in scenes]
        free = torch.tensor([draw_known(rng, num_frames, start) for _ in scenes], device=device)
        centre = LONG_SIGMA_MEAN if num_frames >= LONG_CLIP else SIGMA_MEAN
        sigma = torch.sigmoid(centre + SIGMA_STD * torch.randn(len(scenes))).clamp(0.02, 0.9999).to(device)
        noise = torch.randn(latents.shape).to(device)
        context = embed(read, texts, device)
        loss = flow_loss(network, latents, mask, sigma, noise, free, clock(latents), context, LEARNT).mean()
        rate = min(1.0, (step + 1) / 100) * min(1.0, max(0.03, (1 - share) / RATE_FALLS))
        for optimizer, base in zip(optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = base * rate
            optimizer.zero_grad()
        loss.backward()
        team.average_gradients(network)
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        keep = min(EMA, (1 + step) / (10 + step))
        with torch.no_grad():
            for mean, value in zip(average.parameters(), network.parameters(), strict=True):
                mean.lerp_(value, 1 - keep)
        step, seen = step + 1, seen + len(scenes) * team.size
        losses[f"{kind}{num_frames}"].append(float(loss.detach()))
        if time.time() - shown > 60:
            shown = time.time()
            if team.rank == 0:
                means = " ".join(f"{name} {sum(v) / len(v):.4f}" for name, v in sorted(losses.items()))
                print(f"step {step} seen {seen} {spent / 60:.1f} min {means}", flush=True)
            losses.clear()
            pool.refresh()
        if team.rank == 0 and (time.time() - measured > 900 or share >= 1):  # the other processes wait for it
            measured = time.time()
            held_out.refresh()
            scores = evaluate(average, held_out, clock, read, device)
            print(
                f"step {step} held out {scores} pool {pool.count('images')} images {pool.count('clips')} clips",
                flush=True,
            )
        if team.rank == 0 and (time.time() - saved > 300 or share >= 1):
            saved = time.time()
            state = {
                "network": network.state_dict(), "average": average.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                "step": step, "seconds": seconds + time.time() - began, "seen": seen,
            }  # fmt: skip
            torch.save(state, state_path.with_suffix(".part"))
            state_path.with_suffix(".part").rename(state_path)
            save(average, folder)
        if share >= 1:
            break


if __name__ == "__main__":
    main()
