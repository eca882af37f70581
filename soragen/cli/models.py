"""soragen models list · soragen models info NAME"""

from __future__ import annotations

from typing import Annotated

import typer

from soragen.cli import options, output

models = typer.Typer(name="models", help="The models soragen knows.", rich_markup_mode=None)


@models.command("list")
def list_models(as_json: options.Json = False, debug: options.Debug = False) -> None:
    """List the models by name."""
    from soragen.pipeline.report import models_report

    report = models_report()
    if as_json:
        output.json_object(report)
    else:
        output.table([tuple(report[0]), *(tuple(model.values()) for model in report)])


@models.command("info")
def model_info(
    name: Annotated[str, typer.Argument(help="A name from `models list`, or a folder.", show_default=False)],
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Show one model: its licence, native size, defaults and abilities."""
    from soragen.pipeline.report import flat, model_report

    report = model_report(name)
    output.json_object(report) if as_json else output.table(flat(report))
