"""A storyboard in a file → the requests of its shots. Everything wrong is refused here, with the number of the shot.

No torch: nothing is made here, `shots.py` does that.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from soragen.catalog import find
from soragen.errors import InputError
from soragen.pipeline import edits
from soragen.pipeline.events import Event, Listener, Note, Stage
from soragen.pipeline.lines import KEYS
from soragen.pipeline.resolve import MAX_SECONDS, MAX_SEED, resolve
from soragen.request import Edit, Request, Source
from soragen.size import VideoSize
from soragen.tables import read_toml

FOR_ALL = (
    "size", "fps", "model", "seed", "steps", "guidance", "negative", "shift", "solver", "lora", "lora_partial",
    "quantize", "attention",
)  # fmt: skip
"""What a storyboard may say for all shots."""
OF_ONE = ("prompt", "seconds", "frames", "seed", "negative", "guidance", "continued", "image", "fit")
"""What it may say of one."""
CONTINUED = Edit("continue")
SEED = "seed"
"""The file in the folder of the shots that holds the seed: where one was drawn, the next run has to draw the same."""


@dataclass(frozen=True)
class Storyboard:
    """shots: in order. One that is continued has an `Edit`, whose source is the file of the shot before, to be made.
    One that begins with a picture is that picture animated.

    output: the video. seed: of the first shot; each one has the next, unless the file says another.
    """

    shots: tuple[Request, ...]
    output: Path
    seed: int

    @property
    def folder(self) -> Path:
        """Of the shots: hidden, beside the video."""
        return folder_of(self.output)

    @property
    def size(self) -> VideoSize:
        return replace(self.shots[0].size, num_frames=sum(shot.size.num_frames for shot in self.shots))

    def file(self, number: int) -> Path:
        """Of the shot of this number, from 1."""
        return _file(self.output, number)


def folder_of(output: Path) -> Path:
    return output.with_name(f".{output.name}.shots")


def _file(output: Path, number: int) -> Path:
    return folder_of(output) / f"{number:03d}.mkv"


def read_storyboard(
    path: Path,
    output: Path,
    *,
    seed: int | None = None,
    instead: Mapping[str, Any] | None = None,
    odd_sides: bool = False,
    listen: Listener,
) -> Storyboard:
    """The shots of a TOML file, every default filled in. Raises InputError.

    seed: instead of what the file says for all shots; where neither says one, that of the run which was not finished,
    or else a new one. instead: of what the file says for all shots, too, by the names in `FOR_ALL`; None leaves it.
    odd_sides: the video can hold them.
    """
    table = read_toml(path)
    shots = table.pop("shot", None)
    if not isinstance(shots, list) or not shots or not all(isinstance(shot, dict) for shot in shots):
        raise InputError(f"{path} has no shot", 'write each as a table: [[shot]], and below it prompt = "a red ball"')
    for_all = _checked(table, FOR_ALL, str(path))
    for_all |= {key: value for key, value in (instead or {}).items() if value is not None}
    said = for_all.pop("seed", None)
    first = seed if seed is not None else said if said is not None else _drawn(folder_of(output))
    requests: list[Request] = []
    for number, shot in enumerate(shots, 1):
        asked = {"seed": min(first + number - 1, MAX_SEED), **for_all, **_checked(shot, OF_ONE, f"shot {number}")}
        if "prompt" not in asked:
            raise InputError(f"shot {number} has no prompt", 'write it as prompt = "a red ball"')
        try:
            requests.append(_shot(asked, odd_sides, about(listen, number)))
        except InputError as error:
            raise InputError(f"shot {number}: {error.message}", error.hint) from error
    return join(requests, output, first)


def _shot(asked: dict[str, Any], odd_sides: bool, listen: Listener) -> Request:
    """One shot: from its prompt alone, from a picture, or from the end of the shot before."""
    continued, image = asked.pop("continued", False), asked.pop("image", None)
    if continued and image is not None:
        raise InputError("it is continued, and has an image to begin with", "leave one of them out")
    if image is None and "fit" in asked:
        raise InputError("it has a fit and no image", "leave fit out")
    how: dict[str, Any] = {"listen": listen, "odd_sides": odd_sides, "typed": False}
    if image is None:
        return resolve(**asked, **how, edit=CONTINUED if continued else None)
    defaults = find(asked.get("model", "pocket")).defaults
    # All shots have one size: it is not the picture's that decides.
    asked = {"size": f"{defaults.width}x{defaults.height}", **asked}
    return edits.animate(Path(image), asked.pop("prompt"), **asked, **how)


def is_continued(shot: Request) -> bool:
    """Whether a shot goes on from the end of the one before."""
    return shot.edit is not None and shot.edit.verb == CONTINUED.verb


def join(shots: Sequence[Request], output: Path, seed: int) -> Storyboard:
    """The shots as one video; one that is `CONTINUED` goes on from the file of the shot before. Raises InputError."""
    linked: list[Request] = []
    for number, shot in enumerate(shots, 1):
        if is_continued(shot) and not linked:
            raise InputError("shot 1 cannot be continued: there is none before it", "leave `continued` out")
        if is_continued(shot):
            before = Source(_file(output, number - 1), "", linked[-1].size.num_frames)
            shot = replace(shot, edit=replace(CONTINUED, sources=(before,)))
        linked.append(shot)
    board = Storyboard(tuple(linked), output, seed)
    if board.size.seconds > MAX_SECONDS:
        raise InputError(f"the shots last {float(board.size.seconds):.0f} s, more than an hour", "use fewer seconds")
    return board


def about(listen: Listener, number: int, total: int | None = None) -> Listener:
    """A listener that says which shot it is about."""

    def tell(event: Event) -> None:
        match event:
            case Note(text):
                listen(Note(f"shot {number}: {text}"))
            case Stage(name, detail):
                listen(Stage(name, f"shot {number} of {total}" + (f", {detail}" if detail else "")))
            case _:
                listen(event)

    return tell


def _drawn(folder: Path) -> int:
    try:
        return int((folder / SEED).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return secrets.randbelow(2**31)


def _checked(table: dict[str, Any], known: tuple[str, ...], where: str) -> dict[str, Any]:
    """The values of a table, each of the type it must have. Raises InputError."""
    checked = {}
    for key, value in table.items():
        if key not in known:
            raise InputError(f"{where} has an unknown key {key!r}", f"known: {', '.join(known)}")
        try:
            checked[key] = KEYS[key](value)
        except ValueError as error:
            raise InputError(f"{where}: {key} {value!r} is not {error}", "see soragen storyboard --help") from error
    return checked
