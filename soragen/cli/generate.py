"""soragen generate PROMPT"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from soragen.cli import options, output


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
        if dry_run:
            from soragen.catalog import find
            from soragen.pipeline.plan import make_plan

            plan = make_plan(request, find(model), device, dtype)
            output.json_object(plan.to_dict()) if as_json else output.data("\n".join(plan.lines()))
            return

        from soragen.pipeline.events import Note
        from soragen.pipeline.report import result_report
        from soragen.video.naming import default_output

        path = file if file is not None else default_output(request.prompt, request.seed, Path())
        if seed is None:
            talk.listen(Note(f"seed {request.seed}"))

        from soragen.pipeline import run

        result = run.generate(
            request,
            path,
            device=device,
            dtype=dtype,
            metadata=not no_metadata,
            overwrite=overwrite,
            strict_prompt=strict,
            listen=talk.listen,
        )
    if as_json:
        output.json_object(result_report(result, time.monotonic() - began))
    else:
        output.data(str(result.path))
