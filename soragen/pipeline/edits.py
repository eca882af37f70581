"""From what the user typed for a verb that is given files to a `Request`. What is wrong is refused here, in one line.

The files are opened to know their size and length; nothing else is loaded.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

from soragen.catalog import find
from soragen.errors import InputError
from soragen.pipeline.events import Listener, Note
from soragen.pipeline.resolve import MAX_SECONDS, count_frames, resolve
from soragen.pipeline.sources import open_clip, open_picture
from soragen.request import STRENGTH, Edit, Request
from soragen.size import FITS, Fit, VideoSize, format_fps, parse_fps
from soragen.video.facts import video_facts
from soragen.video.recipe import read_recipe

BRIDGE_SECONDS = Fraction(1)
LOOP_FRAMES = 8
"""A loop of no said length is a multiple of it: whole latent frames, whatever the stride of the model."""
VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif", ".png", ".jpg", ".jpeg", ".webp")


def extend(
    video: Path,
    prompt: str | None,
    *,
    seconds: str | None = None,
    frames: int | None = None,
    backward: bool = False,
    odd_sides: bool = False,
    model: str = "pocket",
    listen: Listener,
    **asked: Any,
) -> Request:
    """A video that goes on after its end, or begins earlier. odd_sides: the file can hold them.

    asked: the options of `resolve` that have no meaning of their own here, as for all verbs. Raises InputError.
    """
    source, size = open_clip(video, listen)
    new = count_frames(seconds, frames, size.fps, find(model).native.seconds, listen)
    edit = Edit("extend", (source,), backward=backward)
    whole = _sized(size, source.num_frames + new, odd_sides, listen)
    return resolve(_said(prompt, video, listen), listen=listen, model=model, video=whole, edit=edit, **asked)


def connect(
    before: Path,
    after: Path,
    prompt: str | None,
    *,
    seconds: str | None = None,
    frames: int | None = None,
    fit: str = "crop",
    odd_sides: bool = False,
    model: str = "pocket",
    listen: Listener,
    **asked: Any,
) -> Request:
    """One video of two, with a passage from the end of the first to the beginning of the second."""
    first, size = open_clip(before, listen)
    second, other = open_clip(after, listen, fps=size.fps)
    edit = Edit("connect", (first, second), fit=_fit(fit))
    new = count_frames(seconds, frames, size.fps, BRIDGE_SECONDS, listen)
    changes = []
    if (other.width, other.height) != (size.width, size.height):
        changes.append((f"{other.width}x{other.height}", f"{size.width}x{size.height} ({fit})"))
    if (own := video_facts(after).fps) != size.fps:
        changes.append((f"{format_fps(own)} fps", f"{format_fps(size.fps)} fps"))
    if changes:
        was, becomes = (" and ".join(each) for each in zip(*changes, strict=True))
        listen(Note(f"{after.name} has {was}, brought to {becomes}"))
    whole = _sized(size, first.num_frames + new + second.num_frames, odd_sides, listen)
    return resolve(_said(prompt, before, listen), listen=listen, model=model, video=whole, edit=edit, **asked)


def loop(
    video_or_prompt: str,
    prompt: str | None,
    *,
    seconds: str | None = None,
    frames: int | None = None,
    size: str | None = None,
    fps: str | None = None,
    odd_sides: bool = False,
    model: str = "pocket",
    listen: Listener,
    **asked: Any,
) -> Request:
    """A video that can follow upon itself: a clip with a bridge from its end to its beginning, or a new clip.

    seconds, frames: of the bridge, or of the new clip.
    """
    path = Path(video_or_prompt)
    if not _names_file(video_or_prompt):
        if prompt is not None:
            raise InputError(f"{video_or_prompt!r} is not a file", "give a video and a prompt, or a prompt alone")
        asked = {"odd_sides": odd_sides, **asked}
        return _loop_of_prompt(video_or_prompt, seconds, frames, size, fps, model, listen, asked)
    if size is not None or fps is not None:
        raise InputError("a loop keeps the size and the frame rate of its video", "leave --size and --fps out")
    source, own = open_clip(path, listen)
    new = count_frames(seconds, frames, own.fps, BRIDGE_SECONDS, listen)
    whole = _sized(own, source.num_frames + new, odd_sides, listen)
    edit = Edit("loop", (source,))
    return resolve(_said(prompt, path, listen), listen=listen, model=model, video=whole, edit=edit, **asked)


def _loop_of_prompt(
    prompt: str,
    seconds: str | None,
    frames: int | None,
    size: str | None,
    fps: str | None,
    model: str,
    listen: Listener,
    asked: dict[str, Any],
) -> Request:
    native = find(model).native
    if seconds is None and frames is None:
        rate = native.fps if fps is None else parse_fps(fps)
        frames = max(2, round(native.seconds * rate / LOOP_FRAMES)) * LOOP_FRAMES
    elif seconds is not None and frames is None:
        rate = native.fps if fps is None else parse_fps(fps)
        said = count_frames(seconds, None, rate, native.seconds, lambda event: None)
        frames = max(2, round(said / LOOP_FRAMES)) * LOOP_FRAMES
        if frames != said:
            listen(Note(f"{seconds} s become {frames} frames: a loop closes after a multiple of {LOOP_FRAMES}"))
        seconds = None
    asked = {"size": size, "seconds": seconds, "frames": frames, "fps": fps, "model": model, **asked}
    return replace(resolve(prompt, listen=listen, **asked), edit=Edit("loop"))


def animate(
    image: Path,
    prompt: str | None,
    *,
    last: Path | None = None,
    fit: str = "crop",
    size: str | None = None,
    seconds: str | None = None,
    frames: int | None = None,
    fps: str | None = None,
    listen: Listener,
    **asked: Any,
) -> Request:
    """A video whose first frame is a picture; its last one, too, where `last` is given."""
    pictures = [open_picture(path) for path in (image, last) if path is not None]
    edit = Edit("animate", tuple(source for source, _ in pictures), fit=_fit(fit))
    request = resolve(
        _said(prompt, image, listen), listen=listen, size=size or _aspect(pictures[0][1]), seconds=seconds,
        frames=frames, fps=fps, edit=edit, **asked,
    )  # fmt: skip
    if request.size.num_frames < len(pictures):
        raise InputError(f"1 frame cannot hold {len(pictures)} pictures", "use --frames 2 or more")
    return request


def restyle(
    video: Path,
    prompt: str,
    *,
    strength: float = STRENGTH,
    odd_sides: bool = False,
    model: str = "pocket",
    listen: Listener,
    **asked: Any,
) -> Request:
    """A video made anew after its own forms: strength 0 leaves it as it is, 1 takes nothing of it."""
    if not 0 <= strength <= 1:
        raise InputError(f"--strength {strength} is out of range", "use 0 (as it is) to 1 (nothing of it)")
    if not find(model).abilities.text:
        raise InputError(f"{model} does not follow a prompt alone", "use --model pocket, or one for text to video")
    source, size = open_clip(video, listen)
    edit = Edit("restyle", (source,), strength=float(strength))
    whole = _sized(size, source.num_frames, odd_sides, listen)
    request = resolve(prompt, listen=listen, model=model, video=whole, edit=edit, **asked)
    if not request.prompt:
        raise InputError("the prompt is empty", 'say what it is to become, such as "a red ball on snow at night"')
    return request


def output_stem(request: Request) -> str:
    """The name of the file where none is given, less its seed and ending; "" where the prompt gives it."""
    if request.edit is None or not request.edit.sources:
        return ""
    names = [source.path.stem for source in request.edit.sources]
    if request.edit.verb == "connect":
        return f"{names[0]} to {names[1]}"
    return f"{names[0]} {request.edit.verb.removesuffix('e')}ed"


def _sized(size: VideoSize, num_frames: int, odd_sides: bool, listen: Listener) -> VideoSize:
    """The size of the file that holds all of `size` frames. Raises InputError for one of more than an hour."""
    if num_frames / size.fps > MAX_SECONDS:
        raise InputError(f"{float(num_frames / size.fps):.0f} s is longer than an hour", "use fewer --seconds")
    width, height = (size.width, size.height) if odd_sides else (size.width // 2 * 2, size.height // 2 * 2)
    if min(width, height) < 2:
        raise InputError(f"a video of {size.width}x{size.height} is too small", "use one of at least 2x2 pixels")
    if (width, height) != (size.width, size.height):
        listen(
            Note(
                f"{size.width}x{size.height} loses its last row or column, as the sides of an H.264 video are even; "
                "-o NAME.mkv --lossless keeps it"
            )
        )
    return VideoSize(width, height, num_frames, size.fps)


def _said(prompt: str | None, path: Path, listen: Listener) -> str:
    """The prompt; where none is given, that in the recipe of the file."""
    if prompt is not None:
        return prompt
    try:
        recipe = read_recipe(path)
    except InputError:
        return ""
    request = recipe.get("request") if recipe else None
    said = request.get("prompt") if isinstance(request, dict) else None
    if not isinstance(said, str) or said in ("", "-"):  # the latter would be read from standard input
        return ""
    listen(Note(f"prompt of {path.name}: {said}"))
    return said


def _fit(fit: str) -> Fit:
    if fit not in FITS:
        raise InputError(f"no fit named {fit!r}", f"use one of {', '.join(FITS)}")
    return cast("Fit", fit)


def _aspect(size: VideoSize) -> str:
    """The aspect of a picture as `parse_size` takes it: in numbers of four digits."""
    over = max(1.0, max(size.width, size.height) / 9999)
    return f"{max(1, round(size.width / over))}:{max(1, round(size.height / over))}"


def _names_file(text: str) -> bool:
    """Whether a file is meant and not a prompt: also one that is not there, by its ending."""
    try:
        return Path(text).is_file() or Path(text).suffix.lower() in VIDEO_SUFFIXES
    except (OSError, ValueError):  # a prompt may be longer than a name can be, and hold what none can
        return False
