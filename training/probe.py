"""Trains the probe that scores generated clips: a small network that tells the six attributes from pixels.

    python -m training.probe RUN --minutes 10

It sees renders only: the clips and single images of RUN/pixels at 64 x 64, three frames a second, mirrored half of the
time, and some thousand small clips more that are rendered for it alone. One shard of clips in four is seen through the
VAE as well, and all are blurred, speckled and made blocky at random, so that the answers do not hang on edges that no
decoder gives back. Goes on from RUN/probe/state.pt where it was stopped, writes RUN/probe/model.safetensors, and prints
its accuracy on RUN/held_out. With `--keep` the weights also go beside this file, where every run finds them that has no
probe of its own: so scores can be compared.
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

from training.muon import Conv, Muon
from training.precision import autocast
from training.vae import load_vae
from training.views import FRAMES, SIDE, THROUGH_VAE, Views, disturb, prepare, render_extra
from training.world.scene import ATTRIBUTES

MOVING = ("motion", "camera")
CLIPS_PER_STEP, IMAGES_PER_STEP = 24, 48
KEPT = Path(__file__).with_name("probe.safetensors")
"""The probe of the scores that are written down, in 16 bits."""


class Probe(nn.Module):
    """Convolutions over each frame beside its neighbours in time, then convolutions over time.

    What a single frame shows is answered frame by frame and averaged, so that still images can teach it as well.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        w = width
        layers: list[nn.Module] = []
        before = 11  # three frames of three colours, and the place
        for after, stride in ((w, 2), (2 * w, 2), (2 * w, 1), (4 * w, 2), (4 * w, 1)):
            layers += [Conv(before, after, stride), nn.GroupNorm(8, after), nn.ReLU(True)]
            before = after
        self.trunk = nn.Sequential(*layers, nn.Conv2d(4 * w, w, 1), nn.ReLU(True), nn.Flatten())  # [B*T, w*8*8]
        self.look = nn.Sequential(nn.Linear(w * (SIDE // 8) ** 2, 8 * w), nn.ReLU(True))
        self.watch = nn.Sequential(
            nn.Conv1d(8 * w, 4 * w, 3, padding=1), nn.ReLU(True),
            nn.Conv1d(4 * w, 4 * w, 3, padding=1), nn.ReLU(True), nn.Flatten(), nn.Dropout(0.2),
        )  # fmt: skip
        sizes = {name: len(values) for name, values in ATTRIBUTES.items()}
        self.heads = nn.ModuleDict(
            {name: nn.Linear(4 * w * FRAMES if name in MOVING else 8 * w, size) for name, size in sizes.items()}
        )
        row = torch.linspace(-1, 1, SIDE)
        self.register_buffer("place", torch.stack(torch.meshgrid(row, row, indexing="ij")), persistent=False)

    def forward(self, clips: Tensor) -> dict[str, Tensor]:
        """Logits of each attribute for clips [B, 7, 3, 64, 64] in -1..1; of one frame alone, those that it shows."""
        batch, time_steps = clips.shape[:2]
        before, after = torch.cat([clips[:, :1], clips[:, :-1]], 1), torch.cat([clips[:, 1:], clips[:, -1:]], 1)
        frames = torch.cat([clips, before - clips, after - clips], dim=2).flatten(0, 1)  # [B*T, 9, 64, 64]
        place = self.get_buffer("place").expand(len(frames), -1, -1, -1)
        x = torch.cat([frames, place], dim=1).to(memory_format=torch.channels_last)
        seen = self.look(self.trunk(x)).unflatten(0, (batch, time_steps))  # [B, T, 8w]
        still = {name: head(seen).mean(1) for name, head in self.heads.items() if name not in MOVING}
        if time_steps == 1:
            return still
        moving = self.watch(seen.transpose(1, 2))
        return {name: still[name] if name in still else head(moving) for name, head in self.heads.items()}


@torch.inference_mode()
def answers(probe: Probe, clips: Tensor) -> Tensor:
    """What the probe sees: index of each attribute's value [B, 6], for clips uint8 [B, 7, 3, 64, 64]."""
    device = next(probe.parameters()).device
    parts = [probe(part.to(device).float() / 127.5 - 1) for part in clips.split(32)]
    return torch.cat([torch.stack([part[name].argmax(1) for name in ATTRIBUTES], dim=1) for part in parts]).cpu()


def load_probe(run: Path, device: str = "cpu") -> Probe:
    """That of the run, or else the one that is kept beside this file."""
    trained = run / "probe" / "model.safetensors"
    tensors = load_file(trained if trained.exists() else KEPT)
    probe = Probe()
    probe.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return probe.eval().to(device)


def make_optimizers(probe: Probe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside, AdamW for the rest: half the steps that AdamW alone needs (LOG.md, 52)."""
    hidden = [p for part in (probe.trunk, probe.look) for p in part.parameters() if p.dim() == 2]
    others = [p for p in probe.parameters() if all(p is not each for each in hidden)]
    return [
        Muon(hidden, lr=1e-2, momentum=0.95, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=2e-3, weight_decay=0.05),
    ]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--minutes", type=float, default=10, help="of training, all runs together")
    parser.add_argument("--extra", type=int, default=128, help="shards of 32 clips to render beside RUN/pixels")
    parser.add_argument("--keep", action="store_true", help="write training/probe.safetensors in the end")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    device = options.device
    if device == "cpu":
        torch.set_num_threads(1)
    folder, state_path = options.run / "probe", options.run / "probe" / "state.pt"
    vae = load_vae(options.run).to(device)
    prepare(options.run / "pixels", folder / "pixels", vae, THROUGH_VAE)
    prepare(options.run / "held_out", folder / "held_out", vae, 1)
    for number in range(options.extra):
        render_extra(folder / "pixels", number)
    clips = Views(folder / "pixels", "clips", ("render", "decoded"))
    images = Views(folder / "pixels", "images", ("render", "decoded"))
    print(f"{len(clips.scenes)} clips, {len(images.scenes)} images", flush=True)

    torch.manual_seed(0)
    probe = Probe().to(device)
    optimizers = make_optimizers(probe)
    rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    step, seconds = 0, 0.0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        probe.load_state_dict(state["probe"])
        for optimizer, values in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        step, seconds = state["step"], state["seconds"]
    began = saved = time.time()
    total = options.minutes * 60
    share = min(1.0, seconds / total)
    while share < 1:
        rng = random.Random(step)
        torch.manual_seed(step)
        rate = min(1.0, (step + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share)))
        loss = torch.zeros((), device=device)
        for views, count in ((clips, CLIPS_PER_STEP), (images, IMAGES_PER_STEP)):
            if views.scenes:
                frames, truth = views.draw(rng, count)
                frames, truth = disturb(frames).to(device), truth.to(device)
                with autocast(device):
                    told = probe(frames)
                for i, name in enumerate(ATTRIBUTES):
                    if name in told:
                        loss = loss + F.cross_entropy(told[name].float(), truth[:, i], label_smoothing=0.05)
        for optimizer, base in zip(optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = base * rate
            optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(probe.parameters(), 5.0)
        for optimizer in optimizers:
            optimizer.step()
        step += 1
        spent = seconds + time.time() - began
        share = min(1.0, spent / total)
        if step % 50 == 0:
            print(f"step {step} loss {float(loss.detach()):.3f} {spent / 60:.1f} min", flush=True)
        if time.time() - saved > 120 or share >= 1:
            saved = time.time()
            part = state_path.with_suffix(".part")
            torch.save({"probe": probe.state_dict(), "optimizers": [each.state_dict() for each in optimizers],
                        "step": step, "seconds": spent}, part)  # fmt: skip
            part.rename(state_path)
            save_file({n: p.detach().cpu().contiguous() for n, p in probe.state_dict().items()},
                      folder / "model.safetensors")  # fmt: skip
    if options.keep:
        save_file({n: p.detach().cpu().half().contiguous() for n, p in probe.state_dict().items()}, KEPT)
    probe.eval()
    for version in ("render", "decoded"):
        held_out = Views(folder / "held_out", "clips", (version,))
        if held_out.scenes:
            right = (answers(probe, held_out.frames) == held_out.truth[0]).float().mean(0).tolist()
            shown = " ".join(f"{name} {value:.3f}" for name, value in zip(ATTRIBUTES, right, strict=True))
            print(f"right on {len(held_out.scenes)} held-out clips, {version}: {shown}", flush=True)


if __name__ == "__main__":
    main()
