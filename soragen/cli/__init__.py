"""The command line: one command per file, registered here. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

from typing import Annotated

import typer

from soragen.cli.animate import animate
from soragen.cli.batch import batch
from soragen.cli.connect import connect
from soragen.cli.decode import decode
from soragen.cli.doctor import doctor
from soragen.cli.extend import extend
from soragen.cli.generate import generate
from soragen.cli.image import image
from soragen.cli.info import info
from soragen.cli.loop import loop
from soragen.cli.models import models
from soragen.cli.replay import replay
from soragen.cli.restyle import restyle
from soragen.cli.storyboard import storyboard
from soragen.cli.version import print_version

app = typer.Typer(
    name="soragen",
    help="A video from a sentence.",
    epilog='For example: soragen generate "a red ball bouncing on green grass at sunset" --size 1920x1080 --seconds 20',
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
app.command()(generate)
app.command()(image)
app.command()(animate)
app.command()(extend)
app.command()(loop)
app.command()(connect)
app.command()(restyle)
app.command()(storyboard)
app.command()(batch)
app.command()(replay)
app.command()(decode)
app.command()(info)
app.add_typer(models)
app.command()(doctor)


@app.callback()
def soragen(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> int:
    """The `soragen` program: runs the command line and returns the exit code."""
    from soragen.cli.entry import run

    return run(app)
