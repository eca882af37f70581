"""Measures what the verbs do, on renders that training never sees and on pictures that ffmpeg makes by itself.

    python bench/verbs.py RUN --count 50                  # RUN/held_out; RUN/probe, or the one that is kept
    python bench/verbs.py RUN --only extend --count 8     # one verb
    python bench/verbs.py RUN --write docs/bench.md       # and puts the table into the page

Clips are 128x128, 25 frames. Every verb runs as the commands run it, to a lossless file, and what is measured is read
back from there. A table row that has a bar holds it or does not; "real clips" is the same measured on the clips as they
came, or what the probe says of them.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from flow import movement, movements
from given import Clip, held_out, made, other_time, read, sentence, write
from page import HEAD, SHARE, Bar, Scores, put, table
from torch import Tensor

from soragen.catalog import checkpoint_folder, find
from soragen.families import family_of
from soragen.models.family import Vae
from soragen.pipeline import edits, run
from soragen.request import STRENGTH, Request
from soragen.video.motion import difference, differences, seam_score
from soragen.video.write import to_uint8
from training.probe import Probe, answers, load_probe
from training.views import FRAMES, shrink
from training.world.scene import ATTRIBUTES, Scene

HALF = 13
"""Frames of the first half of a clip: one, and three latent frames of four."""
NEAR = 4
"""Steps on each side of a join that are its neighbourhood."""
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
RESTYLED = {"time of day changed": ("time",), "motion kept": ("motion",), "both": ("time", "motion")}
KEPT = ("subject", "colour", "ground", "time")
EXACT = 99.0
"""Decibels that stand for no difference at all."""
LEAST_MOVEMENT = 0.02
"""Pixels: less is no movement."""

INTACT, COUNT = "frames of the sources bit-equal", "number of frames exact"
STEP, SEAM = "step at the join, in usual steps", "step from last to first frame, in usual steps"
MOVE, SEAM_MOVE = "movement across the join / around it", "movement from last to first frame / median"
SAME = "all four kept, by the probe"
FIRST, LAST = "first frame against its VAE round trip, dB", "last frame against its VAE round trip, dB"
UNCHANGED, MONOTONE = "strength 0 against the video, dB", "distance grows with strength"
BARS = {
    INTACT: Bar(low=1, of="each"), COUNT: Bar(low=1, of="each"), STEP: Bar(high=1), MOVE: Bar(0.75, 1.25),
    SEAM: Bar(high=1), SEAM_MOVE: Bar(low=0.5), SAME: Bar(low=0.85, of="mean"), FIRST: Bar(low=35), LAST: Bar(low=35),
    UNCHANGED: Bar(low=35), MONOTONE: Bar(low=1, of="each"),
    **{f"{name} kept": Bar(of="mean") for name in KEPT},
    **{f"distance at strength {strength:g}, of 255": SHARE for strength in STRENGTHS[1:]},
    **{f"{what} at strength {strength:g}": Bar(of="mean") for what in RESTYLED for strength in STRENGTHS[1:]},
    f"both at strength {STRENGTH:g}": Bar(low=0.7, of="mean"),
}  # fmt: skip


@dataclass(frozen=True)
class Tries:
    """What is asked of the model in every try, and what has come of it. stride: frames in a latent frame."""

    folder: Path
    asked: dict[str, Any]
    probe: Probe
    vae: Vae
    stride: int
    scores: Scores = field(default_factory=lambda: Scores(BARS))

    def make(self, request: Request) -> Tensor:
        """Frames uint8 [T, H, W, 3] of the file that the command would write."""
        path = self.folder / "made.mkv"
        run.generate(request, path, device="cpu", metadata=False, lossless=True, overwrite=True, listen=_ignore)
        return read(path)

    def file(self, name: str, frames: Tensor) -> Path:
        return write(self.folder / name, frames)

    def extend(self, clip: Clip) -> None:
        new = len(clip.frames) - HALF
        for verb, backward in (("extend", False), ("extend --backward", True)):
            source = clip.frames[-HALF:] if backward else clip.frames[:HALF]
            path = self.file("source.mkv", source)
            request = edits.extend(path, clip.prompt, frames=new, backward=backward, **self.asked)
            frames = self.make(request)
            kept, fresh = (frames[new:], frames[:new]) if backward else (frames[:HALF], frames[HALF:])
            self.whole(verb, frames, len(clip.frames), torch.equal(kept, source))
            at = new if backward else HALF
            self.join(verb, frames, at, at - self.stride if backward else at + self.stride, clip.frames)
            truth = clip.frames[:new] if backward else clip.frames[HALF:]
            self.seen(verb, fresh, truth, clip.scene)

    def loop(self, clip: Clip) -> None:
        if clip.prompt:
            frames = self.make(edits.loop(clip.prompt, None, frames=24, size=_size(clip), fps="12", **self.asked))
            self.whole("loop PROMPT", frames, 24)
            self.seam("loop PROMPT", frames, 3 * self.stride + 1)  # it begins with the last frame of a latent frame
        source = clip.frames[:HALF]
        request = edits.loop(str(self.file("source.mkv", source)), clip.prompt, frames=12, **self.asked)
        frames = self.make(request)
        self.whole("loop VIDEO", frames, HALF + 12, torch.equal(frames[:HALF], source))
        self.join("loop VIDEO", frames, HALF, HALF + self.stride)
        self.seam("loop VIDEO", frames, HALF + self.stride)

    def connect(self, clip: Clip, other: Clip) -> None:
        before, after = clip.frames[:HALF], other.frames[-HALF:]
        files = (self.file("before.mkv", before), self.file("after.mkv", after))
        frames = self.make(edits.connect(*files, clip.prompt, frames=12, **self.asked))
        intact = torch.equal(frames[:HALF], before) and torch.equal(frames[-HALF:], after)
        self.whole("connect", frames, 2 * HALF + 12, intact)
        self.join("connect, first join", frames, HALF, HALF + self.stride)
        self.join("connect, second join", frames, HALF + 12, HALF + 12 - self.stride)

    def animate(self, clip: Clip) -> None:
        ends = clip.frames[:1], clip.frames[-1:]
        first, last = self.file("first.png", ends[0]), self.file("last.png", ends[1])
        size = {"size": _size(clip), "frames": 25, "fps": "12"}
        for verb, more in (("animate", {}), ("animate --last", {"last": last})):
            frames = self.make(edits.animate(first, clip.prompt, **more, **size, **self.asked))
            self.whole(verb, frames, 25)
            self.scores.add(verb, FIRST, decibels(frames[0], self.round_trip(ends[0])[0]))
            if more:
                self.scores.add(verb, LAST, decibels(frames[-1], self.round_trip(ends[1].expand(25, -1, -1, -1))[-1]))

    def restyle(self, clip: Clip) -> None:
        scene = clip.scene and other_time(clip.scene)
        prompt = sentence(scene) if scene else "a red ball on snow at night"
        path, distances = self.file("source.mkv", clip.frames), []
        for strength in STRENGTHS:
            frames = self.make(edits.restyle(path, prompt, strength=strength, **self.asked))
            self.whole("restyle", frames, len(clip.frames))
            distances.append(difference(frames, clip.frames))
            if strength == 0:
                self.scores.add("restyle", UNCHANGED, decibels(frames, clip.frames))
                continue
            self.scores.add("restyle", f"distance at strength {strength:g}, of 255", 255 * distances[-1])
            if scene:
                told, true = self.told(frames), self.told(clip.frames)
                right = {name: told[name] == getattr(scene, name) for name in ("time", "motion")}
                before = {name: true[name] == getattr(scene, name) for name in right}
                for what, names in RESTYLED.items():
                    words = f"{what} at strength {strength:g}"
                    made, was = (all(each[name] for name in names) for each in (right, before))
                    self.scores.add("restyle", words, made, was)
        grows = all(low <= high for low, high in pairwise(distances))
        self.scores.add("restyle", MONOTONE, grows)

    def whole(self, verb: str, frames: Tensor, count: int, intact: bool | None = None) -> None:
        verb = verb.split(",")[0]
        self.scores.add(verb, COUNT, len(frames) == count)
        if intact is not None:
            self.scores.add(verb, INTACT, intact)

    def join(self, verb: str, frames: Tensor, at: int, inside: int, real: Tensor | None = None) -> None:
        """The step from frame at - 1 to `at`. inside: where two latent frames of the new part meet, a first frame.

        real: the same place of a clip without a join.
        """
        for what, measure in ((STEP, join_step), (MOVE, join_movement)):
            usual = None if real is None else measure(real, at)
            self.scores.add(verb, what, measure(frames, at), usual, measure(frames, inside))

    def seam(self, verb: str, frames: Tensor, inside: int) -> None:
        self.scores.add(verb, SEAM, seam_score([frames]), inside=join_step(frames, inside))
        usual = median(movements(frames, range(len(frames) - 1))) + LEAST_MOVEMENT
        across, within = movement(frames[-1], frames[0]), movement(frames[inside - 1], frames[inside])
        self.scores.add(
            verb, SEAM_MOVE, (across + LEAST_MOVEMENT) / usual, inside=(within + LEAST_MOVEMENT) / usual
        )  # fmt: skip

    def seen(self, verb: str, frames: Tensor, truth: Tensor, scene: Scene | None) -> None:
        if scene is None:
            return
        told, real = self.told(frames), self.told(truth)
        right = {name: (told[name] == getattr(scene, name), real[name] == getattr(scene, name)) for name in KEPT}
        self.scores.add(verb, SAME, all(made for made, _ in right.values()), all(true for _, true in right.values()))
        for name, (found, true) in right.items():
            self.scores.add(verb, f"{name} kept", found, true)

    def told(self, frames: Tensor) -> dict[str, str]:
        """What the probe sees of seven frames, spread evenly."""
        chosen = torch.linspace(0, len(frames) - 1, FRAMES).round().long()
        indices = answers(self.probe, shrink(frames[chosen][None]))[0].tolist()
        return {name: values[index] for (name, values), index in zip(ATTRIBUTES.items(), indices, strict=True)}

    @torch.inference_mode()
    def round_trip(self, frames: Tensor) -> Tensor:
        return to_uint8(torch.cat(list(self.vae.decode(self.vae.encode([frames.float() / 255])))))


def join_step(frames: Tensor, at: int) -> float:
    """The difference of frames at - 1 and `at` in median differences of neighbours."""
    steps = differences([frames])
    return steps[at - 1] / max(median(steps), 1e-6)


def join_movement(frames: Tensor, at: int) -> float:
    """The movement from frame at - 1 to `at` over the median of that of the four steps on each side."""
    around = [step for step in range(at - 1 - NEAR, at + NEAR) if step != at - 1 and 0 <= step < len(frames) - 1]
    usual = median(movements(frames, around))
    return (movement(frames[at - 1], frames[at]) + LEAST_MOVEMENT) / (usual + LEAST_MOVEMENT)


def decibels(found: Tensor, expected: Tensor) -> float:
    error = float((found.float() - expected.float()).square().mean())
    return min(EXACT, 10 * math.log10(255**2 / error)) if error else EXACT


def _size(clip: Clip) -> str:
    return f"{clip.frames.shape[2]}x{clip.frames.shape[1]}"


def _ignore(event: object) -> None:
    """Nobody is told."""


VERBS = ("extend", "loop", "connect", "animate", "restyle")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--count", type=int, default=8, help="of held-out renders; 0 is ffmpeg's clips alone")
    parser.add_argument("--only", choices=VERBS, action="append", help="a verb; may be given again")
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--steps", type=int, help="denoising steps; the model's own unless said")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="a page to put the table into")
    options = parser.parse_args(arguments)
    checkpoint = find(options.model)
    family, weights = family_of(checkpoint), checkpoint_folder(checkpoint)
    vae = family.load_vae(weights, torch.device("cpu"), torch.float32)
    clips = (held_out(options.run, options.count) if options.count else []) + made()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        asked = {"model": options.model, "steps": options.steps, "listen": _ignore}
        tries = Tries(Path(folder), asked, load_probe(options.run), vae, family.compression(weights).stride[0])
        for number, clip in enumerate(clips):
            asked["seed"] = number
            for verb in options.only or VERBS:
                more = (clips[(number + 1) % len(clips)],) if verb == "connect" else ()
                getattr(tries, verb)(clip, *more)
            spent = time.monotonic() - began
            print(f"{number + 1}/{len(clips)} {clip.name}, {spent / (number + 1):.1f} s a clip", file=sys.stderr)
    order = [verb for verb in dict.fromkeys(row[0] for row in tries.scores.rows())]
    rows = sorted(tries.scores.rows(), key=lambda row: order.index(row[0]))
    steps = options.steps or checkpoint.defaults.num_steps
    only = "".join(f" --only {verb}" for verb in options.only or ())
    about = (
        f"`python bench/verbs.py RUN --count {options.count}{only}`: {checkpoint.name} ({checkpoint.digest[:8]}), "
        f"{steps} steps, {len(clips)} clips, with the probe"
    )
    text = f"{about}\n\n{table(HEAD, rows)}"
    print(text)
    if options.write:
        put(options.write, "verbs", text)


if __name__ == "__main__":
    main()
