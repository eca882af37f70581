"""Finished latents on disk, so that no failure after the denoising can lose it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from soragen.errors import InputError, OutputError

SUFFIX = ".latents.safetensors"


def latents_path(output: Path) -> Path:
    """Where the latents of a video wait while it is decoded: beside it."""
    return output.with_name(output.stem + SUFFIX)


def save_latents(path: Path, latents: Tensor, recipe: dict[str, Any]) -> None:
    """Latents [1, C, T, H, W] float32 and the recipe they came from, whole or not at all. Raises OutputError."""
    part = path.with_name(f".{path.name}.part")
    try:
        save_file({"latents": latents.float().cpu().contiguous()}, part, {"recipe": json.dumps(recipe)})
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"cannot write {path}: {error}", "free some space, or give another folder with -o") from error
    finally:
        part.unlink(missing_ok=True)


def load_latents(path: Path) -> tuple[Tensor, dict[str, Any]]:
    """What `save_latents` wrote. Raises InputError."""
    hint = "give a file that ends in " + SUFFIX
    if not path.is_file():
        raise InputError(f"{path} is not a file", hint)
    try:
        with safe_open(path, framework="pt") as file:
            latents = file.get_tensor("latents")
            recipe = json.loads(file.metadata()["recipe"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} does not hold latents that soragen saved", hint) from error
    if latents.ndim != 5 or not isinstance(recipe, dict) or not bool(torch.isfinite(latents).all()):
        raise InputError(f"{path} does not hold latents that soragen saved", hint)
    return latents, recipe
