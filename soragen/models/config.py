"""A component's `config.json`, read strictly into a frozen dataclass."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from soragen.errors import WeightsError
from soragen.models.weights import read_json, some

Config = TypeVar("Config")


def read_config(path: Path, config: type[Config], absent: Mapping[str, Any] | None = None) -> Config:
    """The dataclass `config` filled from the JSON file at `path`, or from config.json in the folder `path`.

    Keys that start with "_" (`_class_name`, `_diffusers_version`) say who wrote the file and are passed over; every
    other key must be a field and hold its type, and every field without a default must be there. JSON lists become
    tuples. Raises WeightsError naming the file and the keys.

    absent: values of keys that the file does not have.
    """
    file = path / "config.json" if path.is_dir() else path
    values = {key: value for key, value in read_json(file).items() if not key.startswith("_")}
    values = {**(absent or {}), **values}
    fields = {field.name: field for field in dataclasses.fields(config) if field.init}  # type: ignore[arg-type]
    unknown = [key for key in values if key not in fields]
    missing = [
        name
        for name, field in fields.items()
        if name not in values and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    problems = []
    if unknown:
        problems.append(f"has keys that are not known: {some(unknown)}")
    if missing:
        problems.append(f"lacks {some(missing)}")
    hints = typing.get_type_hints(config)
    for key in values.keys() & fields.keys():
        values[key] = _tuples(values[key])
        if not _fits(values[key], hints[key]):
            problems.append(f"has {key} = {values[key]!r}, which is not {_name(hints[key])}")
    if problems:
        raise WeightsError(f"{file} {'; '.join(problems)}", f"it should describe a {config.__name__}")
    return config(**values)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _fits(value: Any, hint: Any) -> bool:
    """Whether a JSON value is of an annotated type: plain types, tuples, unions, Literal, dict."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin is typing.Literal:
        return value in arguments
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        items = arguments[:1] * len(value) if arguments[1:] == (...,) else arguments
        return len(items) == len(value) and all(map(_fits, value, items))
    if origin is dict:
        return isinstance(value, dict) and all(_fits(item, arguments[1]) for item in value.values())
    if hint is float:
        return type(value) in (int, float)
    return type(value) is (hint or type(None))


def _name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint)
