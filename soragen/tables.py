"""TOML tables into frozen dataclasses, strictly: what is unknown, missing or of the wrong type is named with its file.

A field of type tuple[Item, ...] is a table in the file: its keys are the first field of the items, its values the rest.
A field's `choices`, in its metadata, are the values that it takes.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import typing
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

from soragen.errors import InputError

Table = dict[str, Any]
T = TypeVar("T")

WHOLE = ("files", "signature", "shifts")
"""Tables that are replaced as a whole, not merged."""


def read_toml(path: Path) -> Table:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}", "correct the file, or remove it") from error


def check_keys(kind: type[Any], values: object, where: str, also: tuple[str, ...] = ()) -> None:
    """Refuses keys that are neither fields of `kind` nor `also`, here and in the tables below. A table may be named."""
    if not isinstance(values, dict):
        raise InputError(f"{where} is not a table", "write it as [name] with keys below it")
    hints = {key: hint for key, hint in _hints(kind).items() if key != "name"}
    hints |= dict.fromkeys(also, str)
    for key, value in values.items():
        if key not in hints:
            nearest = difflib.get_close_matches(key, hints, n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else f"known: {', '.join(hints)}"
            if isinstance(value, dict):
                hint += '; a name with a dot in it needs quotes: ["a-1.5"]'
            raise InputError(f"unknown key {key!r} for {where}", hint)
        if (item := _item_kind(hints[key])) and isinstance(value, dict):
            for name, facts in value.items():
                check_keys(item, _facts(item, facts), f"{item.__name__.lower()} {name} of {where}")
        elif dataclasses.is_dataclass(hints[key]) and not isinstance(value, str):
            check_keys(typing.cast(type, hints[key]), value, f"{key} of {where}")


def merge(values: Table, changes: Table) -> Table:
    """`values` with `changes` laid over it. Tables are merged, except those that stand as a whole."""
    merged = dict(values)
    for key, change in changes.items():
        both = isinstance(change, dict) and isinstance(values.get(key), dict) and key not in WHOLE
        merged[key] = merge(values[key], change) if both else change
    return merged


def build(kind: type[T], values: Table, where: str, hint: str) -> T:
    """An instance of the dataclass `kind`. Raises InputError for a missing value and for one of the wrong type.

    hint: what to do about a missing one.
    """
    arguments: Table = {}
    hints = _hints(kind)
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if field.name in values:
            arguments[field.name] = _value(field, hints[field.name], values[field.name], where, hint)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise InputError(f"{where} has no {field.name!r} in the list of models", hint)
    return kind(**arguments)


def _value(field: dataclasses.Field[Any], kind: Any, value: Any, where: str, hint: str) -> Any:
    of = f"{field.name} of {where}"
    if (item := _item_kind(kind)) and isinstance(value, dict):
        first = dataclasses.fields(item)[0].name
        entries = {name: typing.cast(Table, _facts(item, facts)) for name, facts in value.items()}
        return tuple(build(item, {**facts, first: name}, f"{name} in {of}", hint) for name, facts in entries.items())
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        return build(typing.cast(type, kind), value, of, hint)
    if typing.get_origin(kind) is dict and isinstance(value, dict):
        return dict(value)
    if kind == tuple[float, ...] and isinstance(value, list):
        if not all(type(number) in (int, float) and number > 0 for number in value):
            raise InputError(f"{of} is {value!r}", "it must be a list of numbers above zero")
        return tuple(map(float, value))
    if kind is Fraction and isinstance(value, int | str | Fraction):
        try:
            value = Fraction(value)
        except (ValueError, ZeroDivisionError):
            value = None
    elif kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not kind or (kind in (int, float, Fraction) and value <= 0):
        name = getattr(kind, "__name__", "table")
        raise InputError(f"{of} is {value!r}", f"it must be a {name}, numbers above zero")
    choices = field.metadata.get("choices")
    if choices and value not in choices:
        raise InputError(f"{of} is {value!r}", f"use one of {', '.join(choices)}")
    return value


_HINTS: dict[type[Any], dict[str, Any]] = {}


def _hints(kind: type[Any]) -> dict[str, Any]:
    """`typing.get_type_hints`, which is slow, once for each class."""
    if kind not in _HINTS:
        _HINTS[kind] = typing.get_type_hints(kind)
    return _HINTS[kind]


def _item_kind(kind: Any) -> type[Any] | None:
    """The dataclass in tuple[dataclass, ...]."""
    arguments = typing.get_args(kind)
    return typing.cast(type, arguments[0]) if arguments and dataclasses.is_dataclass(arguments[0]) else None


def _facts(kind: type[Any], value: object) -> object:
    """An item's value as a table; one that has only one more field may be written without: "832x480" = 3.0"""
    fields = [field.name for field in dataclasses.fields(kind)]
    return {fields[1]: value} if len(fields) == 2 and not isinstance(value, dict) else value
