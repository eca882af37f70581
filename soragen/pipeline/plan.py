"""What a request comes to on a checkpoint and a machine, known before anything is loaded: grid, windows, memory, work.

Two rules make any size and any duration possible. Outside the areas a checkpoint was trained on, it renders the same
aspect at an area it knows, and the frames are scaled to the size asked for as they are written. Past its trained length
it renders windows that continue each other, where it can be given known frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from soragen.catalog import checkpoint_folder
from soragen.checkpoint import Checkpoint
from soragen.diffusion.grid import Grid, lay_grid
from soragen.diffusion.sampler import num_forwards
from soragen.diffusion.schedule import Schedule, make_schedule
from soragen.diffusion.windows import Window, lay_windows, lay_windows_backward, lay_windows_between
from soragen.errors import InputError
from soragen.families import family_of
from soragen.models.attention import check_attention
from soragen.models.device import DTYPES, pick_device, pick_dtype
from soragen.models.family import ConfiguredFamily, Family, ImageFamily, UpscalerFamily
from soragen.models.offload import Residence
from soragen.models.quantize import check_quantize
from soragen.pipeline import second_pass
from soragen.pipeline.conditions import needed, note_on, repeats_of
from soragen.pipeline.lora_fits import Applied, fit_loras, own_loras
from soragen.pipeline.memory import STREAMED, Footprint, Machine, fit_memory, weigh
from soragen.pipeline.resolve import needs_image
from soragen.pipeline.speed import Speed, find_speed, kind_of
from soragen.pipeline.timeline import Timeline, lay_timeline, room_of
from soragen.request import ATTENTIONS, Request
from soragen.size import VideoSize, format_fps

WORTH_UPSCALING = 1.5
"""The area asked for over that which is rendered, from which on an upscaler is used."""


@dataclass(frozen=True, kw_only=True)
class Plan(Footprint):
    """windows: what is denoised at once, in order; all of the shape of `window_grid`. schedule: of one window. first:
    of two passes the other one, whose upsampled latents this one starts from; see second_pass.py. speed: of a run like
    this one, on this machine.
    """

    checkpoint: Checkpoint
    windows: tuple[Window, ...]
    schedule: Schedule
    upscale_factor: int = 1
    loras: tuple[Applied, ...] = ()
    first: Plan | None = None
    speed: Speed | None = None

    @property
    def first_step(self) -> int:
        """The denoising step that comes first: a restyled video is already clear of the noise of those before it."""
        edit = self.request.edit
        if edit is None or not self.timeline.from_source:
            return 0
        return self.request.num_steps - max(1, round(self.request.num_steps * edit.strength))

    @property
    def num_steps(self) -> int:
        """How many denoising steps are taken."""
        return len(self.schedule) - 1 - self.first_step

    @property
    def passes(self) -> tuple[Plan, ...]:
        return (self,) if self.first is None else (self.first, self)

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
        if not self.makes_frames:
            return 0.0
        forwards = sum(part.work.transformer_flops * part._num_forwards for part in self.passes)
        return forwards * (1 + self.request.is_guided + (self.request.held > 0))

    @property
    def _num_forwards(self) -> int:
        """Of one prompt: a step counts as often as it is taken, which is more where frames are given."""
        plain, given = (
            num_forwards(len(self.schedule) - 1, self.first_step, repeats)
            for repeats in (1, repeats_of(self.checkpoint.abilities))
        )
        return (given if self.timeline.given else plain) + given * (len(self.windows) - 1)

    @property
    def kind(self) -> str:
        """What runs must share with this one to be as fast."""
        request, dtype = self.request, str(self.machine.transformer).removeprefix("torch.")
        how = (dtype, request.quantize or "", request.attention, self.residence_of("transformer").value)
        return kind_of(self.machine.device, self.checkpoint.family, *how)

    @property
    def expected_seconds(self) -> float | None:
        """Of the denoising; None where no run on this machine tells."""
        return None if self.speed is None else self.flops / self.speed.flops_per_second

    def notes(self) -> list[str]:
        """A line for everything that is not simply as it was asked."""
        name, asked, grid = self.checkpoint.name, self.request.size, self.grid
        lines = [lora.note for lora in self.loras]
        if self.first is not None:
            lines.append(second_pass.note(self))
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
        if line := note_on(self.checkpoint, self.timeline.given):
            lines.append(line)
        known = self.checkpoint.native.max_num_frames
        if len(self.windows) > 1:
            lines.append(
                f"longer than {self.window_grid.num_frames} frames: {len(self.windows)} windows, "
                "each continuing the one before"
                + ("" if self.checkpoint.abilities.any_frames else f", which {name} was not trained to do")
            )
        elif grid.num_frames > known:
            further = "" if self.checkpoint.abilities.text else "; a storyboard of continued shots goes further"
            lines.append(f"{name} was trained on at most {known} frames; more at once may repeat or drift{further}")
        if (kind := self.request.quantize) is not None:
            lines.append(f"weights of transformer and text encoder in {kind}: near the video of whole ones, not it")
        if not ATTENTIONS[self.request.attention]:
            lines.append(f"attention by {self.request.attention}, which approximates: not exactly the video of sdpa")
        return lines + self.memory_notes()

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
            *self._time(),
            "memory    " + ", ".join(f"{stage} {size / 1e9:.2f} GB" for stage, size in self.peak_bytes.items()),
            *(f"note      {line}" for line in self.notes()),
        ]

    def _time(self) -> list[str]:
        if self.speed is None or self.expected_seconds is None:
            return []
        about = f"{self.expected_seconds:.2g}" if self.expected_seconds < 10 else f"{self.expected_seconds:.0f}"
        return [f"time      about {about} s to denoise on this machine (as measured on {self.speed.measured})"]

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
            "expected_seconds": self.expected_seconds,
            "peak_bytes": self.peak_bytes,
            "residence": {part: self.residence_of(part).value for part in STREAMED},
            "tile": None if self.tile is None else list(self.tile),
            "second_pass": None if self.first is None else second_pass.facts(self),
            "notes": self.notes(),
        }


def make_plan(request: Request, checkpoint: Checkpoint, device: str | None = None, dtype: str | None = None) -> Plan:
    """The plan, or the one line that says why there is none. Raises WeightsError, InputError, ResourceError."""
    folder, family, defaults = checkpoint_folder(checkpoint), family_of(checkpoint), checkpoint.defaults
    machine = pick_machine(checkpoint, device, dtype)
    if request.quantize is not None:
        check_quantize(request.quantize, machine.device, machine.transformer)
    if isinstance(family, ConfiguredFamily) and not family.takes_attention(request.attention):
        words = f"{checkpoint.name} has an attention of its own: --attention {request.attention} has no part in it"
        raise InputError(words, "leave it out")
    check_attention(request.attention, machine.device, machine.transformer)
    size, compression = request.size, family.compression(folder)
    timeline = lay_timeline(request, room_of(checkpoint, compression))
    needed(checkpoint, timeline.given)
    if isinstance(family, ImageFamily) and family.takes_images(folder):
        if request.edit is None:
            raise needs_image(checkpoint)
        family.check_images(folder, len(timeline.given))
    first = second_pass.first_sides(request, checkpoint, folder)
    sides = (size.width, size.height) if request.direct else checkpoint.native.rendered(size.width, size.height)
    sides = first or sides
    rendered = VideoSize(*sides, timeline.num_frames, size.fps)
    grid = lay_grid(rendered, compression)
    at_once = Window(0, grid.latent_shape[0], 0, grid.latent_shape[0])
    windows = (at_once,) if request.direct else _lay_windows(checkpoint, grid, timeline)
    loras = (*own_loras(checkpoint, folder), *request.loras)
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
        weight_bytes=weigh(folder, machine, request.quantize),
        loras=fit_loras(loras, family.lora_targets(folder)) if loras else (),
    )
    plan = fit_memory(plan if first is None else second_pass.with_second_pass(plan))
    return replace(plan, speed=find_speed(plan.kind, plan.work.transformer_flops))


def strictest(plans: Sequence[Plan], part: str) -> Plan:
    """Of `plans`, one that leaves the least of a network in memory: so all of them have room."""
    order = list(Residence)
    return max(plans, key=lambda plan: order.index(plan.residence_of(part)))


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
    """One window where all frames fit, or where every video begins with an image that is no frame of this one."""
    num_latents = grid.latent_shape[0]
    length = grid.compression.latent_frames(checkpoint.native.max_num_frames)
    if not (checkpoint.abilities.any_frames or checkpoint.abilities.text) or length < 2:
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
