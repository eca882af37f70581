"""The checkpoints soragen knows: weights.toml of the package, then the user's own, as frozen `Checkpoint`s. No torch.

A table of weights.toml has the fields of `Checkpoint`, name for name; a key that is none of them is an error that names
it and the file. `like` names another table whose values hold where the own ones say nothing; `licence` may name a table
below [licences]. A folder in the published layout is a checkpoint too: `find` reads its config files and takes the rest
from the table that they fit.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import os
import sys
from importlib import resources
from pathlib import Path
from typing import Any

from soragen.checkpoint import EMBEDDED, Checkpoint, Licence
from soragen.errors import InputError, WeightsError
from soragen.installed import File, absent_files, model_folder, models_folder, read_record
from soragen.layout import compare, read_json, transformer_class_of
from soragen.tables import Table, build, check_keys, merge, read_toml

OWN = "soragen.json"
"""In a folder of the user's own: values that differ from those of the model it is nearest to, or `like` another."""


def catalog() -> dict[str, Checkpoint]:
    """Every known checkpoint by name, in the order of the files. Raises InputError for a file with a mistake in it."""
    return {name: _checkpoint(name, values, name) for name, values in _tables().items()}


def _tables() -> dict[str, Table]:
    """The tables of all checkpoints, the user's laid over the package's, with `like` and names of licences resolved."""
    tables = _read_tables(packaged_catalog())
    own = user_catalog()
    if own.is_file() or "SORAGEN_WEIGHTS" in os.environ:
        for name, values in _read_tables(own).items():
            tables[name] = merge(tables.get(name, {}), values)
    licences = tables.pop("licences", {})
    return {name: _with_licences(_inherited(name, tables), licences, name) for name in tables}


def _inherited(name: str, tables: dict[str, Table], below: tuple[str, ...] = ()) -> Table:
    values = dict(tables[name])
    like = values.pop("like", None)
    if like is None:
        return values
    if like not in tables or like in (name, *below):
        raise InputError(f"[{name}] is to be like {like!r}", f"name another model: {', '.join(tables)}")
    above = {key: value for key, value in _inherited(like, tables, (name, *below)).items() if key not in OF_ONE}
    return merge(above, values)


OF_ONE = ("revision", "file", "files", "download_bytes")
"""What holds for one repository, and not for a checkpoint that is like it."""


def _with_licences(values: Table, licences: Table, where: str) -> Table:
    """`values` with the licences that are named replaced by what [licences] says of them."""

    def licence(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if value not in licences:
            raise InputError(f"licence of {where} is {value!r}", f"known: {', '.join(licences)}; or write a table")
        return licences[value]

    parts = {
        part: {**facts, "licence": licence(facts["licence"])} if "licence" in facts else facts
        for part, facts in values.get("parts", {}).items()
    }
    named = {"licence": licence(values["licence"])} if "licence" in values else {}
    return {**values, **named, "parts": parts}


def packaged_catalog() -> Path:
    """weights.toml inside the installed package, or at the top of a source checkout."""
    package = Path(str(resources.files("soragen")))
    installed = package / "weights.toml"
    return installed if installed.is_file() else package.parent / "weights.toml"


def user_catalog() -> Path:
    """The user's own weights.toml, which need not exist."""
    if path := os.environ.get("SORAGEN_WEIGHTS"):
        return Path(path)
    home = Path.home()
    if sys.platform == "win32":
        folder = Path(os.environ.get("APPDATA", home / "AppData" / "Roaming"))
    elif sys.platform == "darwin":
        folder = home / "Library" / "Application Support"
    else:
        folder = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    return folder / "soragen" / "weights.toml"


def find(name_or_path: str) -> Checkpoint:
    """The checkpoint of that name, or the one in that folder. Raises InputError, with the nearest names."""
    known = catalog()
    if name_or_path in known:
        return _with_recorded_files(known[name_or_path])
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        return _from_folder(folder.resolve())
    if folder.exists():
        raise InputError(f"model {name_or_path!r} is a file", "soragen models add makes a model of such files")
    if (added := models_folder() / name_or_path / OWN).is_file():
        return _from_folder(added.parent)
    nearest = difflib.get_close_matches(name_or_path.lower(), known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(nearest)}? " if nearest else f"known: {', '.join(known)}; "
    raise InputError(f"no model named {name_or_path!r}", hint + "the path of a folder works too")


def checkpoint_folder(checkpoint: Checkpoint) -> Path:
    """The folder with the checkpoint's files. Raises WeightsError when it is not on this machine."""
    if checkpoint.is_hub:
        folder = model_folder(checkpoint.name)
        record = read_record(folder)
        whole = record is not None and record.complete and not absent_files(folder, record.files)
        if not whole:
            state = "not on this machine" if record is None else "only partly on this machine"
            size = f" ({checkpoint.num_bytes / 1e9:.1f} GB)" if checkpoint.num_bytes else ""
            command = f"soragen models pull {checkpoint.name}"
            raise WeightsError(
                f"{checkpoint.name} is {state}", f"{command}{size}; {command} --dry-run shows what it would take"
            )
        return folder
    if checkpoint.source == EMBEDDED:
        folder = Path(str(resources.files("soragen"))) / "checkpoints" / checkpoint.name
    else:
        folder = Path(checkpoint.source).expanduser()
    if not folder.is_dir():
        hint = "install soragen again" if checkpoint.source == EMBEDDED else "correct its source in your weights.toml"
        raise WeightsError(f"the folder of {checkpoint.name} is missing: {folder}", hint)
    return folder


def _with_recorded_files(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with the files that were pulled or added, where the catalog lists none."""
    if checkpoint.files or not checkpoint.is_hub:
        return checkpoint
    record = read_record(model_folder(checkpoint.name))
    if record is None or not record.complete:
        return checkpoint
    return dataclasses.replace(checkpoint, revision=record.revision, files=record.files)


def measure_files(folder: Path) -> tuple[File, ...]:
    """Every file below `folder` with its size and SHA-256, sorted by path: what a `files` table should hold."""
    files = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        files.append(File(path.relative_to(folder).as_posix(), path.stat().st_size, sha256))
    return tuple(sorted(files, key=lambda file: file.path))


def _from_folder(folder: Path) -> Checkpoint:
    """A checkpoint from a folder: soragen.json, if there, changes single values as a user's table would."""
    extra, tables = folder / OWN, _tables()
    changes = read_json(extra) if extra.is_file() else {}
    check_keys(Checkpoint, changes, str(extra), also=("like",))
    like = changes.pop("like", None) or identify(folder)[0][0].name
    if like not in tables:
        raise InputError(f"{extra} is to be like {like!r}", f"name another model: {', '.join(tables)}")
    inherited = {key: value for key, value in tables[like].items() if key not in OF_ONE}
    own = {"source": str(folder), "revision": "", "files": {}, "description": f"{inherited['family']} in {folder}"}
    return _checkpoint(folder.name, merge(merge(inherited, own), changes), str(folder))


def identify(folder: Path) -> tuple[list[Checkpoint], bool]:
    """The known checkpoints that the config files in `folder` are nearest to, and whether they fit in every value.

    More than one where configs do not tell them apart. Raises InputError where none has the folder's transformer.
    """
    transformer_class, known = transformer_class_of(folder), catalog().values()
    same_class = [
        checkpoint
        for checkpoint in known
        if checkpoint.transformer_class == transformer_class and not checkpoint.file and not checkpoint.loras
    ]  # what is published as a file is no folder, and no folder tells which LoRA goes with it
    if not same_class:
        classes = ", ".join(sorted({checkpoint.transformer_class for checkpoint in known}))
        raise InputError(f"{folder} holds a {transformer_class}, which is not supported", f"supported: {classes}")
    ranks = []
    for checkpoint in same_class:
        confirmed, denied = compare(folder, checkpoint.signature)
        ranks.append((not denied, confirmed))
    best = max(ranks)
    return [checkpoint for checkpoint, rank in zip(same_class, ranks, strict=True) if rank == best], best[0]


def _read_tables(path: Path) -> dict[str, Table]:
    tables = read_toml(path)
    for name, values in tables.items():
        if name == "licences":
            for licence, terms in values.items():
                check_keys(Licence, terms, f"[licences.{licence}] in {path}")
        else:
            check_keys(Checkpoint, values, f"[{name}] in {path}", also=("like",))
    return tables


def _checkpoint(name: str, values: Table, where: str) -> Checkpoint:
    return build(Checkpoint, {**values, "name": name}, where, f"add it to {user_catalog()}")
