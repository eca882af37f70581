"""soragen info FILE"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from soragen.cli import options, output


def info(
    file: Annotated[Path, typer.Argument(help="A video or picture that soragen made.", show_default=False)],
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Show how a video or picture was made, from the recipe inside it."""
    from soragen.pipeline.report import flat, video_report

    report = video_report(file)
    output.json_object(report) if as_json else output.table(flat(report))
