"""The LoRAs of a request on a checkpoint: known to fit before anything is loaded, added as the weights come."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from soragen.checkpoint import LORAS, Checkpoint
from soragen.errors import InputError, WeightsError
from soragen.models.lora import Fit, Targets, fit, merging
from soragen.models.weights import Change
from soragen.request import LoraFile


@dataclass(frozen=True)
class Applied:
    """A LoRA, and what it changes of each transformer, by the names of `Family.lora_targets`."""

    lora: LoraFile
    fits: Mapping[str, Fit]

    @property
    def note(self) -> str:
        """One line for the user."""
        counts = [
            f"{fit.num_applied} of {fit.num_changes}" + (f" ({name} noise)" if name else "")
            for name, fit in self.fits.items()
        ]
        return f"LoRA {self.lora.path.name} at {self.lora.scale:g}: applied {', '.join(counts)}"


def own_loras(checkpoint: Checkpoint, folder: Path) -> tuple[LoraFile, ...]:
    """Those that belong to the checkpoint. Raises WeightsError where a folder of the user's own lacks one."""
    hashes = {file.path: file.sha256 for file in checkpoint.files}
    for part in checkpoint.loras:
        if not (folder / part.file).is_file():
            raise WeightsError(f"{folder} lacks {part.file}, a part of {checkpoint.name}", f"it is from {part.source}")
    return tuple(
        LoraFile(folder / part.file, hashes.get(part.file, ""), target=LORAS[part.folder]) for part in checkpoint.loras
    )


def fit_loras(loras: Iterable[LoraFile], targets: Mapping[str, Targets]) -> tuple[Applied, ...]:
    """Raises WeightsError for a file that does not fit, InputError for a transformer that is not there."""
    applied = []
    for lora in loras:
        if lora.target and lora.target not in targets:
            raise InputError(
                f"--lora {lora.spelled}: this model has one transformer, none for {lora.target} noise",
                f"leave @{lora.target} out",
            )
        chosen = {name: target for name, target in targets.items() if lora.target in ("", name)}
        fits = {name: fit(lora.path, lora.scale, target).require(lora.partial) for name, target in chosen.items()}
        applied.append(Applied(lora, fits))
    return tuple(applied)


def changes(applied: Iterable[Applied]) -> dict[str, Change]:
    """What is done to the weights of each transformer as they are loaded."""
    fits: dict[str, list[Fit]] = {}
    for one in applied:
        for name, found in one.fits.items():
            fits.setdefault(name, []).append(found)
    return {name: merging(found) for name, found in fits.items()}
