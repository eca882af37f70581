"""A model from a hub onto this machine. Terms, gate and room on the disk are looked at before the first byte."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from soragen.catalog import catalog, find
from soragen.checkpoint import Checkpoint
from soragen.errors import InputError, ResourceError, WeightsError
from soragen.installed import File, Record, absent_files, locked, model_folder, models_folder, read_record, write_record
from soragen.layout import compare, missing_parts
from soragen.models import hub
from soragen.models.download import Refused, check_access, download, read_digests, reuse
from soragen.models.hub import RemoteFile, Repository
from soragen.pipeline.events import Listener, Note, Progress, Stage
from soragen.pipeline.origins import NO_PICKLES, origins, single_files

WRONG_SOURCE = "its source may be wrong"
SPARE = 2**28
"""Bytes of the disk that are left free beside the files."""


@dataclass(frozen=True)
class Pull:
    """What a pull comes to. repositories: with those of their files that are fetched; the checkpoint's own is first.

    here: bytes of it that are on the disk already.
    """

    checkpoint: Checkpoint
    folder: Path
    repositories: tuple[Repository, ...]
    here: int

    @property
    def files(self) -> list[tuple[Repository, RemoteFile]]:
        """Small files first, so that a refusal comes early."""
        pairs = [(repository, file) for repository in self.repositories for file in repository.files]
        return sorted(pairs, key=lambda pair: (pair[1].size > 2**24, pair[1].path))

    @property
    def num_bytes(self) -> int:
        return sum(file.size for _, file in self.files)

    @property
    def agreed(self) -> bool:
        """Whether the user agreed to all licences of the model before."""
        record = read_record(self.folder)
        ids = {licence.id for licence in self.checkpoint.licences.values()}
        return record is not None and ids <= set(record.agreed)

    def lines(self) -> list[str]:
        """The terms and the size, for people."""
        free = shutil.disk_usage(_existing(self.folder)).free
        left = self.num_bytes - self.here
        had = f", {self.here / 1e9:.1f} GB of it here already" if self.here else ""
        return [
            *terms(self.checkpoint),
            *(f"from      {one.endpoint}/{one.source} at {one.revision}" for one in self.repositories),
            f"size      {self.num_bytes / 1e9:.1f} GB in {len(self.files)} files{had}",
            f"to        {self.folder} ({free / 1e9:.1f} GB free, {left / 1e9:.1f} GB needed)",
        ]


def terms(checkpoint: Checkpoint) -> list[str]:
    """The licence of every part: what may be done with it, where, and with the videos."""
    lines = [f"model     {checkpoint.name}: {checkpoint.description}"]
    for part, licence in checkpoint.licences.items():
        lines += [
            f"licence   {part}: {licence.id}, {licence.url}",
            f"          commercial use: {licence.commercial}; where: {licence.territory}; videos: {licence.output}",
        ]
    return lines


def plan_pull(name: str, endpoint: str | None = None) -> Pull:
    """What `pull` is going to do; the hub is asked, nothing is fetched.

    Raises InputError, WeightsError for what may not be had, ResourceError for the disk.
    """
    checkpoint = catalog().get(name) or find(name)
    if not checkpoint.is_hub:
        raise InputError(f"{name} needs no download", f"it is used with --model {name}")
    folder = model_folder(checkpoint.name)
    endpoint = (endpoint or hub.default_endpoint()).rstrip("/")
    plan = Pull(checkpoint, folder, _repositories(checkpoint, endpoint), 0)
    record = read_record(folder)
    missing = [(repository, file) for repository, file in plan.files if _recorded(record, folder, file) is None]
    for repository, file in {repository.source: (repository, file) for repository, file in reversed(missing)}.values():
        try:
            check_access(repository.url(file.path), hub.request_headers(endpoint))
        except Refused as refused:
            raise _explained(refused, repository, file.path) from refused
    here = plan.num_bytes - sum(_bytes_to_come(folder, repository, file) for repository, file in missing)
    plan = replace(plan, here=here)
    free = shutil.disk_usage(_existing(folder)).free
    if missing and plan.num_bytes - here + SPARE > free:
        raise ResourceError(
            f"{name} needs {(plan.num_bytes - here + SPARE) / 1e9:.1f} GB on the disk of {folder}, "
            f"{free / 1e9:.1f} GB are free",
            "make room, or set SORAGEN_MODELS to a folder on another disk",
        )
    return plan


def pull(plan: Pull, listen: Listener) -> Path:
    """Fetches what is not there yet and returns the folder. The user has agreed to the terms.

    Files that the shared cache of huggingface_hub or another model here holds are taken from there. Raises
    WeightsError, ResourceError; what has come stays, and the next pull goes on from it.
    """
    folder, total = plan.folder, plan.num_bytes
    listen(Stage("download", plan.checkpoint.name))
    done = 0

    def on_bytes(count: int) -> None:
        nonlocal done
        done += count
        listen(Progress("download", done, total, "bytes"))

    with locked(plan.checkpoint.name):
        before = read_record(folder) or Record(plan.checkpoint.source)
        kept = {remote.path: file for _, remote in plan.files if (file := _recorded(before, folder, remote))}
        record = replace(
            before,
            source=plan.checkpoint.source,
            revision=plan.repositories[0].revision,
            complete=False,
            agreed={**agreement(plan.checkpoint), **before.agreed},
            files=tuple(kept.values()),
        )
        write_record(folder, record)
        headers = hub.request_headers(plan.repositories[0].endpoint)
        for repository, remote in plan.files:
            if remote.path in kept:
                on_bytes(remote.size)
                continue
            target = folder / remote.path
            file = _found(plan, repository, remote, target, listen)
            if file is not None:
                on_bytes(remote.size)
            else:
                try:
                    file = download(repository.url(remote.path), headers, remote, target, on_bytes)
                except Refused as refused:
                    raise _explained(refused, repository, remote.path) from refused
            record = replace(record, files=(*record.files, file))
            write_record(folder, record)
        if missing := lacks(plan.checkpoint, folder):  # no fault of the next stage
            raise WeightsError(f"the repository of {plan.checkpoint.name} lacks {', '.join(missing)}", WRONG_SOURCE)
        complete(plan.checkpoint, folder, record)
    return folder


def _repositories(checkpoint: Checkpoint, endpoint: str) -> tuple[Repository, ...]:
    """Where the files come from, each with those that are to be fetched."""
    pinned = [RemoteFile(file.path, file.size, file.sha256) for file in checkpoint.files]
    there: dict[tuple[str, str], Repository] = {}
    wanted: dict[tuple[str, str], list[RemoteFile]] = {}
    for origin in origins(checkpoint):
        key = (origin.source, origin.revision)
        if key not in there:
            there[key] = hub.look_up(*key, endpoint)
        wanted.setdefault(key, []).extend(origin.wanted(pinned or there[key].files))
    found = tuple(replace(there[key], files=tuple(files)) for key, files in wanted.items())
    if not any(file.path.endswith(".safetensors") for repository in found for file in repository.files):
        raise WeightsError(f"{checkpoint.source} holds no weights in safetensors", NO_PICKLES)
    return found


def _recorded(record: Record | None, folder: Path, remote: RemoteFile) -> File | None:
    """The file as it was pulled or added before, when it is still there and what the hub has now."""
    file = next((file for file in (record.files if record else ()) if file.path == remote.path), None)
    if file is None or file.size != remote.size or absent_files(folder, (file,)):
        return None
    same = (
        file.sha256 == remote.sha256.lower() if remote.sha256 else read_digests(folder / file.path, remote).fits(remote)
    )
    return file if same else None


def _bytes_to_come(folder: Path, repository: Repository, file: RemoteFile) -> int:
    """Bytes of a file that are not on this machine, by the look of it."""
    if look_here(folder, repository, file) is not None:
        return 0
    part = folder / f"{file.path}.part"
    return file.size - (min(part.stat().st_size, file.size) if part.is_file() else 0)


def look_here(folder: Path, repository: Repository, file: RemoteFile) -> Path | None:
    """Where on this machine the file is, by its size; a model in `folder` comes first."""
    places = (folder / file.path, *_elsewhere(folder, repository, file))
    return next((path for path in places if path.is_file() and path.stat().st_size == file.size), None)


def _found(plan: Pull, repository: Repository, remote: RemoteFile, target: Path, listen: Listener) -> File | None:
    """The file with the right content that is on this machine already."""
    for path in (target, *_elsewhere(plan.folder, repository, remote)):
        if path.is_file() and path.stat().st_size == remote.size:
            digests = read_digests(path, remote)
            if digests.fits(remote) and reuse(path, target):
                if path != target:
                    listen(Note(f"{remote.path} is taken from {path}"))
                return File(remote.path, remote.size, digests.sha256.hexdigest())
    if target.is_file() or target.is_symlink():
        target.unlink()  # of another revision, or damaged; what a link leads to stays where it is
    return None


def _elsewhere(own: Path, repository: Repository, remote: RemoteFile) -> Iterator[Path]:
    """The file in the shared cache, and those of other models here with the same hash: many share a text encoder."""
    if cached := hub.in_shared_cache(repository.source, remote.path, repository.revision):
        yield cached
    models = models_folder()
    for folder in models.iterdir() if remote.sha256 and models.is_dir() else ():
        with contextlib.suppress(WeightsError):  # a record that cannot be read is that model's trouble
            record = read_record(folder) if folder != own else None
            for file in record.files if record else ():
                if file.sha256 == remote.sha256.lower():
                    yield folder / file.path


def lacks(checkpoint: Checkpoint, folder: Path) -> list[str]:
    """What the files in `folder` lack to be the model; those that hold networks are laid out."""
    if files := single_files(checkpoint):
        from soragen.pipeline.assemble import lay_out  # brings torch, which no other model needs

        lay_out(folder, [folder / file for file in files])
    return missing_parts(folder)


def complete(checkpoint: Checkpoint, folder: Path, record: Record) -> None:
    """Marks the model as whole. Raises WeightsError where its configs are those of another one."""
    if denied := compare(folder, checkpoint.signature)[1]:
        raise WeightsError(f"{record.source} is not {checkpoint.name}: {'; '.join(denied)}", WRONG_SOURCE)
    write_record(folder, replace(record, complete=True))


def agreement(checkpoint: Checkpoint) -> dict[str, str]:
    """The licences of the checkpoint, agreed to today."""
    today = datetime.now(UTC).date().isoformat()
    return {licence.id: today for licence in checkpoint.licences.values()}


def _explained(refused: Refused, repository: Repository, path: str) -> WeightsError:
    endpoint, source = repository.endpoint, repository.source
    if refused.code in (401, 403):
        return hub.no_access(source, endpoint, refused.code)
    hint = "its publisher may have changed it meanwhile: pull again, or try another --endpoint"
    return WeightsError(f"{endpoint} answered {refused.code} for {path} of {source}", hint)


def _existing(folder: Path) -> Path:
    """`folder` or the nearest folder above that exists: the disk it will be on."""
    return next(path for path in (folder, *folder.parents) if path.is_dir())
