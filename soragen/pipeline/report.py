"""Facts for people, as plain JSON values: what `info`, `models` and `--json` show, and the memory in use."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soragen.catalog import catalog, checkpoint_folder, find
from soragen.checkpoint import Checkpoint
from soragen.errors import InputError, WeightsError

if TYPE_CHECKING:
    from soragen.pipeline.run import Result


def models_report() -> list[dict[str, Any]]:
    """One row per known model."""
    return [
        {
            "name": name,
            "family": checkpoint.family,
            "size": size_of(checkpoint.num_bytes),
            "here": is_here(checkpoint),
            "source": checkpoint.source,
            "licence": checkpoint.licence.id,
            "description": checkpoint.description,
        }
        for name, checkpoint in catalog().items()
    ]


def size_of(num_bytes: int) -> str:
    """As people say it; "" when it is not known."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB" if num_bytes else ""


def is_here(checkpoint: Checkpoint) -> bool:
    """Whether the checkpoint's files are on this machine."""
    try:
        return bool(checkpoint_folder(checkpoint))
    except WeightsError:
        return False


def model_report(name: str) -> dict[str, Any]:
    """All that the catalog knows of one model. Raises InputError."""
    checkpoint = find(name)
    values = _plain(dataclasses.asdict(checkpoint))
    assert isinstance(values, dict)
    values["native"]["seconds"] = float(checkpoint.native.seconds)
    values["num_bytes"], values["digest"] = checkpoint.num_bytes, checkpoint.digest
    values["here"] = is_here(checkpoint)
    values["parts"] = {part.pop("folder"): part for part in values["parts"]}
    values["files"] = values.pop("files")  # last: they are many
    return values


def video_report(path: Path) -> dict[str, Any]:
    """The recipe inside a video or picture, and the facts of its file. Raises InputError, also where there is none."""
    from soragen.video.facts import video_facts
    from soragen.video.recipe import read_recipe

    recipe = read_recipe(path)
    if recipe is None:
        raise InputError(f"{path} holds no recipe", "only videos made by soragen, without --no-metadata, have one")
    facts = video_facts(path)
    file = {"path": str(path), "bytes": path.stat().st_size, **_plain(dataclasses.asdict(facts))}
    if facts.container.endswith("_pipe"):  # a picture, which does not last
        return {"recipe": recipe, "file": {key: value for key, value in file.items() if not key.endswith("fps")}}
    return {"recipe": recipe, "file": {**file, "seconds": float(facts.seconds)}}


def result_report(result: Result, total: float) -> dict[str, Any]:
    """What `--json` prints of a finished video. total: seconds of the whole command."""
    size = result.request.size
    return {
        "path": str(result.path),
        "width": size.width,
        "height": size.height,
        "num_frames": size.num_frames,
        "fps": _plain(size.fps),
        "seed": result.request.seed,
        **({"seam": result.seam} if result.seam is not None else {}),
        "seconds": {stage: round(seconds, 3) for stage, seconds in {**result.seconds, "total": total}.items()},
    }


def flat(values: dict[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """(name, value) rows of nested values: native.width, 128. What is empty is left out."""
    for key, value in values.items():
        name = f"{above}{key}"
        if isinstance(value, dict):
            yield from flat(value, f"{name}.")
        elif isinstance(value, list):
            for index, item in enumerate(value):
                entry = {str(index): item} if not isinstance(item, dict) else {item.get("path", str(index)): item}
                yield from flat(entry, f"{name}.")
        elif value not in ("", None):
            yield name, {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def process_memory() -> int:
    """Bytes of memory this process holds now; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        import resource

        return pages * resource.getpagesize()
    except (OSError, ImportError):
        return 0


def accelerator_memory() -> int:
    """Bytes of GPU memory that torch holds now; 0 without a GPU in use. Never imports torch or starts a GPU."""
    torch = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)
    return int(cuda.memory_reserved()) if cuda is not None and cuda.is_initialized() else 0


def _plain(value: Any) -> Any:
    """Exact numbers as JSON ones: 12 stays 12, 30000/1001 becomes 29.97002997."""
    if isinstance(value, Fraction):
        return value.numerator if value.denominator == 1 else float(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
