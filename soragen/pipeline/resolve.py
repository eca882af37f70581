"""From what the user typed to a `Request` with no default left in it. Everything wrong is refused here, in one line.

No torch, and of files only those of --lora, for their hash: it is called before anything slow happens.
"""

from __future__ import annotations

import math
import secrets
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import TypeVar

from soragen.catalog import catalog, find
from soragen.checkpoint import SHIFTED, SOLVERS, Checkpoint, Native
from soragen.errors import InputError
from soragen.pipeline.events import Listener, Note
from soragen.pipeline.loras import parse_lora
from soragen.request import ATTENTIONS, QUANTIZED, Edit, Request
from soragen.size import VideoSize, even, format_fps, num_frames_for, parse_fps, parse_seconds, parse_size

MAX_PROMPT = 1_000_000
MAX_SECONDS = 3600
MAX_STEPS = 1000
MAX_SEED = 2**63 - 1


def resolve(
    prompt: str,
    *,
    listen: Listener,
    model: str = "pocket",
    negative: str | None = None,
    size: str | None = None,
    seconds: str | None = None,
    frames: int | None = None,
    fps: str | None = None,
    seed: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    shift: float | None = None,
    solver: str | None = None,
    odd_sides: bool = False,
    typed: bool = True,
    video: VideoSize | None = None,
    edit: Edit | None = None,
    lora: Sequence[str] | None = None,
    lora_partial: bool = False,
    direct: bool = False,
    quantize: str | None = None,
    attention: str | None = None,
) -> Request:
    """The request with every default of the model filled in.

    odd_sides: as a picture may have, and no H.264 video. typed: by a user; then `prompt` "-" reads standard input.
    video, edit: of a verb that is given files; they take the place of size, seconds, frames and fps, and the prompt may
    be empty.
    lora: each PATH[:SCALE][@high|low]; lora_partial: whether files are taken that fit in part.
    direct, quantize, attention: see `Request`.
    Whatever was changed to fit (an odd side, a duration that is no whole number of frames) is a Note to `listen`.
    Raises InputError.
    """
    checkpoint = find(model)
    defaults = checkpoint.defaults
    if edit is None and not checkpoint.abilities.text:
        raise needs_image(checkpoint)
    if video is None:
        sides = (defaults.width, defaults.height)
        video = _video_size(checkpoint.native, sides, size, seconds, frames, fps, odd_sides, listen)
    if shift is None:
        sides = (video.width, video.height)
        shift = defaults.shift_for(*(sides if direct else checkpoint.native.rendered(*sides)))
    elif defaults.schedule not in SHIFTED:
        raise InputError(f"the noise levels of {checkpoint.name} take no shift", "leave --shift out")
    low_guidance = defaults.low_noise_guidance_scale if guidance is None else 0.0
    if guidance is None:
        guidance = defaults.guidance_scale
    return Request(
        prompt=_prompt(_standard_input() if typed and prompt == "-" else prompt, needed=edit is None),
        negative_prompt=defaults.negative_prompt if negative is None else _text(negative, "negative prompt"),
        size=video,
        seed=secrets.randbelow(2**31) if seed is None else _within("seed", seed, 0, MAX_SEED),
        num_steps=defaults.num_steps if steps is None else _within("steps", steps, 1, MAX_STEPS),
        guidance_scale=_within("guidance", guidance, 0.0, 100.0),
        low_noise_guidance_scale=low_guidance or guidance,
        shift=_within("shift", shift, 0.01, 100.0),
        solver=defaults.solver if solver is None else _one_of("solver", solver, SOLVERS),
        checkpoint=model,
        edit=edit,
        loras=tuple(parse_lora(text, partial=lora_partial) for text in lora or ()),
        direct=direct,
        quantize=None if quantize is None else _one_of("--quantize", quantize, QUANTIZED),
        attention="sdpa" if attention is None else _one_of("--attention", attention, ATTENTIONS),
    )


def needs_image(checkpoint: Checkpoint) -> InputError:
    """The error for a checkpoint that was given a prompt alone and takes none."""
    others = [name for name, other in catalog().items() if other.family == checkpoint.family and other.abilities.text]
    return InputError(
        f"{checkpoint.name} makes videos from an image, not from a prompt alone",
        f"use soragen animate, or a model for a prompt: {', '.join(others)}",
    )


def _video_size(
    native: Native,
    default_sides: tuple[int, int],
    size: str | None,
    seconds: str | None,
    frames: int | None,
    fps: str | None,
    odd_sides: bool,
    listen: Listener,
) -> VideoSize:
    default_area = default_sides[0] * default_sides[1]
    asked_width, asked_height = default_sides if size is None else parse_size(size, default_area)
    width, height = (asked_width, asked_height) if odd_sides else (even(asked_width), even(asked_height))
    if (width, height) != (asked_width, asked_height):
        listen(Note(f"{asked_width}x{asked_height} becomes {width}x{height}: the sides of an H.264 video are even"))

    rate = native.fps if fps is None else parse_fps(fps)
    return VideoSize(width, height, count_frames(seconds, frames, rate, native.seconds, listen), rate)


def count_frames(
    seconds: str | None, frames: int | None, rate: Fraction, default: Fraction, listen: Listener
) -> int:  # fmt: skip
    """Frames of what was asked in seconds or in frames; of `default` seconds where nothing was. Raises InputError."""
    if seconds is not None and frames is not None:
        raise InputError("--seconds and --frames were both given", "use one of them")
    if frames is not None:
        return _within("frames", frames, 1, math.floor(MAX_SECONDS * rate), f"an hour at {format_fps(rate)} fps")
    duration = default if seconds is None else parse_seconds(seconds)
    if duration > MAX_SECONDS:
        raise InputError(f"{_plain(duration)} s is longer than an hour", f"use --seconds {MAX_SECONDS} or less")
    num_frames = num_frames_for(duration, rate)
    if num_frames != duration * rate:
        count = f"{num_frames} frame{'s' if num_frames > 1 else ''}"
        listen(Note(f"{_plain(duration)} s at {format_fps(rate)} fps becomes {count}, {_plain(num_frames / rate)} s"))
    return num_frames


def _prompt(text: str, needed: bool) -> str:
    text = _text(text, "prompt")
    if not text and needed:
        raise InputError("the prompt is empty", 'say what to show, such as "a red ball bouncing on green grass"')
    return text


def _text(text: str, what: str) -> str:
    """`text` without white space around it. Raises InputError for what no text encoder can read."""
    if len(text) > MAX_PROMPT:
        raise InputError(f"the {what} has {len(text):,} characters", f"use at most {MAX_PROMPT:,}")
    text = text.replace("\r\n", "\n").strip()
    for index, character in enumerate(text):
        kind = unicodedata.category(character)
        if kind == "Cs":
            raise InputError(f"the {what} is not valid UTF-8 at character {index + 1}", "save or type it as UTF-8")
        if kind == "Cc" and character not in "\n\t":
            code = f"U+{ord(character):04X}"
            raise InputError(f"the {what} has a control character ({code}) at character {index + 1}", "remove it")
    return text


def _standard_input() -> str:
    """The prompt from a pipe, in UTF-8; never more of it than could be used."""
    data = sys.stdin.buffer.read(4 * MAX_PROMPT + 4)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError("the prompt on standard input is not valid UTF-8", "save it as UTF-8") from error


def _one_of(what: str, name: str, known: Iterable[str]) -> str:
    known = tuple(known)
    if name.lower() not in known:
        raise InputError(f"no {what} named {name!r}", f"use one of {', '.join(known)}")
    return name.lower()


Number = TypeVar("Number", int, float)


def _within(what: str, value: Number, low: Number, high: Number, why: str = "") -> Number:
    """`value`, when it is a number from `low` to `high`; nan is not."""
    if not low <= value <= high:
        limits = f"{low:,} to {high:,}" if high < 2**31 else f"{low} to 2^63-1"
        raise InputError(f"--{what} {value} is out of range", f"use {limits}" + (f" ({why})" if why else ""))
    return value


def _plain(value: Fraction) -> str:
    return f"{float(value):.6g}"
