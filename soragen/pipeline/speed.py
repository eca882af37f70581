"""How fast this machine denoises, as runs that ended well have shown: what the time of the next one is told from.

A small file in the cache. As all that lies there it is never needed: one that is damaged counts as empty, and a folder
that cannot be written is passed over.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import tempfile
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import torch

from soragen.models.embedding_cache import cache_folder

FILE = "speed.json"
REACH = 4.0
"""Small grids keep a machine less busy than large ones: a run tells of forwards down to a quarter of its own work, and
up to four times of it."""
MOST = 200
"""Runs that are kept."""


@dataclass(frozen=True)
class Speed:
    """Of one run. kind: see `kind_of`. forward_flops: work of one forward. measured: the day, such as 2026-01-31."""

    kind: str
    forward_flops: float
    flops_per_second: float
    measured: str

    def distance(self, forward_flops: float) -> float:
        """How many times more or less work a forward is than those of this run."""
        return math.exp(abs(math.log(self.forward_flops / forward_flops)))


def kind_of(device: torch.device, *words: str) -> str:
    """What runs must share to be as fast as each other: the processor, and `words`, such as the type and the family."""
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    else:  # the cache may be that of several machines
        where = f"{platform.node()} {device.type} {torch.get_num_threads()} threads"
    return ", ".join([where, *filter(None, words)])


def find_speed(kind: str, forward_flops: float) -> Speed | None:
    """The run of this kind that is nearest in work; None where there is none within `REACH`."""
    near = [speed for speed in _read() if speed.kind == kind and speed.distance(forward_flops) <= REACH]
    return min(near, key=lambda speed: speed.distance(forward_flops), default=None)


def keep_speed(kind: str, forward_flops: float, flops: float, seconds: float) -> None:
    """Keeps what a run has shown, instead of an older one of nearly the same work."""
    path = _path()
    if path is None or not (flops > 0 and seconds > 0):
        return
    speed = Speed(kind, forward_flops, flops / seconds, date.today().isoformat())
    others = [old for old in _read() if old.kind != kind or old.distance(forward_flops) > math.sqrt(2)]
    content = json.dumps([asdict(kept) for kept in [*others, speed][-MOST:]], indent=1)
    temporary: str | None = None
    with contextlib.suppress(OSError):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(content)
            os.replace(temporary, path)
            temporary = None
        finally:
            if temporary:
                os.unlink(temporary)


def _path() -> Path | None:
    top = cache_folder()
    return top / FILE if top is not None else None


def _read() -> list[Speed]:
    path = _path()
    try:
        rows = json.loads(path.read_text(encoding="utf-8")) if path is not None else []
        speeds = [
            Speed(str(row["kind"]), float(row["forward_flops"]), float(row["flops_per_second"]), str(row["measured"]))
            for row in rows
        ]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
    return [speed for speed in speeds if _is_sound(speed.forward_flops) and _is_sound(speed.flops_per_second)]


def _is_sound(value: float) -> bool:
    return math.isfinite(value) and value > 0
