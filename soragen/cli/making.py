"""The end that commands share which make one file: the plan alone, or the file and what is said of it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from soragen.cli import output
from soragen.pipeline.events import Note

if TYPE_CHECKING:
    from soragen.request import Request


def make(
    request: Request,
    file: Path | None,
    talk: output.Talk,
    *,
    began: float,
    suffix: str = ".mp4",
    say_seed: bool,
    device: str | None,
    dtype: str | None,
    overwrite: bool,
    metadata: bool,
    strict: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Makes what `request` describes and prints its path, or prints the plan.

    file: None is a name from the prompt and the seed that ends in `suffix`. began: when the command did.
    """
    if dry_run:
        from soragen.catalog import find
        from soragen.pipeline.plan import make_plan

        plan = make_plan(request, find(request.checkpoint), device, dtype)
        output.json_object(plan.to_dict()) if as_json else output.data("\n".join(plan.lines()))
        return

    from soragen.pipeline.report import result_report
    from soragen.video.naming import default_output

    path = file if file is not None else default_output(request.prompt, request.seed, Path(), suffix)
    if say_seed:
        talk.listen(Note(f"seed {request.seed}"))

    from soragen.pipeline import run

    result = run.generate(
        request,
        path,
        device=device,
        dtype=dtype,
        metadata=metadata,
        overwrite=overwrite,
        strict_prompt=strict,
        listen=talk.listen,
    )
    if as_json:
        output.json_object(result_report(result, time.monotonic() - began))
    else:
        output.data(str(result.path))
