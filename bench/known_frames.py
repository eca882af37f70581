"""Measures how given frames are best taken; docs/decisions/0010-known-frames.md has the tables and what follows.

    python bench/known_frames.py lead-in    # a clip that stands later: what to encode before it
    python bench/known_frames.py repeats    # a checkpoint that takes no given frames: how often to repeat a step

Clips are renders of scenes that training never sees.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Sequence
from fractions import Fraction

import torch
from torch import Tensor, nn

from soragen.catalog import checkpoint_folder, find
from soragen.diffusion.condition import KnownFrames
from soragen.diffusion.grid import lay_grid
from soragen.diffusion.guidance import guided
from soragen.diffusion.noise import starting_noise
from soragen.diffusion.sampler import denoise
from soragen.diffusion.schedule import make_schedule
from soragen.diffusion.solver import make_solver
from soragen.families import load_family
from soragen.families.wan.vae import VaeConfig, WanVae
from soragen.models.family import Vae
from soragen.size import VideoSize
from training.world.captions import caption
from training.world.render import render
from training.world.scene import Scene, sample_scene

CPU, F32 = torch.device("cpu"), torch.float32
START, SIDE, FPS = 25, 64, 12
LEAD_INS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "its first frame, once": lambda clip, past: clip[:1],
    "its first frame, 1 + 4 times": lambda clip, past: clip[:1].expand(5, -1, -1, -1),
    "its first frame, 1 + 8 times": lambda clip, past: clip[:1].expand(9, -1, -1, -1),
    "its first frame, 1 + 16 times": lambda clip, past: clip[:1].expand(17, -1, -1, -1),
    "its first frames backwards, 1 + 4": lambda clip, past: clip[1:6].flip(0),
    "its first frames backwards, 1 + 8": lambda clip, past: clip[1:10].flip(0),
    "the start of the video, 1 + 8": lambda clip, past: past[:9],
    "grey, 1 + 4 times": lambda clip, past: torch.full_like(clip[:5], 0.5),
}
"""What to encode before a clip [t, H, W, 3] of which `past` [START, H, W, 3] came before: the latter is not known."""


def draw_scenes(count: int) -> list[Scene]:
    rng = random.Random("known frames")
    return [sample_scene(rng, held_out=True) for _ in range(count)]


def render_clip(scene: Scene, side: int, num_frames: int) -> Tensor:
    """Frames [T, H, W, 3] in 0..1."""
    frames: Tensor = render([scene], width=side, height=side, num_frames=num_frames, fps=float(FPS))[0]
    return frames[0].float() / 255


def random_weights(network: nn.Module) -> nn.Module:
    """Every matrix n / sqrt(fan in): activations neither fade nor grow."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if weight.ndim > 1 and "norm" not in name and "gamma" not in name:
                noise = torch.randn(weight.shape, generator=generator)
                weight.copy_(noise / weight[0].numel() ** 0.5)
    return network.eval()


def make_vaes() -> dict[str, Vae]:
    family, folder = load_family("pocket"), checkpoint_folder(find("pocket"))
    z = {"z_dim": 16, "latents_mean": (0.0,) * 16, "latents_std": (1.0,) * 16, "base_dim": 16, "num_res_blocks": 1}
    wan_22 = VaeConfig(**z, decoder_base_dim=16, is_residual=True, patch_size=2, in_channels=12, out_channels=12)  # type: ignore[arg-type]
    vaes = {
        "pocket": family.load_vae(folder, CPU, F32),
        "Wan 2.1, random weights": random_weights(WanVae(VaeConfig(**z))),  # type: ignore[arg-type]
        "Wan 2.2, random weights": random_weights(WanVae(wan_22)),
    }
    return vaes  # type: ignore[return-value]


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def decibels(found: Tensor, expected: Tensor) -> float:
    return float(-10 * (found - expected).square().mean().log10())


def measure_lead_ins(vaes: dict[str, Vae], scenes: Sequence[Scene]) -> list[str]:
    """Error of the clip's first latent frame and of the others; dB of its frames, decoded behind the real past."""
    lines = ["| VAE | before the clip | first latent frame | the others | decoded, dB |", "|---|---|---|---|---|"]
    videos = [render_clip(scene, SIDE, 49) for scene in scenes]
    for name, vae in vaes.items():
        whole = [vae.encode([video]) for video in videos]
        frames = [torch.cat(list(vae.decode(latents)))[START:] for latents in whole]
        at = 1 + (START - 1) // 4
        for words, lead_in in LEAD_INS.items():
            rows = []
            for video, true, decoded in zip(videos, whole, frames, strict=True):
                before = lead_in(video[START:], video[:START])
                found = vae.encode([before, video[START:]])[:, :, 1 + (len(before) - 1) // 4 :]
                again = torch.cat(list(vae.decode(torch.cat([true[:, :, :at], found], dim=2))))[START:]
                rows.append(
                    (
                        relative(found[:, :, 0], true[:, :, at]),
                        relative(found[:, :, 1:], true[:, :, at + 1 :]),
                        min(decibels(again, decoded), 99.0),
                    )
                )
            first, others, quality = torch.tensor(rows).mean(dim=0).tolist()
            lines.append(f"| {name} | {words} | {first:.4f} | {others:.4f} | {quality:.1f} |")
    return lines


def measure_repeats(scenes: Sequence[Scene]) -> list[str]:
    """Renders go on from nine frames: the jump at the join, and how near the first new frames are to the render's."""
    checkpoint, family = find("pocket"), load_family("pocket")
    folder, defaults = checkpoint_folder(checkpoint), checkpoint.defaults
    grid = lay_grid(VideoSize(128, 128, 25, Fraction(FPS)), family.compression(folder))
    encoder, transformer, vae = (
        family.load_text_encoder(folder, CPU, F32),
        family.load_transformer(folder, CPU, F32),
        family.load_vae(folder, CPU, F32),
    )
    (negative,) = encoder.encode([""])
    schedule = make_schedule(defaults.schedule, defaults.num_steps, defaults.shift, grid.num_tokens)
    cases = {"native": (True, 1), **{f"re-noised, {n} time(s)": (False, n) for n in (1, 2, 4)}}
    rows: dict[str, list[tuple[float, float]]] = {case: [] for case in cases}
    mask = (torch.arange(7) >= 3).float()
    for number, scene in enumerate(scenes):
        (context,) = encoder.encode([caption(scene, random.Random(number))])
        video = render_clip(scene, 128, 25)
        true = vae.encode([video])
        expected = torch.cat(list(vae.decode(true)))
        usual = (expected[1:] - expected[:-1]).abs().mean(dim=(1, 2, 3)).median()
        for case, (native, repeats) in cases.items():
            denoiser = guided(
                transformer.bind(context, grid), transformer.bind(negative, grid), defaults.guidance_scale
            )
            known = KnownFrames(true, mask, native=native, repeats=repeats)
            noise = starting_noise(number, true.shape[1], grid)
            *_, last = denoise(denoiser, noise, schedule, make_solver(defaults.solver, schedule), known, seed=number)
            made = torch.cat(list(vae.decode(last.latents)))
            jump = (made[9] - made[8]).abs().mean() / usual.clamp(min=1e-3)
            rows[case].append((float(jump), decibels(made[9:13], expected[9:13])))
    lines = ["| known frames | jump at the join, in usual ones | next four frames, dB |", "|---|---|---|"]
    for case, values in rows.items():
        jump, near = torch.tensor(values).median(dim=0).values.tolist()
        lines.append(f"| {case} | {jump:.2f} | {near:.1f} |")
    return lines


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("lead-in", "repeats"))
    parser.add_argument("--clips", type=int, default=8)
    options = parser.parse_args(arguments)
    scenes = draw_scenes(options.clips)
    lines = measure_lead_ins(make_vaes(), scenes) if options.what == "lead-in" else measure_repeats(scenes)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
