"""soragen replay FILE"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from soragen.cli import options, output
from soragen.cli.making import Common, make


def replay(
    source: Annotated[
        Path, typer.Argument(metavar="FILE", help="A video or picture that soragen made.", show_default=False)
    ],
    file: options.Output = None,
    prompt: options.OtherPrompt = None,
    size: options.Size = None,
    seconds: options.Seconds = None,
    frames: options.Frames = None,
    fps: options.Fps = None,
    seed: options.OtherSeed = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    negative: options.Negative = None,
    shift: options.Shift = None,
    solver: options.Solver = None,
    model: options.OtherModel = None,
    lora: options.OtherLora = None,
    lora_partial: options.LoraPartial = False,
    device: options.Device = None,
    dtype: options.Dtype = None,
    overwrite: options.Overwrite = False,
    no_metadata: options.NoMetadata = False,
    strict: options.Strict = False,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Make a video again from the recipe inside it. What an option says is changed, all else stays."""
    began = time.monotonic()
    from soragen.pipeline.edits import output_stem
    from soragen.pipeline.replay import read_replay

    with output.Talk(quiet=quiet) as talk:
        again = read_replay(
            source,
            listen=talk.listen,
            prompt=prompt,
            model=model,
            negative=negative,
            size=size,
            seconds=seconds,
            frames=frames,
            fps=fps,
            seed=seed,
            steps=steps,
            guidance=guidance,
            shift=shift,
            solver=solver,
            lora=lora,
            lora_partial=lora_partial,
            device=device,
            dtype=dtype,
        )
        shared = Common(
            file=file, device=again.device, dtype=again.dtype, overwrite=overwrite, no_metadata=no_metadata,
            strict=strict, dry_run=dry_run, as_json=as_json, quiet=quiet, debug=debug,
        )  # fmt: skip
        lossless = again.lossless and (file is None or file.suffix.lower() == again.suffix)
        make(
            again.request, talk, shared, began=began, stem=output_stem(again.request), suffix=again.suffix,
            say_seed=seed == "random", lossless=lossless,
        )  # fmt: skip
