"""What the tests of the command line share: the end of a command, and a pipeline that only pretends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

from soragen.pipeline.events import Note, Progress, Stage
from soragen.request import Request
from soragen.video.write import check_output


class Ended(NamedTuple):
    code: int
    out: str
    err: str


Cli = Callable[..., Ended]


@dataclass(frozen=True)
class FakeResult:
    path: Path
    request: Request
    seconds: dict[str, float]
    seam: float | None = None


class FakeRun(ModuleType):
    """In place of soragen.pipeline.run: tells the events of a run, writes a few bytes, remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__("soragen.pipeline.run")
        self.calls: list[SimpleNamespace] = []
        self.failure: BaseException | None = None

    def generate(self, request: Request, output: Path, **options: Any) -> FakeResult:
        check_output(output, size=request.size, overwrite=options["overwrite"])
        self.calls.append(SimpleNamespace(request=request, output=output, **options))
        listen = options["listen"]
        listen(Stage("load", "the networks"))
        listen(Stage("denoise", f"{request.num_steps} steps"))
        for step in range(request.num_steps):
            listen(Progress("denoise", step + 1, request.num_steps))
        listen(Note("the prompt is a good one"))
        if self.failure is not None:
            raise self.failure
        output.write_bytes(b"video")
        return FakeResult(output, request, {"load": 0.5, "denoise": 1.25})

    def decode(self, latents: Path, output: Path | None, **options: Any) -> FakeResult:
        request = Request.from_dict(
            {
                "prompt": "a ball", "negative_prompt": "", "width": 64, "height": 64, "num_frames": 9, "fps": "12",
                "seed": 1, "num_steps": 1, "guidance_scale": 1, "shift": 1, "solver": "euler", "checkpoint": "pocket",
            }
        )  # fmt: skip
        return self.generate(request, output or latents.with_suffix(".mp4"), **options)
