"""One line of a list as the command of its name takes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from soragen.errors import InputError
from soragen.pipeline import edits
from soragen.pipeline.events import Listener
from soragen.pipeline.resolve import resolve
from soragen.request import Request

MODEL_KEYS = (
    "seed", "steps", "guidance", "negative", "shift", "solver", "model", "lora", "lora_partial", "quantize",
    "attention",
)  # fmt: skip
NEEDED = {
    "generate": ("prompt",),
    "image": ("prompt",),
    "extend": ("video",),
    "connect": ("video", "after"),
    "loop": (),
    "animate": ("image",),
    "restyle": ("video", "prompt"),
    "replay": ("file",),
    "storyboard": ("file",),
}
"""What a line must say, by its command."""
MORE = {
    "generate": ("size", "seconds", "frames", "fps", "direct", "lossless"),
    "image": ("size", "direct"),
    "extend": ("prompt", "seconds", "frames", "backward", "lossless"),
    "connect": ("prompt", "seconds", "frames", "fit", "lossless"),
    "loop": ("video", "prompt", "seconds", "frames", "size", "fps", "lossless"),
    "animate": ("prompt", "last", "fit", "size", "seconds", "frames", "fps", "lossless"),
    "restyle": ("strength", "lossless"),
    "replay": ("prompt", "size", "seconds", "frames", "fps"),
    "storyboard": ("lossless",),
}
"""What it may say, too, besides `MODEL_KEYS`."""
NOT_TAKEN = {
    "replay": ("quantize", "attention"),
    "storyboard": ("steps", "guidance", "negative", "shift", "solver"),
}
"""What the file of a line says alone."""
FILES = ("video", "after", "image", "last")


def keys_of(command: str) -> tuple[str, ...]:
    """Every key that a line with this command may have. Raises KeyError for one that is not known."""
    keys = ("command", "output", *NEEDED[command], *MORE[command], *MODEL_KEYS)
    return tuple(key for key in keys if key not in NOT_TAKEN.get(command, ()))


def check(values: dict[str, Any]) -> None:
    """Raises InputError for a command that is not known, a key that it does not take, and one that is missing."""
    command = values.get("command", "generate")
    if command not in NEEDED:
        raise InputError(f"no command {command!r} in a list", f"use one of: {', '.join(NEEDED)}")
    if wrong := [key for key in values if key not in keys_of(command)]:
        raise InputError(f"{command} takes no {wrong[0]}", "leave it out")
    missing = [key for key in NEEDED[command] if key not in values]
    if command == "loop" and not values.keys() & {"video", "prompt"}:
        missing = ["prompt"]
    if missing:
        examples = {"prompt": "a red ball", "file": "film.toml" if command == "storyboard" else "clip.mp4"}
        example = examples.get(missing[0], "clip.mp4")
        raise InputError(f"no {missing[0]}", f'write it as "{missing[0]}": "{example}"')


def request_of(values: dict[str, Any], listen: Listener) -> Request:
    """The request of a line that `check` has passed, of a command with options and no recipe. Raises InputError."""
    asked = {key: value for key, value in values.items() if key not in ("command", "output", "lossless")}
    asked |= {"listen": listen, "typed": False, "odd_sides": values.get("lossless", False)}
    files = {key: Path(asked.pop(key)) for key in FILES if key in asked}
    match values.get("command", "generate"):
        case "image":
            return resolve(frames=1, **{**asked, "odd_sides": True})
        case "extend":
            return edits.extend(files["video"], asked.pop("prompt", None), **asked)
        case "connect":
            return edits.connect(files["video"], files["after"], asked.pop("prompt", None), **asked)
        case "loop" if "video" in files:
            return edits.loop(str(files["video"]), asked.pop("prompt", None), **asked)
        case "loop":
            return edits.loop(asked.pop("prompt"), None, **asked)
        case "animate":
            return edits.animate(files["image"], asked.pop("prompt", None), last=files.get("last"), **asked)
        case "restyle":
            return edits.restyle(files["video"], asked.pop("prompt"), **asked)
        case _:
            return resolve(**asked)
