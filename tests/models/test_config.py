"""config.json, strictly."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from soragen.errors import WeightsError
from soragen.models.config import read_config


@dataclass(frozen=True)
class Shape:
    width: int
    strides: tuple[int, int, int]
    layers: tuple[int, ...] = (1,)
    epsilon: float = 1e-6
    norm: Literal["rms", "layer"] = "rms"
    causal: bool = True
    clip: float | None = None


GOOD: dict[str, Any] = {"_class_name": "Shape", "width": 8, "strides": [4, 8, 8]}


def write(folder: Path, **changes: Any) -> Path:
    values = {key: value for key, value in {**GOOD, **changes}.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def test_reads_lists_as_tuples_and_fills_defaults(tmp_path: Path) -> None:
    read = read_config(write(tmp_path, layers=[2, 3], epsilon=1, clip=None), Shape)
    assert read == Shape(8, (4, 8, 8), (2, 3), 1)
    assert read_config(tmp_path / "config.json", Shape) == read


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"depth": 3, "heads": 2}, "not known: depth, heads"),
        ({"width": ...}, "lacks width"),
        ({"width": 8.5}, "width = 8.5, which is not int"),
        ({"width": True}, "width = True"),
        ({"width": "8"}, "width = '8'"),
        ({"strides": [4, 8]}, "strides"),
        ({"layers": [1, "2"]}, "layers"),
        ({"norm": "batch"}, "norm = 'batch'"),
        ({"causal": 1}, "causal"),
        ({"clip": "1"}, "clip"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(WeightsError, match=said) as caught:
        read_config(write(tmp_path, **changes), Shape)
    assert "config.json" in caught.value.message


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff", "[" * 100_000])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(WeightsError, match=r"config\.json"):
        read_config(tmp_path, Shape)
