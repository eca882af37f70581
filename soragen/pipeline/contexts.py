"""Encoded prompts on disk, between the text encoder and the transformer of a batch."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from soragen.leftovers import leftover
from soragen.models.family import Context


class Contexts:
    """One file for each prompt, however many requests have it: negative prompts are mostly the same."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, prompt: str, context: Context) -> None:
        if not (path := self._file(prompt)).exists():
            tensors = {field.name: getattr(context, field.name).cpu().contiguous() for field in fields(context)}
            save_file(tensors, path)

    def read(self, prompt: str, device: torch.device) -> Context:
        return Context(**{name: tensor.to(device) for name, tensor in load_file(self._file(prompt)).items()})

    def _file(self, prompt: str) -> Path:
        return self.folder / f"{hashlib.sha256(prompt.encode()).hexdigest()}.safetensors"


@contextmanager
def contexts_beside(source: Path) -> Iterator[Contexts]:
    """A hidden folder beside `source`, empty at first and gone at the end. One that a killed process left goes, too."""
    folder = source.absolute().with_name(f".{source.name}.prompts")

    def remove() -> None:
        shutil.rmtree(folder, ignore_errors=True)

    remove()
    folder.mkdir()
    try:
        with leftover(remove):
            yield Contexts(folder)
    finally:
        remove()
