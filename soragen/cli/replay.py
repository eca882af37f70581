"""soragen replay FILE"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from soragen.cli import options, output
from soragen.cli.making import Common, make, make_shots
from soragen.errors import InputError


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
    from soragen.pipeline.replay import is_joined, read_replay, read_replay_shots

    changes: dict[str, Any] = {
        "prompt": prompt, "model": model, "negative": negative, "size": size, "seconds": seconds, "frames": frames,
        "fps": fps, "steps": steps, "guidance": guidance, "shift": shift, "solver": solver, "lora": lora or None,
    }  # fmt: skip
    how: dict[str, Any] = {"seed": seed, "device": device, "dtype": dtype}
    common = Common(
        file=file, overwrite=overwrite, no_metadata=no_metadata, strict=strict, dry_run=dry_run, as_json=as_json,
        quiet=quiet, debug=debug,
    )  # fmt: skip
    with output.Talk(quiet=quiet) as talk:
        if is_joined(source):
            if said := [name for name, value in changes.items() if value is not None]:
                words = f"{source} is joined of several shots: --{said[0]} is not for all of them"
                raise InputError(words, "change its storyboard, and run soragen storyboard")
            shots = read_replay_shots(source, file, listen=talk.listen, **how)
            common = replace(common, device=shots.device, dtype=shots.dtype)
            make_shots(shots.board, talk, common, began=began, lossless=shots.lossless)
            return
        again = read_replay(source, listen=talk.listen, lora_partial=lora_partial, **changes, **how)
        common = replace(common, device=again.device, dtype=again.dtype)
        lossless = again.lossless and (file is None or file.suffix.lower() == again.suffix)
        make(
            again.request, talk, common, began=began, stem=output_stem(again.request), suffix=again.suffix,
            say_seed=seed == "random", lossless=lossless,
        )  # fmt: skip
