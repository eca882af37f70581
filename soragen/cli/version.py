"""soragen --version"""

from __future__ import annotations

import typer

from soragen import __version__
from soragen.cli import output


def print_version(wanted: bool) -> None:
    if wanted:
        output.data(f"soragen {__version__}")
        raise typer.Exit()
