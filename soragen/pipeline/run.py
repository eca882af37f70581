"""The numbered story: from a request to a file.

One network is in memory at a time. The latents are on disk before decoding starts, and go when the video is in place.
"""

from __future__ import annotations

import contextlib
import gc
import platform
import shlex
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from soragen import __version__
from soragen.catalog import catalog, find
from soragen.errors import InputError, OutputError
from soragen.families import family_of
from soragen.leftovers import leftover
from soragen.models.attention import attention
from soragen.models.device import free_memory
from soragen.models.family import Context, TextEncoder, Transformer, Upscaler, UpscalerFamily, Vae
from soragen.models.tiling import TiledVae
from soragen.models.weights import verify_files
from soragen.pipeline import second_pass
from soragen.pipeline.clips import encode_source, read_clips
from soragen.pipeline.clock import Clock
from soragen.pipeline.conditions import Conditions, read_conditions
from soragen.pipeline.denoise import denoise_windows
from soragen.pipeline.events import Listener, Note, Progress, Stage
from soragen.pipeline.frames import audio_of, file_frames, seam_of
from soragen.pipeline.latents import Saved, load_latents, save_latents
from soragen.pipeline.lora_fits import changes
from soragen.pipeline.memory import READ_DTYPE
from soragen.pipeline.plan import Plan, make_plan
from soragen.pipeline.sources import check_sources, with_sources
from soragen.pipeline.speed import keep_speed
from soragen.request import RECIPE_VERSION, Request
from soragen.video.audio import find_tracks
from soragen.video.formats import format_of
from soragen.video.naming import next_free
from soragen.video.write import check_output, write_video

HASHED_BYTES = 256_000_000
"""Files up to this size are hashed in every run; of larger ones the size is looked at, and every tensor as it loads."""


@dataclass(frozen=True)
class Networks:
    """What several runs share: each loads at its first call, and stays; None is loaded for a run, and goes with it.

    reader: a VAE of `READ_DTYPE`; it and `vae` are for whole frames.
    """

    transformer: Callable[[], Transformer] | None = None
    reader: Callable[[], Vae] | None = None
    vae: Callable[[], Vae] | None = None


ALONE = Networks()
"""One network is in memory at a time."""


@dataclass(frozen=True)
class Result:
    """A finished video. seconds: spent in each stage; decoding and encoding overlap and are counted apart.

    seam: of a loop, see `soragen.video.motion.seam_score`.
    """

    path: Path
    request: Request
    seconds: dict[str, float]
    seam: float | None = None


def generate(
    request: Request,
    output: Path,
    *,
    device: str | None = None,
    dtype: str | None = None,
    metadata: bool = True,
    lossless: bool = False,
    overwrite: bool = False,
    strict_prompt: bool = False,
    prompts: tuple[Context, Context | None] | None = None,
    networks: Networks = ALONE,
    listen: Listener,
) -> Result:
    """Makes the video that `request` describes and writes it to `output`. Raises SoragenError children.

    prompts: encoded already, as `encode_prompts` gives them. networks: those of this checkpoint and these settings.
    """
    # 1. Refuse early: nothing is loaded before it is known that the run can end well.
    plan = make_plan(request, find(request.checkpoint), device, dtype)
    check_output(
        output, size=request.size, overwrite=overwrite, bytes_beside=plan.latent_bytes, lossless=lossless,
        audio=audio_of(plan),
    )  # fmt: skip
    for line in plan.notes():
        listen(Note(line))
    clock = Clock(listen)

    # 2. The sentence.
    with clock.stage("load", plan.checkpoint.name):
        verify_small_files(plan)
    if prompts is None:
        with clock.stage("text"):
            prompts = encode_prompts(plan, strict_prompt, listen)

    # 3. What is given, then from noise to latents.
    latents = denoise_all(plan, *prompts, encode_given(plan, clock, networks.reader), clock, networks.transformer)

    # 4. The latents are safe before anything else can fail.
    saved = to_save(plan, latents, output, metadata, lossless)
    with kept(keep(saved, listen), listen):
        # 5. Latents to frames to the file, in one stream.
        path = decode_to_file(plan, saved, output, overwrite, clock, networks.vae)
    return Result(path, request, clock.seconds, seam_of(request, path, listen))


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
        request = with_sources(Request.from_dict(saved.recipe["request"]), saved.sources)
        made_by, maker = saved.recipe["model"]["sha256"], saved.recipe["versions"]["soragen"]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{file} holds a recipe of another version", "make the video again") from error
    rest = replace(request, loras=(), quantize=None, attention="sdpa")  # these did their part
    plan = make_plan(rest, find(saved.checkpoint), device, dtype)
    if tuple(saved.latents.shape) != plan.latent_shape or made_by != plan.checkpoint.digest:
        raise InputError(
            f"{file} was made with another version of {plan.checkpoint.name}", f"decode it with soragen {maker}"
        )
    if output is None:
        asked = saved.output if saved.output.parent.is_dir() else file.parent / saved.output.name
        output = asked if overwrite else next_free(asked)
    check_output(output, size=request.size, overwrite=overwrite, lossless=saved.lossless, audio=audio_of(plan))
    clock = Clock(listen)
    with kept(file, listen):
        path = decode_to_file(plan, saved, output, overwrite, clock)
    return Result(path, request, clock.seconds, seam_of(request, path, listen))


def verify_small_files(plan: Plan) -> None:
    """Raises WeightsError when a file is not what the catalog says."""
    small = [file for file in plan.checkpoint.files if file.size <= HASHED_BYTES]
    verify_files(plan.folder, {file.path: file.sha256 for file in small})


def encode_prompts(
    plan: Plan, strict: bool, listen: Listener, encoder: TextEncoder | None = None
) -> tuple[Context, Context | None]:
    """The prompt, and the negative one where it is needed. The encoder is gone afterwards, unless it was given."""
    request, machine = plan.request, plan.machine
    encoder = encoder or load_text_encoder(plan)
    prompts = {"prompt": request.prompt}
    if request.needs_negative:
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


def encode_given(plan: Plan, clock: Clock, load: Callable[[], Vae] | None = None) -> tuple[Conditions, Tensor | None]:
    """What the denoising starts from besides noise and words: given frames, and the video that is restyled.

    load: gives a VAE of `READ_DTYPE` for whole frames, where more than this plan have the same.
    """
    if not plan.timeline.given and not plan.timeline.from_source:
        return Conditions(None), None
    check_sources(plan.request)
    with clock.stage("read", "given frames"):
        # Once for both passes, and only where latents are needed.
        vae = cache(lambda: load_vae(plan, READ_DTYPE) if load is None else _in_tiles(load(), plan))
        source = encode_source(plan, vae()).cpu() if plan.timeline.from_source else None
        *first, conditions = (
            read_conditions(
                plan.checkpoint, plan.folder, family_of(plan.checkpoint), read_clips(each), each.grid,
                load_vae=vae, device=plan.machine.device, dtype=READ_DTYPE,
            )
            for each in plan.passes
        )  # fmt: skip
        del vae
        gc.collect()
        free_memory(plan.machine.device)
    if first:
        conditions = replace(conditions, first=first[0])
    return conditions, source


def denoise_all(
    plan: Plan,
    context: Context,
    negative: Context | None,
    given: tuple[Conditions, Tensor | None],
    clock: Clock,
    load: Callable[[], Transformer] | None = None,
) -> Tensor:
    """Latents [1, C, T, H, W] of the whole timeline. The transformer is gone afterwards, unless `load` keeps it."""
    if not plan.makes_frames:
        return torch.zeros(plan.latent_shape)
    with clock.timed("load"):
        transformer = load_transformer(plan) if load is None else load()
    (conditions, source), latents, before = given, torch.empty(0), clock.seconds["denoise"]
    for each in plan.passes:
        if each.first is not None:
            with clock.stage("denoise", "upsampling the latents"):
                source = second_pass.upsample(each, latents)
        detail = f"{each.num_steps} steps, {each.window_grid.num_tokens} tokens"
        with clock.stage("denoise", detail), attention(plan.request.attention):
            here = conditions.first if each is plan.first and conditions.first is not None else conditions
            latents = denoise_windows(each, context, negative, here, source, transformer, clock.listen)
    keep_speed(plan.kind, plan.work.transformer_flops, plan.flops, clock.seconds["denoise"] - before)
    del transformer
    gc.collect()
    free_memory(plan.machine.device)
    return latents


def to_save(plan: Plan, latents: Tensor, output: Path, metadata: bool, lossless: bool = False) -> Saved:
    asked, edit = plan.request.checkpoint, plan.request.edit
    checkpoint = asked if asked in catalog() else plan.checkpoint.source
    sources = tuple(source.path.absolute() for source in edit.sources) if edit is not None else ()
    return Saved(latents, make_recipe(plan), checkpoint, output.absolute(), metadata, lossless, sources)


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
def telling(how: str, listen: Listener) -> Iterator[None]:
    """Says `how` to go on, where the block does not come to its end.

    An error carries the line as a note of its own (PEP 678), which the command line shows as a hint. An interrupt
    reaches nobody who would show it, so it is said at once.
    """
    try:
        with leftover(lambda: listen(Note(how))):
            yield
    except Exception as error:
        error.add_note(how)
        raise
    except BaseException:
        listen(Note(how))
        raise


@contextmanager
def kept(file: Path | None, listen: Listener) -> Iterator[None]:
    """While the block runs, the latents lie in `file`. They go when it ends well, or the user is told of them."""
    if file is None:
        yield
        return
    with telling(f"the denoised latents are kept: run `soragen decode {shlex.quote(str(file))}`", listen):
        yield
    with contextlib.suppress(OSError):  # the video is in place: nothing failed
        file.unlink(missing_ok=True)


def decode_to_file(
    plan: Plan, saved: Saved, output: Path, overwrite: bool, clock: Clock, load: Callable[[], Vae] | None = None
) -> Path:
    """Streams frames into the file, and returns where it is. Raises InputError where a source is not what it was.

    load: gives a VAE for whole frames, where more than this plan have the same.
    """
    size, sound = plan.request.size, audio_of(plan)
    check_sources(plan.request)
    if sound and not format_of(output, size, lossless=saved.lossless).sounds and find_tracks(sound):
        clock.listen(Note(f"a file that ends in {output.suffix} has no sound: that of the source is left out"))
    with clock.timed("load"):
        vae = load_vae(plan) if load is None else _in_tiles(load(), plan)
        upscaler = load_upscaler(plan)
    clock.listen(Stage("decode", f"{size.num_frames} frames"))
    with clock.timed("encode"):
        decoded = vae.decode(saved.latents, seed=plan.request.seed)
        return write_video(
            output,
            file_frames(plan, decoded, upscaler, clock),
            size,
            recipe=saved.recipe if saved.metadata else None,
            scale_from=plan.scale_from,
            on_frames=lambda done: clock.listen(Progress("decode", done, size.num_frames)),
            overwrite=overwrite,
            audio=sound,
            lossless=saved.lossless,
        )


def load_text_encoder(plan: Plan) -> TextEncoder:
    return family_of(plan.checkpoint).load_text_encoder(
        plan.folder,
        plan.machine.device,
        plan.machine.text_encoder,
        plan.residence_of("text_encoder"),
        quantize=plan.request.quantize,
    )


def load_transformer(plan: Plan) -> Transformer:
    return family_of(plan.checkpoint).load_transformer(
        plan.folder,
        plan.machine.device,
        plan.machine.transformer,
        plan.residence_of("transformer"),
        changes=changes(plan.loras),
        quantize=plan.request.quantize,
    )


def load_vae(plan: Plan, dtype: torch.dtype | None = None) -> Vae:
    """dtype: that of the decoder, unless it is to read."""
    vae = family_of(plan.checkpoint).load_vae(plan.folder, plan.machine.device, dtype or plan.machine.vae)
    return _in_tiles(vae, plan)


def load_whole_vae(plan: Plan, dtype: torch.dtype | None = None) -> Vae:
    """For several plans of a checkpoint, each of which has tiles of its own. dtype: see `load_vae`."""
    return load_vae(replace(plan, tile=None), dtype)


def _in_tiles(vae: Vae, plan: Plan) -> Vae:
    """A VAE that was loaded for whole frames, on what the plan gives it at once."""
    return vae if plan.tile is None else TiledVae(vae, plan.tile, plan.grid.compression.stride[1:])


def load_upscaler(plan: Plan) -> Upscaler | None:
    family = family_of(plan.checkpoint)
    if plan.upscale_factor == 1 or not isinstance(family, UpscalerFamily):
        return None
    return family.load_upscaler(plan.folder, plan.machine.device, plan.machine.vae)


def make_recipe(plan: Plan) -> dict[str, Any]:
    """All that is needed to make the same video again, and what made this one."""
    return {
        "recipe": RECIPE_VERSION,
        "request": plan.request.to_dict(),
        **({} if plan.first is None else {"second_pass": second_pass.facts(plan)}),
        "model": {"name": plan.checkpoint.name, "family": plan.checkpoint.family, "sha256": plan.checkpoint.digest},
        "machine": {"device": plan.machine.device.type, "dtype": str(plan.machine.transformer).removeprefix("torch.")},
        "versions": {"soragen": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }
