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
import math
import os
import re
import sys
from dataclasses import dataclass, field
from fractions import Fraction
from importlib import resources
from pathlib import Path
from typing import Any

from soragen.errors import InputError, WeightsError
from soragen.installed import File as File  # a part of `Checkpoint`
from soragen.installed import absent_files, model_folder, models_folder, read_record
from soragen.layout import compare, read_json, transformer_class_of
from soragen.tables import Table, build, check_keys, merge, read_toml

EMBEDDED = "embedded"
OWN = "soragen.json"
"""In a folder of the user's own: values that differ from those of the model it is nearest to, or `like` another."""
SHIFTED = ("flow", "flow_shifted_twice", "flow_truncated")
"""Schedules that take a shift."""
SCHEDULES = (*SHIFTED, "flow_dynamic", "linear_quadratic", "listed")
SOLVERS = ("euler", "unipc", "renoise")
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Licence:
    """id: SPDX where there is one. The rest are short answers for people: may I sell it, where, what of my videos."""

    id: str
    url: str
    commercial: str
    territory: str
    output: str


@dataclass(frozen=True)
class Part:
    """A network of a checkpoint with terms of its own. folder: where it is, as text_encoder.

    source: the repository it comes from, where that is not the checkpoint's. file: see `Checkpoint`.
    """

    folder: str
    description: str
    licence: Licence
    source: str = ""
    file: str = ""


@dataclass(frozen=True)
class Native:
    """What the checkpoint was trained on.

    min_area, max_area: the smallest and largest area one grid makes sense of, as multiples of width x height; without a
    min_area it is 1 / max_area.
    max_num_frames: the longest clip it was trained on; longer ones are made in windows.
    """

    width: int
    height: int
    num_frames: int
    fps: Fraction
    max_area: float
    max_num_frames: int
    min_area: float = 0.0

    def knows_area(self, area: float) -> bool:
        """Whether frames of `area` pixels are rendered as they are."""
        native = self.width * self.height
        return native * (self.min_area or 1 / self.max_area) <= area <= native * self.max_area

    def rendered(self, width: int, height: int) -> tuple[int, int]:
        """The sides of what is rendered for a video of these: the same where their area is known, otherwise the same
        aspect at the native area.
        """
        if self.knows_area(width * height):
            return width, height
        factor = math.sqrt(self.width * self.height / (width * height))
        return max(2, round(width * factor)), max(2, round(height * factor))

    @property
    def seconds(self) -> Fraction:
        """How long the native clip lasts. Its first frame is the start, so 25 frames at 12 fps are 2 seconds."""
        return max(Fraction(self.num_frames - 1), Fraction(1)) / self.fps


@dataclass(frozen=True)
class ShiftAt:
    """The shift for a size, "832x480"."""

    size: str
    shift: float

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", self.size):
            raise InputError(f"a shift is given for the size {self.size!r}", 'write it as "832x480"')

    def distance(self, area: float) -> float:
        """How far `area` is from this size's, as a ratio; 0 when they are equal."""
        width, _, height = self.size.partition("x")
        return abs(math.log(area / (int(width) * int(height))))


@dataclass(frozen=True)
class Defaults:
    """What is used where the user asked for nothing. width and height may differ from the native grid.

    shifts: for checkpoints whose shift depends on the size; the one nearest in area holds, and `shift` where there are
    none. low_noise_guidance_scale: of the second transformer of two, 0 where it is `guidance_scale`.
    timesteps: of a distilled checkpoint whose schedule is "listed", as many as its steps.
    second_pass: timesteps of the steps over upsampled latents, for checkpoints that have a latent upsampler.
    """

    width: int
    height: int
    num_steps: int
    guidance_scale: float
    shift: float
    schedule: str = field(metadata={"choices": SCHEDULES})
    solver: str = field(metadata={"choices": SOLVERS})
    negative_prompt: str
    shifts: tuple[ShiftAt, ...] = ()
    low_noise_guidance_scale: float = 0.0
    timesteps: tuple[float, ...] = ()
    second_pass: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if len(self.timesteps) != (self.num_steps if self.schedule == "listed" else 0):
            raise InputError(
                f"the schedule {self.schedule!r} of {self.num_steps} steps has {len(self.timesteps)} timesteps",
                'schedule = "listed" takes one for each of num_steps, other schedules none',
            )

    def shift_for(self, width: int, height: int) -> float:
        nearest = min(self.shifts, key=lambda at: at.distance(width * height), default=None)
        return self.shift if nearest is None else nearest.shift


@dataclass(frozen=True)
class Dtypes:
    """The type each network computes in on an accelerator."""

    text_encoder: str = field(metadata={"choices": DTYPES})
    transformer: str = field(metadata={"choices": DTYPES})
    vae: str = field(metadata={"choices": DTYPES})


@dataclass(frozen=True)
class Abilities:
    """What the checkpoint was trained to take: a prompt alone, a given first or last frame, any given frames."""

    text: bool
    first_frame: bool
    last_frame: bool
    any_frames: bool


@dataclass(frozen=True)
class Checkpoint:
    """source: "embedded", a hub repository "owner/name", or the absolute path of a folder. revision: of the repository.

    file: of a repository that holds files as their authors store them, the one with transformer and VAE.
    parts: those with a licence or a source of their own.
    signature: values of config files that tell the checkpoint from others with the same transformer_class, by component
    and key: "transformer.num_layers".
    config: values that the published config files lack and the networks cannot be built without, by component and key.
    download_bytes: about, where `files` does not say.
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
    file: str = ""
    parts: tuple[Part, ...] = ()
    signature: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    download_bytes: int = 0
    files: tuple[File, ...] = ()

    @property
    def is_hub(self) -> bool:
        """Whether it comes from a hub: `soragen models pull` puts it on this machine."""
        return self.source != EMBEDDED and not Path(self.source).expanduser().is_absolute()

    @property
    def num_bytes(self) -> int:
        """The size of all files; about, before they are known; 0 when not even that is known."""
        return sum(file.size for file in self.files) or self.download_bytes

    @property
    def licences(self) -> dict[str, Licence]:
        """All licences by what they cover; the checkpoint's own under its name."""
        return {self.name: self.licence, **{f"{part.folder} ({part.description})": part.licence for part in self.parts}}

    @property
    def digest(self) -> str:
        """SHA-256 of the list of files, the hash of a model in one word; "" when the files are not known in advance."""
        listing = "".join(f"{file.sha256}  {file.path}\n" for file in sorted(self.files, key=lambda file: file.path))
        return hashlib.sha256(listing.encode()).hexdigest() if self.files else ""


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
            raise WeightsError(f"{checkpoint.name} is {state}", f"soragen models pull {checkpoint.name}{size}")
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
        checkpoint for checkpoint in known if checkpoint.transformer_class == transformer_class and not checkpoint.file
    ]  # what is published as a file is no folder
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
