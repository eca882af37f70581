"""soragen image PROMPT"""

from __future__ import annotations

import time
from typing import Annotated

import typer

from soragen.cli import options, output
from soragen.cli.making import make


def image(
    prompt: Annotated[str, typer.Argument(help='What to show. "-" reads it from standard input.', show_default=False)],
    file: options.Output = None,
    size: options.Size = None,
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
    """Make a picture from a sentence, a video of one frame: PNG, or JPEG or WebP by the ending of --output."""
    began = time.monotonic()
    from soragen.errors import InputError
    from soragen.pipeline.resolve import resolve
    from soragen.video.formats import PICTURE_SUFFIXES

    if file is not None and file.suffix.lower() not in PICTURE_SUFFIXES:
        raise InputError(f"output {file.name!r} is not a picture", f"use one of: {', '.join(PICTURE_SUFFIXES)}")

    with output.Talk(quiet=quiet) as talk:
        request = resolve(
            prompt,
            listen=talk.listen,
            model=model,
            negative=negative,
            size=size,
            frames=1,
            seed=seed,
            steps=steps,
            guidance=guidance,
            shift=shift,
            solver=solver,
            odd_sides=True,
        )
        make(
            request,
            file,
            talk,
            began=began,
            suffix=".png",
            say_seed=seed is None,
            device=device,
            dtype=dtype,
            overwrite=overwrite,
            metadata=not no_metadata,
            strict=strict,
            dry_run=dry_run,
            as_json=as_json,
        )
