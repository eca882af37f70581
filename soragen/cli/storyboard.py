"""soragen storyboard FILE"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from soragen.cli import options, output
from soragen.cli.making import Common, make_shots


def storyboard(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A .toml file. For all shots: size, fps, model, seed, steps, guidance, negative, shift, solver, lora, "
            "lora_partial, quantize, attention. Then a table [[shot]] for each: prompt, seconds or frames, seed, "
            "negative, guidance; image, a picture to begin with, and its fit (crop, pad or stretch); continued = true "
            "goes on from the last frames of the shot before.",
            show_default=False,
        ),
    ],
    file: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write. Default: the name of FILE, as .mp4.")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option("--seed", metavar="N", help="Of the first shot, instead of FILE's; each one has the next."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", metavar="NAME", help="A name or a folder, instead of FILE's.")
    ] = None,
    lossless: options.Lossless = False,
    lora: options.Lora = None,
    lora_partial: options.LoraPartial = False,
    device: options.Device = None,
    dtype: options.Dtype = None,
    quantize: options.Quantize = None,
    attention: options.Attention = None,
    overwrite: options.Overwrite = False,
    no_metadata: options.NoMetadata = False,
    strict: options.Strict = False,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Make one video of several shots, each with its own prompt, cut or continued into each other.

    Options hold for all shots, instead of what FILE says. Shots that are made are kept until the video is in place: the
    same command goes on where it stopped.
    """
    began = time.monotonic()
    from soragen.pipeline.storyboard import read_storyboard
    from soragen.video.naming import next_free

    instead = {
        "model": model, "lora": lora or None, "lora_partial": lora_partial or None, "quantize": quantize,
        "attention": attention,
    }  # fmt: skip
    path = file or next_free(Path(source.stem + options.video_suffix(lossless)))
    with output.Talk(quiet=quiet) as talk:
        board = read_storyboard(source, path, seed=seed, instead=instead, odd_sides=lossless, listen=talk.listen)
        common = Common(
            device=device, dtype=dtype, overwrite=overwrite, no_metadata=no_metadata, strict=strict, dry_run=dry_run,
            as_json=as_json,
        )  # fmt: skip
        make_shots(board, talk, common, began=began, lossless=lossless)
