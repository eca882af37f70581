"""Trains the judge: which attributes does a clip show, told from the coarse channels of its latents?

    python -m training.judge RUN --minutes 25

The probe (training/probe.py) scores what pixels show; the judge teaches (training/tune.py). It looks at latents, so
that no decoder lies between it and the transformer, and sees them noisy, blurred and faint at random, since that is how
clean estimates look on the way. The two share neither weights nor what they see: what the judge is fooled by need not
fool the probe. Goes on from RUN/judge/state.pt where it was stopped, and prints its accuracy on RUN/held_out_latents.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from training.muon import Conv, make_optimizers
from training.text import labels
from training.transformer import CLIP_LATENT_FRAMES, Pool
from training.vae import load_vae
from training.world.scene import ATTRIBUTES

MOVING = ("motion", "camera")
COARSE, SIDE, CELLS = 16, 16, 8
"""Channels that are seen (those that the refiner tells the others from), latents on a side, and to how many those are
reduced before they are looked at as a whole."""
WIDTH = 32
CLIPS_PER_STEP = 32
WHOLE = 0.6
"""Share of the steps that see whole clips; the others see a part of them."""


class Judge(nn.Module):
    """Convolutions over each latent frame beside its neighbours in time, then convolutions over time.

    Letters: B batch, T latent frames, C channels, of which K are coarse.
    """

    def __init__(self, latent_channels: int, width: int = WIDTH) -> None:
        super().__init__()
        w, layers = width, list[nn.Module]()
        before = 3 * COARSE + 2  # three frames, and the place
        for after, stride in ((w, 1), (2 * w, 2), (2 * w, 1), (4 * w, 1), (4 * w, 1)):
            layers += [Conv(before, after, stride), nn.GroupNorm(8, after), nn.ReLU()]
            before = after
        self.latent_std = nn.Parameter(torch.ones(latent_channels), requires_grad=False)
        self.trunk = nn.Sequential(*layers, nn.Conv2d(4 * w, w, 1), nn.ReLU(), nn.Flatten())
        self.look = nn.Sequential(nn.Linear(w * CELLS**2, 8 * w), nn.ReLU(), nn.Dropout(0.1))
        self.watch = nn.Sequential(
            nn.Conv1d(8 * w, 8 * w, 3, padding=1), nn.ReLU(), nn.Conv1d(8 * w, 8 * w, 3, padding=1), nn.ReLU()
        )
        self.heads = nn.ModuleDict(
            {name: nn.Linear(16 * w if name in MOVING else 8 * w, len(values)) for name, values in ATTRIBUTES.items()}
        )

    def coarse(self, latents: Tensor) -> Tensor:
        """What is seen of latents [B, C, T, h, w]: [B, T, K, 16, 16] of unit spread, of whatever aspect they were."""
        frames = (latents[:, :COARSE] / self.latent_std[:COARSE].view(1, -1, 1, 1, 1)).transpose(1, 2)
        if frames.shape[-2:] == (SIDE, SIDE):
            return frames
        flat = F.interpolate(frames.flatten(0, 1), (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
        return flat.unflatten(0, frames.shape[:2])

    def forward(self, clips: Tensor) -> list[Tensor]:
        """Logits of every attribute, each [B, values], for clips [B, T, K, 16, 16]."""
        batch, num_frames = clips.shape[:2]
        before, after = torch.cat([clips[:, :1], clips[:, :-1]], 1), torch.cat([clips[:, 1:], clips[:, -1:]], 1)
        row = torch.linspace(-1, 1, SIDE).to(clips)
        place = torch.stack(torch.meshgrid(row, row, indexing="ij")).expand(batch, num_frames, -1, -1, -1)
        seen = torch.cat([clips, before - clips, after - clips, place], dim=2).flatten(0, 1)
        seen = self.look(self.trunk(seen.to(memory_format=torch.channels_last))).unflatten(0, (batch, num_frames))
        watched = self.watch(seen.transpose(1, 2))  #                    [B, 8w, T]
        whole = torch.cat([watched.mean(dim=2), watched.amax(dim=2)], dim=1)
        return [head(whole) if name in MOVING else head(seen).mean(dim=1) for name, head in self.heads.items()]


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


def load_judge(run: Path) -> Judge:
    """What this script made, frozen."""
    tensors = load_file(run / "judge" / "model.safetensors")
    judge = Judge(len(tensors["latent_std"]), tensors["trunk.0.weight"].shape[0])
    judge.load_state_dict(tensors)
    return judge.eval().requires_grad_(False)


def right(told: list[Tensor], truth: Tensor) -> dict[str, float]:
    """Share of right answers for every attribute; truth [B, 6]."""
    return {name: float((told[i].argmax(1) == truth[:, i]).float().mean()) for i, name in enumerate(ATTRIBUTES)}


@torch.inference_mode()
def accuracy(judge: Judge, held_out: Pool) -> dict[str, float]:
    shards = [shard for shards in held_out.shards["clips"].values() for shard in shards]
    told = [judge(judge.coarse(shard.latents.float())) for shard in shards]
    truth = labels([scene for shard in shards for scene in shard.scenes])
    return right([torch.cat(values) for values in zip(*told, strict=True)], truth)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--minutes", type=float, default=25, help="of training, all runs together")
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--clips", type=int, default=CLIPS_PER_STEP)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    device = options.device
    if device == "cpu":
        torch.set_num_threads(1)
    folder, state_path = options.run / "judge", options.run / "judge" / "state.pt"
    folder.mkdir(exist_ok=True)
    vae = load_vae(options.run)
    torch.manual_seed(0)
    judge = Judge(vae.config.latent_channels, options.width).to(device)
    judge.latent_std.copy_(vae.latent_std.detach())
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
    spent, losses = seconds, list[float]()
    while spent < total:
        rng = random.Random(step)
        torch.manual_seed(step)
        num_frames = CLIP_LATENT_FRAMES if rng.random() < WHOLE else rng.randint(3, CLIP_LATENT_FRAMES)
        start = rng.randint(0, CLIP_LATENT_FRAMES - num_frames)
        tokens = options.clips * num_frames * CELLS**2
        latents, _, scenes = pool.draw(rng, "clips", slice(start, start + num_frames), tokens)
        told, truth = judge(disturb(judge.coarse(latents.to(device)))), labels(scenes).to(device)
        each = [F.cross_entropy(told[i], truth[:, i], label_smoothing=0.05) for i in range(len(told))]
        loss = torch.stack(each).sum()
        rate = min(1.0, (step + 1) / 50) * (0.02 + 0.49 * (1 + math.cos(math.pi * spent / total)))
        for optimizer, base in zip(optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = base * rate
            optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(judge.parameters(), 5.0)
        for optimizer in optimizers:
            optimizer.step()
        step, spent = step + 1, seconds + time.time() - began
        losses.append(float(loss.detach()))
        if time.time() - saved > 60 or spent >= total:
            saved = time.time()
            judge.eval()
            shares = " ".join(f"{name} {share:.3f}" for name, share in accuracy(judge, held_out).items())
            judge.train()
            mean = sum(losses) / len(losses)
            print(f"step {step} {spent / 60:.1f} min loss {mean:.3f} right on held-out clips: {shares}", flush=True)
            losses.clear()
            state = {
                "judge": judge.state_dict(), "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                "step": step, "seconds": spent,
            }  # fmt: skip
            torch.save(state, state_path.with_suffix(".part"))
            state_path.with_suffix(".part").rename(state_path)
            tensors = {name: p.detach().cpu().contiguous() for name, p in judge.state_dict().items()}
            save_file(tensors, folder / "model.safetensors")


if __name__ == "__main__":
    main()
