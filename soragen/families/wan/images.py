"""Given frames as the image-to-video checkpoints see them: as channels beside the noisy latents.

The channels say which frames are given (one mask for each of the frames in a latent frame), and what the VAE makes of a
clip that is grey where nothing is given. The checkpoints of version 2.1 see the pictures through CLIP as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from soragen.diffusion.grid import Grid
from soragen.errors import InputError
from soragen.families.wan.clip import load_clip
from soragen.families.wan.transformer import TransformerConfig
from soragen.models.family import Vae

GREY = 0.5


def join(vae: Vae, images: Mapping[int, Tensor], grid: Grid) -> Tensor:
    """The channels [1, 4 + C, T, h, w] for given frames: their number in the clip to a picture [H, W, 3] in 0..1."""
    given = torch.zeros(grid.num_frames)
    given[list(images)] = 1
    group = grid.compression.stride[0]
    # The first frame is alone in its latent frame, and counts as often as the frames of another one do.
    mask = torch.cat([given[:1].expand(group), given[1:]]).view(-1, group).T  # [4, T]
    latents = vae.encode(clip(images, grid))
    masks = mask[None, :, :, None, None].expand(1, *mask.shape, *latents.shape[3:])
    return torch.cat([masks.to(latents), latents], dim=1)


def clip(images: Mapping[int, Tensor], grid: Grid) -> Iterator[Tensor]:
    """The frames [1, H, W, 3] of a clip that is grey where nothing is given."""
    grey = torch.full((1, grid.height, grid.width, 3), GREY)
    for index in range(grid.num_frames):
        yield images[index][None] if index in images else grey


def see(
    folder: Path, config: TransformerConfig, images: Mapping[int, Tensor], device: torch.device, dtype: torch.dtype
) -> Tensor | None:
    """CLIP's tokens [L, D] of all pictures, one after the other; None for a checkpoint that does not look at them."""
    if config.image_dim is None:
        return None
    encoder = load_clip(folder / "image_encoder", device, dtype)
    return torch.cat([encoder(images[index]) for index in sorted(images)])


def check_count(config: TransformerConfig, num_images: int) -> None:
    """Raises InputError for more or fewer pictures than the checkpoint was trained with."""
    if config.image_dim is None:
        return
    wanted = 2 if config.pos_embed_seq_len is not None else 1
    if num_images != wanted:
        given = "one image" if num_images == 1 else f"{num_images} images"
        needed = "a first and a last frame" if wanted == 2 else "a first frame and nothing else"
        raise InputError(f"this model was given {given}", f"it needs {needed}")


def check(images: Mapping[int, Tensor], grid: Grid) -> None:
    """Raises InputError for no picture, and for one that lies outside of the clip or does not have its size."""
    if not images:
        raise InputError("this model makes videos from an image", "give it a first frame")
    for index, image in images.items():
        if not 0 <= index < grid.num_frames:
            raise InputError(f"frame {index} is given, the video has {grid.num_frames}", "count frames from 0")
        if image.shape != (grid.height, grid.width, 3):
            raise InputError(
                f"the image for frame {index} is {image.shape[1]}x{image.shape[0]}", f"use {grid.width}x{grid.height}"
            )
