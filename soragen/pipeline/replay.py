"""From a finished file back to the run that made it."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from soragen.catalog import find
from soragen.errors import InputError
from soragen.pipeline.events import Listener, Note
from soragen.pipeline.loras import with_loras
from soragen.pipeline.plan import Plan, make_plan
from soragen.pipeline.resolve import MAX_SEED, resolve
from soragen.pipeline.run import make_recipe
from soragen.pipeline.sources import beside, with_sources
from soragen.pipeline.storyboard import Storyboard, about, is_continued, join
from soragen.request import RECIPE_VERSION, Request
from soragen.video.facts import video_facts
from soragen.video.formats import FORMATS
from soragen.video.naming import next_free
from soragen.video.recipe import read_recipe


@dataclass(frozen=True)
class Replay:
    """What to run. suffix: of the file it came from. device, dtype: as the options of these names; None is the best.

    lossless: whether that file stores every frame exactly.
    """

    request: Request
    suffix: str
    lossless: bool
    device: str | None
    dtype: str | None


def read_replay(
    source: Path,
    *,
    listen: Listener,
    seed: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    prompt: str | None = None,
    model: str | None = None,
    negative: str | None = None,
    size: str | None = None,
    seconds: str | None = None,
    frames: int | None = None,
    fps: str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    shift: float | None = None,
    solver: str | None = None,
    lora: Sequence[str] | None = None,
    lora_partial: bool = False,
    as_it_was: bool = True,
) -> Replay:
    """The run that made `source`, with what is not None changed. seed: a number, or "random" for another one.

    as_it_was: the device and type of the recipe are used where this machine has them, since another would round
    differently; otherwise the best. One Note says what is not as it was. Raises InputError, and WeightsError where the
    model is not on this machine.
    """
    recipe = _recipe_of(source)
    if "storyboard" in recipe:
        raise InputError(f"{source} is joined of several shots", "make it again by soragen replay")
    try:
        asked = Request.from_dict(recipe["request"])
    except (KeyError, TypeError, ValueError) as error:
        raise _not_whole(source) from error
    sizes = {"size": size, "seconds": seconds, "frames": frames, "fps": fps}
    edit = asked.edit
    is_sized = edit is not None and bool(edit.sources)
    if edit is not None and is_sized and (named := [name for name, value in sizes.items() if value is not None]):
        raise InputError(f"{source} is made of other files, its {named[0]} is theirs", f"use soragen {edit.verb} again")
    folders = (source.parent, Path())
    asked = with_sources(asked, beside(asked, folders))
    suffix, lossless = form_of_file(source)
    said = sizes | {"model": model, "negative": negative, "steps": steps, "guidance": guidance, "shift": shift}
    new = resolve(
        asked.prompt if prompt is None else prompt,
        listen=listen,
        **_typed(asked, {**said, "solver": solver, "seed": _seed(seed, asked.seed)}),
        odd_sides=lossless or FORMATS[suffix].still,
        typed=prompt is not None,
        lora=lora,
        lora_partial=lora_partial,
        video=asked.size if is_sized else None,
        edit=asked.edit,
    )
    # The recipe says more than can be typed: two guidance scales, a shift that is none. So only what is asked changes.
    changes: dict[str, Any] = {"size": new.size, "seed": new.seed, "num_steps": new.num_steps}
    changes |= {"prompt": new.prompt, "negative_prompt": new.negative_prompt, "solver": new.solver}
    if guidance is not None:
        changes |= {"guidance_scale": new.guidance_scale, "low_noise_guidance_scale": new.low_noise_guidance_scale}
    if shift is not None:
        changes["shift"] = new.shift
    changes["loras"] = new.loras if lora else with_loras(asked, folders).loras
    request = replace(asked, checkpoint=new.checkpoint, **changes)
    if as_it_was:
        device, dtype, plan = _as_it_was(request, recipe, device, dtype)
    else:
        plan = make_plan(request, find(request.checkpoint), device, dtype)
    if changed := differences(recipe, make_recipe(plan)):
        listen(Note(f"compared with the recipe: {', '.join(changed)}; the video may differ"))
    return Replay(request, suffix, lossless, device, dtype)


@dataclass(frozen=True)
class ReplayShots:
    """As `Replay`, of a video that is joined of several shots."""

    board: Storyboard
    lossless: bool
    device: str | None
    dtype: str | None


def is_joined(source: Path) -> bool:
    """Whether a video was made by `soragen storyboard`. Raises InputError for one that cannot be made again."""
    return "storyboard" in _recipe_of(source)


def read_replay_shots(
    source: Path,
    output: Path | None,
    *,
    listen: Listener,
    seed: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> ReplayShots:
    """The shots that `source` is joined of, as `read_replay`. output: None is a free name like its own.

    seed: of the first shot; the others keep their distance from it.
    """
    recipe = _recipe_of(source)
    suffix, lossless = form_of_file(source)
    lossless = lossless and (output is None or output.suffix.lower() == suffix)
    try:
        asked = [Request.from_dict(shot) for shot in recipe["storyboard"]]
    except (KeyError, TypeError, ValueError) as error:
        raise _not_whole(source) from error
    kinds = {(shot.size.width, shot.size.height, shot.size.fps) for shot in asked}
    if len(kinds) != 1 or not all(map(_is_shot, asked)):
        raise _not_whole(source)
    first, shots, folders = _seed(seed, asked[0].seed), [], (source.parent, Path())
    for number, shot in enumerate(asked, 1):
        own = (first + shot.seed - asked[0].seed) % (MAX_SEED + 1)
        new = resolve(
            shot.prompt, listen=about(listen, number), **_typed(shot, {"seed": own}), odd_sides=lossless, typed=False,
            edit=shot.edit,
        )  # fmt: skip
        shot = with_loras(shot if is_continued(shot) else with_sources(shot, beside(shot, folders)), folders)
        shots.append(replace(shot, seed=own, size=new.size, checkpoint=new.checkpoint))
    board = join(shots, output or next_free(Path(source.stem + suffix)), first)
    device, dtype, plan = _as_it_was(board.shots[0], recipe, device, dtype)
    if changed := differences(recipe, make_recipe(plan)):
        listen(Note(f"compared with the recipe: {', '.join(changed)}; the video may differ"))
    return ReplayShots(board, lossless, device, dtype)


def _is_shot(request: Request) -> bool:
    """Whether a request out of a recipe may be one of several shots."""
    edit = request.edit
    return edit is None or is_continued(request) or (edit.verb == "animate" and len(edit.sources) == 1)


def form_of_file(source: Path) -> tuple[str, bool]:
    """The ending of a file that is made like this one, and whether it is lossless."""
    suffix = source.suffix.lower() if source.suffix.lower() in FORMATS else ".mp4"
    return suffix, suffix == ".mkv" and video_facts(source).codec == "ffv1"


def _typed(asked: Request, said: dict[str, Any]) -> dict[str, Any]:
    """What `resolve` is told of a request out of a recipe, which is not trusted, with what is `said` of it now."""
    values = {
        "model": asked.checkpoint, "negative": asked.negative_prompt, "size": f"{asked.size.width}x{asked.size.height}",
        "frames": asked.size.num_frames, "fps": str(asked.size.fps), "steps": asked.num_steps, "solver": asked.solver,
    }  # fmt: skip
    if said.get("seconds") is not None:
        del values["frames"]
    return values | {name: value for name, value in said.items() if value is not None}


def _not_whole(source: Path) -> InputError:
    return InputError(f"{source} holds a recipe that is not whole", "make the video again from its prompt")


def _recipe_of(source: Path) -> dict[str, Any]:
    recipe = read_recipe(source)
    if recipe is None:
        raise InputError(f"{source} holds no recipe", "only videos made by soragen, without --no-metadata, have one")
    if recipe.get("recipe") != RECIPE_VERSION:
        maker = _part(recipe, "versions").get("soragen", "of another version")
        raise InputError(f"{source} holds a recipe of another version", f"make it again with soragen {maker}")
    return recipe


def _seed(typed: str | None, asked: int) -> int:
    if typed is None:
        return asked
    if typed == "random":
        return secrets.randbelow(2**31)
    try:
        return int(typed)
    except ValueError:
        raise InputError(f"--seed {typed!r} is no number", f'use 0 to {MAX_SEED}, or "random"') from None


def _as_it_was(
    request: Request, recipe: dict[str, Any], device: str | None, dtype: str | None
) -> tuple[str | None, str | None, Plan]:
    """Device, type and plan: those of the recipe where nothing is asked and the machine has them, else the best."""
    checkpoint, then = find(request.checkpoint), _part(recipe, "machine")
    for where in dict.fromkeys((device or str(then.get("device")), device)):
        try:
            plan = make_plan(request, checkpoint, where, dtype)
        except InputError:  # this machine has no such device
            if where == device:
                raise
            continue
        break
    was = then.get("dtype")
    if dtype is None and was != make_recipe(plan)["machine"]["dtype"]:
        try:
            return where, was, make_plan(request, checkpoint, where, was)
        except InputError:  # nor does it compute in such numbers
            pass
    return where, dtype, plan


def differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What made a video then and would now, where it is not the same: "torch 2.12 is 2.13"."""
    changed = []
    model_then, model_now = _part(then, "model"), _part(now, "model")
    if model_then.get("name") != model_now["name"]:
        changed.append(f"model {model_then.get('name')} is {model_now['name']}")
    elif not (model_then.get("sha256") and model_now["sha256"]):
        changed.append(f"the files of {model_now['name']} have no known hash")
    elif model_then["sha256"] != model_now["sha256"]:
        changed.append(f"model {model_now['name']} has other files ({model_now['sha256'][:12]})")
    for part in ("versions", "machine"):
        before = _part(then, part)
        changed += [
            f"{key} {before.get(key)} is {value}" for key, value in now[part].items() if value != before.get(key)
        ]
    return changed


def _part(recipe: dict[str, Any], name: str) -> dict[str, Any]:
    part = recipe.get(name)
    return part if isinstance(part, dict) else {}
