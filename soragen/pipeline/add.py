"""A model from a folder that the user has, without a copy: its files are linked into soragen's own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from soragen.catalog import catalog, find, identify
from soragen.checkpoint import Checkpoint
from soragen.errors import InputError, ResourceError, WeightsError
from soragen.installed import File, Record, locked, model_folder, read_record, write_record
from soragen.layout import compare, missing_parts, needed_files, transformer_class_of
from soragen.models import hub
from soragen.models.download import read_digests, reuse
from soragen.models.hub import RemoteFile
from soragen.pipeline.events import Listener, Progress, Stage
from soragen.pipeline.origins import single_files
from soragen.pipeline.pull import NO_PICKLES


def add(path: Path, name: str | None, listen: Listener) -> tuple[Checkpoint, list[str]]:
    """Makes the files in `path` those of a known model. Returns the model, and what it lacks to be whole.

    name: which model it is, where its configs do not tell. Raises InputError, WeightsError.
    """
    if not path.is_dir():
        what = "is a file" if path.exists() else "is not there"
        raise InputError(f"{path} {what}", "give a folder in the published layout, with transformer/ and vae/")
    checkpoint = _identified(path, name)
    needed = needed_files(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    if not any(file.endswith(".safetensors") for file in needed):
        raise WeightsError(f"{path} holds no weights in safetensors", NO_PICKLES)
    loras = [part.file for part in checkpoint.loras]
    needed += [file for file in loras if (path / file).is_file()]
    folder, published = model_folder(checkpoint.name), {file.path: file for file in checkpoint.files}
    sizes = {file: (path / file).stat().st_size for file in needed}
    done = 0

    def on_bytes(count: int) -> None:
        nonlocal done
        done += count
        listen(Progress("hash", done, sum(sizes.values()), "bytes"))

    listen(Stage("hash", f"{len(needed)} files"))
    with locked(checkpoint.name):
        record = read_record(folder) or Record(str(path.resolve()))
        files = {file.path: file for file in record.files}
        for relative, size in sizes.items():
            digests = read_digests(path / relative, RemoteFile(relative, size), on_bytes)
            files[relative] = File(relative, size, digests.sha256.hexdigest())
            if published.get(relative, files[relative]) != files[relative]:
                raise WeightsError(
                    f"{path / relative} is not the published file", f"soragen models pull {checkpoint.name}"
                )
            if not reuse(path / relative, folder / relative):
                raise ResourceError(f"cannot link {path / relative} into {folder}", f"use it by --model {path}")
        missing = missing_parts(folder) + [file for file in loras if file not in files]
        write_record(folder, replace(record, complete=not missing, files=tuple(files.values())))
    return checkpoint, missing


def add_from_shared_cache(name: str, listen: Listener) -> tuple[Checkpoint, list[str]]:
    """A pull without a network: what other programs left in the cache of huggingface_hub. Raises WeightsError."""
    checkpoint = catalog().get(name) or find(name)
    if files := single_files(checkpoint):
        raise WeightsError(
            f"HF_HUB_OFFLINE is set, and {name} is made of single files",
            f"unset it, or soragen models add {' '.join(files)} and its text encoder --as {name}",
        )
    if checkpoint.loras:
        raise WeightsError(
            f"HF_HUB_OFFLINE is set, and {name} is a model with a LoRA from another repository",
            "unset it, or use --lora with the model that it changes",
        )
    folder = hub.snapshot_in_shared_cache(checkpoint.source, checkpoint.revision) if checkpoint.is_hub else None
    if folder is None:
        raise WeightsError(
            f"HF_HUB_OFFLINE is set, and the shared cache does not hold {name}",
            "unset it, or soragen models add FOLDER",
        )
    return add(folder, name, listen)


def _identified(path: Path, name: str | None) -> Checkpoint:
    """The model of that name, if the folder can be it; without a name, the one that the configs tell."""
    if name is None:
        candidates, fits = identify(path)
        names = [checkpoint.name for checkpoint in candidates if checkpoint.is_hub]
        if fits and len(candidates) == 1 and names:
            return candidates[0]
        raise InputError(
            f"which model {path} holds cannot be told from its configs",
            f"name it with --as, such as --as {names[0]}" if names else f"use the folder itself: --model {path}",
        )
    checkpoint = catalog().get(name) or find(name)
    if not checkpoint.is_hub:
        raise InputError(f"{name} is not a model that is pulled", "use the folder itself: --model FOLDER")
    if (path / "transformer").is_dir():
        found, denied = transformer_class_of(path), compare(path, checkpoint.signature)[1]
        if found != checkpoint.transformer_class:
            denied = [f"its transformer is a {found} and not a {checkpoint.transformer_class}"]
        if denied:
            raise WeightsError(f"{path} is not {name}: {'; '.join(denied)}", "leave --as out to see what it is")
    return checkpoint
