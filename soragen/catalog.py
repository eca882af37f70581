"""The checkpoints soragen knows: weights.toml of the package, then the user's own, as frozen `Checkpoint`s. No torch.

A table of weights.toml has the fields of `Checkpoint`, name for name; a key that is none of them is an error that names
it and the file. A folder in the published layout is a checkpoint too: `find` reads its class names and takes the rest
from the table whose `transformer_class` it is.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import os
import sys
import tomllib
import typing
from dataclasses import dataclass
from fractions import Fraction
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from soragen.errors import InputError, WeightsError

EMBEDDED = "embedded"
SCHEDULES = ("flow", "flow_shifted_twice", "flow_truncated", "flow_dynamic", "linear_quadratic")
SOLVERS = ("euler", "unipc")
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class File:
    """One file of a checkpoint, by its path inside the folder. size: bytes. sha256: 64 hexadecimal digits."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Licence:
    """id: SPDX where there is one. The rest are short answers for people: may I sell it, where, what of my videos."""

    id: str
    url: str
    commercial: str
    territory: str
    output: str


@dataclass(frozen=True)
class Native:
    """What the checkpoint was trained on.

    max_area: the largest area one grid makes sense of, as a multiple of width x height.
    max_num_frames: the longest clip it was trained on; longer ones are made in windows.
    """

    width: int
    height: int
    num_frames: int
    fps: Fraction
    max_area: float
    max_num_frames: int

    @property
    def seconds(self) -> Fraction:
        """How long the native clip lasts. Its first frame is the start, so 25 frames at 12 fps are 2 seconds."""
        return max(Fraction(self.num_frames - 1), Fraction(1)) / self.fps


@dataclass(frozen=True)
class Defaults:
    """What is used where the user asked for nothing. width and height may differ from the native grid."""

    width: int
    height: int
    num_steps: int
    guidance_scale: float
    shift: float
    schedule: str
    solver: str
    negative_prompt: str


@dataclass(frozen=True)
class Dtypes:
    """The type each network computes in on an accelerator."""

    text_encoder: str
    transformer: str
    vae: str


@dataclass(frozen=True)
class Abilities:
    """What the checkpoint was trained to take: a prompt, a given first or last frame, any given frames."""

    text: bool
    first_frame: bool
    last_frame: bool
    any_frames: bool


@dataclass(frozen=True)
class Checkpoint:
    """source: "embedded", a hub repository "owner/name", or the absolute path of a folder. revision: of the repository.

    files: empty when they are not known in advance (a folder of the user's own).
    """

    name: str
    family: str
    transformer_class: str
    description: str
    source: str
    licence: Licence
    native: Native
    defaults: Defaults
    dtypes: Dtypes
    abilities: Abilities
    revision: str = ""
    files: tuple[File, ...] = ()

    @property
    def num_bytes(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def digest(self) -> str:
        """SHA-256 of the list of files, the hash of a model in one word; "" when the files are not known in advance."""
        listing = "".join(f"{file.sha256}  {file.path}\n" for file in sorted(self.files, key=lambda file: file.path))
        return hashlib.sha256(listing.encode()).hexdigest() if self.files else ""


def catalog() -> dict[str, Checkpoint]:
    """Every known checkpoint by name, in the order of the files. Raises InputError for a file with a mistake in it."""
    tables = _read_tables(packaged_catalog())
    own = user_catalog()
    if own.is_file() or "SORAGEN_WEIGHTS" in os.environ:
        for name, values in _read_tables(own).items():
            tables[name] = _merge(tables.get(name, {}), values)
    return {name: _build(Checkpoint, {"name": name, **values}, name) for name, values in tables.items()}


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
        return known[name_or_path]
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        return _from_folder(folder.resolve(), known)
    if folder.exists():
        raise InputError(f"model {name_or_path!r} is a file", "give the folder that holds transformer/ and vae/")
    nearest = difflib.get_close_matches(name_or_path.lower(), known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(nearest)}? " if nearest else f"known: {', '.join(known)}; "
    raise InputError(f"no model named {name_or_path!r}", hint + "the path of a folder works too")


def checkpoint_folder(checkpoint: Checkpoint) -> Path:
    """The folder with the checkpoint's files. Raises WeightsError when it is not on this machine."""
    if checkpoint.source == EMBEDDED:
        folder = Path(str(resources.files("soragen"))) / "checkpoints" / checkpoint.name
    elif Path(checkpoint.source).expanduser().is_absolute():
        folder = Path(checkpoint.source).expanduser()
    else:
        raise WeightsError(
            f"{checkpoint.name} ({checkpoint.source}) is not on this machine",
            "download the repository yourself and give its folder: --model PATH",
        )
    if not folder.is_dir():
        raise WeightsError(f"the folder of {checkpoint.name} is missing: {folder}", "install soragen again")
    return folder


def measure_files(folder: Path) -> tuple[File, ...]:
    """Every file below `folder` with its size and SHA-256, sorted by path: what a `files` table should hold."""
    files = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        files.append(File(path.relative_to(folder).as_posix(), path.stat().st_size, sha256))
    return tuple(sorted(files, key=lambda file: file.path))


def _from_folder(folder: Path, known: dict[str, Checkpoint]) -> Checkpoint:
    """A checkpoint from a folder: soragen.json, if there, changes single values as a user's table would."""
    transformer_class = _transformer_class(folder)
    for checkpoint in known.values():
        if checkpoint.transformer_class == transformer_class:
            break
    else:
        classes = ", ".join(sorted({checkpoint.transformer_class for checkpoint in known.values()}))
        raise InputError(f"{folder} holds a {transformer_class}, which is not supported", f"supported: {classes}")
    own = {"source": str(folder), "revision": "", "files": {}, "description": f"{checkpoint.family} in {folder}"}
    values = _merge(dataclasses.asdict(checkpoint), own)
    if (extra := folder / "soragen.json").is_file():
        changes = _read_json(extra)
        _check_keys(Checkpoint, changes, str(extra))
        values = _merge(values, changes)
    return _build(Checkpoint, {**values, "name": folder.name}, str(folder))


def _transformer_class(folder: Path) -> str:
    """`_class_name` of transformer/config.json, or the transformer that model_index.json names."""
    config, index = folder / "transformer" / "config.json", folder / "model_index.json"
    found: object = None
    if config.is_file():
        found = _read_json(config).get("_class_name")
    elif index.is_file():
        part = _read_json(index).get("transformer")
        found = part[1] if isinstance(part, list) and len(part) == 2 else None
    if not isinstance(found, str):
        raise InputError(
            f"{folder} is not a checkpoint in the published layout",
            "it needs transformer/config.json with a _class_name",
        )
    return found


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}", "replace the file with the published one") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} does not hold a JSON object", "replace the file with the published one")
    return values


def _read_tables(path: Path) -> dict[str, dict[str, Any]]:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}", "correct the file, or remove it") from error
    for name, values in tables.items():
        _check_keys(Checkpoint, values, f"[{name}] in {path}")
    return tables


def _check_keys(kind: type[Any], values: object, where: str) -> None:
    """Refuses keys that are not fields of `kind`, here and in the tables below."""
    if not isinstance(values, dict):
        raise InputError(f"{where} is not a table", "write it as [name] with keys below it")
    hints = {key: hint for key, hint in typing.get_type_hints(kind).items() if key != "name"}
    for key, value in values.items():
        if key not in hints:
            nearest = difflib.get_close_matches(key, hints, n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else f"known: {', '.join(hints)}"
            if isinstance(value, dict):
                hint += '; a name with a dot in it needs quotes: ["a-1.5"]'
            raise InputError(f"unknown key {key!r} for {where}", hint)
        if dataclasses.is_dataclass(hints[key]):
            _check_keys(typing.cast(type, hints[key]), value, f"{key} of {where}")
        elif key == "files" and isinstance(value, dict):
            for path, facts in value.items():
                _check_keys(File, facts, f"file {path} of {where}")


def _merge(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`values` with `changes` laid over it. Tables are merged, except the list of files, which stands as a whole."""
    merged = dict(values)
    for key, change in changes.items():
        both = isinstance(change, dict) and isinstance(values.get(key), dict) and key != "files"
        merged[key] = _merge(values[key], change) if both else change
    return merged


T = TypeVar("T")


def _build(kind: type[T], values: dict[str, Any], where: str) -> T:
    """An instance of the dataclass `kind`. Raises InputError for a missing value and for one of the wrong type."""
    arguments: dict[str, Any] = {}
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if field.name in values:
            arguments[field.name] = _value(hints[field.name], field.name, values[field.name], where)
        elif field.default is dataclasses.MISSING:
            raise InputError(f"{where} has no {field.name!r} in the list of models", f"add it to {user_catalog()}")
    return kind(**arguments)


CHOICES = {"schedule": SCHEDULES, "solver": SOLVERS, "text_encoder": DTYPES, "transformer": DTYPES, "vae": DTYPES}


def _value(hint: Any, key: str, value: Any, where: str) -> Any:
    if key == "files" and isinstance(value, dict):
        return tuple(_build(File, {"path": path, **facts}, f"file {path} of {where}") for path, facts in value.items())
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return _build(typing.cast(type, hint), value, f"{key} of {where}")
    if hint is Fraction and isinstance(value, int | str | Fraction):
        try:
            value = Fraction(value)
        except (ValueError, ZeroDivisionError):
            value = None
    elif hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not hint or (hint in (int, float, Fraction) and value <= 0):
        raise InputError(f"{key} of {where} is {value!r}", f"it must be a {hint.__name__}, numbers above zero")
    if key in CHOICES and value not in CHOICES[key]:
        raise InputError(f"{key} of {where} is {value!r}", f"use one of {', '.join(CHOICES[key])}")
    return value
