"""soragen decode LATENTS"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from soragen.cli import options, output


def decode(
    latents: Annotated[Path, typer.Argument(help="The latents that a failed run left.", show_default=False)],
    file: options.Output = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Finish a run whose decoding failed, from the latents it left."""
    began = time.monotonic()
    from soragen.errors import InputError

    if not latents.is_file():
        raise InputError(f"no file {latents}", "give the .safetensors file of latents that the failed run named")
    from soragen.pipeline import run
    from soragen.pipeline.report import result_report

    with output.Talk(quiet=quiet) as talk:
        result = run.decode(latents, file, device=device, dtype=dtype, overwrite=overwrite, listen=talk.listen)
    if as_json:
        output.json_object(result_report(result, time.monotonic() - began))
    else:
        output.data(str(result.path))
