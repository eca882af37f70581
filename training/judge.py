"""Trains the judge of clips (soragen/families/pocket/judge.py): which attributes do latents show, and a sentence name?

    python -m training.judge RUN --minutes 15

The probe (training/probe.py) scores what pixels show. This one looks at latents, noisy, blurred and faint at random,
since that is how clean estimates look on the way; it chooses among clips that have begun, and teaches training.tune.
The two share neither weights nor what they see, so what the judge is fooled by need not fool the probe. Goes on from
RUN/judge/state.pt where it was stopped, and prints its accuracy on RUN/held_out_latents.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from soragen.families.pocket.judge import JudgeConfig, PocketJudge
from soragen.models.config import read_config
from training.muon import make_optimizers
from training.text import disturb as disturb_text
from training.text import embed, labels, load_encoder, other_words
from training.transformer import CLIP_LATENT_FRAMES, Pool
from training.vae import load_vae
from training.world.captions import caption
from training.world.scene import ATTRIBUTES, Scene, sample_scene

MOVING = ("motion", "camera")
NAMES = (*(name for name in ATTRIBUTES if name not in MOVING), *MOVING)
"""The attributes in the judge's order."""
ORDER = [list(ATTRIBUTES).index(name) for name in NAMES]
CLIPS_PER_STEP, CAPTIONS_PER_STEP = 32, 32
WHOLE = 0.6
"""Share of the steps that see whole clips; the others see a part of them."""


def truth_of(scenes: list[Scene]) -> Tensor:
    """Index of each attribute's value [n, 6], in the judge's order."""
    return labels(scenes)[:, ORDER]


def disturb(clips: Tensor) -> Tensor:
    """Clips [B, T, K, 16, 16], each a little blurred in the frame and in time, made faint or strong, and noisy."""
    batch, num_frames, channels, side, _ = clips.shape

    def some(most: float, power: float = 1.0) -> Tensor:
        return most * torch.rand((batch, 1, 1, 1, 1), device=clips.device) ** power

    blurred = F.avg_pool2d(clips.flatten(0, 1), 3, 1, 1, count_include_pad=False).view_as(clips)
    out = clips + some(1.0, 2.0) * (blurred - clips)
    before, after = torch.cat([out[:, :1], out[:, :-1]], 1), torch.cat([out[:, 1:], out[:, -1:]], 1)
    out = out + some(0.4, 2.0) * ((before + after) / 2 - out)
    out = out * (0.8 + some(0.5))
    wide = torch.randn(batch * num_frames, channels, side // 2, side // 2, device=clips.device)
    wide = F.interpolate(wide, side, mode="bilinear").view_as(out)
    return out + some(0.6, 2.0) * torch.randn_like(out) + some(0.6, 2.0) * wide


def load_judge(run: Path) -> PocketJudge:
    """What this script made, frozen."""
    judge = PocketJudge(read_config(run / "judge", JudgeConfig))
    judge.load_state_dict(load_file(run / "judge" / "model.safetensors"))
    return judge.eval().requires_grad_(False)


def loss_of(told: list[Tensor], truth: Tensor, smoothing: float = 0.0) -> Tensor:
    losses = [F.cross_entropy(each, truth[:, i], label_smoothing=smoothing) for i, each in enumerate(told)]
    return torch.stack(losses).sum()


@torch.inference_mode()
def accuracy(judge: PocketJudge, held_out: Pool) -> dict[str, float]:
    """Share of right answers for every attribute."""
    shards = [shard for shards in held_out.shards["clips"].values() for shard in shards]
    told = [judge(judge.coarse(shard.latents.float())) for shard in shards]
    seen = torch.cat([torch.stack([each.argmax(1) for each in values], dim=1) for values in told])
    truth = truth_of([scene for shard in shards for scene in shard.scenes])
    shares = (seen == truth).float().mean(0).tolist()
    return {name: round(share, 3) for name, share in zip(NAMES, shares, strict=True)}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--minutes", type=float, default=15, help="of training, all runs together")
    parser.add_argument("--width", type=int, default=JudgeConfig.width)
    parser.add_argument("--clips", type=int, default=CLIPS_PER_STEP)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    device = options.device
    if device == "cpu":
        torch.set_num_threads(1)
    folder, state_path = options.run / "judge", options.run / "judge" / "state.pt"
    folder.mkdir(exist_ok=True)
    tokenizer, encoder = load_encoder(options.run)
    read, words, vae = (tokenizer, encoder.to(device)), other_words(), load_vae(options.run)
    sizes = {name: len(values) for name, values in ATTRIBUTES.items()}
    torch.manual_seed(0)
    judge = PocketJudge(
        JudgeConfig(
            vae.config.latent_channels, width=options.width, text_width=encoder.config.d_model,
            num_still=tuple(sizes[name] for name in NAMES if name not in MOVING),
            num_moving=tuple(sizes[name] for name in MOVING),
        )
    )  # fmt: skip
    with torch.no_grad():
        judge.latent_std.copy_(vae.latent_std)
    judge.latent_std.requires_grad_(False)
    judge.to(device)
    optimizers = make_optimizers(judge, ("trunk", "look", "watch"))
    rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    step, seconds = 0, 0.0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        judge.load_state_dict(state["judge"])
        for optimizer, values in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        step, seconds = state["step"], state["seconds"]
    pool, held_out = Pool(options.run / "latents"), Pool(options.run / "held_out_latents")
    pool.refresh()
    held_out.refresh()
    began, saved, total = time.time(), time.time(), options.minutes * 60
    spent, losses = seconds, {"clips": 0.0, "sentences": 0.0, "steps": 0}
    while spent < total:
        rng = random.Random(step)
        torch.manual_seed(step)
        rate = min(1.0, (step + 1) / 50) * (0.02 + 0.49 * (1 + math.cos(math.pi * spent / total)))
        num_frames = CLIP_LATENT_FRAMES if rng.random() < WHOLE else rng.randint(3, CLIP_LATENT_FRAMES)
        start = rng.randint(0, CLIP_LATENT_FRAMES - num_frames)
        tokens = options.clips * num_frames * (judge.config.side // 2) ** 2
        latents, _, scenes = pool.draw(rng, "clips", slice(start, start + num_frames), tokens)
        seen = loss_of(judge(disturb(judge.coarse(latents.to(device)))), truth_of(scenes).to(device), 0.05)
        asked = [sample_scene(rng) for _ in range(CAPTIONS_PER_STEP)]
        embeddings, mask = embed(read, [disturb_text(caption(scene, rng), rng, words) for scene in asked], device)
        named = loss_of(judge.read(embeddings, mask), truth_of(asked).to(device))
        for optimizer, base in zip(optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = base * rate
            optimizer.zero_grad()
        (seen + named).backward()
        nn.utils.clip_grad_norm_(judge.parameters(), 5.0)
        for optimizer in optimizers:
            optimizer.step()
        step, spent = step + 1, seconds + time.time() - began
        losses["clips"] += float(seen.detach())
        losses["sentences"] += float(named.detach())
        losses["steps"] += 1
        if time.time() - saved > 60 or spent >= total:
            saved = time.time()
            judge.eval()
            right = accuracy(judge, held_out)
            judge.train()
            means = " ".join(f"{name} {losses[name] / losses['steps']:.3f}" for name in ("clips", "sentences"))
            print(f"step {step} {spent / 60:.1f} min loss of {means} right on held-out clips {right}", flush=True)
            losses = dict.fromkeys(losses, 0)
            state = {
                "judge": judge.state_dict(), "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                "step": step, "seconds": spent,
            }  # fmt: skip
            torch.save(state, state_path.with_suffix(".part"))
            state_path.with_suffix(".part").rename(state_path)
            tensors = {name: p.detach().cpu().contiguous() for name, p in judge.state_dict().items()}
            save_file(tensors, folder / "model.safetensors")
            values = {"_class_name": "PocketJudge"} | asdict(judge.config)
            (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n")


if __name__ == "__main__":
    main()
