"""What a request comes to on a checkpoint and a machine, known before anything is loaded: grid, windows, memory, work.

Two rules make any size and any duration possible. Outside the areas a checkpoint was trained on, it renders the same
aspect at an area it knows, and the frames are scaled to the size asked for as they are written. Past its trained length
it renders windows that continue each other, where it can be given known frames.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from soragen.catalog import Checkpoint, checkpoint_folder
from soragen.diffusion.grid import Grid, lay_grid
from soragen.diffusion.schedule import Schedule, make_schedule
from soragen.diffusion.windows import Window, lay_windows, lay_windows_backward, lay_windows_between
from soragen.errors import ResourceError, WeightsError
from soragen.families import load_family
from soragen.models.device import DTYPES, memory_budget, pick_device, pick_dtype
from soragen.models.family import Family, ImageFamily, UpscalerFamily, Work
from soragen.models.offload import Residence, Sizes, measure
from soragen.models.t5 import TABLES
from soragen.models.tiling import fit_tile
from soragen.models.weights import weight_files
from soragen.pipeline.conditions import needed
from soragen.pipeline.lora_fits import Applied, fit_loras
from soragen.pipeline.resolve import needs_image
from soragen.pipeline.timeline import Timeline, lay_timeline, room_of
from soragen.request import Request
from soragen.size import VideoSize, format_fps

PARTS = ("text_encoder", "transformer", "vae")
STREAMED = {"text_encoder": "text", "transformer": "denoise"}
"""Parts whose blocks may come one at a time, and the stages in which they work."""
SECOND_PARTS = {"image_encoder": "text_encoder", "transformer_2": "transformer"}
"""Parts that only some checkpoints have, and the part that is never in memory together with them."""
STREAMED_SECONDS = ("transformer_2",)
WORTH_UPSCALING = 1.5
"""The area asked for over that which is rendered, from which on an upscaler is used."""
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
    """timeline: what is rendered, and what the file is made of. grid: of the timeline.
    windows: what is denoised at once, in order; all of the shape of `window_grid`.

    schedule: of one window. work: of one window, in float32. weight_bytes: of each network as it is computed with; of
    two that take turns in memory, those of the larger; of one that is streamed, what of it is there at once.
    residence: of those parts that are not resident. tile: latents (height, width) that the VAE takes at once; None is
    all of them.
    """

    request: Request
    checkpoint: Checkpoint
    folder: Path
    machine: Machine
    timeline: Timeline
    grid: Grid
    windows: tuple[Window, ...]
    window_grid: Grid
    schedule: Schedule
    latent_channels: int
    work: Work
    weight_bytes: dict[str, int]
    upscale_factor: int = 1
    loras: tuple[Applied, ...] = ()
    residence: dict[str, Residence] = field(default_factory=dict)
    tile: tuple[int, int] | None = None

    @property
    def latent_shape(self) -> tuple[int, int, int, int, int]:
        """[1, C, T, H, W] of the whole video."""
        return (1, self.latent_channels, *self.grid.latent_shape)

    @property
    def latent_bytes(self) -> int:
        """Of the latents of the whole video, in memory as on disk."""
        return 4 * math.prod(self.latent_shape)

    @property
    def first_step(self) -> int:
        """The denoising step that comes first: a restyled video is already clear of the noise of those before it."""
        edit = self.request.edit
        if edit is None or not self.timeline.from_source:
            return 0
        return self.request.num_steps - max(1, round(self.request.num_steps * edit.strength))

    @property
    def rendered(self) -> VideoSize:
        """What the VAE's frames are cropped to; scaled to the size asked for where that differs."""
        return self.grid.size

    @property
    def has_source_pieces(self) -> bool:
        return any(piece.source is not None for piece in self.timeline.pieces)

    @property
    def makes_frames(self) -> bool:
        """Not where a video is restyled with no strength: then its own frames are all there is."""
        return any(piece.source is None for piece in self.timeline.pieces)

    @property
    def scale_from(self) -> tuple[int, int] | None:
        """The sides of the frames that ffmpeg scales as it writes them; None where they have those of the file."""
        factor = self.upscale_factor
        sides = (self.rendered.width * factor, self.rendered.height * factor)
        asked = (self.request.size.width, self.request.size.height)
        return None if self.has_source_pieces or sides == asked else sides

    @property
    def flops(self) -> float:
        """Floating-point operations of all denoising steps."""
        forwards = (self.request.num_steps - self.first_step) * (2 if self.request.is_guided else 1)
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
            "decode": FIXED_BYTES + self.weight_bytes["vae"] + self._decode_bytes(self.tile) + self.latent_bytes,
            "encode": FFMPEG_BYTES + FFMPEG_BYTES_PER_PIXEL * self.request.size.area,
        }

    def residence_of(self, part: str) -> Residence:
        return self.residence.get(part, Residence.RESIDENT)

    def _decode_bytes(self, tile: tuple[int, int] | None) -> int:
        """Activations of the decoder, on whole frames or on tiles of them, with the frames that are blended."""
        whole = self.work.vae_bytes * self.machine.vae.itemsize // 4
        if tile is None:
            return whole
        chunk = 4 * 3 * self.grid.compression.stride[0] * self.grid.width * self.grid.height
        return whole * math.prod(tile) // math.prod(self.grid.latent_shape[1:]) + 3 * chunk

    def notes(self) -> list[str]:
        """A line for everything that is not simply as it was asked."""
        name, asked, grid = self.checkpoint.name, self.request.size, self.grid
        lines = [lora.note for lora in self.loras]
        if (self.rendered.width, self.rendered.height) != (asked.width, asked.height):
            word = "enlarged" if asked.area > self.rendered.area else "reduced"
            how = " with its own upscaler" if self.upscale_factor > 1 else ""
            lines.append(
                f"{name} renders {self.rendered.width}x{self.rendered.height}, "
                f"{word} to {asked.width}x{asked.height}{how}"
            )
        elif (grid.width, grid.height) != (asked.width, asked.height):
            lines.append(f"rendered at {grid.width}x{grid.height}, cropped to {asked.width}x{asked.height}")
        if self.request.direct and not self.checkpoint.native.knows_area(asked.area):
            words = f"at once is far from what {name} was trained on: forms may fall apart"
            lines.append(f"{asked.width}x{asked.height} {words}")
        if self.request.edit is None and not self.timeline.num_cyclic and grid.num_frames != asked.num_frames:
            lines.append(f"rendered {grid.num_frames} frames, trimmed to {asked.num_frames}")
        known = self.checkpoint.native.max_num_frames
        if len(self.windows) > 1:
            lines.append(
                f"longer than {self.window_grid.num_frames} frames: {len(self.windows)} windows, "
                "each continuing the one before"
            )
        elif grid.num_frames > known:
            lines.append(f"{name} was trained on at most {known} frames; more of them at once may repeat or drift")
        return lines + self._memory_notes()

    def _memory_notes(self) -> list[str]:
        """What is done where memory is short."""
        lines = []
        for part, residence in self.residence.items():
            origin = "the machine's memory" if residence is Residence.PINNED else "their file"
            lines.append(
                f"too little memory for the whole {part.replace('_', ' ')}: its blocks come one at a time "
                f"from {origin}, which is slower"
            )
        if self.tile is not None:
            _, down, across = self.grid.compression.stride
            lines.append(
                f"too little memory to decode whole frames: in tiles of {self.tile[1] * across}x{self.tile[0] * down}, "
                "which is slower"
            )
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
            "residence": {part: self.residence_of(part).value for part in STREAMED},
            "tile": None if self.tile is None else list(self.tile),
            "notes": self.notes(),
        }


def make_plan(request: Request, checkpoint: Checkpoint, device: str | None = None, dtype: str | None = None) -> Plan:
    """The plan, or the one line that says why there is none. Raises WeightsError, InputError, ResourceError."""
    folder, family, defaults = checkpoint_folder(checkpoint), load_family(checkpoint.family), checkpoint.defaults
    if request.edit is None and isinstance(family, ImageFamily) and family.takes_images(folder):
        raise needs_image(checkpoint)
    machine = pick_machine(checkpoint, device, dtype)
    size, compression = request.size, family.compression(folder)
    timeline = lay_timeline(request, room_of(checkpoint, compression))
    needed(checkpoint, timeline.given)
    sides = (size.width, size.height) if request.direct else checkpoint.native.rendered(size.width, size.height)
    rendered = VideoSize(*sides, timeline.num_frames, size.fps)
    grid = lay_grid(rendered, compression)
    at_once = Window(0, grid.latent_shape[0], 0, grid.latent_shape[0])
    windows = (at_once,) if request.direct else _lay_windows(checkpoint, grid, timeline)
    window_grid = Grid(grid.size, grid.compression, (windows[0].stop - windows[0].start, *grid.latent_shape[1:]))
    plan = Plan(
        request=request,
        checkpoint=checkpoint,
        folder=folder,
        machine=machine,
        timeline=timeline,
        grid=grid,
        windows=windows,
        window_grid=window_grid,
        schedule=make_schedule(
            defaults.schedule, request.num_steps, request.shift, window_grid.num_tokens, defaults.timesteps
        ),
        latent_channels=family.latent_channels(folder),
        work=family.work(folder, window_grid),
        upscale_factor=_upscale_factor(family, folder, rendered, size),
        weight_bytes=weigh(folder, machine),
        loras=fit_loras(request.loras, family.lora_targets(folder)) if request.loras else (),
    )
    return _fit_memory(plan)


def _upscale_factor(family: Family, folder: Path, rendered: VideoSize, asked: VideoSize) -> int:
    """That of the checkpoint's upscaler, where it is used: not for a few pixels more."""
    if not isinstance(family, UpscalerFamily) or asked.area < WORTH_UPSCALING * rendered.area:
        return 1
    return family.upscale_factor(folder)


def pick_machine(checkpoint: Checkpoint, device: str | None, dtype: str | None) -> Machine:
    """Where this checkpoint runs, as asked or as is best. Raises InputError."""
    where, parts = pick_device(device), checkpoint.dtypes
    transformer = pick_dtype(dtype, where, (DTYPES[parts.transformer],))
    # `dtype` is about the network that costs; the others are in 16 bits where weights.toml says that they bear it.
    rest = dtype if dtype == "float32" else None
    text_encoder, vae = (pick_dtype(rest, where, (DTYPES[name],)) for name in (parts.text_encoder, parts.vae))
    return Machine(where, text_encoder, transformer, vae)


def _lay_windows(checkpoint: Checkpoint, grid: Grid, timeline: Timeline) -> tuple[Window, ...]:
    """One window where all frames fit, or where the checkpoint cannot be given the frames of the window before."""
    num_latents = grid.latent_shape[0]
    length = grid.compression.latent_frames(checkpoint.native.max_num_frames)
    if not checkpoint.abilities.any_frames or length < 2:
        return (Window(0, num_latents, 0, num_latents),)
    overlap = max(1, length // 3)
    if timeline.num_cyclic:  # the first window has to make all that comes again
        overlap = min(max(overlap, 1 + timeline.num_cyclic), min(num_latents, length) - timeline.num_cyclic - 1)
        return lay_windows_between(num_latents, length, overlap, timeline.num_cyclic, at_once=False)
    if timeline.grows_backward:
        return lay_windows_backward(num_latents, length, max(2, overlap))
    if timeline.has_given_end and num_latents > length:
        last = timeline.given[-1]
        return lay_windows_between(
            num_latents, length, overlap, num_latents + 1 - grid.compression.latent_frames(last.start + 1)
        )
    return lay_windows(num_latents, length, overlap)


def _fit_memory(plan: Plan) -> Plan:
    """The plan with whatever it takes to stay within the memory there is. Raises ResourceError where nothing does."""
    device = plan.machine.device
    available = memory_budget(device).available
    peaks = plan.peak_bytes
    encode = 0 if device.type == "cuda" else peaks["encode"]  # a card of its own is not shared with ffmpeg
    for part in (part for part, stage in STREAMED.items() if peaks[stage] > available):
        plan = _stream(plan, part)
    if (excess := peaks["decode"] + encode - available) > 0:
        plan = _cut(plan, excess)
    peaks = {**plan.peak_bytes, "decode": plan.peak_bytes["decode"] + encode, "encode": 0}
    stage, needed = max(peaks.items(), key=lambda item: item[1])
    if needed > available:
        less = f"{'leave --direct out, or ' if plan.request.direct else ''}ask for a smaller --size"
        raise ResourceError(
            f"{stage} needs about {needed / 1e9:.1f} GB of memory, {available / 1e9:.1f} GB are free",
            f"{less} or fewer --seconds" if stage != "text" else "close other programs",
        )
    return plan


def _stream(plan: Plan, part: str) -> Plan:
    """The plan with the blocks of a part one at a time on the device, and one more where the next is copied meanwhile.

    They wait in page-locked memory, which the system cannot take back: it is left a fifth of what is free.
    """
    on_card, width = plan.machine.device.type == "cuda", getattr(plan.machine, part).itemsize
    sizes = [measure(plan.folder / part, TABLES if part == "text_encoder" else ())]
    for second, of in SECOND_PARTS.items():
        if of == part and (plan.folder / second).is_dir():
            blocks, block, rest = measure(plan.folder / second)
            sizes.append(Sizes(blocks, block, rest) if second in STREAMED_SECONDS else Sizes(0, 0, blocks + rest))
    held = width * max(rest + (2 if on_card else 1) * block for _, block, rest in sizes)
    waiting = width * max(blocks for blocks, _, _ in sizes)
    is_pinned = on_card and waiting + FIXED_BYTES <= 0.8 * memory_budget().available
    return replace(
        plan,
        weight_bytes={**plan.weight_bytes, part: held},
        residence={**plan.residence, part: Residence.PINNED if is_pinned else Residence.MAPPED},
    )


def _cut(plan: Plan, excess: int) -> Plan:
    """The plan with frames cut into the fewest tiles that need `excess` bytes less; as it is where none do."""
    _, height, width = plan.grid.latent_shape
    left = plan._decode_bytes(None) - excess - plan._decode_bytes((0, 0))
    area = left * height * width // max(1, plan._decode_bytes(None))
    tile = fit_tile(height, width, area)
    return plan if tile is None else replace(plan, tile=tile)


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
