"""What a request comes to on a checkpoint and a machine, known before anything is loaded: grid, windows, memory, work.

Two rules make any size and any duration possible. Outside the areas a checkpoint was trained on, it renders the same
aspect at an area it knows, and the frames are scaled to the size asked for as they are written. Past its trained length
it renders windows that continue each other, where it can be given known frames.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from soragen.catalog import Checkpoint, checkpoint_folder
from soragen.diffusion.grid import Grid, lay_grid
from soragen.diffusion.windows import Window, lay_windows
from soragen.errors import ResourceError
from soragen.families import load_family
from soragen.models.device import memory_budget, pick_device
from soragen.models.family import Work
from soragen.request import Request
from soragen.size import VideoSize, format_fps

FIXED_BYTES = 500_000_000
"""Python, torch and its buffers, before any weights; measured by bench/generate.py."""


@dataclass(frozen=True)
class Plan:
    """grid: of all frames. windows: what is denoised at once, in order. work: of one window."""

    request: Request
    checkpoint: Checkpoint
    folder: Path
    grid: Grid
    windows: tuple[Window, ...]
    work: Work
    weight_bytes: dict[str, int]

    @property
    def rendered(self) -> VideoSize:
        """What the VAE's frames are cropped to; scaled to the size asked for where that differs."""
        return self.grid.size

    @property
    def scale_from(self) -> tuple[int, int] | None:
        sides = (self.rendered.width, self.rendered.height)
        return None if sides == (self.request.size.width, self.request.size.height) else sides

    @cached_property
    def window_grid(self) -> Grid:
        """The grid of one window; all windows are of one shape."""
        frames = self.windows[0].stop - self.windows[0].start
        return Grid(self.grid.size, self.grid.compression, (frames, *self.grid.latent_shape[1:]))

    @property
    def flops(self) -> float:
        """Floating-point operations of all denoising steps."""
        forwards = self.request.num_steps * (2 if self.request.guidance_scale != 1 else 1)
        return self.work.transformer_flops * forwards * len(self.windows)

    @property
    def peak_bytes(self) -> dict[str, int]:
        """What each stage holds at most: one network at a time, in float32."""
        latents = 4 * math.prod(self.grid.latent_shape) * 64
        return {
            "text": FIXED_BYTES + self.weight_bytes["text_encoder"],
            "denoise": FIXED_BYTES + self.weight_bytes["transformer"] + self.work.transformer_bytes + latents,
            "decode": FIXED_BYTES + self.weight_bytes["vae"] + self.work.vae_bytes + latents,
        }

    def notes(self) -> list[str]:
        """A line for everything that is not simply as it was asked."""
        asked, grid, lines = self.request.size, self.grid, []
        if self.scale_from:
            word = "enlarged" if asked.area > self.rendered.area else "reduced"
            lines.append(
                f"{self.checkpoint.name} renders {self.rendered.width}x{self.rendered.height}, "
                f"{word} to {asked.width}x{asked.height} as it is written"
            )
        elif (grid.width, grid.height) != (asked.width, asked.height):
            lines.append(f"rendered at {grid.width}x{grid.height}, cropped to {asked.width}x{asked.height}")
        if grid.num_frames != asked.num_frames:
            lines.append(f"rendered {grid.num_frames} frames, trimmed to {asked.num_frames}")
        if len(self.windows) > 1:
            frames = grid.compression.num_frames(self.windows[0].stop)
            lines.append(f"longer than {frames} frames: {len(self.windows)} windows, each continuing the one before")
        return lines

    def lines(self) -> list[str]:
        """The plan for people."""
        t, h, w = self.window_grid.token_shape
        peak = self.peak_bytes
        return [
            f"model     {self.checkpoint.name} ({self.folder})",
            f"video     {self.request.size}",
            f"grid      {t} x {h} x {w} = {self.window_grid.num_tokens} tokens"
            + (f" in each of {len(self.windows)} windows" if len(self.windows) > 1 else ""),
            f"steps     {self.request.num_steps}, guidance {self.request.guidance_scale:g}, seed {self.request.seed}",
            f"work      {self.flops / 1e12:.2f} TFLOP to denoise",
            "memory    " + ", ".join(f"{stage} {size / 1e9:.2f} GB" for stage, size in peak.items()),
            *(f"note      {line}" for line in self.notes()),
        ]

    def to_dict(self) -> dict[str, Any]:
        """The plan for programs."""
        return {
            "request": self.request.to_dict(),
            "rendered": {"width": self.grid.width, "height": self.grid.height, "num_frames": self.grid.num_frames},
            "fps": format_fps(self.grid.fps),
            "grid": list(self.window_grid.token_shape),
            "num_tokens": self.window_grid.num_tokens,
            "num_windows": len(self.windows),
            "flops": self.flops,
            "peak_bytes": self.peak_bytes,
            "notes": self.notes(),
        }


def make_plan(request: Request, checkpoint: Checkpoint, device: str | None = None) -> Plan:
    """The plan, or the one line that says why there is none. Raises WeightsError, InputError, ResourceError."""
    folder, family = checkpoint_folder(checkpoint), load_family(checkpoint.family)
    compression = family.compression(folder)
    grid = lay_grid(_rendered_size(request.size, checkpoint), compression)
    latent_frames = grid.latent_shape[0]
    length = compression.latent_frames(checkpoint.native.max_num_frames)
    if checkpoint.abilities.any_frames and latent_frames > length:
        windows = lay_windows(latent_frames, length, max(1, length // 3))
    else:
        windows = (Window(0, latent_frames, 0),)
    weight_bytes = {part: 2 * _file_bytes(folder / part) for part in ("text_encoder", "transformer", "vae")}
    plan = Plan(request, checkpoint, folder, grid, windows, family.work(folder, grid), weight_bytes)
    plan = Plan(request, checkpoint, folder, grid, windows, family.work(folder, plan.window_grid), weight_bytes)
    _refuse_if_too_large(plan, device)
    return plan


def _rendered_size(size: VideoSize, checkpoint: Checkpoint) -> VideoSize:
    """The size asked for where its area is one the checkpoint knows, otherwise the same aspect at the native area."""
    native = checkpoint.native
    area = native.width * native.height
    if area / native.max_area <= size.area <= area * native.max_area:
        return size
    factor = math.sqrt(area / size.area)
    sides = (max(2, round(size.width * factor)), max(2, round(size.height * factor)))
    return VideoSize(*sides, size.num_frames, size.fps)


def _refuse_if_too_large(plan: Plan, device: str | None) -> None:
    stage, needed = max(plan.peak_bytes.items(), key=lambda item: item[1])
    available = memory_budget(pick_device(device)).available
    if needed > available:
        raise ResourceError(
            f"{stage} needs about {needed / 1e9:.1f} GB of memory, {available / 1e9:.1f} GB are free",
            "ask for a smaller --size or fewer --seconds",
        )


def _file_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
