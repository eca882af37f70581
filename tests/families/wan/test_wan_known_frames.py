"""Given frames from the clips to the final latents, as the reference's image pipeline takes them."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanImageToVideoPipeline, WanPipeline
from PIL import Image
from torch import Tensor
from wan_folder import SHIFT, image_encoder, image_processor, write_checkpoint
from wan_reference import IMAGE_TRANSFORMER, VAE_22, error

from soragen.catalog import catalog
from soragen.diffusion.grid import Grid, lay_grid
from soragen.diffusion.guidance import guided
from soragen.diffusion.noise import starting_noise
from soragen.diffusion.sampler import denoise
from soragen.diffusion.schedule import flow_truncated
from soragen.diffusion.solver import UniPC
from soragen.diffusion.windows import Window
from soragen.families import load_family
from soragen.pipeline.conditions import Clip, Conditions, bind, read_conditions
from soragen.size import VideoSize

CPU, F32, SEED, STEPS, GUIDANCE = torch.device("cpu"), torch.float32, 7, 6, 5.0
PROMPT, NEGATIVE = "a red fox jumping", "blurry"
I2V = {**IMAGE_TRANSFORMER, "image_dim": None, "added_kv_proj_dim": None}
CLIP: dict[str, Any] = {"image_encoder": image_encoder, "image_processor": image_processor}
WITH_CLIP = {"transformer": IMAGE_TRANSFORMER, **CLIP}
WITH_TWO_PLACES = {"transformer": {**IMAGE_TRANSFORMER, "pos_embed_seq_len": 34}, **CLIP}
TWO_EXPERTS = {"transformer": I2V, "boundary_ratio": 0.9}
CASES: dict[str, tuple[str, dict[str, Any], tuple[int, int, int], list[int]]] = {
    "TI2V-5B": ("wan2.2-ti2v-5b", {"vae": VAE_22, "expand_timesteps": True}, (96, 64, 9), [0]),
    "TI2V-5B, upright": ("wan2.2-ti2v-5b", {"vae": VAE_22, "expand_timesteps": True}, (32, 96, 17), [0]),
    "I2V": ("wan2.1-i2v-14b-480p", WITH_CLIP, (48, 32, 9), [0]),
    "I2V, upright": ("wan2.1-i2v-14b-480p", WITH_CLIP, (32, 80, 13), [0]),
    "FLF2V": ("wan2.1-flf2v-14b-720p", WITH_TWO_PLACES, (48, 32, 9), [0, 8]),
    "FLF2V, wide": ("wan2.1-flf2v-14b-720p", WITH_TWO_PLACES, (112, 48, 13), [0, 12]),
    "I2V-A14B": ("wan2.2-i2v-a14b", TWO_EXPERTS, (48, 32, 9), [0]),
    "I2V-A14B, upright": ("wan2.2-i2v-a14b", TWO_EXPERTS, (48, 64, 17), [0]),
}
"""Checkpoint, parts of the small one, sides and length, and where the given frames stand."""


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SORAGEN_CACHE", str(tmp_path / "cache"))


def picture(width: int, height: int, seed: int) -> Image.Image:
    pixels = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.to(torch.uint8).numpy())


def final_latents(folder: Path, grid: Grid, conditions: Conditions) -> Tensor:
    family = load_family("wan")
    contexts = family.load_text_encoder(folder, CPU, F32).encode([PROMPT, NEGATIVE])
    num_frames = grid.latent_shape[0]
    transformer, whole = family.load_transformer(folder, CPU, F32), Window(0, num_frames, 0, num_frames)
    cond, uncond = (bind(transformer, context, grid, conditions, whole) for context in contexts)
    noise, schedule = starting_noise(SEED, family.latent_channels(folder), grid), flow_truncated(STEPS, SHIFT)
    *_, last = denoise(guided(cond, uncond, GUIDANCE), noise, schedule, UniPC(schedule), conditions.known)
    return last.latents


@pytest.mark.parametrize(("name", "parts", "size", "places"), CASES.values(), ids=CASES.keys())
def test_final_latents(
    tmp_path: Path, name: str, parts: dict[str, Any], size: tuple[int, int, int], places: list[int]
) -> None:
    width, height, num_frames = size
    made = {key: part() if callable(part) else part for key, part in parts.items()}
    if name.startswith("wan2.1"):
        pipe = write_checkpoint(tmp_path, WanImageToVideoPipeline, **made)
    else:
        pipe = write_checkpoint(tmp_path, WanImageToVideoPipeline, image_encoder=None, image_processor=None, **made)
    images = [picture(width, height, place) for place in places]
    expected = pipe(
        image=images[0], last_image=images[1] if len(images) > 1 else None, prompt=PROMPT, negative_prompt=NEGATIVE,
        width=width, height=height, num_frames=num_frames, num_inference_steps=STEPS, guidance_scale=GUIDANCE,
        generator=torch.Generator().manual_seed(SEED), output_type="latent",
    ).frames  # fmt: skip

    family, checkpoint = load_family("wan"), catalog()[name]
    grid = lay_grid(VideoSize(*size, Fraction(16)), family.compression(tmp_path))
    assert grid.is_exact and grid.latent_shape[0] >= 3
    clips = [
        Clip(torch.from_numpy(np.array(image)).float()[None] / 255, place)
        for image, place in zip(images, places, strict=True)
    ]
    conditions = read_conditions(
        checkpoint, tmp_path, family, clips, grid,
        load_vae=lambda: family.load_vae(tmp_path, CPU, F32), device=CPU, dtype=F32,
    )  # fmt: skip
    assert error(final_latents(tmp_path, grid, conditions), expected) <= 1e-5


def test_a_model_for_prompts_alone(tmp_path: Path) -> None:
    """Its transformer sees all frames equally noisy; given ones come back as they were, and others follow them."""
    write_checkpoint(tmp_path, WanPipeline)
    family = load_family("wan")
    grid = lay_grid(VideoSize(48, 32, 9, Fraction(16)), family.compression(tmp_path))

    def read(*clips: Clip) -> Conditions:
        return read_conditions(
            catalog()["wan2.1-t2v-1.3b"], tmp_path, family, clips, grid,
            load_vae=lambda: family.load_vae(tmp_path, CPU, F32), device=CPU, dtype=F32,
        )  # fmt: skip

    frames = torch.rand(5, 32, 48, 3, generator=torch.Generator().manual_seed(1))
    conditions = read(Clip(frames, 0))
    found, free = final_latents(tmp_path, grid, conditions), final_latents(tmp_path, grid, read())
    assert conditions.known is not None
    assert torch.equal(found[:, :, :2], conditions.known.latents[:, :, :2])
    assert error(found[:, :, 2:], free[:, :, 2:]) > 0.01
    assert torch.equal(found, final_latents(tmp_path, grid, conditions))
