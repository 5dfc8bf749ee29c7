"""A recipe written as YAML with all its values; it loads to the same recipe."""

from __future__ import annotations

import dataclasses
from typing import Any

import yaml

from audiossl.config.sections import (
    SECTIONS,
    Recipe,
)
from audiossl.config.typed_yaml import Node, free
from audiossl.errors import RecipeError


def to_yaml(recipe: Recipe) -> str:
    """The resolved recipe as YAML that loads to the same values."""
    text = yaml.dump(to_dict(recipe), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    header = f"# {recipe.description}\n" if recipe.description else ""
    return header + text


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """The resolved recipe by section and key, without unset keys."""
    values: dict[str, Any] = {"method": {"name": recipe.method, **_plain(recipe.config)}}
    values |= {key: _plain(getattr(recipe, key)) for key in SECTIONS}
    values["out"] = recipe.out
    return values


def _plain(value: Any) -> Any:
    """Dataclasses as maps without unset keys, tuples as lists."""
    if dataclasses.is_dataclass(value):
        pairs = ((item.name, getattr(value, item.name)) for item in dataclasses.fields(value))
        return {name.rstrip("_"): _plain(item) for name, item in pairs if item is not None}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


class _Dumper(yaml.SafeDumper):
    """Quotes text that the recipe reader would take for a number, true, false or null."""


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    plain = _reads_back(text)
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else '"')


def _reads_back(text: str) -> bool:
    try:
        return free(Node("", text=text)) == text
    except RecipeError:
        return False


_Dumper.add_representer(str, _represent_text)
