"""Large videos in two passes: all steps at two thirds of the sides, its latents at twice of those, a few steps more.

Forms are made at a size that the checkpoint was trained on, and detail is added to them at a larger one; the frames are
scaled to the size asked for as they are written. For checkpoints with a latent upsampler, as LTX-Video since 0.9.7.

Given frames are known to both passes: they are read and encoded at the size of each, as the authors' pipeline does
(`LTXMultiScalePipeline` in Lightricks/LTX-Video hands its conditioning items to both). What the upsampler makes of them
is never seen: in the second pass, too, they are clean and in their place, or keyframes, from its first step on.
"""

from __future__ import annotations

import gc
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from soragen.checkpoint import Checkpoint
from soragen.diffusion.grid import Grid
from soragen.diffusion.schedule import listed
from soragen.families import family_of
from soragen.models.device import free_memory
from soragen.models.family import LatentUpsamplerFamily
from soragen.request import Request

if TYPE_CHECKING:
    from soragen.pipeline.plan import Plan

FIRST = Fraction(2, 3)
"""The sides of the first pass over those asked for (`downscale_factor` in the authors' configs)."""
DOUBLED = 2
"""The sides of upsampled latents over those of the first pass."""


def first_sides(request: Request, checkpoint: Checkpoint, folder: Path) -> tuple[int, int] | None:
    """Width and height of the first of two passes; None where the video is made in one.

    Two are for more pixels than the checkpoint was trained on. A video is restyled in one: the second would begin with
    more noise than a small `strength` asks for.
    """
    size, native, edit = request.size, checkpoint.native, request.edit
    is_restyled = edit is not None and edit.verb == "restyle"
    is_large = size.area > native.width * native.height and not native.knows_area(size.area)
    if request.direct or is_restyled or not checkpoint.defaults.second_pass or not is_large:
        return None
    family = family_of(checkpoint)
    if not isinstance(family, LatentUpsamplerFamily) or not family.has_latent_upsampler(folder):
        return None
    return native.rendered(round(size.width * FIRST), round(size.height * FIRST))


def with_second_pass(first: Plan) -> Plan:
    """The plan of the pass after `first`: from its upsampled latents, at twice its sides."""
    family = family_of(first.checkpoint)
    assert isinstance(family, LatentUpsamplerFamily)
    window_grid = doubled(first.window_grid)
    return replace(
        first,
        first=first,
        grid=doubled(first.grid),
        window_grid=window_grid,
        schedule=listed(first.checkpoint.defaults.second_pass),
        work=family.work(first.folder, window_grid),
        upsampler_bytes=family.upsampler_bytes(first.folder, first.window_grid),
        upscale_factor=1,
    )


def doubled(grid: Grid) -> Grid:
    size, (frames, rows, columns) = grid.size, grid.latent_shape
    larger = replace(size, width=DOUBLED * size.width, height=DOUBLED * size.height)
    return Grid(larger, grid.compression, (frames, DOUBLED * rows, DOUBLED * columns))


def upsample(plan: Plan, latents: Tensor) -> Tensor:
    """Latents [1, C, T, 2H, 2W] of those of the first pass, window by window; on the CPU. The network is gone then."""
    family, machine = family_of(plan.checkpoint), plan.machine
    assert isinstance(family, LatentUpsamplerFamily)
    network = family.load_latent_upsampler(plan.folder, machine.device, machine.vae)
    larger = torch.empty(plan.latent_shape)
    for window in plan.windows:
        larger[:, :, window.new] = network(latents[:, :, window.frames]).cpu()[:, :, window.new_in_window]
    del network
    gc.collect()
    free_memory(machine.device)
    return larger


def note(plan: Plan) -> str:
    assert plan.first is not None
    first, larger = plan.first.rendered, plan.rendered
    return (
        f"rendered at {first.width}x{first.height} first; its latents, upsampled to {larger.width}x{larger.height}, "
        f"are denoised in {plan.num_steps} steps more"
    )


def facts(plan: Plan) -> dict[str, Any]:
    """What the recipe says of it: the size of the first pass, and the timesteps of the second."""
    assert plan.first is not None
    size, timesteps = plan.first.rendered, [level.timestep for level in plan.schedule[:-1]]
    return {"from": {"width": size.width, "height": size.height}, "timesteps": timesteps}
