"""Whether the files of a model are what they should be: their hashes, and the tensors in them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from soragen.catalog import checkpoint_folder, find
from soragen.checkpoint import EMBEDDED, Checkpoint
from soragen.errors import WeightsError
from soragen.installed import File, locked, model_folder, read_record, write_record
from soragen.layout import needed_files
from soragen.models.download import read_digests
from soragen.models.hub import RemoteFile
from soragen.models.weights import some
from soragen.pipeline.events import Listener, Progress, Stage


@dataclass(frozen=True)
class Checked:
    """One file. problem: "" when it is right."""

    path: str
    size: int
    problem: str


def verify(name: str, listen: Listener) -> list[Checked]:
    """Every file of a model, read from its first byte to its last.

    A file with the wrong hash is struck from the record, so that the next pull fetches it, and only it. Of a folder of
    the user's own the hashes are not known, and the tensors alone are looked at; of the embedded model the hashes
    alone, as they come with this program. Raises WeightsError, InputError.
    """
    checkpoint = find(name)
    folder = _folder(checkpoint)
    files = checkpoint.files or _recorded(checkpoint) or _unknown(folder)
    total, done = sum(file.size for file in files), 0
    checked = []
    listen(Stage("verify", checkpoint.name))
    for file in files:
        checked.append(Checked(file.path, file.size, _problem(folder, file, look=checkpoint.source != EMBEDDED)))
        done += file.size
        listen(Progress("verify", done, total, "bytes"))
    if checkpoint.is_hub and (wrong := {one.path for one in checked if one.problem == WRONG_HASH}):
        with locked(checkpoint.name):
            if record := read_record(folder):
                kept = tuple(file for file in record.files if file.path not in wrong)
                write_record(folder, replace(record, complete=False, files=kept))
    return checked


WRONG_HASH = "its SHA-256 is not the one it should be"


def failure(name: str, checked: list[Checked]) -> WeightsError | None:
    """The error that sums up what `verify` found, or None."""
    wrong = [f"{one.path}: {one.problem}" for one in checked if one.problem]
    if not wrong:
        return None
    pulled = find(name).is_hub
    return WeightsError(
        f"{len(wrong)} of {len(checked)} files of {name} are wrong: {some(wrong)}",
        f"soragen models pull {name} fetches them again" if pulled else "replace them with the published ones",
    )


def _folder(checkpoint: Checkpoint) -> Path:
    """The folder, also of a model that is only partly here."""
    partly = checkpoint.is_hub and read_record(model_folder(checkpoint.name)) is not None
    return model_folder(checkpoint.name) if partly else checkpoint_folder(checkpoint)


def _recorded(checkpoint: Checkpoint) -> tuple[File, ...]:
    record = read_record(model_folder(checkpoint.name)) if checkpoint.is_hub else None
    return record.files if record else ()


def _unknown(folder: Path) -> tuple[File, ...]:
    """The files of a folder that nobody has hashed."""
    paths = needed_files(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return tuple(File(path, (folder / path).stat().st_size, "") for path in paths)


def _problem(folder: Path, file: File, look: bool) -> str:
    path = folder / file.path
    if not path.is_file():
        return "it is missing"
    expected = RemoteFile(file.path, file.size, file.sha256)
    if file.sha256 and not read_digests(path, expected).fits(expected):
        return WRONG_HASH
    if path.suffix == ".safetensors" and look:
        try:
            return "; ".join(_bad_tensors(path))
        except (SafetensorError, OSError) as error:
            return f"it cannot be read ({error})"
    return ""


def _bad_tensors(path: Path) -> Iterator[str]:
    """What no trained network holds: values that are not finite, whole matrices of zeros. One tensor in memory."""
    with safe_open(path, framework="pt", device="cpu") as stored:
        for name in stored.keys():  # noqa: SIM118 (safe_open is not a mapping)
            tensor = stored.get_tensor(name)
            if tensor.numel() == 0 or not tensor.is_floating_point():
                continue
            extremes = torch.stack(torch.aminmax(tensor if tensor.itemsize > 1 else tensor.float()))
            if not extremes.isfinite().all():
                yield f"{name} holds values that are not finite"
            elif tensor.ndim > 1 and not extremes.any():
                yield f"{name} is all zero"
