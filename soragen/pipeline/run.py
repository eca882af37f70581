"""The numbered story: from a request to a file.

One network is in memory at a time. The latents are on disk before decoding starts, and go when the video is in place.
"""

from __future__ import annotations

import contextlib
import gc
import platform
import shlex
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from soragen import __version__
from soragen.catalog import catalog, find
from soragen.diffusion.condition import KnownFrames
from soragen.diffusion.guidance import Scale, guided
from soragen.diffusion.noise import starting_noise
from soragen.diffusion.sampler import denoise
from soragen.diffusion.solver import make_solver
from soragen.errors import InputError, OutputError
from soragen.families import load_family
from soragen.leftovers import leftover
from soragen.models.device import free_memory
from soragen.models.family import Context, ExpertTransformer, TextEncoder, Transformer, Vae
from soragen.models.weights import verify_files
from soragen.pipeline.events import STAGES, Listener, Note, Progress, Stage
from soragen.pipeline.latents import Saved, load_latents, save_latents
from soragen.pipeline.plan import Plan, make_plan
from soragen.request import RECIPE_VERSION, Request
from soragen.video.naming import next_free
from soragen.video.write import check_output, to_uint8, write_video

HASHED_BYTES = 256_000_000
"""Files up to this size are hashed in every run; of larger ones the size is looked at, and every tensor as it loads."""


@dataclass(frozen=True)
class Result:
    """A finished video. seconds: spent in each stage; decoding and encoding overlap and are counted apart."""

    path: Path
    request: Request
    seconds: dict[str, float]


@dataclass
class Clock:
    """Tells the listener which stage runs and adds up how long each took, less what was timed inside of it."""

    listen: Listener
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    _inside: float = 0.0

    @contextmanager
    def stage(self, name: str, detail: str = "") -> Iterator[None]:
        self.listen(Stage(name, detail))
        with self.timed(name):
            yield

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        began, before = time.perf_counter(), self._inside
        self._inside = 0.0
        try:
            yield
        finally:
            whole = time.perf_counter() - began
            self.seconds[name] += whole - self._inside
            self._inside = before + whole


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
    plan = make_plan(request, find(request.checkpoint), device, dtype)
    check_output(output, size=request.size, overwrite=overwrite, bytes_beside=plan.latent_bytes)
    for line in plan.notes():
        listen(Note(line))
    clock = Clock(listen)

    # 2. The sentence.
    with clock.stage("load", plan.checkpoint.name):
        verify_small_files(plan)
    with clock.stage("text"):
        context, negative = encode_prompts(plan, strict_prompt, listen)

    # 3. From noise to latents.
    latents = denoise_windows(plan, context, negative, clock)

    # 4. The latents are safe before anything else can fail.
    saved = to_save(plan, latents, output, metadata)
    with kept(keep(saved, listen), listen):
        # 5. Latents to frames to the file, in one stream.
        path = decode_to_file(plan, saved, output, overwrite, clock)
    return Result(path, request, clock.seconds)


def decode(
    file: Path,
    output: Path | None,
    *,
    device: str | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
    listen: Listener,
) -> Result:
    """Goes on after a failed decode: from the latents that `generate` left to the video that was asked for.

    output: None is the name that was asked for, or the next free one. Raises SoragenError children.
    """
    saved = load_latents(file)
    try:
        request = Request.from_dict(saved.recipe["request"])
        made_by, maker = saved.recipe["model"]["sha256"], saved.recipe["versions"]["soragen"]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{file} holds a recipe of another version", "make the video again") from error
    plan = make_plan(request, find(saved.checkpoint), device, dtype)
    if tuple(saved.latents.shape) != plan.latent_shape or made_by != plan.checkpoint.digest:
        raise InputError(
            f"{file} was made with another version of {plan.checkpoint.name}", f"decode it with soragen {maker}"
        )
    if output is None:
        asked = saved.output if saved.output.parent.is_dir() else file.parent / saved.output.name
        output = asked if overwrite else next_free(asked)
    check_output(output, size=request.size, overwrite=overwrite)
    clock = Clock(listen)
    with kept(file, listen):
        path = decode_to_file(plan, saved, output, overwrite, clock)
    return Result(path, request, clock.seconds)


def verify_small_files(plan: Plan) -> None:
    """Raises WeightsError when a file is not what the catalog says."""
    small = [file for file in plan.checkpoint.files if file.size <= HASHED_BYTES]
    verify_files(plan.folder, {file.path: file.sha256 for file in small})


def encode_prompts(
    plan: Plan, strict: bool, listen: Listener, encoder: TextEncoder | None = None
) -> tuple[Context, Context | None]:
    """The prompt, and the negative one where guidance needs it. The encoder is gone afterwards, unless it was given."""
    request, machine = plan.request, plan.machine
    encoder = encoder or load_text_encoder(plan)
    prompts = {"prompt": request.prompt}
    if request.is_guided:
        prompts["negative prompt"] = request.negative_prompt
    for what, prompt in prompts.items():
        if dropped := encoder.dropped(prompt):
            shown = dropped if len(dropped) <= 500 else f"{dropped[:500]}… ({len(dropped):,} characters)"
            if strict:
                raise InputError(f"the {what} is too long, the model would not read: {shown}", f"shorten the {what}")
            listen(Note(f"the {what} is too long, the model does not read: {shown}"))
    context, *negative = encoder.encode(list(prompts.values()))
    del encoder
    free_memory(machine.device)
    return context, negative[0] if negative else None


def denoise_windows(
    plan: Plan, context: Context, negative: Context | None, clock: Clock, transformer: Transformer | None = None
) -> Tensor:
    """Latents [1, C, T, H, W] of the whole video, window after window.

    The transformer is gone afterwards, unless it was given.
    """
    request, grid, device = plan.request, plan.window_grid, plan.machine.device
    with clock.timed("load"):
        transformer = transformer or load_transformer(plan)
    total = request.num_steps * len(plan.windows)
    with clock.stage("denoise", f"{request.num_steps} steps, {grid.num_tokens} tokens"):
        denoiser = guided(
            transformer.bind(context, grid),
            transformer.bind(negative, grid) if negative is not None else None,
            guidance(request, transformer),
        )
        noise = starting_noise(request.seed, plan.latent_channels, plan.grid)
        latents = torch.zeros_like(noise)
        for number, window in enumerate(plan.windows):
            known = None
            if window.num_known:
                free = torch.arange(grid.latent_shape[0], device=device) >= window.num_known
                known = KnownFrames(latents[:, :, window.frames].to(device), free.float(), native=True)
            start = noise[:, :, window.frames].to(device)
            for step in denoise(denoiser, start, plan.schedule, make_solver(request.solver, plan.schedule), known):
                clock.listen(Progress("denoise", number * request.num_steps + step.index + 1, total))
            latents[:, :, window.frames] = step.latents.cpu()
    del denoiser, transformer
    gc.collect()
    free_memory(device)
    return latents


def guidance(request: Request, transformer: Transformer) -> Scale:
    """One scale, or that of the expert which takes the step."""
    high, low = request.guidance_scale, request.low_noise_guidance_scale
    if high == low or not isinstance(transformer, ExpertTransformer):
        return high
    return lambda level: high if transformer.is_high(level) else low


def to_save(plan: Plan, latents: Tensor, output: Path, metadata: bool) -> Saved:
    asked = plan.request.checkpoint
    checkpoint = asked if asked in catalog() else plan.checkpoint.source
    return Saved(latents, make_recipe(plan), checkpoint, output.absolute(), metadata)


def keep(saved: Saved, listen: Listener) -> Path | None:
    """Writes the latents beside the video, or else where temporary files go. None where neither can be written.

    Even then the run goes on: the video itself may still find room, and is all that is left of hours of work.
    """
    for folder in (saved.output.parent, Path(tempfile.gettempdir())):
        try:
            return save_latents(folder, saved)
        except OutputError as error:
            listen(Note(f"latents not kept there: {error.message}"))
    return None


@contextmanager
def kept(file: Path | None, listen: Listener) -> Iterator[None]:
    """While the block runs, the latents lie in `file`. They go when it ends well; otherwise the user is told of them.

    An error carries the line as a note of its own (PEP 678), which the command line shows as a hint. An interrupt
    reaches nobody who would show it, so it is said at once.
    """
    if file is None:
        yield
        return
    how = f"the denoised latents are kept: run `soragen decode {shlex.quote(str(file))}`"
    try:
        with leftover(lambda: listen(Note(how))):
            yield
    except Exception as error:
        error.add_note(how)
        raise
    except BaseException:
        listen(Note(how))
        raise
    with contextlib.suppress(OSError):  # the video is in place: nothing failed
        file.unlink(missing_ok=True)


def decode_to_file(
    plan: Plan, saved: Saved, output: Path, overwrite: bool, clock: Clock, vae: Vae | None = None
) -> Path:
    """Streams frames into the file, and returns where it is."""
    size = plan.request.size
    with clock.timed("load"):
        vae = vae or load_vae(plan)
    clock.listen(Stage("decode", f"{size.num_frames} frames"))
    with clock.timed("encode"):
        return write_video(
            output,
            cropped_frames(plan, vae.decode(saved.latents, seed=plan.request.seed), clock),
            size,
            recipe=saved.recipe if saved.metadata else None,
            scale_from=plan.scale_from,
            on_frames=lambda done: clock.listen(Progress("decode", done, size.num_frames)),
            overwrite=overwrite,
        )


def cropped_frames(plan: Plan, chunks: Iterator[Tensor], clock: Clock) -> Iterator[Tensor]:
    """The asked frames [t, H, W, 3] uint8 out of what the VAE decodes, which may be a little more."""
    left = plan.request.size.num_frames
    while left > 0:
        with clock.timed("decode"):
            chunk = next(chunks, None)
            if chunk is None:
                return  # `write_video` tells how many are missing
            frames = to_uint8(plan.grid.crop_frames(chunk[:left]))
        left -= len(frames)
        yield frames


def load_text_encoder(plan: Plan) -> TextEncoder:
    return load_family(plan.checkpoint.family).load_text_encoder(
        plan.folder, plan.machine.device, plan.machine.text_encoder
    )


def load_transformer(plan: Plan) -> Transformer:
    return load_family(plan.checkpoint.family).load_transformer(
        plan.folder, plan.machine.device, plan.machine.transformer
    )


def load_vae(plan: Plan) -> Vae:
    return load_family(plan.checkpoint.family).load_vae(plan.folder, plan.machine.device, plan.machine.vae)


def make_recipe(plan: Plan) -> dict[str, Any]:
    """All that is needed to make the same video again, and what made this one."""
    return {
        "recipe": RECIPE_VERSION,
        "request": plan.request.to_dict(),
        "model": {"name": plan.checkpoint.name, "family": plan.checkpoint.family, "sha256": plan.checkpoint.digest},
        "machine": {"device": plan.machine.device.type, "dtype": str(plan.machine.transformer).removeprefix("torch.")},
        "versions": {"soragen": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }
