"""Finished latents on disk, so that no failure after the denoising can lose it."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from soragen.errors import InputError, OutputError
from soragen.leftovers import leftover
from soragen.video.write import publish

SUFFIX = ".latents.safetensors"
MAX_LETTERS = 50
"""Of the video's name in that of the latents: a name that was just short enough for a video is too long for them."""


@dataclass(frozen=True, eq=False)
class Saved:
    """Latents [1, C, T, H, W] float32 and all that is needed to go on from them.

    checkpoint: a name, or the absolute path of a folder. output: the video that was asked for, absolute.
    metadata: whether the recipe goes into it. lossless: whether its frames are stored exactly.
    sources: the files that stand in it, absolute, in the order of the recipe.
    """

    latents: Tensor
    recipe: dict[str, Any]
    checkpoint: str
    output: Path
    metadata: bool
    lossless: bool = False
    sources: tuple[Path, ...] = ()


def save_latents(folder: Path, saved: Saved) -> Path:
    """Writes a file named like the video into `folder`, whole or not at all, and returns where. No file is replaced.

    Raises OutputError.
    """
    path = folder / f"{saved.output.stem[:MAX_LETTERS]}{SUFFIX}"
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    run = {
        "recipe": saved.recipe,
        "checkpoint": saved.checkpoint,
        "output": str(saved.output),
        "metadata": saved.metadata,
        "lossless": saved.lossless,
        "sources": [str(path) for path in saved.sources],
    }
    try:
        with leftover(lambda: part.unlink(missing_ok=True)):
            try:
                save_file({"latents": saved.latents.float().cpu().contiguous()}, part, {"run": json.dumps(run)})
                return publish(part, path, overwrite=False)
            finally:
                part.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"cannot write {path}: {error}", "free some space, or give another folder with -o") from error


def holds(path: Path, recipe: dict[str, Any], shape: tuple[int, ...]) -> bool:
    """Whether `path` holds latents of this shape, of the request and the model in `recipe`."""
    try:
        saved = load_latents(path)
    except InputError:
        return False
    same = all(saved.recipe.get(part) == recipe[part] for part in ("request", "model"))
    return same and tuple(saved.latents.shape) == shape


def load_latents(path: Path) -> Saved:
    """What `save_latents` wrote. Raises InputError."""
    hint = f"give a file that ends in {SUFFIX}"
    if not path.is_file():
        raise InputError(f"{path} is not a file", hint)
    try:
        with safe_open(path, framework="pt") as file:
            latents = file.get_tensor("latents")
            run = json.loads(file.metadata()["run"])
        checkpoint, output = str(run["checkpoint"]), Path(run["output"])
        sources = tuple(Path(path) for path in run["sources"])
        metadata, lossless = run["metadata"] is True, run["lossless"] is True
        saved = Saved(latents, dict(run["recipe"]), checkpoint, output, metadata, lossless, sources)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} does not hold latents that soragen saved", hint) from error
    if latents.dtype != torch.float32 or latents.ndim != 5 or not bool(torch.isfinite(latents).all()):
        raise InputError(f"{path} does not hold latents that soragen saved", hint)
    return saved
