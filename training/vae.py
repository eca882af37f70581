"""Makes pocket's VAE: the linear codec in closed form, then the decoder's residual convolutions by gradient descent.

    python -m training.vae RUN --minutes 20

Goes on from RUN/vae/state.pt where it was stopped. The codec stays as it is, so latents that were made stay valid.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from soragen.families.pocket.vae import GROUP, PATCH, PATCH_DIM, PocketVae, VaeConfig, join
from training.clips import read_shard
from training.precision import autocast

RATE = 1e-3
NOISE = 0.2
SUBJECT_WEIGHT = 3.0
CODEC = ("patch_mean", "static_basis", "motion_basis", "latent_mean", "latent_scale", "latent_std")
"""What is found in closed form, and not trained."""


def to_groups(frames: Tensor) -> Tensor:
    """Frames uint8 [B, 1 + 4k, H, W, 3] -> groups [B, 1 + k, 4, 3, H, W] in -1..1, the first frame four times."""
    frames = frames.permute(0, 1, 4, 2, 3).float() / 127.5 - 1
    frames = torch.cat([frames[:, :1].expand(-1, GROUP - 1, -1, -1, -1), frames], dim=1)
    return frames.unflatten(1, (-1, GROUP))


def join_groups(groups: Tensor) -> Tensor:
    """Decoded groups [B, G, 4, 3, H, W] as `PocketVae.decode` shows them."""
    return torch.stack(list(join(groups.unbind(dim=1))), dim=1)


def fit_linear(vae: PocketVae, shards: list[Path]) -> None:
    """Principal components of 8 x 8 patches' means over four frames, and of the deviations from them.

    Patches of the subject count more: most others are sky and ground, which few components tell.
    """
    total, count = torch.zeros(PATCH_DIM, dtype=torch.float64), 0.0
    static = torch.zeros(PATCH_DIM, PATCH_DIM, dtype=torch.float64)
    motion = torch.zeros(GROUP * PATCH_DIM, GROUP * PATCH_DIM, dtype=torch.float64)
    for path in shards:
        tensors, _ = read_shard(path)
        groups = to_groups(tensors["frames"])[:, 1:].flatten(0, 2)  #    [n*4, 3, H, W]
        patches = F.pixel_unshuffle(groups, PATCH).flatten(2).unflatten(0, (-1, GROUP))  # [n, 4, 192, h*w]
        mean = patches.mean(1)
        deviation = (patches - mean[:, None]).flatten(1, 2).transpose(1, 2).flatten(0, 1).double()
        mean = mean.transpose(1, 2).flatten(0, 1).double()
        subject = F.avg_pool3d(tensors["mask"][:, None, 1:].double() / 255, (GROUP, PATCH, PATCH))
        weight = 1 + SUBJECT_WEIGHT * subject.flatten()[:, None]  #      [n*h*w, 1]
        total += (weight * mean).sum(0)
        count += float(weight.sum())
        static += mean.T @ (weight * mean)
        motion += deviation.T @ (weight * deviation)
    average = total / count
    static = static / count - average[:, None] * average
    with torch.no_grad():
        vae.patch_mean.copy_(average)
        for basis, covariance in ((vae.static_basis, static), (vae.motion_basis, motion / count)):
            values, vectors = torch.linalg.eigh(covariance)
            basis.copy_(vectors[:, -len(basis) :].flip(1).T)
            kept = values[-len(basis) :].sum() / values.sum()
            print(f"{len(basis)} components keep {100 * float(kept):.2f} % of the variance", flush=True)


@torch.no_grad()
def fit_normalisation(vae: PocketVae, shards: list[Path]) -> None:
    """Half-whitened latents: the spread of channel c becomes sqrt(std_c / largest std).

    Full whitening would make the transformer spend as much on the faintest detail as on the layout; none would hide
    detail far below the noise.
    """
    encoded = [vae.encode_groups(to_groups(read_shard(path)[0]["frames"])) for path in shards]
    raw = torch.cat([latents.movedim(2, -1).flatten(0, 3) for latents in encoded])  # [everything, z]
    std = raw.std(0).clamp(min=1e-4)
    vae.latent_mean.copy_(raw.mean(0))
    vae.latent_scale.copy_((std * std.max()).sqrt())
    vae.latent_std.copy_(std / vae.latent_scale)


@dataclass(frozen=True, eq=False)
class Pick:
    """A part of a clip: frames uint8 [T, H, W, 3], mask uint8 [T, H, W], and the latents to decode, if not its own."""

    frames: Tensor
    mask: Tensor
    latents: Tensor | None


def draw(rng: random.Random, cache: dict[Path, dict[str, Tensor]], path: Path, crop: int, num_frames: int) -> Pick:
    """A random part of a random clip in a shard, mirrored half of the time."""
    if path not in cache:
        if len(cache) > 400:
            cache.pop(next(iter(cache)))
        cache[path] = load_file(path)
    clip, mask, latents = (cache[path].get(name) for name in ("frames", "mask", "latents"))
    assert clip is not None and mask is not None
    n = rng.randrange(len(clip))
    if latents is not None:  # made for the whole clip: cut where latents are
        y, x = (PATCH * rng.randint(0, (side - crop) // PATCH) for side in clip.shape[2:4])
        rows, columns, depth = slice(y, y + crop), slice(x, x + crop), 1 + (num_frames - 1) // GROUP
        place = (slice(y // PATCH, (y + crop) // PATCH), slice(x // PATCH, (x + crop) // PATCH))
        return Pick(clip[n, :num_frames, rows, columns], mask[n, :num_frames, rows, columns],
                    latents[(n, slice(None), slice(depth), *place)])  # fmt: skip
    start = rng.randint(0, clip.shape[1] - num_frames)
    y, x = rng.randint(0, clip.shape[2] - crop), rng.randint(0, clip.shape[3] - crop)
    window = (n, slice(start, start + num_frames), slice(y, y + crop), slice(x, x + crop))
    if rng.random() < 0.5:
        return Pick(clip[window].flip(2), mask[window].flip(2), None)
    return Pick(clip[window], mask[window], None)


def reconstruction_loss(out: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """L1 of pixels, of their spatial gradients and of their change in time; weight [B, T, 1, H, W]."""
    error = (out - target) * weight
    loss = error.abs().mean()
    loss = loss + 0.5 * (error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean())
    return loss + 0.5 * error.diff(dim=1).abs().mean()


def psnr(error: Tensor) -> float:
    """Decibels of an error in 0..1 units; 10 log10(1 / mse)."""
    return float(-10 * torch.log10(error.square().mean()))


def ssim(one: Tensor, other: Tensor) -> Tensor:
    """Structural similarity of pictures [B, C, H, W] in 0..1 (Wang et al. 2004, windows of 7 x 7), 1 at most."""
    mean1, mean2 = F.avg_pool2d(one, 7, 1), F.avg_pool2d(other, 7, 1)
    spread1 = F.avg_pool2d(one.square(), 7, 1) - mean1.square()
    spread2 = F.avg_pool2d(other.square(), 7, 1) - mean2.square()
    both = F.avg_pool2d(one * other, 7, 1) - mean1 * mean2
    c1, c2 = 0.01**2, 0.03**2
    return (
        (2 * mean1 * mean2 + c1) * (2 * both + c2) / ((mean1.square() + mean2.square() + c1) * (spread1 + spread2 + c2))
    ).mean()


def seam(out: Tensor, truth: Tensor) -> Tensor:
    """Change from frame to frame where a latent frame ends, as a share of that inside of one, over that of the truth.

    Frames [n, 1 + 4k, 3, H, W]. 1 is a video whose latent frames cannot be seen.
    """

    def share(video: Tensor) -> Tensor:
        change = video.diff(dim=1).abs().mean(dim=(0, 2, 3, 4))  #       [4k]
        across = torch.arange(len(change)) % GROUP == 0
        return change[across].mean() / change[~across].mean()

    return share(out) / share(truth)


@torch.no_grad()
def score(vae: PocketVae, shards: list[Path]) -> dict[str, float]:
    """Of held-out renders: PSNR of all pixels and of the subject's alone, SSIM, and `seam`."""
    whole, subject, similar, seams = [], [], [], []
    for path in shards:
        tensors, _ = read_shard(path)
        groups = to_groups(tensors["frames"])
        out = join_groups(vae.decode_groups(vae.encode_groups(groups))[0]).clamp(-1, 1)
        error = ((out - groups) / 2).flatten(1, 2)[:, GROUP - 1 :]  #    [n, T, 3, H, W]
        mask = (tensors["mask"] > 127)[:, :, None].expand_as(error)
        whole.append(error.square().mean())
        subject.append(error[mask].square().mean())
        frames, truth = (video.flatten(1, 2)[:, GROUP - 1 :] / 2 + 0.5 for video in (out, groups))
        similar.append(ssim(frames.flatten(0, 1), truth.flatten(0, 1)))
        seams.append(seam(frames, truth))
    scores = {name: float(-10 * torch.log10(torch.stack(values).mean())) for name, values in
              (("psnr", whole), ("psnr_subject", subject))}  # fmt: skip
    return scores | {"ssim": float(torch.stack(similar).mean()), "seam": float(torch.stack(seams).mean())}


def save(vae: PocketVae, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: p.detach().cpu().contiguous() for name, p in vae.state_dict().items()}, folder / "model.safetensors"
    )
    (folder / "config.json").write_text(json.dumps({"_class_name": "PocketVae"} | asdict(vae.config), indent=2) + "\n")


def load_vae(run: Path) -> PocketVae:
    values = json.loads((run / "vae" / "config.json").read_text())
    vae = PocketVae(VaeConfig(**{name: value for name, value in values.items() if not name.startswith("_")}))
    vae.load_state_dict(load_file(run / "vae" / "model.safetensors"))
    return vae.eval()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--minutes", type=float, default=20, help="of training, all runs together; 0 scores")
    parser.add_argument("--crop", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--frames", type=int, default=13)
    parser.add_argument("--sampled", type=float, default=0.0, help="share of clips with latents of training.resample")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    if options.device == "cpu":
        torch.set_num_threads(1)
    torch.manual_seed(0)
    folder, state_path = options.run / "vae", options.run / "vae" / "state.pt"
    held_out = sorted((options.run / "held_out").glob("clips-*"))

    vae, step, seconds = PocketVae(VaeConfig()), 0, 0.0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        vae.load_state_dict(state["vae"])
        step, seconds = state["step"], state["seconds"]
    elif (folder / "model.safetensors").exists():
        vae.load_state_dict(load_file(folder / "model.safetensors"))
    else:
        fit_linear(vae, sorted((options.run / "pixels").glob("clips-*"))[:48])
        fit_normalisation(vae, sorted((options.run / "pixels").glob("clips-*"))[:24])
        save(vae, folder)
        print("linear codec", score(vae, held_out), flush=True)
    vae.to(options.device)
    for name in CODEC:
        vae.get_parameter(name).requires_grad_(False)
    trained = [p for p in vae.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, betas=(0.9, 0.98), weight_decay=0.0)
    if state_path.exists():
        optimizer.load_state_dict(state["optimizer"])

    if not options.minutes:
        print(score(vae.cpu(), held_out), flush=True)
    rng = random.Random(step)
    shards: list[Path] = []
    cache: dict[Path, dict[str, Tensor]] = {}
    sampled: list[Path] = []
    began, total = time.time() - seconds, options.minutes * 60
    last = time.time()
    while (spent := time.time() - began) < total:
        if not shards or step % 50 == 0:
            shards = sorted((options.run / "pixels").glob("clips-*"))
            sampled = sorted((options.run / "sampled").glob("clips-*")) if options.sampled else []
        pools = [sampled if sampled and rng.random() < options.sampled else shards for _ in range(options.batch)]
        batch = [draw(rng, cache, rng.choice(pool), options.crop, options.frames) for pool in pools]
        target = to_groups(torch.stack([pick.frames for pick in batch]).to(options.device))
        weight = (
            1 + SUBJECT_WEIGHT * torch.stack([pick.mask for pick in batch]).to(options.device).float()[:, :, None] / 255
        )
        warm, left = min(1.0, (step + 1) / 50), max(0.02, 1 - spent / total)
        for group in optimizer.param_groups:
            group["lr"] = RATE * warm * left
        with autocast(options.device):
            raw = vae.encode_groups(target).float()
            # The transformer's latents are never exact: what is left in them is noise of one level in the normalised
            # channels, and the decoder learns to see through it. Most draws are small, so exact latents stay sharp.
            level = NOISE * torch.rand(len(raw), 1, 1, 1, 1, device=raw.device).square()
            raw = raw + level * vae.latent_scale.view(1, 1, -1, 1, 1) * torch.randn_like(raw)
            for row, pick in enumerate(batch):
                if pick.latents is not None:
                    raw[row] = vae.denormalise(pick.latents[None].float().to(raw))[0]
            out = join_groups(vae.decode_groups(raw)[0])
        out, target = (video.flatten(1, 2)[:, GROUP - 1 :].float() for video in (out, target))
        loss = reconstruction_loss(out, target, weight)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        step += 1
        if step % 20 == 0:
            print(f"step {step} loss {float(loss.detach()):.4f} {spent / 60:.1f} min", flush=True)
        if time.time() - last > 240 or time.time() - began >= total:
            last = time.time()
            vae.cpu()
            print(f"step {step} {score(vae, held_out)}", flush=True)
            save(vae, folder)
            state = {"vae": vae.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            torch.save(state | {"seconds": time.time() - began}, state_path)
            vae.to(options.device)


if __name__ == "__main__":
    main()
