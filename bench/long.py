"""Measures long and large videos: drift over ten windows, memory over a minute, and a 1920x1080 video of 20 seconds.

    python bench/long.py RUN                              # all of it; RUN/held_out has the scenes
    python bench/long.py RUN --only drift --pull 0        # without the anchor of soragen/pipeline/drift.py
    python bench/long.py RUN --write docs/bench.md        # and puts the tables into the page

Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from generate import machine, usable_cores
from given import held_out, read, write
from page import HEAD, Bar, Scores, put, table
from torch import Tensor
from verbs import join_movement, join_step
from watch import run as watched

from soragen.catalog import find
from soragen.pipeline import drift, edits, run
from soragen.pipeline.events import STAGES
from soragen.pipeline.plan import make_plan
from soragen.pipeline.resolve import resolve
from soragen.request import Request
from training.clips import FPS
from training.world.render import render

SIDE, FRAMES, NEW = 128, 205, 12
"""205 frames are ten windows of pocket; 12 new ones behind 13 given are one."""
SECOND = FPS
COLOUR, CONTRAST, SHARPNESS = (
    "mean colour, last second - first, of 255",
    "contrast, last / first",
    "sharpness, last / first",
)
MOVE, STEP = "movement across a join of windows / around it", "step at a join of windows, in usual steps"
BARS = {
    COLOUR: Bar(high=16), CONTRAST: Bar(0.75, 1.33), SHARPNESS: Bar(0.6, 1.67), MOVE: Bar(0.75, 1.25), STEP: Bar()
}  # fmt: skip
MEMORY_LIMIT = 1.10
PROMPT = "a red ball bouncing on green grass at sunset"


def look(frames: Tensor) -> tuple[Tensor, float, float]:
    """Mean colour [3] in 0..255, contrast (deviation of luma) and sharpness (variance of its Laplacian)."""
    pictures = frames.float()
    luma = pictures @ torch.tensor([0.2126, 0.7152, 0.0722])  # [t, H, W]
    kernel = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])[None, None]
    edges = F.conv2d(luma[:, None], kernel)
    return pictures.mean(dim=(0, 1, 2)), float(luma.std(dim=(1, 2)).mean()), float(edges.var(dim=(1, 2, 3)).mean())


def drifted(first: Tensor, last: Tensor) -> dict[str, float]:
    """How `last` differs from `first`, both frames [t, H, W, 3] uint8."""
    (colour, contrast, sharpness), (colour_last, contrast_last, sharpness_last) = look(first), look(last)
    return {
        COLOUR: float((colour_last - colour).abs().max()),
        CONTRAST: contrast_last / contrast,
        SHARPNESS: sharpness_last / sharpness,
    }


class Long:
    """The tries of one model, and what has come of them."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.scores = Scores(BARS)
        self.clips = held_out(options.run, options.count)
        self.asked: dict[str, Any] = {"model": options.model, "steps": options.steps, "listen": _ignore}

    def make(self, request: Request) -> Tensor:
        path = self.folder / "made.mkv"
        run.generate(request, path, device="cpu", metadata=False, lossless=True, overwrite=True, listen=_ignore)
        return read(path)

    def drift(self) -> None:
        """Ten windows of a sentence, against a render of the same scene as it goes on."""
        for number, clip in enumerate(self.clips):
            assert clip.scene is not None
            request = resolve(clip.prompt, size=f"{SIDE}x{SIDE}", frames=FRAMES, seed=number, **self.asked)
            frames = self.make(request)
            late = (FRAMES - SECOND) / FPS
            size = {"width": SIDE, "height": SIDE, "num_frames": SECOND, "fps": FPS}
            real = drifted(*(render([clip.scene], **size, start_seconds=at)[0][0] for at in (0.0, late)))
            for what, value in drifted(frames[:SECOND], frames[-SECOND:]).items():
                self.scores.add("generate, ten windows", what, value, real[what])
            plan = make_plan(request, find(request.checkpoint), "cpu")
            stride = plan.grid.compression.stride[0]
            for window in plan.windows[1:]:
                at = 1 + stride * (window.new_start - 1)
                for what, measure in ((MOVE, join_movement), (STEP, join_step)):
                    inside = measure(frames, at + stride)
                    self.scores.add("generate, ten windows", what, measure(frames, at), inside=inside)
            self.say("drift", number)

    def extensions(self) -> None:
        """Ten extensions in a row: the last second that was made against the first."""
        for number, clip in enumerate(self.clips):
            for backward in (False, True):
                frames = clip.frames
                for turn in range(10):
                    path = write(self.folder / "source.mkv", frames)
                    asked = {**self.asked, "seed": 10 * number + turn}
                    frames = self.make(edits.extend(path, clip.prompt, frames=NEW, backward=backward, **asked))
                first, last = frames[25 : 25 + SECOND], frames[-SECOND:]
                if backward:
                    first, last = frames[-25 - SECOND : -25], frames[:SECOND]
                for what, value in drifted(first, last).items():
                    self.scores.add(f"extend{' --backward' if backward else ''}, ten in a row", what, value)
            self.say("extensions", number)

    def memory(self) -> str:
        """Peaks of whole processes at three durations."""
        rows, peaks = [], []
        for seconds in ("2", "20", "60"):
            done = self.command("--size", f"{SIDE}x{SIDE}", "--seconds", seconds, "--steps", "2")
            peaks.append(done.memory)
            rows.append([f"{seconds} s", f"{done.wall:.1f}", f"{done.memory / 1e6:.0f}", f"{done.ffmpeg / 1e6:.0f}"])
        worst = max(peaks) / peaks[0]
        line = f"The highest is {worst:.2f} times that of 2 s; at most {MEMORY_LIMIT:.2f}: "
        return table(["video", "wall s", "memory MB", "ffmpeg MB"], rows) + "\n\n" + line + (
            "yes." if worst <= MEMORY_LIMIT else "**no**."
        )  # fmt: skip

    def large(self) -> str:
        """The whole process of a large video, stage by stage."""
        steps = ["--steps", str(self.options.steps)] if self.options.steps else []
        done = self.command("--size", "1920x1080", "--seconds", "20", "--json", *steps)
        said = json.loads(done.out)["seconds"]
        cells = [f"{said[stage]:.1f}" for stage in STAGES if stage in said]
        rest = done.wall - sum(said[stage] for stage in STAGES if stage in said)
        row = ["1920x1080, 20 s", f"{done.wall:.1f}", f"{rest:.1f}", *cells, f"{done.memory / 1e6:.0f}",
               f"{done.ffmpeg / 1e6:.0f}"]  # fmt: skip
        head = ["video", "wall s", "import", *(stage for stage in STAGES if stage in said), "memory MB", "ffmpeg MB"]
        return table(head, [row])

    def command(self, *options: str) -> Any:
        output = ["--seed", "1", "--quiet", "--overwrite", "--output", str(self.folder / "long.mp4")]
        arguments = ["-m", "soragen", "generate", PROMPT, "--model", self.options.model, *options, *output]
        return watched(arguments, {"OMP_NUM_THREADS": str(self.options.threads)})

    def say(self, what: str, number: int) -> None:
        print(f"{what} {number + 1}/{len(self.clips)}", file=sys.stderr)


def _ignore(event: object) -> None:
    """Nobody is told."""


PARTS = ("drift", "extensions", "memory", "large")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--count", type=int, default=4, help="of scenes whose drift is measured")
    parser.add_argument("--only", choices=PARTS, action="append", help="a part; may be given again")
    parser.add_argument("--model", default="pocket")
    parser.add_argument(
        "--steps", type=int, help="denoising steps; the model's own unless said. Memory is measured at two"
    )
    parser.add_argument("--pull", type=float, default=drift.PULL, help="of the anchor, 0..1")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="of torch in the processes that are timed")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="a page to put the tables into")
    options = parser.parse_args(arguments)
    drift.PULL = options.pull
    parts = options.only or PARTS
    checkpoint = find(options.model)
    steps = options.steps or checkpoint.defaults.num_steps
    text = [
        f"`python bench/long.py RUN --count {options.count} --pull {options.pull:g}`: {checkpoint.name} "
        f"({checkpoint.digest[:8]}), {steps} steps; {machine(options.threads)}"
    ]
    with tempfile.TemporaryDirectory() as folder:
        tries = Long(options, Path(folder))
        for part in (part for part in ("drift", "extensions") if part in parts):
            getattr(tries, part)()
        if tries.scores.found:
            text += ["### Drift", table(HEAD, tries.scores.rows())]
        if "memory" in parts:
            text += [f"### Memory: {SIDE}x{SIDE}, two steps", tries.memory()]
        if "large" in parts:
            text += ["### Large", tries.large()]
    print("\n\n".join(text))
    if options.write:
        put(options.write, "long", "\n\n".join(text))


if __name__ == "__main__":
    main()
