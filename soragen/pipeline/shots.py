"""The shots of a storyboard, one after the other, and the video that joins them.

All prompts are encoded first. Each shot is made into a lossless file in a hidden folder beside the video: what is made
once is neither lost nor made again.
The networks are loaded once where memory has room for all of them.
A shot that goes on is given the end of the one before, as an extended video is given that of its source. At the end all
are joined and encoded once.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

from torch import Tensor

from soragen.catalog import find
from soragen.errors import InputError, OutputError, SoragenError
from soragen.models.device import free_memory, memory_budget
from soragen.pipeline import run
from soragen.pipeline.clock import Clock
from soragen.pipeline.contexts import Contexts, contexts_beside
from soragen.pipeline.events import Listener, Note, Progress
from soragen.pipeline.latents import SUFFIX, holds
from soragen.pipeline.memory import READ_DTYPE
from soragen.pipeline.plan import Plan, make_plan, strictest
from soragen.pipeline.sources import hash_of
from soragen.pipeline.storyboard import SEED, Storyboard, about, is_continued
from soragen.request import Request
from soragen.video.formats import format_of
from soragen.video.read import read_video
from soragen.video.recipe import read_recipe
from soragen.video.write import check_output, write_video


def plan_shots(board: Storyboard, device: str | None, dtype: str | None) -> list[Plan]:
    """The plan of each shot. Raises what `make_plan` raises, with the number of the shot."""
    plans = []
    for number, shot in enumerate(board.shots, 1):
        with _in_shot(number):
            plans.append(make_plan(shot, find(shot.checkpoint), device, dtype))
    return plans


@contextmanager
def _in_shot(number: int) -> Iterator[None]:
    try:
        yield
    except SoragenError as error:
        error.message = f"shot {number}: {error.message}"
        raise


def make_storyboard(
    board: Storyboard,
    *,
    device: str | None = None,
    dtype: str | None = None,
    metadata: bool = True,
    lossless: bool = False,
    overwrite: bool = False,
    strict_prompt: bool = False,
    listen: Listener,
) -> run.Result:
    """Makes the shots that are not there yet, and joins all. Raises SoragenError children."""
    # 1. Refuse early.
    plans = plan_shots(board, device, dtype)
    size, folder = board.size, board.folder
    form = format_of(board.file(1), size, lossless=True)
    there = sum(file.stat().st_size for file in folder.glob("*.mkv"))
    beside = max(0, int(form.bytes_per_pixel * size.area * size.num_frames) - there)
    beside += max(plan.latent_bytes for plan in plans)
    check_output(board.output, size=size, overwrite=overwrite, lossless=lossless, bytes_beside=beside)
    try:
        folder.mkdir(exist_ok=True)
        (folder / SEED).write_text(str(board.seed), encoding="ascii")
    except OSError as error:
        raise OutputError(f"cannot write in {folder}: {error.strerror}", "give another place with -o") from error

    clock, requests, networks = Clock(listen), list[Request](), share(plans)
    how = f"the shots made so far are kept in {folder}: run the same command again to go on"
    with run.telling(how, listen), contexts_beside(folder / "all") as contexts:
        # 2. The shots, each into a file of its own.
        for number, shot in enumerate(board.shots, 1):
            plan, file = replace(plans[number - 1], request=_with_hash(shot)), board.file(number)
            requests.append(plan.request)
            listener = about(listen, number, len(plans))
            spent = _made_before(plan, file, device, dtype, listener)
            if spent is None:
                if not contexts.hold(plan.request):
                    _encode(plans, number, contexts, strict_prompt, clock)
                spent = run.generate(
                    plan.request, file, device=device, dtype=dtype, lossless=True, overwrite=True,
                    prompts=contexts.read(plan.request, plan.machine.device), networks=networks, listen=listener,
                ).seconds  # fmt: skip
            for stage, seconds in spent.items():
                clock.seconds[stage] += seconds
        del networks
        _free(plans[0])

        # 3. All of them, in one file.
        made = run.make_recipe(plans[0])
        recipe = {"storyboard": [request.to_dict() for request in requests]}
        recipe |= {key: value for key, value in made.items() if key != "request"}
        with clock.stage("encode", f"{size.num_frames} frames of {len(plans)} shots"):
            path = write_video(
                board.output,
                _frames(board),
                size,
                recipe=recipe if metadata else None,
                on_frames=lambda done: listen(Progress("encode", done, size.num_frames)),
                overwrite=overwrite,
                lossless=lossless,
            )
    shutil.rmtree(folder, ignore_errors=True)
    return run.Result(path, replace(requests[0], size=size), clock.seconds)


def _encode(plans: Sequence[Plan], first: int, contexts: Contexts, strict_prompt: bool, clock: Clock) -> None:
    """The prompts of the shots from number `first` on, at once: the text encoder is often the largest network."""
    with clock.stage("text", f"the prompts of {len(plans) + 1 - first} shots"):
        encoder = run.load_text_encoder(strictest(plans, "text_encoder"))
        for number, plan in enumerate(plans[first - 1 :], first):
            with _in_shot(number):
                listen = about(clock.listen, number, len(plans))
                contexts.write(plan.request, *run.encode_prompts(plan, strict_prompt, listen, encoder))
    del encoder
    _free(plans[0])


def share(plans: Sequence[Plan]) -> run.Networks:
    """The networks of all shots, to be loaded once; for each shot anew where memory has no room for all of them."""
    plan = strictest(plans, "transformer")
    largest = max(each.peak_bytes[stage] for each in plans for stage in each.peak_bytes if stage != "text")
    # Whatever stage needs most, all that stays is beside it; its own weights count twice, to be on the safe side.
    denoisers = plan.weight_bytes["transformer"] + plan.weight_bytes["refiner"]
    all_weights = denoisers + plan.weight_bytes["vae"] + plan.read_vae_bytes
    if largest + plan.peak_bytes["encode"] + all_weights > memory_budget(plan.machine.device).available:
        return run.ALONE
    vae = cache(lambda: run.load_whole_vae(plan))
    is_reader = plan.machine.vae == READ_DTYPE
    return run.Networks(
        cache(lambda: run.load_transformer(plan)),
        vae if is_reader else cache(lambda: run.load_whole_vae(plan, READ_DTYPE)),
        vae,
    )


def _free(plan: Plan) -> None:
    gc.collect()
    free_memory(plan.machine.device)


def _made_before(
    plan: Plan, file: Path, device: str | None, dtype: str | None, listen: Listener
) -> dict[str, float] | None:
    """The seconds of each stage, where `file` is there or its latents are; None where it has to be made."""
    recipe = run.make_recipe(plan)
    if _is_made(file, recipe):
        listen(Note("made already"))
        return {}
    latents = file.with_suffix(SUFFIX)
    if holds(latents, recipe, plan.latent_shape):
        return run.decode(latents, file, device=device, dtype=dtype, overwrite=True, listen=listen).seconds
    latents.unlink(missing_ok=True)  # of a shot that was another one
    return None


def _is_made(file: Path, recipe: dict[str, object]) -> bool:
    try:
        found = read_recipe(file)
    except InputError:  # it is not there, or damaged
        return False
    return found is not None and all(found.get(part) == recipe[part] for part in ("request", "model"))


def _with_hash(shot: Request) -> Request:
    """The request with the hash of the shot that it goes on from, which is made by now."""
    if shot.edit is None or not is_continued(shot):
        return shot
    (before,) = shot.edit.sources
    return replace(shot, edit=replace(shot.edit, sources=(replace(before, sha256=hash_of(before.path)),)))


def _frames(board: Storyboard) -> Iterator[Tensor]:
    for number in range(1, len(board.shots) + 1):
        yield from read_video(board.file(number), fps=board.size.fps)[1]
