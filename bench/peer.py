"""Measures soragen against diffusers: the same checkpoint, prompt, seed, size and steps, from the prompt to the MP4.

    python bench/peer.py                                  # small checkpoints, every case; needs the `bench` extra
    python bench/peer.py --size middle --case wan-2.1     # what two cores do in minutes
    python bench/peer.py --size tiny --repeat 1 --json    # to see that it works

Checkpoints have random weights, in the published layout, and both sides read the same folder in float32 on the CPU.
Each run is a process of its own; the sides take turns, so that what else the machine does meets both. soragen's is the
command a user types, diffusers' the script its documentation gives, with `export_to_video`. Its stages are timed by
wrapping its methods. Before it ends it also writes its latents and frames, for the comparison; that is a part of its
"start", with the imports and all else that belongs to no stage. soragen's are computed once more, outside the clock.
On a machine that does other things, read CPU seconds (those of ffmpeg are in them): the others measure the queue.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from generate import machine, table, usable_cores
from watch import Run, run

PROMPT = "a red ball bounces on green grass at sunset, seen from above"
NEGATIVE = "blurry, still, grey"
SEED, GUIDANCE = 7, 4.0
SIDES = ("soragen", "diffusers")
STAGES = ("start", "load", "text", "denoise", "decode", "encode")
CHECKPOINTS = {
    "ltx-0.9.0": "ltx-video-0.9.0",
    "ltx-0.9.5": "ltx-video-0.9.5",
    "wan-2.1": "wan2.1-t2v-1.3b",
    "wan-2.2-ti2v": "wan2.2-ti2v-5b",
}
"""Case to the published checkpoint that it is a thinner one of. diffusers runs them with LTXPipeline,
LTXConditionPipeline, and WanPipeline twice, the last with a timestep for each token. 0.9.1 is left out: the noise that
diffusers draws inside its decoder comes from no seed."""


@dataclass(frozen=True)
class Video:
    """What is made at a size of the bench."""

    width: int
    height: int
    num_frames: int
    num_steps: int

    @property
    def sides(self) -> str:
        return f"{self.width}x{self.height}"


VIDEOS = {"tiny": Video(64, 64, 9, 2), "small": Video(192, 128, 25, 4), "middle": Video(384, 256, 33, 8)}


@dataclass(frozen=True)
class Case:
    name: str
    video: Video
    folder: Path
    """Of the checkpoint."""

    @property
    def fps(self) -> int:
        return 24 if self.name.startswith("ltx") else 16

    @property
    def shift(self) -> float | None:
        from random_checkpoint import SHIFT

        return SHIFT if self.name.startswith("wan") else None


@dataclass(frozen=True)
class Measured:
    """Of one process. seconds: of each stage; "start" is all that belongs to none. Memory in bytes."""

    wall: float
    cpu: float
    memory: int
    ffmpeg: int
    seconds: dict[str, float]

    @staticmethod
    def of(done: Run) -> Measured:
        said: dict[str, float] = json.loads(done.out)["seconds"]
        seconds = {stage: said.get(stage, 0.0) for stage in STAGES[1:]}
        seconds = {"start": done.wall - sum(seconds.values())} | seconds
        return Measured(done.wall, done.cpu, done.memory, done.ffmpeg, seconds)


def run_soragen(case: Case, folder: Path, variables: dict[str, str]) -> Run:
    video = case.video
    options = {
        "--model": case.folder, "--size": video.sides, "--frames": video.num_frames, "--fps": case.fps,
        "--steps": video.num_steps, "--guidance": GUIDANCE, "--seed": SEED, "--negative": NEGATIVE, "--device": "cpu",
        "--dtype": "float32", "--output": folder / "ours.mp4",
    } | ({"--shift": case.shift} if case.shift is not None else {})  # fmt: skip
    words = [str(word) for option in options.items() for word in option]
    with tempfile.TemporaryDirectory() as cache:  # no prompt is known
        command = ["-m", "soragen", "generate", PROMPT, *words, "--overwrite", "--json", "--quiet"]
        return run(command, variables | {"SORAGEN_CACHE": cache})


def run_diffusers(case: Case, folder: Path, variables: dict[str, str]) -> Run:
    asked = {"checkpoint": CHECKPOINTS[case.name], "fps": case.fps, **vars(case.video)}
    return run([__file__, "--reference", str(case.folder), str(folder), json.dumps(asked)], variables)


def reference(checkpoint: Path, folder: Path, asked: dict[str, Any]) -> None:
    """The other side, in a process of its own: prints its seconds, leaves theirs.mp4, latents.npy and frames.npy."""
    seconds = dict.fromkeys(STAGES[1:], 0.0)

    def timed(owner: Any, method: str, stage: str) -> None:
        inner = getattr(owner, method)

        def outer(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                seconds[stage] += time.perf_counter() - began

        setattr(owner, method, outer)

    import numpy as np
    import torch
    from diffusers.utils import export_to_video
    from random_checkpoint import reference_pipeline

    began = time.perf_counter()
    pipeline = reference_pipeline(asked["checkpoint"])[0].from_pretrained(checkpoint, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    seconds["load"] = time.perf_counter() - began
    timed(pipeline, "encode_prompt", "text")
    timed(pipeline.vae, "decode", "decode")
    timed(pipeline.video_processor, "postprocess_video", "decode")
    more: dict[str, Any] = {}
    if asked["checkpoint"].startswith("ltx"):
        more = {"frame_rate": asked["fps"], "decode_timestep": 0.05, "decode_noise_scale": 0.025}
    latents: list[torch.Tensor] = []

    def keep(pipeline: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        latents[:] = [values["latents"]]
        return {}

    began = time.perf_counter()
    frames = pipeline(
        prompt=PROMPT, negative_prompt=NEGATIVE, width=asked["width"], height=asked["height"],
        num_frames=asked["num_frames"], num_inference_steps=asked["num_steps"], guidance_scale=GUIDANCE,
        generator=torch.Generator().manual_seed(SEED), output_type="np", callback_on_step_end=keep, **more,
    ).frames[0]  # fmt: skip
    seconds["denoise"] = time.perf_counter() - began - seconds["text"] - seconds["decode"]
    began = time.perf_counter()
    export_to_video(list(frames), str(folder / "theirs.mp4"), fps=asked["fps"])
    seconds["encode"] = time.perf_counter() - began
    np.save(folder / "latents.npy", latents[0].numpy())
    np.save(folder / "frames.npy", frames)
    print(json.dumps({"seconds": seconds}))


def deviation(case: Case, folder: Path) -> dict[str, float]:
    """How far soragen's final latents and frames are from what diffusers left in `folder`.

    latents, frames: |ours - theirs| / |theirs|. levels: the largest difference of a pixel, of 255.
    """
    import numpy as np
    import torch

    from soragen.catalog import find
    from soragen.pipeline.clock import Clock
    from soragen.pipeline.conditions import Conditions
    from soragen.pipeline.plan import make_plan
    from soragen.pipeline.resolve import resolve
    from soragen.pipeline.run import denoise_all, encode_prompts, load_vae

    video = case.video
    request = resolve(
        PROMPT, listen=print_nothing, model=str(case.folder), negative=NEGATIVE, size=video.sides,
        frames=video.num_frames, fps=str(case.fps), seed=SEED, steps=video.num_steps, guidance=GUIDANCE,
        shift=case.shift,
    )  # fmt: skip
    plan = make_plan(request, find(request.checkpoint), "cpu", "float32")
    context, negative = encode_prompts(plan, False, print_nothing)
    ours = denoise_all(plan, context, negative, (Conditions(None), None), Clock(print_nothing))
    theirs = torch.from_numpy(np.load(folder / "latents.npy"))
    if theirs.ndim == 3:  # tokens, in the order of the grid
        theirs = theirs.unflatten(1, plan.grid.token_shape).permute(0, 4, 1, 2, 3)
    frames = torch.cat(list(load_vae(plan).decode(ours, seed=SEED)))
    their_frames = torch.from_numpy(np.load(folder / "frames.npy"))
    levels = float((frames - their_frames).abs().max() * 255)
    return {"latents": relative(ours, theirs), "frames": relative(frames, their_frames), "levels": levels}


def print_nothing(event: object) -> None:
    """Hears what a run tells."""


def relative(found: Any, expected: Any) -> float:
    if found.shape != expected.shape:
        sys.exit(f"the two made different things: {tuple(found.shape)} and {tuple(expected.shape)}")
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def measure(case: Case, repeats: int, variables: dict[str, str]) -> dict[str, Any]:
    """Medians of both sides, and how far their results are apart. Sides take turns at being first."""
    with tempfile.TemporaryDirectory() as name:
        folder, runs = Path(name), {side: list[Measured]() for side in SIDES}
        start = {"soragen": run_soragen, "diffusers": run_diffusers}
        for number in range(repeats):
            for side in SIDES if number % 2 == 0 else reversed(SIDES):
                runs[side].append(Measured.of(start[side](case, folder, variables)))
        sides = {side: medians(found) for side, found in runs.items()}
        return {"case": case.name, **sides, "deviation": deviation(case, folder)}


def medians(runs: Sequence[Measured]) -> dict[str, Any]:
    """Median seconds, and the highest peaks of memory in bytes."""
    return {
        "wall": median(r.wall for r in runs),
        "cpu": median(r.cpu for r in runs),
        "memory": max(r.memory for r in runs),
        "ffmpeg": max(r.ffmpeg for r in runs),
        "seconds": {stage: median(r.seconds[stage] for r in runs) for stage in STAGES},
    }


def markdown(results: Sequence[dict[str, Any]]) -> str:
    rows = []
    for found in results:
        for side in SIDES:
            values = found[side]
            times = [values["wall"], values["cpu"], *values["seconds"].values()]
            memory = (values["memory"], values["ffmpeg"])
            rows.append([found["case"], side, *(f"{t:.2f}" for t in times), *(f"{m / 1e6:.0f}" for m in memory)])
        pairs = [(found["diffusers"][key], found["soragen"][key]) for key in ("wall", "cpu")]
        pairs += [(found["diffusers"]["seconds"][stage], found["soragen"]["seconds"][stage]) for stage in STAGES]
        pairs += [(found["diffusers"][key], found["soragen"][key]) for key in ("memory", "ffmpeg")]
        ratios = [f"{theirs / ours:.2f}" if ours > 0.005 else "" for theirs, ours in pairs]
        rows.append([found["case"], "times as much", *ratios])
    head = ["case", "side", "wall s", "CPU s", *STAGES, "memory MB", "ffmpeg MB"]
    apart = [
        [found["case"], *(f"{found['deviation'][key]:.1e}" for key in ("latents", "frames")),
         f"{found['deviation']['levels']:.2f}"] for found in results
    ]  # fmt: skip
    return f"{table(head, rows)}\n\n{table(['case', 'latents', 'frames', 'largest of 255'], apart)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=VIDEOS, default="small")
    parser.add_argument("--case", choices=CHECKPOINTS, action="append", help="may be given again; all unless said")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each side; times are medians")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="of torch; all cores unless said")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.add_argument("--reference", nargs=3, metavar=("CHECKPOINT", "FOLDER", "ASKED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.reference:
        checkpoint, folder, asked = options.reference
        reference(Path(checkpoint), Path(folder), json.loads(asked))
        return

    variables = {"OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1"}
    about, video, results = machine(options.threads), VIDEOS[options.size], []
    with tempfile.TemporaryDirectory() as top:
        import random_checkpoint
        import torch

        torch.set_num_threads(options.threads)
        os.environ["SORAGEN_CACHE"] = str(Path(top) / "cache")
        for name in options.case or CHECKPOINTS:
            case = Case(name, video, Path(top) / name)
            scale = {"tiny": random_checkpoint.TINY, "small": random_checkpoint.SMALL}.get(
                options.size, random_checkpoint.MIDDLE
            )
            sides = (video.width, video.height)
            random_checkpoint.write_checkpoint(case.folder, CHECKPOINTS[name], scale, sides, video.num_frames)
            results.append(measure(case, options.repeat, variables))
    if options.json:
        print(json.dumps({"machine": about, "size": options.size, "video": vars(video), "results": results}))
        return
    what = f"{video.sides}, {video.num_frames} frames, {video.num_steps} steps with guidance"
    print(f"{about}\n\n{options.size}: {what}\n\n{markdown(results)}")


if __name__ == "__main__":
    main()
