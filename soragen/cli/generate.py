"""soragen generate PROMPT"""

from __future__ import annotations

import time
from typing import Annotated

import typer

from soragen.cli import options, output
from soragen.cli.making import make


def generate(
    prompt: Annotated[str, typer.Argument(help='What to show. "-" reads it from standard input.', show_default=False)],
    file: options.Output = None,
    size: options.Size = None,
    seconds: options.Seconds = None,
    frames: options.Frames = None,
    fps: options.Fps = None,
    seed: options.Seed = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    negative: options.Negative = None,
    shift: options.Shift = None,
    solver: options.Solver = None,
    model: options.Model = "pocket",
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
    """Make a video from a sentence and print the path of its file."""
    began = time.monotonic()
    from soragen.pipeline.resolve import resolve

    with output.Talk(quiet=quiet) as talk:
        request = resolve(
            prompt,
            listen=talk.listen,
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
        )
        make(
            request,
            file,
            talk,
            began=began,
            say_seed=seed is None,
            device=device,
            dtype=dtype,
            overwrite=overwrite,
            metadata=not no_metadata,
            strict=strict,
            dry_run=dry_run,
            as_json=as_json,
        )
