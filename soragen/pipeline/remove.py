"""A model off this machine."""

from __future__ import annotations

import shutil
from pathlib import Path

from soragen.errors import InputError, ResourceError
from soragen.installed import locked, model_folder, models_folder


def plan_removal(name: str) -> tuple[Path, int]:
    """The folder that goes, and the bytes in it. Raises InputError when it is not there."""
    folder = model_folder(name)
    if not folder.is_dir():
        raise InputError(f"{name} is not in {models_folder()}", "soragen models list says which are here")
    return folder, sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def remove(name: str) -> None:
    """Deletes the folder of a model. Links in it go, what they lead to stays."""
    folder, _ = plan_removal(name)
    with locked(name):
        try:
            folder.unlink() if folder.is_symlink() else shutil.rmtree(folder)
        except OSError as error:
            raise ResourceError(f"cannot delete {folder}: {error.strerror}", "see who may write there") from error
