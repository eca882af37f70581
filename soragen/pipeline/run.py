"""The numbered story: from a request to a file.

One network is in memory at a time. The latents are on disk before decoding starts, and go when the video is in place.
"""

from __future__ import annotations

import gc
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from soragen import __version__
from soragen.catalog import find
from soragen.diffusion.condition import KnownFrames
from soragen.diffusion.guidance import guided
from soragen.diffusion.noise import starting_noise
from soragen.diffusion.sampler import denoise
from soragen.diffusion.schedule import make_schedule
from soragen.diffusion.solver import make_solver
from soragen.errors import InputError, SoragenError
from soragen.families import load_family
from soragen.models.device import DTYPES, free_memory, pick_device, pick_dtype
from soragen.models.family import Context
from soragen.models.weights import verify_files
from soragen.pipeline.events import STAGES, Listener, Note, Progress, Stage
from soragen.pipeline.latents import latents_path, load_latents, save_latents
from soragen.pipeline.plan import Plan, make_plan
from soragen.request import RECIPE_VERSION, Request
from soragen.video.naming import default_output
from soragen.video.write import check_output, to_uint8, write_video


@dataclass(frozen=True)
class Result:
    """A finished video. seconds: spent in each stage; decoding and encoding overlap and are counted apart."""

    path: Path
    request: Request
    seconds: dict[str, float]


@dataclass
class Clock:
    """Tells the listener which stage runs and adds up how long each took."""

    listen: Listener
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))

    @contextmanager
    def stage(self, name: str, detail: str = "") -> Iterator[None]:
        self.listen(Stage(name, detail))
        with self.timed(name):
            yield

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - began


@dataclass(frozen=True)
class Machine:
    """Where the networks run, and in which type each of them."""

    device: torch.device
    text_encoder: torch.dtype
    transformer: torch.dtype
    vae: torch.dtype


def generate(
    request: Request,
    output: Path,
    *,
    device: str | None = None,
    dtype: str | None = None,
    metadata: bool = True,
    overwrite: bool = False,
    strict_prompt: bool = False,
    listen: Listener,
) -> Result:
    """Makes the video that `request` describes and writes it to `output`. Raises SoragenError children."""
    # 1. Refuse early: nothing is loaded before it is known that the run can end well.
    plan = make_plan(request, find(request.checkpoint), device)
    machine = pick_machine(plan, device, dtype)
    check_output(output, size=request.size, overwrite=overwrite)
    for line in plan.notes():
        listen(Note(line))
    clock = Clock(listen)

    # 2. The sentence.
    with clock.stage("load", plan.checkpoint.name):
        verify_files(plan.folder, {file.path: file.sha256 for file in plan.checkpoint.files})
    with clock.stage("text"):
        context, negative = encode_prompts(plan, machine, strict_prompt, listen)

    # 3. From noise to latents.
    latents = denoise_windows(plan, machine, context, negative, clock)

    # 4. The latents are safe before anything else can fail.
    recipe = make_recipe(plan, machine)
    saved = latents_path(output)
    save_latents(saved, latents, recipe)

    # 5. Latents to frames to the file, in one stream.
    path = decode_to_file(plan, machine, latents, output, recipe if metadata else None, overwrite, saved, clock)
    return Result(path, request, clock.seconds)


def decode(
    saved: Path,
    output: Path | None,
    *,
    device: str | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
    listen: Listener,
) -> Result:
    """Goes on after a failed decode: from latents that `generate` saved to the video. Raises SoragenError children."""
    latents, recipe = load_latents(saved)
    try:
        request = Request.from_dict(recipe["request"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{saved} holds a recipe of another version", "make the video again") from error
    plan = make_plan(request, find(request.checkpoint), device)
    if tuple(latents.shape[2:]) != plan.grid.latent_shape:
        raise InputError(f"{saved} does not fit the model {request.checkpoint!r}", "make the video again")
    machine = pick_machine(plan, device, dtype)
    output = output or default_output(request.prompt, request.seed, saved.parent)
    check_output(output, size=request.size, overwrite=overwrite)
    clock = Clock(listen)
    path = decode_to_file(plan, machine, latents, output, recipe, overwrite, saved, clock)
    return Result(path, request, clock.seconds)


def pick_machine(plan: Plan, device: str | None, dtype: str | None) -> Machine:
    where = pick_device(device)
    parts = plan.checkpoint.dtypes
    text, transformer, vae = (
        pick_dtype(dtype, where, (DTYPES[name],)) for name in (parts.text_encoder, parts.transformer, parts.vae)
    )
    return Machine(where, text, transformer, vae)


def encode_prompts(plan: Plan, machine: Machine, strict: bool, listen: Listener) -> tuple[Context, Context | None]:
    """The prompt, and the negative one where guidance needs it. The encoder is gone afterwards."""
    encoder = load_family(plan.checkpoint.family).load_text_encoder(plan.folder, machine.device, machine.text_encoder)
    request = plan.request
    prompts = [request.prompt, request.negative_prompt] if request.guidance_scale != 1 else [request.prompt]
    for prompt in prompts:
        if dropped := encoder.dropped(prompt):
            shown = dropped if len(dropped) <= 500 else f"{dropped[:500]}… ({len(dropped):,} characters)"
            if strict:
                raise InputError(f"the prompt is too long, the model would not read: {shown}", "shorten the prompt")
            listen(Note(f"the prompt is too long, the model does not read: {shown}"))
    context, *negative = encoder.encode(prompts)
    return context, negative[0] if negative else None


def denoise_windows(
    plan: Plan, machine: Machine, context: Context, negative: Context | None, clock: Clock
) -> Tensor:
    """Latents [1, C, T, H, W] of the whole video, window after window. The transformer is gone afterwards."""
    request, grid = plan.request, plan.window_grid
    family = load_family(plan.checkpoint.family)
    with clock.timed("load"):
        transformer = family.load_transformer(plan.folder, machine.device, machine.transformer)
    schedule = make_schedule(plan.checkpoint.defaults.schedule, request.num_steps, request.shift, grid.num_tokens)
    total = request.num_steps * len(plan.windows)
    with clock.stage("denoise", f"{request.num_steps} steps, {grid.num_tokens} tokens"):
        denoiser = guided(
            transformer.bind(context, grid),
            transformer.bind(negative, grid) if negative is not None else None,
            request.guidance_scale,
        )
        noise = starting_noise(request.seed, family.latent_channels(plan.folder), plan.grid)
        latents = torch.zeros_like(noise)
        for number, window in enumerate(plan.windows):
            known = None
            if window.num_known:
                mask = (torch.arange(grid.latent_shape[0]) >= window.num_known).float()
                known = KnownFrames(latents[:, :, window.frames].to(machine.device), mask.to(machine.device), native=True)
            start = noise[:, :, window.frames].to(machine.device)
            for step in denoise(denoiser, start, schedule, make_solver(request.solver, schedule), known):
                clock.listen(Progress("denoise", number * request.num_steps + step.index + 1, total))
            latents[:, :, window.frames] = step.latents.cpu()
    del denoiser, transformer
    gc.collect()
    free_memory(machine.device)
    return latents


def decode_to_file(
    plan: Plan,
    machine: Machine,
    latents: Tensor,
    output: Path,
    recipe: dict[str, Any] | None,
    overwrite: bool,
    saved: Path,
    clock: Clock,
) -> Path:
    """Streams frames into the file; `saved` is removed when it is in place, and named in the error when it is not."""
    size = plan.request.size
    try:
        with clock.timed("load"):
            vae = load_family(plan.checkpoint.family).load_vae(plan.folder, machine.device, machine.vae)
        with clock.stage("decode", f"{size.num_frames} frames"):
            path = write_video(
                output,
                cropped_frames(plan, vae.decode(latents), clock),
                size,
                recipe=recipe,
                scale_from=plan.scale_from,
                on_frames=lambda done: clock.listen(Progress("decode", done, size.num_frames)),
                overwrite=overwrite,
            )
    except SoragenError as error:
        error.hint = f"the denoised latents are kept: run `soragen decode {saved}`" + (f"; {error.hint}" if error.hint else "")
        raise
    saved.unlink(missing_ok=True)
    clock.seconds["encode"] = clock.seconds["decode"] - clock.seconds.pop("frames", 0.0)
    clock.seconds["decode"] -= clock.seconds["encode"]
    return path


def cropped_frames(plan: Plan, chunks: Iterator[Tensor], clock: Clock) -> Iterator[Tensor]:
    """The asked frames [t, H, W, 3] uint8 out of what the VAE decodes, which may be a little more."""
    left = plan.request.size.num_frames
    clock.seconds["frames"] = 0.0
    while left > 0:
        with clock.timed("frames"):
            frames = to_uint8(plan.grid.crop_frames(next(chunks)[:left]))
        left -= len(frames)
        yield frames


def make_recipe(plan: Plan, machine: Machine) -> dict[str, Any]:
    """All that is needed to make the same video again, and what made this one."""
    return {
        "recipe": RECIPE_VERSION,
        "request": plan.request.to_dict(),
        "model": {"name": plan.checkpoint.name, "family": plan.checkpoint.family, "sha256": plan.checkpoint.digest},
        "machine": {"device": machine.device.type, "dtype": str(machine.transformer).removeprefix("torch.")},
        "versions": {"soragen": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }
