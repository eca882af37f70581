"""What a run tells while it works. The pipeline says it, `cli/output.py` alone shows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

STAGES = ("load", "text", "read", "denoise", "decode", "encode")


@dataclass(frozen=True)
class Stage:
    """A stage begins. `detail` is a few words such as "T5 encoder" or "20 steps, 320 tokens"."""

    name: str
    detail: str = ""


@dataclass(frozen=True)
class Progress:
    """`done` of `total` parts of the running stage are finished (steps, frames). unit: "bytes" where they are that."""

    stage: str
    done: int
    total: int
    unit: str = ""


@dataclass(frozen=True)
class Note:
    """One line the user should know, such as a size that was cropped."""

    text: str


Event = Stage | Progress | Note
Listener = Callable[[Event], None]
