"""Model families, one folder each; a family is imported when a checkpoint of it is used."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from soragen.models.family import Family


def load_family(name: str) -> Family:
    """The family whose folder is `name`, as weights.toml names it."""
    if not name.isidentifier():
        raise ValueError(f"not the name of a family: {name!r}")
    return cast(Family, import_module(f"soragen.families.{name}").FAMILY)
