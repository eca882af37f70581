"""The models on this machine: one folder each, in the published layout, with a record of what was put there. No torch.

The record, soragen.lock.json, holds where the files came from, their hashes, and the licences that were agreed to. It
is written anew after each file, so that what was there before an interruption is known after it.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from soragen.errors import InputError, ResourceError, WeightsError

LOCK = "soragen.lock.json"


@dataclass(frozen=True)
class File:
    """One file of a checkpoint, by its path inside the folder. size: bytes. sha256: 64 hexadecimal digits."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Record:
    """What a model's folder holds.

    source, revision: the repository and its commit, or the folder that the files were added from.
    complete: whether all that the model needs is there. agreed: licence to the day on which the user agreed to it.
    """

    source: str
    revision: str = ""
    complete: bool = False
    agreed: dict[str, str] = field(default_factory=dict)
    files: tuple[File, ...] = ()


def models_folder() -> Path:
    """Where models are kept: $SORAGEN_MODELS, or the system's place for a user's data. It need not exist."""
    if named := os.environ.get("SORAGEN_MODELS"):
        return Path(named).expanduser().absolute()
    try:
        if sys.platform == "win32":
            top = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
        elif sys.platform == "darwin":
            top = Path.home() / "Library" / "Application Support"
        else:
            top = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    except RuntimeError as error:
        raise InputError("there is no home folder to keep models in", "set SORAGEN_MODELS to a folder") from error
    return top / "soragen" / "models"


def model_folder(name: str) -> Path:
    """The folder of one model. Raises InputError for a name that is not one of a folder."""
    if not re.fullmatch(r"\w[\w.+-]*", name):
        raise InputError(f"{name!r} cannot be the name of a model", "use letters, digits, '-', '.' and '_'")
    return models_folder() / name


def read_record(folder: Path) -> Record | None:
    """The record in `folder`, or None where there is none. Raises WeightsError for one that cannot be read."""
    path = folder / LOCK
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        files = tuple(File(name, int(file["size"]), str(file["sha256"])) for name, file in values.pop("files").items())
        return Record(**values, files=files)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise WeightsError(f"{path} cannot be read: {error}", "remove it and pull or add the model again") from error


def write_record(folder: Path, record: Record) -> None:
    """Replaces the record at once. Raises ResourceError where it cannot be written."""
    files = {file.path: {"size": file.size, "sha256": file.sha256} for file in record.files}
    text = json.dumps({**asdict(record), "files": files}, indent=1, ensure_ascii=False)
    handle, temporary = -1, ""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=LOCK, suffix=".part")
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text + "\n")
        os.replace(temporary, folder / LOCK)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise ResourceError(f"cannot write in {folder}: {error.strerror}", "set SORAGEN_MODELS to another") from error


def locked(name: str) -> AbstractContextManager[object]:
    """Holds a model's folder against another soragen while the block runs. Raises InputError when one is at it."""
    from filelock import FileLock, Timeout

    folder = models_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / f".{name}.lock").acquire(timeout=0)
    except Timeout as error:
        raise InputError(f"another soragen is at work in the folder of {name}", "wait until it has ended") from error
    except OSError as error:
        raise ResourceError(f"cannot write in {folder}: {error.strerror}", "set SORAGEN_MODELS to another") from error


def absent_files(folder: Path, files: tuple[File, ...]) -> list[str]:
    """Those of `files` that are not in `folder` with the size they should have. Reads none of them."""
    return [file.path for file in files if not _has_size(folder / file.path, file.size)]


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.is_file() and path.stat().st_size == size
    except OSError:
        return False
