"""The shots of a storyboard, one after the other, and the video that joins them.

Each is made into a lossless file in a hidden folder beside the video: what is made once is neither lost nor made again.
A shot that goes on is given the end of the one before, as an extended video is given that of its source. At the end all
are joined and encoded once.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from soragen.catalog import find
from soragen.errors import InputError, OutputError, SoragenError
from soragen.pipeline import run
from soragen.pipeline.clock import Clock
from soragen.pipeline.events import Listener, Note, Progress
from soragen.pipeline.latents import SUFFIX, holds
from soragen.pipeline.plan import Plan, make_plan
from soragen.pipeline.sources import hash_of
from soragen.pipeline.storyboard import SEED, Storyboard, about
from soragen.request import Request
from soragen.video.formats import format_of
from soragen.video.read import read_video
from soragen.video.recipe import read_recipe
from soragen.video.write import check_output, write_video


def plan_shots(board: Storyboard, device: str | None, dtype: str | None) -> list[Plan]:
    """The plan of each shot. Raises what `make_plan` raises, with the number of the shot."""
    plans = []
    for number, shot in enumerate(board.shots, 1):
        try:
            plans.append(make_plan(shot, find(shot.checkpoint), device, dtype))
        except SoragenError as error:
            error.message = f"shot {number}: {error.message}"
            raise
    return plans


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

    clock, requests = Clock(listen), list[Request]()
    how = f"the shots made so far are kept in {folder}: run the same command again to go on"
    with run.telling(how, listen):
        # 2. The shots, each into a file of its own.
        for number, (shot, plan) in enumerate(zip(board.shots, plans, strict=True), 1):
            plan = replace(plan, request=_with_hash(shot))
            listener = about(listen, number, len(plans))
            for stage, seconds in _make_shot(plan, board.file(number), device, dtype, strict_prompt, listener).items():
                clock.seconds[stage] += seconds
            requests.append(plan.request)

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


def _make_shot(
    plan: Plan, file: Path, device: str | None, dtype: str | None, strict_prompt: bool, listen: Listener
) -> dict[str, float]:
    """Makes `file`, unless it is there already. Returns the seconds of each stage."""
    recipe = run.make_recipe(plan)
    if _is_made(file, recipe):
        listen(Note("made already"))
        return {}
    latents = file.with_suffix(SUFFIX)
    if holds(latents, recipe, plan.latent_shape):
        return run.decode(latents, file, device=device, dtype=dtype, overwrite=True, listen=listen).seconds
    latents.unlink(missing_ok=True)  # of a shot that was another one
    result = run.generate(
        plan.request, file, device=device, dtype=dtype, lossless=True, overwrite=True, strict_prompt=strict_prompt,
        listen=listen,
    )  # fmt: skip
    return result.seconds


def _is_made(file: Path, recipe: dict[str, object]) -> bool:
    try:
        found = read_recipe(file)
    except InputError:  # it is not there, or damaged
        return False
    return found is not None and all(found.get(part) == recipe[part] for part in ("request", "model"))


def _with_hash(shot: Request) -> Request:
    """The request with the hash of the shot that it goes on from, which is made by now."""
    if shot.edit is None:
        return shot
    (before,) = shot.edit.sources
    return replace(shot, edit=replace(shot.edit, sources=(replace(before, sha256=hash_of(before.path)),)))


def _frames(board: Storyboard) -> Iterator[Tensor]:
    for number in range(1, len(board.shots) + 1):
        yield from read_video(board.file(number), fps=board.size.fps)[1]
