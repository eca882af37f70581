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
from soragen.pipeline.origins import NO_PICKLES, Origin, origins, refuse_pickles
from soragen.pipeline.pull import agreement, complete, lacks


def add(path: Path, name: str | None, listen: Listener) -> tuple[Checkpoint, list[str]]:
    """Makes the files in `path` those of a known model. Returns the model, and what it lacks to be whole.

    name: which model it is, where its configs do not tell. Raises InputError, WeightsError.
    """
    if not path.is_dir():
        what = "is a file" if path.exists() else "is not there"
        raise InputError(f"{path} {what}", "give a folder in the published layout, with transformer/ and vae/")
    checkpoint = _identified(path, name)
    there = [file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()]
    needed = needed_files(there)
    if not any(file.endswith(".safetensors") for file in needed):
        raise WeightsError(f"{path} holds no weights in safetensors", NO_PICKLES)
    refuse_pickles(path, there)
    loras = [part.file for part in checkpoint.loras]
    needed += [file for file in loras if (path / file).is_file()]
    folder = model_folder(checkpoint.name)
    with locked(checkpoint.name):
        record = read_record(folder) or Record(str(path.resolve()))
        record = _link(checkpoint, record, {file: path / file for file in needed}, listen)
        there = [file.path for file in record.files]
        missing = missing_parts(folder) + [lora for lora in loras if lora not in there]
        write_record(folder, replace(record, complete=not missing))
    return checkpoint, missing


def add_from_shared_cache(name: str, listen: Listener) -> Path:
    """A pull without a network: what other programs left in the cache of huggingface_hub, of every repository that the
    model has parts from. Returns the model's folder. The user has agreed to the terms.

    Raises InputError, and WeightsError for what is not in the cache; what is there stays linked.
    """
    checkpoint = catalog().get(name) or find(name)
    if not checkpoint.is_hub:
        raise InputError(f"{name} needs no download", f"it is used with --model {name}")
    roots = {origin: _root(origin) for origin in origins(checkpoint)}
    files = {path: root / path for origin, root in roots.items() for path in _cached(origin, root)}
    folder, own = model_folder(checkpoint.name), next(iter(roots.values()))
    with locked(checkpoint.name):
        before = read_record(folder) or Record(checkpoint.source)
        agreed = {**agreement(checkpoint), **before.agreed}
        before = replace(before, source=checkpoint.source, revision=own.name, complete=False, agreed=agreed)
        record = _link(checkpoint, before, files, listen)
        write_record(folder, record)
        for file in lacks(checkpoint, folder):
            part = file.partition("/")[0]
            source = next((origin.source for origin in roots if part in origin.folders), checkpoint.source)
            raise _not_cached(f"{file} of {source}")
        complete(checkpoint, folder, record)
    return folder


def _root(origin: Origin) -> Path:
    """The folder in the shared cache with the files of a repository; its name is that of the commit."""
    if not origin.file:
        if (snapshot := hub.snapshot_in_shared_cache(origin.source, origin.revision)) is None:
            raise _not_cached(origin.source)
        return snapshot
    if (file := hub.in_shared_cache(origin.source, origin.file, origin.revision)) is None:
        raise _not_cached(f"{origin.file} of {origin.source}")
    return file.parents[origin.file.count("/")]


def _cached(origin: Origin, root: Path) -> list[str]:
    there = (path for path in root.rglob("*") if path.is_file())
    files = [RemoteFile(path.relative_to(root).as_posix(), path.stat().st_size) for path in there]
    return [file.path for file in origin.wanted(files)]


def _not_cached(what: str) -> WeightsError:
    words = f"HF_HUB_OFFLINE is set, and the shared cache of huggingface_hub does not hold {what}"
    return WeightsError(words, "unset it, or soragen models add the files that you have")


def _link(checkpoint: Checkpoint, record: Record, paths: dict[str, Path], listen: Listener) -> Record:
    """The record with these files, by their paths in the model's folder, where they are linked after they were hashed.

    Raises WeightsError for one that is not the published file, ResourceError.
    """
    folder, published = model_folder(checkpoint.name), {file.path: file for file in checkpoint.files}
    files = {file.path: file for file in record.files}
    sizes = {relative: path.stat().st_size for relative, path in paths.items()}
    done = 0

    def on_bytes(count: int) -> None:
        nonlocal done
        done += count
        listen(Progress("hash", done, sum(sizes.values()), "bytes"))

    listen(Stage("hash", f"{len(paths)} files"))
    for relative, path in paths.items():
        size = sizes[relative]
        digests = read_digests(path, RemoteFile(relative, size), on_bytes)
        files[relative] = File(relative, size, digests.sha256.hexdigest())
        if published.get(relative, files[relative]) != files[relative]:
            raise WeightsError(f"{path} is not the published file", f"soragen models pull {checkpoint.name}")
        if not reuse(path, folder / relative):
            raise ResourceError(f"cannot link {path} into {folder}", f"use it by --model {path}")
    return replace(record, files=tuple(files.values()))


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
