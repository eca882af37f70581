"""From the files that a verb was given to the frames and latents that the denoising starts from."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from soragen.diffusion.grid import Grid
from soragen.models.family import Vae
from soragen.pipeline.conditions import Clip
from soragen.pipeline.plan import Plan
from soragen.pipeline.timeline import Given
from soragen.request import Edit
from soragen.video.picture_input import read_picture
from soragen.video.read import read_video


def read_clips(plan: Plan) -> list[Clip]:
    """The given frames, as the VAE takes them. Raises InputError for a file that cannot be read (any more)."""
    edit = plan.request.edit
    return [] if edit is None else [_read_clip(plan, edit, given) for given in plan.timeline.given]


def _read_clip(plan: Plan, edit: Edit, given: Given) -> Clip:
    source, size = edit.sources[given.source], plan.rendered
    if edit.verb == "animate":
        frames = read_picture(source.path, width=size.width, height=size.height, fit=edit.fit)[None]
    else:
        there = max(1, min(given.count, source.num_frames - given.first))
        first = min(given.first, source.num_frames - 1)
        _, chunks = read_video(
            source.path, width=size.width, height=size.height, fps=size.fps, fit=edit.fit, first=first, count=there
        )
        frames = torch.cat(list(chunks))
    missing = given.count - len(frames)
    frames = torch.cat([frames, frames[-1:].expand(missing, -1, -1, -1)])
    return Clip(lay_on(plan.grid, frames), given.start)


def lay_on(grid: Grid, frames: Tensor) -> Tensor:
    """Frames [t, H, W, 3] uint8 of the rendered size as float32 in 0..1 of the grid's, their borders drawn out."""
    top, left = grid.crop
    bottom, right = grid.height - grid.size.height - top, grid.width - grid.size.width - left
    pictures = frames.permute(0, 3, 1, 2).float().div_(255)  #           [t, 3, H, W]
    return F.pad(pictures, (left, right, top, bottom), mode="replicate").permute(0, 2, 3, 1)


def encode_source(plan: Plan, vae: Vae) -> Tensor:
    """Latents [1, C, T, H, W] of source 0 on the whole grid: what a restyled video starts from."""
    edit, size = plan.request.edit, plan.rendered
    assert edit is not None
    _, chunks = read_video(edit.sources[0].path, width=size.width, height=size.height, fps=size.fps, fit=edit.fit)
    return vae.encode(_filled(plan.grid, chunks))


def _filled(grid: Grid, chunks: Iterator[Tensor]) -> Iterator[Tensor]:
    """Chunks on the grid, the last frame held until the latent frames are full."""
    left = grid.num_frames
    last: Tensor | None = None
    for chunk in chunks:
        frames = lay_on(grid, chunk[:left])
        left, last = left - len(frames), frames[-1:]
        yield frames
    if left and last is not None:
        yield last.expand(left, -1, -1, -1)
