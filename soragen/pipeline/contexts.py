"""Encoded prompts and given frames on disk, between the networks of a batch or the shots of a storyboard."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from soragen.diffusion.condition import KnownFrames
from soragen.leftovers import leftover
from soragen.models.family import Context, ImageCondition, Keyframe
from soragen.pipeline.conditions import Conditions
from soragen.request import Request


class Contexts:
    """One file for each prompt, however many requests have it: negative prompts are mostly the same."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, request: Request, context: Context, negative: Context | None) -> None:
        """The prompt of `request`, and its negative prompt where that is needed."""
        for prompt, encoded in ((request.prompt, context), (request.negative_prompt, negative)):
            if encoded is not None and not (path := self._file(prompt)).exists():
                tensors = {field.name: getattr(encoded, field.name).cpu().contiguous() for field in fields(encoded)}
                save_file(tensors, path)

    def read(self, request: Request, device: torch.device) -> tuple[Context, Context | None]:
        """What `write` wrote."""
        return (
            self._read(request.prompt, device),
            self._read(request.negative_prompt, device) if request.needs_negative else None,
        )

    def hold(self, request: Request) -> bool:
        prompts = (request.prompt, *((request.negative_prompt,) if request.needs_negative else ()))
        return all(self._file(prompt).exists() for prompt in prompts)

    def write_given(self, key: str, conditions: Conditions, source: Tensor | None) -> None:
        """What the job `key` is given besides words. One that is given nothing leaves no file."""
        if conditions.first is not None:
            self.write_given(f"{key}-first", conditions.first, None)
        tensors: dict[str, Tensor] = {} if source is None else {"source": source}
        facts: dict[str, str] = {}
        if (known := conditions.known) is not None:
            tensors |= {"known": known.latents, "mask": known.mask}
            facts |= {"native": str(known.native), "repeats": str(known.repeats)}
        for keyframe in conditions.keyframes:
            tensors[f"keyframe {keyframe.frame}"] = keyframe.latents
        if (image := conditions.image) is not None:
            tensors |= {"channels": image.channels} | ({"tokens": image.tokens} if image.tokens is not None else {})
        if tensors:
            plain = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
            save_file(plain, self._given(key), facts)

    def read_given(self, key: str, device: torch.device) -> tuple[Conditions, Tensor | None]:
        """What `write_given` wrote."""
        if not (path := self._given(key)).exists():
            return Conditions(None), None
        tensors = load_file(path, device=str(device))
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
        known = image = None
        if "known" in tensors:
            known = KnownFrames(tensors["known"], tensors["mask"], facts["native"] == "True", int(facts["repeats"]))
        if "channels" in tensors:
            image = ImageCondition(tensors["channels"], tensors.get("tokens"))
        frames = [int(name.removeprefix("keyframe ")) for name in tensors if name.startswith("keyframe ")]
        keyframes = tuple(Keyframe(tensors[f"keyframe {frame}"], frame) for frame in sorted(frames))
        first = self.read_given(f"{key}-first", device)[0] if self._given(f"{key}-first").exists() else None
        return Conditions(known, keyframes, image, first=first), tensors.get("source")

    def _read(self, prompt: str, device: torch.device) -> Context:
        return Context(**{name: tensor.to(device) for name, tensor in load_file(self._file(prompt)).items()})

    def _given(self, key: str) -> Path:
        return self.folder / f"given-{key}.safetensors"

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
