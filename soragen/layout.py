"""The published layout of a checkpoint: model_index.json, and a folder per component with config.json and weights.

What is read here are names and configs, never weights. No torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from soragen.errors import InputError

INDEX = "model_index.json"
COMPONENTS = ("transformer", "vae", "text_encoder", "tokenizer")
"""What every checkpoint has. model_index.json may name more: a second transformer, an image encoder."""
ALSO = ("transformer_2", "image_encoder", "image_processor", "latent_upsampler", "scheduler")
TOKENIZERS = ("tokenizer.json", "spiece.model")

_PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")
_WEIGHTS = re.compile(r"(?P<stem>.+?)\.safetensors(\.index(\.[^.]+)?\.json)?")


def is_confined(path: str) -> bool:
    """Whether `path` is a plain relative path that leads nowhere else on any system."""
    return bool(_PATH.fullmatch(path)) and not any(part.endswith(".") for part in path.split("/"))


def needed_files(paths: Iterable[str]) -> list[str]:
    """Those of a repository's files that a checkpoint is loaded from: weights in one format, configs, tokenizer.

    Safetensors and JSON only. Variants such as model.fp16.safetensors are left out where the plain files are there,
    spiece.model where tokenizer.json is. Raises InputError for a path that leads out of the folder.
    """
    found: dict[str, list[str]] = {}
    for path in paths:
        component, _, name = path.rpartition("/")
        if component not in (*COMPONENTS, *ALSO) and path != INDEX:
            continue
        if name.endswith((".safetensors", ".json")) or name in TOKENIZERS:
            if not is_confined(path):
                raise InputError(f"the repository names the file {path!r}", "this is not a checkpoint to trust")
            found.setdefault(component, []).append(path)
    kept = []
    for inside in found.values():
        plain = [path for path in inside if not _is_variant(path)]
        has_plain = any(_WEIGHTS.fullmatch(path) for path in plain)
        chosen = [path for path in inside if path in plain or not has_plain]
        if "tokenizer/tokenizer.json" in chosen:
            chosen = [path for path in chosen if path != "tokenizer/spiece.model"]
        kept += chosen
    return sorted(kept)


def _is_variant(path: str) -> bool:
    name = path.rpartition("/")[2]
    weights = _WEIGHTS.fullmatch(name)
    return weights is not None and ("." in weights["stem"] or bool(weights[3]))


def missing_parts(folder: Path) -> list[str]:
    """What a checkpoint in `folder` lacks to be loaded: components, weights, shards. Empty when it is whole."""
    index = folder / INDEX
    named = read_json(index) if index.is_file() else {}
    present = [name for name, value in named.items() if isinstance(value, list) and all(value)]
    parts = [*COMPONENTS, *(name for name in ("transformer_2", "image_encoder") if name in present)]
    missing = []
    for part in parts:
        inside = folder / part
        if part == "tokenizer":
            if not any((inside / name).is_file() for name in TOKENIZERS):
                missing.append(f"{part}/{TOKENIZERS[0]}")
            continue
        if not (inside / "config.json").is_file():
            missing.append(f"{part}/config.json")
        indexes = sorted(inside.glob("*.safetensors.index*.json"))
        shards = {name for path in indexes for name in read_json(path).get("weight_map", {}).values()}
        missing += [f"{part}/{name}" for name in sorted(shards) if not (inside / name).is_file()]
        if not shards and not any(inside.glob("*.safetensors")):
            missing.append(f"{part}/*.safetensors")
    return missing


def transformer_class_of(folder: Path) -> str:
    """`_class_name` of transformer/config.json, or the transformer that model_index.json names. Raises InputError."""
    config, index = folder / "transformer" / "config.json", folder / INDEX
    found: object = None
    if config.is_file():
        found = read_json(config).get("_class_name")
    elif index.is_file():
        part = read_json(index).get("transformer")
        found = part[1] if isinstance(part, list) and len(part) == 2 else None
    if not isinstance(found, str):
        raise InputError(
            f"{folder} is not a checkpoint in the published layout",
            "it needs transformer/config.json with a _class_name",
        )
    return found


def compare(folder: Path, signature: Mapping[str, Any]) -> tuple[int, list[str]]:
    """How many values of `signature` ("component.key" to value) config files in `folder` confirm, and what they deny.

    A file that is absent does neither.
    """
    confirmed, denied = 0, []
    for key, wanted in signature.items():
        component, _, name = key.partition(".")
        path = folder / (INDEX if component == "model_index" else f"{component}/config.json")
        if path.is_file():
            value = read_json(path).get(name)
            confirmed += value == wanted
            denied += [] if value == wanted else [f"{key} is {value} and not {wanted}"]
    return confirmed, denied


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises InputError naming the file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read {path}: {error}", "replace the file with the published one") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} does not hold a JSON object", "replace the file with the published one")
    return values
