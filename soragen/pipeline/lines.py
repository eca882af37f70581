"""The requests in a file, one a line: what each says, or the one line that tells what is wrong with it. No torch."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from soragen.errors import InputError, SoragenError
from soragen.pipeline.asking import check
from soragen.pipeline.resolve import MAX_PROMPT


@dataclass(frozen=True)
class Line:
    """One request. number: of its line, from 1. values: by the names of `KEYS`. error: what is wrong with it."""

    number: int
    values: dict[str, Any]
    error: SoragenError | None = None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("text")
    return value


def _spoken(value: Any) -> str:
    """A number or text that is parsed later: "2.5", "30000/1001"."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("a number")
    return str(value)


def _whole(value: Any) -> int:
    try:
        if isinstance(value, str):
            return int(value)
        if not isinstance(value, bool) and isinstance(value, int | float) and value == int(value):
            return int(value)
    except (ValueError, OverflowError):
        pass
    raise ValueError("a whole number")


def _number(value: Any) -> float:
    try:
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            return float(value)
    except (ValueError, OverflowError):
        pass
    raise ValueError("a number")


def _yes(value: Any) -> bool:
    if value in (True, False):
        return bool(value)
    if str(value).lower() in ("true", "yes", "1", "false", "no", "0"):
        return str(value).lower() in ("true", "yes", "1")
    raise ValueError("true or false")


def _texts(value: Any) -> list[str]:
    """One text, or a list of them."""
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in values):
        raise ValueError("text, or a list of texts")
    return values


KEYS: dict[str, Callable[[Any], Any]] = {
    "prompt": _text, "command": _text, "output": _text, "model": _text, "negative": _text, "size": _text,
    "solver": _text, "seconds": _spoken, "fps": _spoken, "frames": _whole, "seed": _whole, "steps": _whole,
    "guidance": _number, "shift": _number, "video": _text, "after": _text, "image": _text, "last": _text,
    "fit": _text, "strength": _number, "backward": _yes, "continued": _yes,
    "direct": _yes, "lora": _texts, "lora_partial": _yes, "quantize": _text, "attention": _text, "file": _text,
    "lossless": _yes,
}  # fmt: skip
"""What lines and storyboards may say: the options of the commands by their names, and what each must be."""


def read_lines(path: Path) -> list[Line]:
    """The requests of a .jsonl, .csv or .txt file, bad ones with their error. Lines without anything are passed over.

    Bytes that are no UTF-8 become surrogates, which `resolve` refuses by their place. Raises InputError for a file that
    cannot be read as a whole.
    """
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv, ".txt": _read_txt}
    read = readers.get(path.suffix.lower())
    if read is None:
        raise InputError(f"{path} is not a list of requests that is known", f"use one of: {', '.join(readers)}")
    try:
        with path.open(
            encoding="utf-8-sig", errors="surrogateescape", newline="" if read is _read_csv else None
        ) as file:
            lines = list(read(file, path))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}", "give a list of requests") from error
    if not lines:
        raise InputError(f"{path} holds no requests", "write one prompt a line")
    return lines


def _read_txt(file: TextIO, path: Path) -> Iterator[Line]:
    for number, text in enumerate(file, 1):
        if text.strip():
            yield Line(number, {"prompt": text.strip()})


def _read_jsonl(file: TextIO, path: Path) -> Iterator[Line]:
    for number, text in enumerate(file, 1):
        if not text.strip():
            continue
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            what = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
            yield Line(number, {}, InputError(f"not JSON: {what}", 'write it as {"prompt": "a red ball"}'))
            continue
        if isinstance(values, dict):
            yield _line(number, values)
        else:
            yield Line(number, {}, InputError("not a JSON object", 'write it as {"prompt": "a red ball"}'))


def _read_csv(file: TextIO, path: Path) -> Iterator[Line]:
    csv.field_size_limit(max(csv.field_size_limit(), 4 * MAX_PROMPT))
    rows = csv.DictReader(file, strict=True)
    try:
        names = [name.strip() for name in rows.fieldnames or ()]
        if not {"prompt", "command"} & set(names):
            raise InputError(f"the first line of {path} names no column prompt", f"known: {', '.join(KEYS)}")
        if unknown := [name for name in names if name not in KEYS]:
            raise InputError(f"{path} has a column {unknown[0]!r}", f"known: {', '.join(KEYS)}")
        rows.fieldnames = names
        for row in rows:
            if None in row:
                hint = 'a prompt with a comma stands in "…"'
                yield Line(rows.line_num, {}, InputError(f"more than {len(names)} cells", hint))
            elif values := {key: value for key, value in row.items() if value}:
                yield _line(rows.line_num, values)
    except csv.Error as error:
        raise InputError(f"{path} is no CSV at line {rows.line_num}: {error}", "close its quotes") from error


def _line(number: int, values: dict[str, Any]) -> Line:
    """The line with every value of the type it must have."""
    checked = {}
    for key, value in values.items():
        if key not in KEYS:
            return Line(number, {}, InputError(f"unknown key {key!r}", f"known: {', '.join(KEYS)}"))
        if value is None:
            continue
        try:
            checked[key] = KEYS[key](value)
        except ValueError as error:
            return Line(number, {}, InputError(f"{key} {value!r} is not {error}", "see soragen generate --help"))
    try:
        check(checked)
    except InputError as error:
        return Line(number, {}, error)
    return Line(number, checked)
