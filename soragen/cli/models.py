"""soragen models list · info · pull · verify · add · path · remove"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from soragen.cli import options, output

models = typer.Typer(name="models", help="The models soragen knows: list, download, check.", rich_markup_mode=None)


@models.command("list")
def list_models(as_json: options.Json = False, debug: options.Debug = False) -> None:
    """List the models by name."""
    from soragen.pipeline.report import models_report

    report = models_report()
    if as_json:
        output.json_object(report)
    else:
        output.table([tuple(report[0]), *(_cells(model) for model in report)])


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


Name = Annotated[str, typer.Argument(help="A name from `models list`.", show_default=False)]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Agree without being asked, as in a script.")]
AGREE = "read the terms with soragen models info, then use --yes"


@models.command("pull")
def pull_model(
    name: Name,
    endpoint: Annotated[
        str | None, typer.Option("--endpoint", metavar="URL", help="The hub or a mirror of it. Default: $HF_ENDPOINT.")
    ] = None,
    yes: Yes = False,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Download a model, after its licence and what it takes of disk and memory were shown. Prints its folder.

    What was interrupted goes on where it stopped. No other command uses the network.
    """
    from soragen.models.hub import is_offline
    from soragen.pipeline.prospect import prospect
    from soragen.pipeline.pull import plan_pull, pull

    if is_offline():
        _pull_offline(name, quiet, yes, dry_run)
        return
    plan = plan_pull(name, endpoint)
    if not (quiet and yes):
        for line in plan.lines():
            output.talk(line)
        for line in prospect(plan):
            output.talk(line)
    if dry_run:
        return
    if not (yes or plan.agreed):
        output.agree("Agree to these terms and download?", AGREE)
    with output.Talk(quiet=quiet) as talk:
        folder = pull(plan, talk.listen)
    output.data(str(folder))


def _pull_offline(name: str, quiet: bool, yes: bool, dry_run: bool) -> None:
    from soragen.catalog import find
    from soragen.pipeline.add import add_from_shared_cache
    from soragen.pipeline.pull import terms

    for line in terms(find(name)):
        output.talk(line)
    if dry_run:
        return
    if not yes:
        output.agree("Agree to these terms?", AGREE)
    with output.Talk(quiet=quiet) as talk:
        folder = add_from_shared_cache(name, talk.listen)
    output.data(str(folder))


@models.command("add")
def add_model(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH",
            help="A folder with transformer/, vae/ and so on; or .safetensors files as other programs have them: the "
            "transformer, the VAE, the text encoder, and a tokenizer where that has none inside.",
            show_default=False,
        ),
    ],
    name: Annotated[
        str | None, typer.Option("--as", metavar="NAME", help="Which model it is, where its files do not tell.")
    ] = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Use the files of a model that are on this machine already. They are linked, not copied.

    Single files make a model with the name of the transformer's file: --model NAME.
    """
    from soragen.pipeline.add import add
    from soragen.pipeline.assemble import assemble

    if len(paths) > 1 or paths[0].is_file():
        with output.Talk(quiet=quiet) as talk:
            folder = assemble(paths, name, talk.listen)
        output.data(str(folder))
        return
    with output.Talk(quiet=quiet) as talk:
        checkpoint, missing = add(paths[0], name, talk.listen)
    _added(checkpoint.name, missing)


def _added(name: str, missing: list[str]) -> None:
    from soragen.installed import model_folder

    if missing:
        output.talk(f"note: still missing: {', '.join(missing)}; soragen models pull {name} fetches only that")
    output.data(str(model_folder(name)))


@models.command("verify")
def verify_model(
    name: Annotated[str, typer.Argument(help="A name from `models list`, or a folder.", show_default=False)],
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Read all files of a model: their hashes, and tensors that are all zero or not finite."""
    from soragen.pipeline.verify import failure, verify

    with output.Talk(quiet=quiet) as talk:
        checked = verify(name, talk.listen)
    if as_json:
        output.json_object([{"path": one.path, "bytes": one.size, "problem": one.problem} for one in checked])
    else:
        output.table([("ok" if not one.problem else "WRONG", one.path, one.problem) for one in checked])
    if error := failure(name, checked):
        raise error


@models.command("path")
def model_path(name: Name, debug: options.Debug = False) -> None:
    """Print the folder of a model that is on this machine."""
    from soragen.catalog import checkpoint_folder, find

    output.data(str(checkpoint_folder(find(name))))


@models.command("remove")
def remove_model(name: Name, yes: Yes = False, debug: options.Debug = False) -> None:
    """Delete the files of a model that was pulled or added. Those it was added from stay."""
    from soragen.pipeline.remove import plan_removal, remove

    folder, num_bytes = plan_removal(name)
    if not yes:
        output.agree(f"Delete {folder} ({num_bytes / 1e9:.1f} GB)?", "use --yes")
    remove(name)


def _cells(model: dict[str, object]) -> tuple[object, ...]:
    return tuple(("yes" if value else "no") if isinstance(value, bool) else value for value in model.values())
