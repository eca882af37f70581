"""Measures how far 16-bit and 8-bit networks are from float32 ones: each part alone, then a run of six steps.

    python bench/precision.py                                # prints the tables of docs/precision.md
    python bench/precision.py --model pocket --json
    python bench/precision.py --write docs/precision.md      # and puts them into that page

pocket has its real weights; the others are thin copies of published checkpoints with random weights (they need the
`bench` extra), where only the order of magnitude means something. All of it is computed on the CPU, which rounds to
these types as a GPU does, though it adds in another order. A part is measured on the same inputs in both types: the
context is that of the float32 encoder, what is decoded are latents of float32, and what is encoded are the frames that
float32 decodes from them. Weights of 8 bits are multiplied with float32, so that only their own rounding counts.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from page import put, table
from torch import Tensor

from soragen.catalog import find
from soragen.diffusion.noise import starting_noise
from soragen.models.device import DTYPES
from soragen.models.family import Context
from soragen.pipeline import run
from soragen.pipeline.conditions import Conditions
from soragen.pipeline.denoise import denoise_windows
from soragen.pipeline.plan import Plan, make_plan
from soragen.pipeline.resolve import resolve
from soragen.request import QUANTIZED

PROMPT = "a red ball bouncing on green grass at sunset"
NUM_STEPS, SEED = 6, 7
MODELS = ("pocket", "wan2.1-t2v-1.3b", "wan2.2-ti2v-5b", "ltx-video-0.9.0", "ltx-video-0.9.5")
PARTS = ("text encoder", "transformer, one forward", f"transformer, {NUM_STEPS} steps", "VAE decode", "VAE encode")


@dataclass(frozen=True)
class Deviation:
    """relative: norm of the difference over that of float32. psnr: of frames in 0..1, in dB; None where there are none.

    Of one forward it is the clean estimate that is compared, of a VAE's encoding the latents.
    """

    model: str
    part: str
    kind: str
    relative: float
    psnr: float | None = None


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found.float() - expected.float()).norm() / expected.float().norm()).item()


def psnr(found: Tensor, expected: Tensor) -> float:
    error = (found.float() - expected.float()).square().mean().item()
    return -10 * math.log10(error) if error > 0 else math.inf


def plan_of(model: str, size: str, num_frames: int) -> Plan:
    """In float32 on the CPU."""
    request = resolve(
        PROMPT, listen=lambda event: None, model=model, size=size, frames=num_frames, seed=SEED, steps=NUM_STEPS
    )
    return make_plan(request, find(request.checkpoint), "cpu", "float32")


def variant(plan: Plan, kind: str) -> Plan:
    """The plan with all networks in a type of 16 bits, or with weights of 8."""
    if kind in QUANTIZED:
        return replace(plan, request=replace(plan.request, quantize=kind))
    dtype = DTYPES[kind]
    return replace(plan, machine=replace(plan.machine, text_encoder=dtype, transformer=dtype, vae=dtype))


@torch.inference_mode()
def measure(name: str, plan: Plan) -> Iterator[Deviation]:
    """Every part of a checkpoint, in every type."""

    def contexts(plan: Plan) -> tuple[Context, Context | None]:
        return run.encode_prompts(plan, False, lambda event: None)

    def denoised(plan: Plan) -> tuple[Tensor, Tensor]:
        """The clean estimate of the step in the middle of the schedule, and the latents of the whole run."""
        transformer, level = run.load_transformer(plan), plan.schedule[NUM_STEPS // 2]
        noise = starting_noise(SEED, plan.latent_channels, plan.grid)
        estimate = transformer.bind(context, plan.window_grid)(noise, level)
        return estimate, denoise_windows(
            plan, context, negative, Conditions(None), None, transformer, lambda event: None
        )

    def decoded(plan: Plan, latents: Tensor) -> Tensor:
        return torch.cat(list(run.load_vae(plan).decode(latents, seed=SEED)))

    context, negative = contexts(plan)
    estimate, latents = denoised(plan)
    frames = decoded(plan, latents)
    encoded = run.load_vae(plan).encode([frames])
    again = decoded(plan, encoded)
    for kind in ("bfloat16", "float16", *QUANTIZED):
        other = variant(plan, kind)
        yield Deviation(name, PARTS[0], kind, relative(contexts(other)[0].embeddings, context.embeddings))
        found_estimate, found = denoised(other)
        yield Deviation(name, PARTS[1], kind, relative(found_estimate, estimate))
        yield Deviation(name, PARTS[2], kind, relative(found, latents), psnr(decoded(plan, found), frames))
        if kind in QUANTIZED:  # the VAE is never in 8 bits
            continue
        # Pocket's VAE is for float32 alone; torch's autocast rounds at its products, where the others round.
        is_pocket = plan.checkpoint.family == "pocket"
        coded = plan if is_pocket else other
        with torch.autocast("cpu", DTYPES[kind], enabled=is_pocket):  # no yield inside: it would be lost
            found_frames, found = decoded(coded, latents), run.load_vae(coded).encode([frames])
        yield Deviation(name, PARTS[3], kind, relative(found_frames, frames), psnr(found_frames, frames))
        yield Deviation(name, PARTS[4], kind, relative(found, encoded), psnr(decoded(plan, found), again))


def measure_model(model: str) -> list[Deviation]:
    with tempfile.TemporaryDirectory() as cache:
        os.environ["SORAGEN_CACHE"] = cache  # nothing that was encoded before
        return _measure_model(model)


def _measure_model(model: str) -> list[Deviation]:
    if model == "pocket":
        return list(measure(model, plan_of(model, "128x128", 25)))
    from random_checkpoint import TINY, write_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / model
        write_checkpoint(path, model, TINY, (64, 64), 9)
        return list(measure(f"{model}, thin", plan_of(str(path), "64x64", 9)))


def tables(found: list[Deviation]) -> str:
    """One row for each model and part, one column for each type."""
    kinds = list(dict.fromkeys(deviation.kind for deviation in found))
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for deviation in found:
        decibels = "" if deviation.psnr is None else f", {deviation.psnr:.0f} dB"
        rows.setdefault((deviation.model, deviation.part), {})[deviation.kind] = f"{deviation.relative:.1e}{decibels}"
    lines = [[*key, *(cells.get(kind, "") for kind in kinds)] for key, cells in rows.items()]
    return f"torch {torch.__version__}\n\n{table(['model', 'part', *kinds], lines)}"


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", choices=MODELS, help="again for more; default: all")
    parser.add_argument("--json", action="store_true", help="print one JSON list")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the tables into this page")
    asked = parser.parse_args(words)
    found = [deviation for model in asked.model or MODELS for deviation in measure_model(model)]
    values: list[dict[str, Any]] = [asdict(deviation) for deviation in found]
    print(json.dumps(values, indent=1) if asked.json else tables(found))
    if asked.write:
        put(asked.write, "precision", tables(found))


if __name__ == "__main__":
    main()
