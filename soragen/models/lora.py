"""LoRA files: small changes of a transformer's weights, read in every naming in use and added exactly.

A change of a weight W is of low rank, W + alpha / rank * B @ A (Hu et al., arXiv:2106.09685); the same and then, in
DoRA, every row or column scaled to a length of its own (Liu et al., arXiv:2402.09353); or a full difference. How much
of it is added, the user says: W' = W + scale * (changed W - W). Several files add up, each as if it were alone.

What is read is safetensors alone. Every key of a file is accounted for: it changes a weight, or it is named.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from soragen.errors import WeightsError
from soragen.models.fingerprint import describe, read_header
from soragen.models.keys import Naming, Shapes
from soragen.models.lora_keys import Part, is_text_encoder, refuse_kind, seems_for, spelled, split_key
from soragen.models.lora_scale import Scaling, read_scaling
from soragen.models.weights import FLOATS, Change, is_finite, open_file, read_tensor, some

OURS = Naming("")
"""Of files that have our names alone."""


@dataclass(frozen=True)
class Targets:
    """What a file may change: the weights of one transformer.

    shapes: by the network's names. naming: of the authors' own files.
    """

    shapes: Shapes
    naming: Naming

    @classmethod
    def of(cls, build: Callable[[], nn.Module], naming: Naming = OURS) -> Targets:
        """The weights of the network that `build` makes, which is built without memory."""
        with torch.device("meta"):
            return cls({name: tuple(weight.shape) for name, weight in build().state_dict().items()}, naming)

    @cached_property
    def spellings(self) -> dict[str, str]:
        """The network's name of a weight, by every way to spell it: ours and the authors', underlines for dots."""
        found: dict[str, str] = {}
        for name in self.shapes:
            for spelling in (name, *self.naming.originals(name)):
                if found.setdefault(spelled(spelling), name) != name:
                    raise ValueError(f"{spelling} stands for {name} and {found[spelled(spelling)]}")
        return found


@dataclass(frozen=True)
class Delta:
    """How a file changes one weight. factor: alpha / rank; by_row: the axis along which DoRA's lengths lie."""

    kind: Literal["low rank", "dora", "full"]
    keys: tuple[str, ...]
    factor: float = 1.0
    by_row: bool = True

    def add(self, tensors: Sequence[Tensor], base: Tensor, total: Tensor, scale: float) -> None:
        """Adds `scale` times the change of `base` to `total`, a sum in float32 that began as its copy.

        tensors: of `keys`, in float32.
        """
        first, *others = tensors
        if self.kind == "full":
            total.add_((first * self.factor).view_as(total), alpha=scale)
            return
        matrix, product = total.view(len(total), -1), (others[0].flatten(1), first.flatten(1))
        if self.kind == "low rank":
            matrix.addmm_(*product, alpha=scale * self.factor)
            return
        start = base.float().flatten(1)
        changed = torch.addmm(start, *product, alpha=self.factor)
        if self.by_row:
            changed *= others[1].flatten()[:, None] / changed.norm(dim=1, keepdim=True)
        else:  # one length for each input channel, over all outputs and places of a kernel
            channels = changed.view(len(changed), base.shape[1], -1)
            channels *= others[1].view(1, -1, 1) / channels.norm(dim=(0, 2), keepdim=True)
        matrix.add_(changed - start, alpha=scale)


@dataclass(frozen=True)
class Fit:
    """A file on one transformer. deltas: by the network's names. unfit: what changes nothing, to the reason why."""

    path: Path
    scale: float
    deltas: Mapping[str, Delta]
    unfit: Mapping[str, str]
    seems: str | None

    @property
    def num_applied(self) -> int:
        return len(self.deltas)

    @property
    def num_changes(self) -> int:
        return self.num_applied + len(self.unfit)

    def require(self, partial: bool) -> Fit:
        """Itself where all fits, or with `partial` at least something. Raises WeightsError."""
        if not self.unfit or (partial and self.deltas):
            return self
        name, reasons = self.path.name, (f"{layer}: {reason}" for layer, reason in self.unfit.items())
        what = "none" if not self.deltas else f"only {self.num_applied}"
        seems = f"; it seems to be for {self.seems}" if self.seems else ""
        hint = "use it with the model that it was made for"
        raise WeightsError(
            f"LoRA {name} does not fit this model: {what} of its {self.num_changes} changes can be applied "
            f"({some(reasons, shown=3)}){seems}",
            hint if not self.deltas else f"{hint}, or add --lora-partial to apply the part that fits",
        )


def fit(path: Path, scale: float, targets: Targets) -> Fit:
    """What the file changes of `targets`, found from its header; no weight is read.

    scale: how much of it is added; 1 is as it was trained. Raises WeightsError for a file that is no LoRA, is damaged,
    or is of a kind whose formula is not known here.
    """
    header = read_header(path)
    shapes = header.shapes
    for key, kind in header.dtypes.items():
        if kind not in FLOATS:
            raise WeightsError(f"LoRA {path.name}: {key} is stored as {kind}", "use one in 16 or 32 bits")
    with open_file(path) as file:
        layers, others = _layers(path, shapes)
        scaling = read_scaling(path, file.metadata() or {})
        deltas: dict[str, Delta] = {}
        unfit = {key: "no known part of a LoRA" for key in others}
        for layer, parts in layers.items():
            alpha = _alpha(file, parts["alpha"], path) if "alpha" in parts else None
            for what, delta in _deltas(path, layer, parts, shapes, scaling, alpha).items():
                name = find(layer, what, targets.spellings)
                if is_text_encoder(layer):
                    unfit[f"{layer}{what}"] = "of the text encoder, which is not changed"
                elif name is None:
                    unfit[f"{layer}{what}"] = "no such layer here"
                elif reason := _misfit(delta, shapes, targets.shapes[name]):
                    unfit[f"{layer}{what}"] = reason
                elif name in deltas:
                    raise WeightsError(f"LoRA {path.name}: {name} is changed twice", "keep one adapter a file")
                else:
                    deltas[name] = delta
    widths = Counter(shapes[parts["up"]][0] for parts in layers.values() if shapes.get(parts.get("up", "")))
    width = max(widths, key=lambda width: widths[width], default=0)
    return Fit(path, scale, deltas, unfit, seems_for(layers, width))


def merging(fits: Sequence[Fit]) -> Change:
    """What `load_module` does to every weight as it is loaded: adds the changes of all files, in float32.

    The weight must be in the type in which it is stored; what comes out is float32 where something was changed, to be
    cast once. The files stay mapped as long as what is returned is kept.
    """
    opened = [(lora, open_file(lora.path)) for lora in fits]

    def change(name: str, weight: Tensor) -> Tensor:
        changes = [(lora, file) for lora, file in opened if name in lora.deltas]
        if not changes:
            return weight
        total = weight.to(torch.float32, copy=True)
        for lora, file in changes:
            delta = lora.deltas[name]
            tensors = [read_tensor(file, key, lora.path).to(total) for key in delta.keys]
            for key, tensor in zip(delta.keys, tensors, strict=True):
                if not is_finite(tensor):
                    raise WeightsError(f"LoRA {lora.path.name}: {key} holds values that are not finite", "leave it out")
            delta.add(tensors, weight, total, lora.scale)
        return total

    return change


def find(layer: str, what: str, spellings: Mapping[str, str]) -> str | None:
    """The network's name of what a layer holds (".weight", ".bias"), whichever way the layer is spelled."""
    name = spelled(layer + what)
    while name not in spellings:
        rest = next((name.removeprefix(prefix) for prefix in PREFIXES if name.startswith(prefix)), None)
        if rest is None:
            return None
        name = rest
    return spellings[name]


PREFIXES = tuple(
    spelled(prefix)
    for prefix in (
        "base_model.model.", "model.diffusion_model.", "diffusion_model.", "lora_unet_", "lora_transformer_",
        "transformer.", "unet.", "model.", "module.",
    )
)  # fmt: skip
"""What stands before a layer's name in files by PEFT, ComfyUI and the authors, kohya's trainers, and diffusers."""


def _layers(path: Path, shapes: Shapes) -> tuple[dict[str, dict[Part, str]], list[str]]:
    """The parts of every layer, to their keys; and the keys that are no part. Raises WeightsError."""
    layers: dict[str, dict[Part, str]] = {}
    others = []
    for key in shapes:
        layer, part = split_key(key)
        if part is None:
            refuse_kind(path.name, key)
            others.append(key)
        elif part in layers.setdefault(layer, {}):
            raise WeightsError(f"LoRA {path.name} holds {layers[layer][part]} and {key}", "keep one adapter a file")
        else:
            layers[layer][part] = key
    if not layers:
        what = " and ".join(describe(shapes)) or f"no LoRA ({some(others)})"
        raise WeightsError(f"{path.name} is {what}", "--lora takes changes to a model; a whole model is for --model")
    return layers, others


def _alpha(file: Any, key: str, path: Path) -> float:
    alpha = read_tensor(file, key, path)
    if alpha.numel() != 1 or not is_finite(alpha):
        raise WeightsError(f"LoRA {path.name}: {key} is not one number", "fetch the file again")
    return float(alpha)


def _deltas(
    path: Path,
    layer: str,
    parts: Mapping[Part, str],
    shapes: Shapes,
    scaling: Scaling,
    alpha: float | None,
) -> dict[str, Delta]:
    """What a layer's parts change: ".weight", ".bias" or ".modulation", to how. Raises WeightsError."""
    found = {}
    if "down" in parts and "up" in parts:
        rank = shapes[parts["down"]][0] if shapes[parts["down"]] else 0
        if not rank:
            raise WeightsError(f"LoRA {path.name}: {parts['down']} has no rank", "fetch the file again")
        factor = alpha / rank if alpha is not None else scaling.factor(layer, rank)
        pair = (parts["down"], parts["up"])
        length = parts.get("magnitude") or parts.get("dora_scale")
        if length is None:
            found[".weight"] = Delta("low rank", pair, factor)
        else:
            by_row = "magnitude" in parts or shapes[length][:1] != (1,)
            found[".weight"] = Delta("dora", (*pair, length), factor, by_row)
        if "up_bias" in parts:
            found[".bias"] = Delta("full", (parts["up_bias"],), factor)
    elif left := set(parts) - {"diff", "diff_b", "diff_m"}:
        raise WeightsError(f"LoRA {path.name}: {layer} has {' and '.join(sorted(left))} alone", "fetch the file again")
    for part, what in (("diff", ".weight"), ("diff_b", ".bias"), ("diff_m", ".modulation")):
        if part in parts:
            if what in found:
                raise WeightsError(f"LoRA {path.name}: {layer} changes its {what[1:]} twice", "fetch the file again")
            found[what] = Delta("full", (parts[part],))  # type: ignore[index]
    return found


def _misfit(delta: Delta, shapes: Shapes, needed: tuple[int, ...]) -> str:
    """Why this change is not one of a weight of the shape `needed`; "" where it is."""
    if delta.kind == "full":
        shape = shapes[delta.keys[0]]
        return "" if shape == needed else f"{list(shape)} where {list(needed)} is needed"
    down, up, *length = (shapes[key] for key in delta.keys)
    rank = down[0]
    if not up or math.prod(up[1:]) != rank:
        return f"rank {rank} and {list(up)} do not go together"
    if len(needed) < 2 or (up[0], math.prod(down[1:])) != (needed[0], math.prod(needed[1:])):
        return f"{up[0]} x {math.prod(down[1:])} where {' x '.join(map(str, needed))} is needed"
    wanted = needed[0] if delta.by_row else needed[1]
    if length and math.prod(length[0]) != wanted:
        return f"{math.prod(length[0])} lengths where {wanted} are needed"
    return ""
