"""LoRA files as the user names them, and as a recipe does. No torch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from soragen.errors import InputError
from soragen.pipeline.sources import hash_of
from soragen.request import LoraFile, Request

TARGETS = ("high", "low")
MAX_SCALE = 100.0
_SPELLED = re.compile(r"(?P<path>.+\.safetensors)(?::(?P<scale>[^:@]*))?(?:@(?P<target>[^:@]*))?", re.I | re.S)
_HINT = "write it as style.safetensors, style.safetensors:0.8, or style.safetensors:0.8@high"


def parse_lora(text: str, *, partial: bool = False) -> LoraFile:
    """The file of PATH[:SCALE][@high|low], with its hash. Raises InputError.

    partial: whether a file that fits in part is taken.
    """
    match = _SPELLED.fullmatch(text)
    if match is None:
        raise InputError(f"--lora {text!r} names no .safetensors file", _inside(Path(text)) or _HINT)
    path, scale, target = Path(match["path"]).expanduser(), match["scale"], match["target"]
    if target is not None and target not in TARGETS:
        raise InputError(f"--lora {text!r}: no transformer is called {target!r}", "use @high or @low, or neither")
    if not path.is_file():
        raise InputError(f"--lora {path} is not a file", _inside(path) or "check its path")
    return LoraFile(path, _hash(path), _scale(text, scale), target or "", partial)


def files_of(texts: Iterable[str]) -> list[Path]:
    """The file of each PATH[:SCALE][@high|low] that is spelled as one; it need not be there."""
    matches = (_SPELLED.fullmatch(text) for text in texts)
    return [Path(match["path"]).expanduser() for match in matches if match is not None]


def _hash(path: Path) -> str:
    """Read once: a list may name the same large file on every line."""
    status = path.stat()
    return _hash_as_it_was(path.absolute(), status.st_size, status.st_mtime_ns)


@cache
def _hash_as_it_was(path: Path, size: int, changed: int) -> str:
    return hash_of(path)


def _scale(text: str, scale: str | None) -> float:
    try:
        value = 1.0 if scale is None else float(scale)
    except ValueError:
        value = math.nan
    if not -MAX_SCALE <= value <= MAX_SCALE:
        raise InputError(f"--lora {text!r}: {scale!r} is no scale", f"use a number such as 0.8, up to {MAX_SCALE:g}")
    return value


def _inside(path: Path) -> str | None:
    """A hint with the files that could have been meant, where the path is a folder."""
    names = sorted(file.name for file in path.glob("*.safetensors")) if path.is_dir() else []
    return f"it is a folder, with: {', '.join(names)}" if names else None


def with_loras(request: Request, folders: Sequence[Path]) -> Request:
    """`request`, out of a recipe, with its LoRAs where they are: in one of `folders`, by name and hash.

    Raises InputError that names the one which is missing.
    """
    found = []
    for lora in request.loras:
        name = Path(lora.path.name)  # a bare name: a recipe says nothing about where files lie
        there = [folder / name for folder in folders if (folder / name).is_file()]
        path = next((path for path in there if _hash(path) == lora.sha256), None)
        if path is None:
            what = f"{there[0]} is not the LoRA that" if there else f"LoRA {name} is not here, with which"
            raise InputError(
                f"{what} this video was made{' with' if there else ''} (SHA-256 {lora.sha256[:12]}…)",
                f"put it beside the video, or say where it is: --lora FOLDER/{lora.spelled}",
            )
        found.append(replace(lora, path=path))
    return replace(request, loras=tuple(found))
