"""Weights from safetensors into a network, strictly: what is missing, extra, mis-shaped or not finite is named.

The network is built without memory (on torch's meta device); the files are mapped, not read, and each tensor is cast
and moved on its own, so that loading needs the network plus one tensor. Pickles are refused: reading one runs code.

Weights in fp8 are read as the values that they stand for, each times its tensor's scale where the file has scales.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from soragen.errors import ResourceError, WeightsError
from soragen.models.fingerprint import describe, not_safetensors, quantised, read_headers
from soragen.models.keys import Naming, our_names

Network = TypeVar("Network", bound=nn.Module)
Rename = Mapping[str, str] | Callable[[str], str]
Change = Callable[[str, Tensor], Tensor]
"""The network's name of a weight, and the weight as it is stored, to what is loaded in its place."""

FLOATS = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}  # as safetensors writes them
SCALE, SCALED = "scale_weight", ("scaled_fp8", "scale_input")
"""What a file in scaled fp8 holds beside a tensor "weight"; what is for multiplying in fp8, not done here."""
PICKLES = {".pt", ".pth", ".bin", ".ckpt"}
MAPPED_BYTES = 2**28
"""What is copied out of a file before it is mapped anew: pages that were read count as memory while they are mapped."""
NOT_THESE = "the file is incomplete, or belongs to another model: fetch it again, or name the checkpoint it came with"


@dataclass(frozen=True)
class Weights:
    """Where the tensors of a network lie. Their names, shapes and kinds fit the network; no value was looked at.

    stored: the network's name → file, and the name in it. scales: of stored values. shapes, dtypes: as the network has
    them. change: of what is read.
    """

    stored: Mapping[str, tuple[Path, str]]
    scales: Mapping[str, Tensor]
    shapes: Mapping[str, torch.Size]
    dtypes: Mapping[str, torch.dtype]
    change: Change | None = None

    def read(
        self,
        names: Iterable[str],
        device: torch.device,
        *,
        check: bool = True,
        into: Mapping[str, Tensor] | None = None,
        views: bool = True,
    ) -> Iterator[tuple[str, Tensor]]:
        """Each of these tensors in its type on `device`; where it fits as it is stored, a view of the mapped file.

        check: whether values that are not finite raise WeightsError. into: memory for each of them, of its type, shape
        and device, to be written instead. views: whether what is given may be kept; else it is only looked at, and the
        file is not mapped for longer than it must be.
        """
        path, file, copied = None, None, 0
        for name in sorted(names, key=lambda name: self.stored[name][0]):
            where, key = self.stored[name]
            if where != path or copied > MAPPED_BYTES:
                file = None  # and with it the pages of the old mapping
                file, path, copied = open_file(where), where, 0
            tensor = read_tensor(file, key, where)
            source = tensor.data_ptr()
            if name in self.scales:
                tensor = tensor.float() * self.scales[name]
            if self.change is not None:
                tensor = self.change(name, tensor.to(device))
            tensor = tensor.to(self.dtypes[name]) if into is None else into[name].copy_(tensor)
            if check and not is_finite(tensor):
                raise WeightsError(f"{where}: {key} holds values that are not finite in {tensor.dtype}", NOT_THESE)
            tensor = tensor.to(device)
            copied += tensor.nbytes if tensor.data_ptr() != source or not views else 0
            yield name, tensor
            del tensor

    def read_rows(self, name: str, index: Tensor, device: torch.device) -> Tensor:
        """Rows [..., D] of a table [rows, D] for whole numbers [...] on the CPU; the others are not read."""
        if self.change is not None or name in self.scales:
            return dict(self.read([name], device))[name][index.to(device)]
        path, key = self.stored[name]
        rows = read_tensor(open_file(path), key, path)[index].to(self.dtypes[name])
        if not is_finite(rows):
            raise WeightsError(f"{path}: {key} holds values that are not finite in {rows.dtype}", NOT_THESE)
        return rows.to(device)


class Stored(NamedTuple):
    """A tensor in a file that is open."""

    file: Any
    key: str
    path: Path

    def read(self) -> Tensor:
        return read_tensor(self.file, self.key, self.path)


def load_module(
    build: Callable[[], Network],
    files: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    keep_float32: Iterable[str] = (),
    namings: Iterable[Naming] = (),
    rename: Rename | None = None,
    tied: Mapping[str, str] | None = None,
    allow_extra: Iterable[str] = (),
    change: Change | None = None,
) -> Network:
    """The network that `build` makes, with the weights in `files`, ready to run (eval, no gradients).

    files: one .safetensors file, or a component's folder (single file, or shards with an index).
    dtype: of all floating-point tensors, but for those whose name contains one of `keep_float32`.
    namings: other names that the tensors may have, as in the authors' own files.
    rename: stored name to the network's name; a table holds only the names that differ.
    tied: stored name to the network's name for second copies, which must equal the first, or may stand in for it.
    allow_extra: prefixes of stored names that belong to other networks.
    change: what is done to each weight before it is cast.

    Everything the network has must be in the file: parameters and persistent buffers. A buffer that is not saved
    (`persistent=False`) cannot come out of a build without memory; compute it in the forward instead. Raises
    WeightsError, which says what the file is where that is another model; RuntimeError for such a buffer.
    """
    network, weights = find_weights(
        build, files, dtype=dtype, keep_float32=keep_float32, namings=namings, rename=rename, tied=tied,
        allow_extra=allow_extra, change=change,
    )  # fmt: skip
    network.load_state_dict(dict(weights.read(weights.stored, device)), strict=True, assign=True)
    return ready(network)


def find_weights(
    build: Callable[[], Network],
    files: Path,
    *,
    dtype: torch.dtype,
    keep_float32: Iterable[str] = (),
    namings: Iterable[Naming] = (),
    rename: Rename | None = None,
    tied: Mapping[str, str] | None = None,
    allow_extra: Iterable[str] = (),
    change: Change | None = None,
) -> tuple[Network, Weights]:
    """The network without memory (on torch's meta device), and where its weights are: see `load_module`."""
    keep_float32, allow_extra = tuple(keep_float32), tuple(allow_extra)
    with torch.device("meta"):
        network = build()
    wanted = network.state_dict()
    paths = weight_files(files)
    with ExitStack() as opened:
        found = [Stored(file, key, path) for path in paths for file in [opened.enter_context(open_file(path))]
                 for key in file.keys()]  # fmt: skip  # noqa: SIM118 (safe_open is not a mapping)
        names = our_names((tensor.key for tensor in found), namings)
        stored: dict[str, Stored] = {}  # by the network's name
        copies: list[tuple[str, Stored]] = []
        scales: dict[str, Tensor] = {}
        extra: list[str] = []
        for tensor in found:
            key, name = tensor.key, names[tensor.key]
            if name is None or name.endswith(SCALED):
                continue
            if tied and name in tied:
                copies.append((tied[name], tensor))
                continue
            name = _renamed(name, rename)
            if name in stored:
                raise WeightsError(f"{tensor.path}: {key} stands for {name}, which is there already", NOT_THESE)
            if name in wanted:
                stored[name] = tensor
            elif name.endswith(SCALE) and (scaled := name.removesuffix(SCALE) + "weight") in wanted:
                scales[scaled] = _factor(tensor)
            elif not key.startswith(allow_extra):
                extra.append(key)
        for name, tensor in copies:
            stored.setdefault(name, tensor)
        _check(files, paths, wanted, stored, extra)
        for name, tensor in copies:
            if stored[name].key != tensor.key and not torch.equal(stored[name].read(), tensor.read()):
                raise WeightsError(
                    f"{tensor.path}: {tensor.key} and {stored[name].key} should be equal and are not", NOT_THESE
                )
    dtypes = {name: tensor.dtype for name, tensor in wanted.items()}
    for name in [name for name, tensor in wanted.items() if tensor.is_floating_point()]:
        dtypes[name] = torch.float32 if any(part in name for part in keep_float32) else dtype
    return network, Weights(
        stored={name: (tensor.path, tensor.key) for name, tensor in stored.items()},
        scales=scales,
        shapes={name: tensor.shape for name, tensor in wanted.items()},
        dtypes=dtypes,
        change=change,
    )


def ready(network: Network, away: Iterable[str] = ()) -> Network:
    """The network, ready to run (eval, no gradients). Raises RuntimeError where a tensor is not there.

    away: prefixes of the names of tensors that are not there yet.
    """
    away = tuple(away)
    tensors = (*network.named_parameters(), *network.named_buffers())
    left = [name for name, tensor in tensors if tensor.is_meta and not name.startswith(away)]
    if left:
        raise RuntimeError(f"{type(network).__name__} has buffers that no checkpoint holds: {some(left)}")
    return network.eval().requires_grad_(False)


def _factor(scale: Stored) -> Tensor:
    """The scale of a whole tensor. Raises WeightsError for scales of another kind."""
    factor = scale.read()
    if factor.numel() != 1:
        raise WeightsError(f"{scale.path}: {scale.key} has {factor.numel()} values, one is known", "take a bf16 file")
    return factor.float().reshape(())


def weight_files(files: Path) -> list[Path]:
    """The safetensors files that make up a component; shards by their index. Raises WeightsError."""
    if files.is_file():
        if files.suffix in PICKLES:
            raise WeightsError(f"{files} is a pickle, which can run code", "convert it to .safetensors")
        return _shards(files) if files.name.endswith(".index.json") else [files]
    if not files.is_dir():
        raise WeightsError(f"{files} is missing", "a component's folder holds config.json and .safetensors files")
    found = {path.name: path for path in sorted(files.glob("*.safetensors"))}
    choices: dict[str, list[Path]] = {}
    for index in sorted(files.glob("*.safetensors.index.json")):
        choices[index.name] = _shards(index)
        for shard in choices[index.name]:
            found.pop(shard.name, None)
    choices |= {name: [path] for name, path in found.items()}
    if len(choices) > 1:  # variants such as model.fp16.safetensors lie beside the plain name
        plain = {name: paths for name, paths in choices.items() if "." not in name.split(".safetensors")[0]}
        choices = plain if len(plain) == 1 else choices
    if len(choices) > 1:
        raise WeightsError(f"{files} holds more than one set of weights: {some(choices)}", "keep one, or name its file")
    if not choices:
        pickles = [path.name for path in sorted(files.iterdir()) if path.suffix in PICKLES]
        what = f"only pickles, which can run code ({some(pickles)})" if pickles else "no weights"
        raise WeightsError(f"{files} holds {what}", "soragen reads .safetensors")
    return next(iter(choices.values()))


def own_names(files: Path, names: Iterable[str]) -> list[str]:
    """Of the names in a file of the component in the folder `files`, those that are not another component's.

    A file with transformer and VAE is in the folders of both; the names of its VAE begin with "vae.".
    """
    names = list(names)
    return [name for name in names if name.startswith("vae.") == (files.name == "vae")] or names


def _shards(index: Path) -> list[Path]:
    """The files an index names, each once. They must lie beside it."""
    values = read_json(index)
    names = values.get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise WeightsError(f"{index} has no weight_map from tensor names to files", NOT_THESE)
    paths = []
    for name in sorted(set(names.values())):
        if name in ("", ".", "..") or any(mark in name for mark in "/\\:\0") or not name.endswith(".safetensors"):
            raise WeightsError(f"{index} names the file {name!r}", "shards are .safetensors files beside their index")
        path = index.parent / name
        if not path.is_file():
            raise WeightsError(f"{path} is missing: {index.name} names it", "fetch the checkpoint again")
        paths.append(path)
    return paths


def open_file(path: Path) -> Any:
    """A safetensors file, mapped, to be read tensor by tensor. Raises WeightsError for another kind of file.

    Torch maps files as if it would write into its copy: for one larger than all memory that is more than most systems
    grant. Raises ResourceError then.
    """
    try:
        return safe_open(path, framework="pt", device="cpu")
    except RuntimeError as error:
        size = path.stat().st_size / 1e9
        hint = "on Linux `sysctl vm.overcommit_memory=1` allows it; a model in several files does without"
        raise ResourceError(f"{path}, {size:.1f} GB, cannot be mapped into memory ({error})", hint) from error
    except (SafetensorError, OSError) as error:
        with path.open("rb") as file:
            raise not_safetensors(path, file.read(64)) from error


def read_tensor(file: Any, key: str, path: Path) -> Tensor:
    """A tensor of a file that is open, as it is stored: a view of the mapped file. Raises WeightsError."""
    try:
        return file.get_tensor(key)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: {key} cannot be read ({error})", "fetch it again") from error


def _renamed(key: str, rename: Rename | None) -> str:
    if rename is None:
        return key
    return rename(key) if callable(rename) else rename.get(key, key)


def _check(
    files: Path, paths: list[Path], wanted: Mapping[str, Tensor], stored: Mapping[str, Stored], extra: list[str]
) -> None:
    """One error for all that does not fit, found from the headers alone, before any weight is read."""
    wrong = []
    for name, (file, key, path) in stored.items():
        header = file.get_slice(key)
        shape, needed = list(header.get_shape()), list(wanted[name].shape)
        if shape != needed:
            wrong.append(f"{key} in {path.name} is {shape} where {needed} is needed")
        elif wanted[name].is_floating_point() != (header.get_dtype() in FLOATS):
            wrong.append(f"{key} in {path.name} is stored as {header.get_dtype()}, not as {wanted[name].dtype}")
    missing = [name for name in wanted if name not in stored]
    problems = []
    if missing:
        problems.append(f"{len(missing)} missing ({some(missing)})")
    if extra:
        problems.append(f"{len(extra)} unknown ({some(extra)})")
    if wrong:
        problems.append(f"{len(wrong)} of the wrong kind ({some(wrong)})")
    if problems:
        said, hint = _another(paths, wanted)
        raise WeightsError(f"{files}{said}: tensors {'; '.join(problems)}", hint)


def _another(paths: list[Path], wanted: Mapping[str, Tensor]) -> tuple[str, str]:
    """What files are that do not fit, as " is a ... where a ... is needed", and what to do; "" where nobody knows."""
    header = read_headers(paths)
    found, needed = describe(header.shapes), describe({name: tuple(tensor.shape) for name, tensor in wanted.items()})
    if (how := quantised(header)) and (not needed or set(needed) <= set(found)):
        return f" is {how}", "take the same model in bf16, fp16 or fp8"
    if not found or set(needed) & set(found):
        return "", NOT_THESE
    where = f" where {needed[0]} is needed" if needed else ""
    return f" is {' with '.join(found)}{where}", f"give {needed[0]}" if needed else NOT_THESE


def is_finite(tensor: Tensor) -> bool:
    """Whether all values are finite. The extremes carry every NaN and infinity and cost a fiftieth of `isfinite`."""
    if tensor.numel() == 0 or not tensor.is_floating_point():
        return True
    return bool(torch.stack(torch.aminmax(tensor)).isfinite().all())


def some(names: Iterable[str], shown: int = 4) -> str:
    """The first few of many names."""
    names = list(names)
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + rest


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises WeightsError naming the file."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WeightsError(f"{file} is missing", "the checkpoint's folder is incomplete: fetch it again") from None
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{file} cannot be read: {error}", "fetch it again") from error
    if not isinstance(values, dict):
        raise WeightsError(f"{file} does not hold a JSON object", "fetch it again")
    return values


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}", "fetch it again") from error


def verify_files(folder: Path, expected: Mapping[str, str]) -> None:
    """Compares every file of `expected` (name to SHA-256) with what lies in `folder`. Raises WeightsError."""
    for name, digest in expected.items():
        found = sha256_file(folder / name)
        if found != digest.lower():
            raise WeightsError(f"{folder / name} has SHA-256 {found}, expected {digest.lower()}", "fetch it again")
