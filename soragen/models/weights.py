"""Weights from safetensors into a network, strictly: what is missing, extra, mis-shaped or not finite is named.

The network is built without memory (on torch's meta device); the files are mapped, not read, and each tensor is cast
and moved on its own, so that loading needs the network plus one tensor. Pickles are refused: reading one runs code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from soragen.errors import WeightsError

Network = TypeVar("Network", bound=nn.Module)
Rename = Mapping[str, str] | Callable[[str], str]

FLOATS = {"F64", "F32", "F16", "BF16"}  # as safetensors writes them
PICKLES = {".pt", ".pth", ".bin", ".ckpt"}
NOT_THESE = "the file is incomplete, or belongs to another model: fetch it again, or name the checkpoint it came with"


def load_module(
    build: Callable[[], Network],
    files: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    keep_float32: Iterable[str] = (),
    rename: Rename | None = None,
    tied: Mapping[str, str] | None = None,
    allow_extra: Iterable[str] = (),
) -> Network:
    """The network that `build` makes, with the weights in `files`, ready to run (eval, no gradients).

    files: one .safetensors file, or a component's folder (single file, or shards with an index).
    dtype: of all floating-point tensors, but for those whose name contains one of `keep_float32`.
    rename: stored name to the network's name; a table holds only the names that differ.
    tied: stored name to the network's name for second copies, which must equal the first, or may stand in for it.
    allow_extra: prefixes of stored names that belong to other networks.

    Everything the network has must be in the file: parameters and persistent buffers. A buffer that is not saved
    (`persistent=False`) cannot come out of a build without memory; compute it in the forward instead. Raises
    WeightsError, RuntimeError for such a buffer.
    """
    keep_float32, allow_extra = tuple(keep_float32), tuple(allow_extra)
    with torch.device("meta"):
        network = build()
    wanted = network.state_dict()
    paths = weight_files(files)
    with ExitStack() as opened:
        stored: dict[str, tuple[Any, str, Path]] = {}  # the network's name → open file, stored name, path
        copies: list[tuple[str, Any, str, Path]] = []
        extra: list[str] = []
        for path in paths:
            file = opened.enter_context(_open(path))
            for key in file.keys():  # noqa: SIM118 (safe_open is not a mapping)
                if tied and key in tied:
                    copies.append((tied[key], file, key, path))
                    continue
                name = _renamed(key, rename)
                if name in stored:
                    raise WeightsError(f"{path}: {key} stands for {name}, which is there already", NOT_THESE)
                if name in wanted:
                    stored[name] = (file, key, path)
                elif not key.startswith(allow_extra):
                    extra.append(key)
        for name, file, key, path in copies:
            if name not in stored:
                stored[name] = (file, key, path)
        _check(files, wanted, stored, extra)

        loaded: dict[str, Tensor] = {}
        for name, (file, key, path) in stored.items():
            tensor = _read(file, key, path)
            if wanted[name].is_floating_point():
                tensor = tensor.to(torch.float32 if any(part in name for part in keep_float32) else dtype)
            if not is_finite(tensor):
                raise WeightsError(f"{path}: {key} holds values that are not finite in {tensor.dtype}", NOT_THESE)
            loaded[name] = tensor.to(device)
        for name, file, key, path in copies:
            if stored[name][1] != key and not torch.equal(_read(*stored[name]), _read(file, key, path)):
                raise WeightsError(f"{path}: {key} and {stored[name][1]} should be equal and are not", NOT_THESE)
    network.load_state_dict(loaded, strict=True, assign=True)
    left = [name for name, tensor in (*network.named_parameters(), *network.named_buffers()) if tensor.is_meta]
    if left:
        raise RuntimeError(f"{type(network).__name__} has buffers that no checkpoint holds: {some(left)}")
    return network.eval().requires_grad_(False)


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


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is not a whole safetensors file ({error})", "fetch it again") from error


def _read(file: Any, key: str, path: Path) -> Tensor:
    try:
        return file.get_tensor(key)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: {key} cannot be read ({error})", "fetch it again") from error


def _renamed(key: str, rename: Rename | None) -> str:
    if rename is None:
        return key
    return rename(key) if callable(rename) else rename.get(key, key)


def _check(
    files: Path, wanted: Mapping[str, Tensor], stored: Mapping[str, tuple[Any, str, Path]], extra: list[str]
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
        raise WeightsError(f"{files}: tensors {'; '.join(problems)}", NOT_THESE)


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
