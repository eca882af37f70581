"""The whole recipe with one command: renders, trains every network, scores them, and writes a checkpoint.

    python -m training RUN --minutes 20 --device cuda
    python -m training RUN --minutes 20 --plan                # what it would do, and how long each training takes

Every stage is a command of its own (README.md) that goes on where it was stopped, and so does this one: what
RUN/stages.json has is passed over. `--minutes` are those of all trainings together; rendering, encoding and scoring
come on top of them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SHARES = {
    "vae": 0.15, "refiner": 0.05, "transformer": 0.5, "vae, again": 0.1, "refiner, again": 0.05, "upscaler": 0.05,
    "probe": 0.1,
}  # fmt: skip
"""Of the minutes. Half is the transformer's, which never has enough."""


@dataclass(frozen=True)
class Stage:
    """`python -m training.<module> RUN <arguments>`, as so many processes at once."""

    module: str
    arguments: tuple[str, ...]
    num_processes: int = 1

    def commands(self, run: Path) -> list[list[str]]:
        parts = [("--part", f"{n}/{self.num_processes}") for n in range(self.num_processes)]
        shared = [sys.executable, "-m", f"training.{self.module}", str(run), *self.arguments]
        return [[*shared, *part] for part in parts] if self.num_processes > 1 else [shared]

    def __str__(self) -> str:
        return " ".join((f"training.{self.module}", "RUN", *self.arguments))


def stages(
    minutes: float, device: str, num_clips: int, num_images: int, num_held_out: int, num_prompts: int,
    text_steps: int, num_processes: int,
) -> list[Stage]:  # fmt: skip
    """All of them, in order. On a card one process renders, on a CPU as many as are asked for."""
    on, checkpoint = ("--device", device), ("--model", "RUN/checkpoint")

    def of(*names: str) -> tuple[str, ...]:
        return ("--minutes", f"{minutes * sum(SHARES[name] for name in names):g}", *on)

    def rendered(*arguments: str) -> Stage:
        return Stage("clips", (*arguments, *on), num_processes if device == "cpu" else 1)

    def taught(area: str, **counts: int) -> list[Stage]:
        """So many images and clips to train on, a quarter of them with weather."""
        clear: tuple[str, ...] = ("--area", area)
        weather = (*clear, "--weather")
        for kind, count in counts.items():
            clear += (f"--{kind}", str(count - count // 4))
            weather += (f"--{kind}", str(count // 4))
        return [rendered(*clear), rendered(*weather)]

    return [
        rendered("--area", "128", "--clips", str(num_held_out), "--held-out"),
        *taught("96", images=num_images),
        *taught("128", images=num_images, clips=num_clips),
        Stage("text", ("--steps", str(text_steps), *on)),
        Stage("vae", of("vae")),
        *taught("96", clips=num_clips),  # how things move is learnt on them at half the cost
        Stage("latents", on),
        Stage("refiner", of("refiner")),
        Stage("transformer", of("transformer")),
        Stage("export", ("RUN/checkpoint",)),
        Stage("resample", (*checkpoint, "--clips", str(-(-num_clips // 8)), *on)),
        Stage("vae", (*of("vae", "vae, again"), "--sampled", "0.3")),
        Stage("refiner", (*of("refiner", "refiner, again"), "--sampled", "0.3")),
        Stage("upscaler", (*of("upscaler"), "--scenes", str(-(-num_clips // 16)))),
        Stage("probe", (*of("probe"), "--extra", str(-(-num_clips // 20)))),
        Stage("export", ("RUN/checkpoint",)),
        Stage("evaluate", (*checkpoint, "--count", str(num_prompts), *on)),
    ]


def go(run: Path, todo: Sequence[Stage]) -> None:
    """Runs what is not in RUN/stages.json yet. A stage that fails ends it, with the status of the stage."""
    record = run / "stages.json"
    done: dict[str, float] = json.loads(record.read_text()) if record.exists() else {}
    for number, stage in enumerate(todo, 1):
        name = f"{number}. {stage}"
        if name in done:
            continue
        print(name, flush=True)
        began = time.monotonic()
        commands = [[part.replace("RUN/", f"{run}/") for part in command] for command in stage.commands(run)]
        processes = [subprocess.Popen(command) for command in commands]
        if status := max(process.wait() for process in processes):
            sys.exit(status)
        done[name] = round(time.monotonic() - began, 1)
        part = record.with_suffix(".part")
        part.write_text(json.dumps(done, indent=1) + "\n")
        part.rename(record)
    for name, seconds in done.items():
        print(f"{seconds / 60:6.1f} min  {name}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--minutes", type=float, default=20, help="of all trainings together")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clips", type=int, default=3200)
    parser.add_argument("--images", type=int, default=16000, help="of each of the two areas")
    parser.add_argument("--held-out", type=int, default=48, help="clips that training never sees")
    parser.add_argument("--text-steps", type=int, default=800, help="of training the text encoder")
    parser.add_argument("--prompts", type=int, default=324, help="that the result is scored on")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="that render, on a CPU")
    parser.add_argument("--plan", action="store_true", help="say what would be done, and stop")
    options = parser.parse_args(arguments)
    todo = stages(
        options.minutes, options.device, options.clips, options.images, options.held_out, options.prompts,
        options.text_steps, options.processes,
    )  # fmt: skip
    if options.plan:
        print("\n".join(f"{number}. {stage}" for number, stage in enumerate(todo, 1)))
        return
    options.run.mkdir(parents=True, exist_ok=True)
    go(options.run, todo)


if __name__ == "__main__":
    main()
