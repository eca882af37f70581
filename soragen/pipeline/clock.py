"""How long each stage of a run took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from soragen.pipeline.events import STAGES, Listener, Stage


@dataclass
class Clock:
    """Tells the listener which stage runs and adds up how long each took, less what was timed inside of it."""

    listen: Listener
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    _inside: float = 0.0

    @contextmanager
    def stage(self, name: str, detail: str = "") -> Iterator[None]:
        self.listen(Stage(name, detail))
        with self.timed(name):
            yield

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        began, before = time.perf_counter(), self._inside
        self._inside = 0.0
        try:
            yield
        finally:
            whole = time.perf_counter() - began
            self.seconds[name] += whole - self._inside
            self._inside = before + whole
