"""By how much a file's own B @ A counts, where no key says so: what trainers wrote beside the weights.

Without a word from them, alpha is the rank, and the product counts as it is.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from soragen.errors import WeightsError
from soragen.models.weights import read_json

IN_HEADER = "lora_adapter_metadata"
"""The entry of a safetensors header under which diffusers keeps PEFT's configuration."""
PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"


@dataclass(frozen=True)
class Scaling:
    """PEFT's configuration. alphas: of single layers, by the end of their name. by_root: alpha / sqrt(rank) instead."""

    alpha: float | None = None
    alphas: Mapping[str, float] = field(default_factory=dict)
    by_root: bool = False

    def factor(self, layer: str, rank: int) -> float:
        """alpha / rank, or alpha / sqrt(rank) (Kalajdzievski, arXiv:2312.03732)."""
        ends = (alpha for end, alpha in self.alphas.items() if layer == end or layer.endswith(f".{end}"))
        alpha = next(ends, self.alpha)
        if alpha is None:
            return 1.0
        return alpha / (math.sqrt(rank) if self.by_root else rank)


def read_scaling(path: Path, header: Mapping[str, str]) -> Scaling:
    """What the header of a LoRA says, or adapter_config.json beside PEFT's own file. Raises WeightsError."""
    beside = path.with_name(PEFT_CONFIG)
    if IN_HEADER in header:
        try:
            values = json.loads(header[IN_HEADER])
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            raise _wrong(path, f"its header's {IN_HEADER} is no JSON object")
        values = {key.removeprefix("transformer."): value for key, value in values.items()}
    elif path.name == PEFT_FILE and beside.is_file():
        values = read_json(beside)
    else:
        return Scaling()
    return _scaling(path, values)


def _scaling(path: Path, values: Mapping[str, Any]) -> Scaling:
    if values.get("peft_type") not in (None, "LORA") or values.get("fan_in_fan_out"):
        raise _wrong(path, f"PEFT's type {values.get('peft_type')}, fan_in_fan_out {values.get('fan_in_fan_out')}")
    alphas = values.get("alpha_pattern") or {}
    named = isinstance(alphas, dict) and all(re.fullmatch(r"\^?[\w.]+\$?", name) for name in alphas)
    numbers = [values.get("lora_alpha"), *(alphas.values() if named else ())]
    if not named or not all(number is None or _is_number(number) for number in numbers):
        raise _wrong(path, f"lora_alpha {values.get('lora_alpha')!r}, alpha_pattern {alphas!r}")
    cleaned = {name.strip("^$"): float(alpha) for name, alpha in alphas.items()}
    alpha = values.get("lora_alpha")
    return Scaling(None if alpha is None else float(alpha), cleaned, values.get("use_rslora") is True)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _wrong(path: Path, what: str) -> WeightsError:
    return WeightsError(f"LoRA {path.name} is scaled in a way that is not known: {what}", "use a plain LoRA")
