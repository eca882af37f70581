"""What a request comes to on a checkpoint and a machine, known before anything is loaded: grid, windows, memory, work.

Two rules make any size and any duration possible. Outside the areas a checkpoint was trained on, it renders the same
aspect at an area it knows, and the frames are scaled to the size asked for as they are written. Past its trained length
it renders windows that continue each other, where it can be given known frames.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from soragen.catalog import Checkpoint, checkpoint_folder
from soragen.diffusion.grid import Grid, lay_grid
from soragen.diffusion.schedule import Schedule, make_schedule
from soragen.diffusion.windows import Window, lay_windows
from soragen.errors import ResourceError, WeightsError
from soragen.families import load_family
from soragen.models.device import DTYPES, memory_budget, pick_device, pick_dtype
from soragen.models.family import ImageFamily, Work
from soragen.models.weights import weight_files
from soragen.pipeline.resolve import needs_image
from soragen.request import Request
from soragen.size import VideoSize, format_fps

PARTS = ("text_encoder", "transformer", "vae")
SECOND_PARTS = {"image_encoder": "text_encoder", "transformer_2": "transformer"}
"""Parts that only some checkpoints have, and the part that is never in memory together with them."""
FIXED_BYTES = 375_000_000
"""Python, torch and its buffers, before any weights: measured, as are those of ffmpeg, on two cores."""
FFMPEG_BYTES, FFMPEG_BYTES_PER_PIXEL = 50_000_000, 170
"""Of the process that encodes: H.264 looks forty frames ahead."""
LATENTS_HELD = 8
"""Copies of a window's latents while it is denoised: noise, known ones, both estimates, the solver's past and next."""


@dataclass(frozen=True)
class Machine:
    """Where the networks run, and in which type each of them."""

    device: torch.device
    text_encoder: torch.dtype
    transformer: torch.dtype
    vae: torch.dtype


@dataclass(frozen=True)
class Plan:
    """grid: of all frames. windows: what is denoised at once, in order; all of the shape of `window_grid`.

    schedule: of one window. work: of one window, in float32. weight_bytes: of each network as it is computed with; of
    two that take turns in memory, those of the larger.
    """

    request: Request
    checkpoint: Checkpoint
    folder: Path
    machine: Machine
    grid: Grid
    windows: tuple[Window, ...]
    window_grid: Grid
    schedule: Schedule
    latent_channels: int
    work: Work
    weight_bytes: dict[str, int]

    @property
    def latent_shape(self) -> tuple[int, int, int, int, int]:
        """[1, C, T, H, W] of the whole video."""
        return (1, self.latent_channels, *self.grid.latent_shape)

    @property
    def latent_bytes(self) -> int:
        """Of the latents of the whole video, in memory as on disk."""
        return 4 * math.prod(self.latent_shape)

    @property
    def rendered(self) -> VideoSize:
        """What the VAE's frames are cropped to; scaled to the size asked for where that differs."""
        return self.grid.size

    @property
    def scale_from(self) -> tuple[int, int] | None:
        sides = (self.rendered.width, self.rendered.height)
        return None if sides == (self.request.size.width, self.request.size.height) else sides

    @property
    def flops(self) -> float:
        """Floating-point operations of all denoising steps."""
        forwards = self.request.num_steps * (2 if self.request.is_guided else 1)
        return self.work.transformer_flops * forwards * len(self.windows)

    @property
    def peak_bytes(self) -> dict[str, int]:
        """What each stage holds at most: one network at a time. "encode" is ffmpeg's, beside "decode"."""
        window = self.latent_bytes * self.window_grid.latent_shape[0] // self.grid.latent_shape[0]
        transformer = self.work.transformer_bytes * self.machine.transformer.itemsize // 4
        return {
            "text": FIXED_BYTES + self.weight_bytes["text_encoder"],
            "denoise": FIXED_BYTES
            + self.weight_bytes["transformer"]
            + transformer
            + 2 * self.latent_bytes
            + LATENTS_HELD * window,
            "decode": FIXED_BYTES
            + self.weight_bytes["vae"]
            + self.work.vae_bytes * self.machine.vae.itemsize // 4
            + self.latent_bytes,
            "encode": FFMPEG_BYTES + FFMPEG_BYTES_PER_PIXEL * self.request.size.area,
        }

    def notes(self) -> list[str]:
        """A line for everything that is not simply as it was asked."""
        name, asked, grid, lines = self.checkpoint.name, self.request.size, self.grid, []
        if self.scale_from:
            word = "enlarged" if asked.area > self.rendered.area else "reduced"
            lines.append(
                f"{name} renders {self.rendered.width}x{self.rendered.height}, "
                f"{word} to {asked.width}x{asked.height} as it is written"
            )
        elif (grid.width, grid.height) != (asked.width, asked.height):
            lines.append(f"rendered at {grid.width}x{grid.height}, cropped to {asked.width}x{asked.height}")
        if grid.num_frames != asked.num_frames:
            lines.append(f"rendered {grid.num_frames} frames, trimmed to {asked.num_frames}")
        known = self.checkpoint.native.max_num_frames
        if len(self.windows) > 1:
            lines.append(
                f"longer than {self.window_grid.num_frames} frames: {len(self.windows)} windows, "
                "each continuing the one before"
            )
        elif asked.num_frames > known:
            lines.append(f"{name} was trained on at most {known} frames; more of them at once may repeat or drift")
        return lines

    def lines(self) -> list[str]:
        """The plan for people."""
        t, h, w = self.window_grid.token_shape
        machine = self.machine
        return [
            f"model     {self.checkpoint.name} ({self.folder})",
            f"machine   {machine.device}, {str(machine.transformer).removeprefix('torch.')}",
            f"video     {self.request.size}",
            f"grid      {t} x {h} x {w} = {self.window_grid.num_tokens} tokens"
            + (f" in each of {len(self.windows)} windows" if len(self.windows) > 1 else ""),
            f"steps     {self.request.num_steps}, guidance {self._guidance()}, seed {self.request.seed}",
            f"work      {self.flops / 1e12:.2f} TFLOP to denoise",
            "memory    " + ", ".join(f"{stage} {size / 1e9:.2f} GB" for stage, size in self.peak_bytes.items()),
            *(f"note      {line}" for line in self.notes()),
        ]

    def _guidance(self) -> str:
        high, low = self.request.guidance_scale, self.request.low_noise_guidance_scale
        return f"{high:g}" if high == low else f"{high:g}, then {low:g}"

    def to_dict(self) -> dict[str, Any]:
        """The plan for programs."""
        return {
            "request": self.request.to_dict(),
            "device": str(self.machine.device),
            "dtype": str(self.machine.transformer).removeprefix("torch."),
            "rendered": {"width": self.grid.width, "height": self.grid.height, "num_frames": self.grid.num_frames},
            "fps": format_fps(self.grid.fps),
            "grid": list(self.window_grid.token_shape),
            "num_tokens": self.window_grid.num_tokens,
            "num_windows": len(self.windows),
            "flops": self.flops,
            "peak_bytes": self.peak_bytes,
            "notes": self.notes(),
        }


def make_plan(request: Request, checkpoint: Checkpoint, device: str | None = None, dtype: str | None = None) -> Plan:
    """The plan, or the one line that says why there is none. Raises WeightsError, InputError, ResourceError."""
    folder, family, defaults = checkpoint_folder(checkpoint), load_family(checkpoint.family), checkpoint.defaults
    if isinstance(family, ImageFamily) and family.takes_images(folder):
        raise needs_image(checkpoint)
    machine = pick_machine(checkpoint, device, dtype)
    size = request.size
    rendered = VideoSize(*checkpoint.native.rendered(size.width, size.height), size.num_frames, size.fps)
    grid = lay_grid(rendered, family.compression(folder))
    windows = _lay_windows(checkpoint, grid)
    window_grid = Grid(grid.size, grid.compression, (windows[0].stop, *grid.latent_shape[1:]))
    plan = Plan(
        request=request,
        checkpoint=checkpoint,
        folder=folder,
        machine=machine,
        grid=grid,
        windows=windows,
        window_grid=window_grid,
        schedule=make_schedule(
            defaults.schedule, request.num_steps, request.shift, window_grid.num_tokens, defaults.timesteps
        ),
        latent_channels=family.latent_channels(folder),
        work=family.work(folder, window_grid),
        weight_bytes=weigh(folder, machine),
    )
    _refuse_if_too_large(plan)
    return plan


def pick_machine(checkpoint: Checkpoint, device: str | None, dtype: str | None) -> Machine:
    """Where this checkpoint runs, as asked or as is best. Raises InputError."""
    where, parts = pick_device(device), checkpoint.dtypes
    transformer = pick_dtype(dtype, where, (DTYPES[parts.transformer],))
    # `dtype` is about the network that costs; the others are in 16 bits where weights.toml says that they bear it.
    rest = dtype if dtype == "float32" else None
    text_encoder, vae = (pick_dtype(rest, where, (DTYPES[name],)) for name in (parts.text_encoder, parts.vae))
    return Machine(where, text_encoder, transformer, vae)


def _lay_windows(checkpoint: Checkpoint, grid: Grid) -> tuple[Window, ...]:
    """One window where all frames fit, or where the checkpoint cannot be given the frames of the window before."""
    num_latents = grid.latent_shape[0]
    length = grid.compression.latent_frames(checkpoint.native.max_num_frames)
    if not checkpoint.abilities.any_frames or length < 2:
        return (Window(0, num_latents, 0),)
    return lay_windows(num_latents, length, max(1, length // 3))


def _refuse_if_too_large(plan: Plan) -> None:
    peaks, device = plan.peak_bytes, plan.machine.device
    encode = peaks.pop("encode")
    if device.type != "cuda":  # on a card of its own, memory is not shared with ffmpeg
        peaks["decode"] += encode
    stage, needed = max(peaks.items(), key=lambda item: item[1])
    available = memory_budget(device).available
    if needed > available:
        raise ResourceError(
            f"{stage} needs about {needed / 1e9:.1f} GB of memory, {available / 1e9:.1f} GB are free",
            "ask for a smaller --size or fewer --seconds",
        )


def weigh(folder: Path, machine: Machine) -> dict[str, int]:
    """`Plan.weight_bytes` of the checkpoint in `folder`, from the headers of its files. Raises WeightsError."""
    weights = {part: _num_weights(folder / part) for part in PARTS}
    for second, part in SECOND_PARTS.items():
        if (folder / second).is_dir():
            weights[part] = max(weights[part], _num_weights(folder / second))
    return {part: weights[part] * getattr(machine, part).itemsize for part in PARTS}


def _num_weights(folder: Path) -> int:
    """Numbers in a network's files, from their headers. Raises WeightsError."""
    total = 0
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                total += sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{path} is not a whole safetensors file ({error})", "fetch it again") from error
    return total
