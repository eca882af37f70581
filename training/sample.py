"""Many clips at once with soragen's own networks, schedule, solver and guidance, at the native size of a pocket.

That several prompts are denoised side by side is all that is new here (`bind_all`); a test holds it to what the engine
gives for one at a time. For scores; users have `soragen generate`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from soragen.catalog import checkpoint_folder, find, measure_files
from soragen.checkpoint import Checkpoint
from soragen.diffusion.condition import KnownFrames
from soragen.diffusion.grid import Grid, lay_grid
from soragen.diffusion.guidance import Denoiser, doubting, guided
from soragen.diffusion.noise import starting_noise
from soragen.diffusion.sampler import denoise
from soragen.diffusion.schedule import NoiseLevel, make_schedule
from soragen.diffusion.solver import make_solver
from soragen.diffusion.statistics import CONTINUED, pulled
from soragen.families.pocket import FAMILY
from soragen.families.pocket.transformer import PocketTransformer, lay_positions
from soragen.families.pocket.vae import PocketVae
from soragen.models.family import Context
from soragen.models.text_encoder import PromptEncoder
from soragen.size import VideoSize
from soragen.video.write import to_uint8
from training.world.render import render
from training.world.scene import Scene

GIVEN_FRAMES = 5
"""How many frames of a render are given where a clip continues it: two latent frames."""
UNCHANGED = 99.0
"""Decibels that stand for frames without any difference."""


@dataclass(frozen=True)
class Model:
    """A checkpoint of the family pocket with its networks in memory, and the grid of its native size."""

    checkpoint: Checkpoint
    text_encoder: PromptEncoder
    transformer: PocketTransformer
    vae: PocketVae
    grid: Grid
    device: torch.device


def load_model(name: str, device: torch.device) -> Model:
    checkpoint = find(name)
    folder, native = checkpoint_folder(checkpoint), checkpoint.native
    size = VideoSize(native.width, native.height, native.num_frames, native.fps)
    return Model(
        checkpoint=dataclasses.replace(checkpoint, files=measure_files(folder)),
        text_encoder=FAMILY.load_text_encoder(folder, device, torch.float32),
        transformer=FAMILY.load_transformer(folder, device, torch.float32),
        vae=FAMILY.load_vae(folder, device, torch.float32),
        grid=lay_grid(size, FAMILY.compression(folder)),
        device=device,
    )


@torch.inference_mode()
def bind_all(transformer: PocketTransformer, contexts: Sequence[Context], grid: Grid) -> Denoiser:
    """`PocketTransformer.bind` for a prompt each of a batch: shorter ones are padded, and the padding is masked."""
    weights = transformer.latent_std
    embeddings = pad_sequence([context.embeddings for context in contexts], batch_first=True).to(weights)  # [B, L, D]
    text_mask = pad_sequence([context.mask for context in contexts], batch_first=True).to(weights.device)  # [B, L]
    words, summary = transformer.read(embeddings), transformer.summarise(embeddings, text_mask)
    seconds = grid.compression.stride[0] / float(grid.fps)
    positions = lay_positions(transformer.config, grid.token_shape, seconds).to(weights.device)

    def denoiser(latents: Tensor, level: NoiseLevel, mask: Tensor | None = None) -> Tensor:
        sigma = torch.full((len(latents), latents.shape[2]), level.sigma, device=latents.device)
        if mask is not None:
            sigma = sigma * mask.to(sigma)
        return transformer(latents, sigma, positions, words, summary, text_mask)

    return denoiser


def generate(
    model: Model, captions: Sequence[str], seeds: Sequence[int], num_steps: int, given: Tensor | None = None
) -> Tensor:
    """Latents [B, C, T, H, W] of a clip each of `captions`.

    given: latents [B, C, t, H, W] of the first frames, which the rest follows.
    """
    defaults, grid = model.checkpoint.defaults, model.grid
    prompts = model.text_encoder.encode(captions)
    negative = model.text_encoder.encode([defaults.negative_prompt] * len(captions))
    denoiser = guided(
        bind_all(model.transformer, prompts, grid),
        bind_all(model.transformer, negative, grid),
        defaults.guidance_scale,
    )
    denoiser = doubting(denoiser, model.transformer.told)
    channels = model.transformer.config.latent_channels
    noise = torch.cat([starting_noise(seed, channels, grid) for seed in seeds]).to(model.device)
    known = None
    if given is not None:
        latents = torch.zeros_like(noise)
        latents[:, :, : given.shape[2]] = given
        free = torch.arange(noise.shape[2], device=model.device) >= given.shape[2]
        known = KnownFrames(latents, free.float(), native=True)
    schedule = make_schedule(defaults.schedule, num_steps, defaults.shift, grid.num_tokens)
    for step in denoise(denoiser, noise, schedule, make_solver(defaults.solver, schedule), known):
        noise = step.latents
    if given is None:
        return model.transformer.refine(noise, torch.ones(noise.shape[2], dtype=torch.bool))
    start = given.shape[2]
    made = pulled(noise[:, :, start:], given[:, :, 1:], CONTINUED, contrast=False)
    return model.transformer.refine(torch.cat([noise[:, :, :start], made], dim=2), free)


def grid_of(model: Model, latents: Tensor) -> Grid:
    """The grid of latents [n, C, T, h, w] of another shape than the native one."""
    compression = model.grid.compression
    frames, (rows, columns) = latents.shape[2], (side * compression.stride[1] for side in latents.shape[3:])
    return lay_grid(VideoSize(columns, rows, compression.num_frames(frames), model.grid.fps), compression)


def decode(vae: PocketVae, latents: Tensor) -> Tensor:
    """Frames uint8 [B, T, H, W, 3]."""
    return torch.stack([to_uint8(torch.cat(list(vae.decode(clip[None])))) for clip in latents])


def render_one(scene: Scene, grid: Grid, num_frames: int, fps: float) -> Tensor:
    """Frames uint8 [1, T, H, W, 3] of a real clip."""
    return render([scene], width=grid.width, height=grid.height, num_frames=num_frames, fps=fps)[0]


def continue_renders(
    model: Model, captions: Sequence[str], scenes: Sequence[Scene], seeds: Sequence[int], num_steps: int
) -> tuple[Tensor, list[float]]:
    """Clips uint8 [B, T, H, W, 3] that go on from renders, and how well the given frames came back, in dB.

    The latter is measured against the same frames through the VAE alone.
    """
    fps = float(model.grid.fps)
    starts = [render_one(scene, model.grid, GIVEN_FRAMES, fps)[0].float() / 255 for scene in scenes]
    given = torch.cat([model.vae.encode([start.to(model.device)]) for start in starts])
    frames = decode(model.vae, generate(model, captions, seeds, num_steps, given))
    error = (frames[:, :GIVEN_FRAMES].float() - decode(model.vae, given).float()).square().flatten(1).mean(1)
    return frames, [10 * math.log10(255**2 / e) if e > 0 else UNCHANGED for e in error.tolist()]
