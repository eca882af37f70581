"""Model families, one folder each; a family is imported when a checkpoint of it is used."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from soragen.checkpoint import Checkpoint
from soragen.errors import InputError
from soragen.models.family import ConfiguredFamily, Family


def family_of(checkpoint: Checkpoint) -> Family:
    """The family of a checkpoint, which knows what the checkpoint's config files lack. Raises InputError."""
    family = load_family(checkpoint.family)
    if not checkpoint.config:
        return family
    if not isinstance(family, ConfiguredFamily):
        raise InputError(f"config of {checkpoint.name}: models of {checkpoint.family} take none", "leave it out")
    return family.with_config(checkpoint.config)


def load_family(name: str) -> Family:
    """The family whose folder is `name`, as weights.toml names it."""
    if not name.isidentifier():
        raise ValueError(f"not the name of a family: {name!r}")
    return cast(Family, import_module(f"soragen.families.{name}").FAMILY)
