"""Checks of a recipe that involve more than one key."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any

from audiossl.config.sections import Augment, DataSection, ModelSection, TrainSection
from audiossl.config.typed_yaml import Node, as_map, fail
from audiossl.errors import near

# Keys that choose the evaluation data: at most one of them may be given.
VALID = ("valid", "valid_folds", "valid_fraction", "valid_split")


def check(model: ModelSection, data: DataSection, train: TrainSection, root: Node) -> None:
    """Check keys against each other. Raises RecipeError naming key, line and way out."""

    def place(section: str, key: str = "") -> str:
        node = as_map(root, "").get(section)
        inner = node.key_places.get(key) if node else None
        return inner or root.key_places.get(section) or root.where

    if (model.from_ is None) == (model.architecture is None):
        raise fail("model", "give either `from` or `architecture`", place("model"))
    if model.change is not None and model.from_ is None:
        message = "only a model given by `from` can be changed; edit `architecture` instead"
        raise fail("model.change", message, place("model", "change"))
    if model.change is not None and "name" in model.change:
        message = "the architecture stays the one of `from`"
        raise fail("model.change.name", message, place("model", "change"))
    if model.change is not None and "ssast_bug" in model.change:
        message = "no argument of an architecture: give `model.ssast_positions` instead"
        raise fail("model.change.ssast_bug", message, place("model", "change"))
    if model.ssast_positions is not None and model.change is None:
        message = "says how `change` resizes a position table: give `change` as well"
        raise fail("model.ssast_positions", message, place("model", "ssast_positions"))
    if model.architecture is not None:
        _check_architecture(model, place("model", "architecture"))
    _check_source(data, lambda key: place("data", key))
    if data.labels is not None and len(set(data.labels)) < max(1, len(data.labels)):
        raise fail("data.labels", "empty, or a label is given twice", place("data", "labels"))
    if (train.steps is None) == (train.epochs is None):
        raise fail("train", "give either `steps` or `epochs`", place("train"))
    if not all(0 <= beta < 1 for beta in train.betas):
        raise fail("train.betas", "expected two numbers from 0 to below 1", place("train", "betas"))
    if train.schedule == "step" and train.step_every is None:
        raise fail("train.step_every", "missing: the step schedule needs it", place("train"))


def _check_source(data: DataSection, place: Callable[[str], str]) -> None:
    given = [key for key in ("train", "folder", "dataset") if getattr(data, key) is not None]
    if len(given) > 1:
        raise fail("data", f"give either `{given[0]}` or `{given[1]}`", place(given[1]))
    if data.dataset is not None:
        from audiossl.data import datasets

        if data.dataset not in datasets.names():
            message = f"unknown data set {data.dataset!r}{near(data.dataset, datasets.names())}"
            raise fail("data.dataset", message, place("dataset"))
    usual = DataSection()
    ways = [key for key in VALID if getattr(data, key) != getattr(usual, key)]
    if len(ways) > 1:
        message = f"give one of {', '.join(f'`{key}`' for key in VALID)}"
        raise fail("data", message, place(ways[0]))


def check_waves(augment: Augment, config: Any, root: Node) -> None:
    """Refuse keys that change waves if only spectrograms are kept. Raises RecipeError."""
    on_waves = getattr(config, "on_waves", None)
    asked = [(("data", "augment", key), augment) for key in augment.active]
    asked += [(("method", on_waves), config)] if on_waves else []
    for path, section in asked:
        value = getattr(section, path[-1])
        message = f"{value!r} works on waves, and `data.cache: features` keeps none of them"
        way_out = "change it, or set data.cache to none or memory"
        raise fail(".".join(path), f"{message}: {way_out}", _place(root, path))


def _place(root: Node, path: Sequence[str]) -> str:
    """File and line where a key is set, or else the nearest key above it."""
    where, node = root.where, root
    for key in path:
        if not node.keys or key not in node.keys:
            break
        where, node = node.key_places.get(key) or where, node.keys[key]
    return where


def _check_architecture(model: ModelSection, where: str) -> None:
    """Check the architecture's name and argument names against the model file's source."""
    from audiossl import models

    arguments = dict(model.architecture or {})
    name = arguments.pop("name", None)
    if name not in models.names():
        hint = near(str(name), models.names())
        raise fail("model.architecture.name", f"unknown architecture {name!r}{hint}", where)
    source = resources.files("audiossl.models") / f"{name}.py"
    tree = ast.parse(source.read_text(encoding="utf-8"))
    builders = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "build"]
    taken = [arg.arg for n in builders for arg in (*n.args.args, *n.args.kwonlyargs)]
    for key in arguments:
        if builders and key not in taken and builders[0].args.kwarg is None:
            message = f"architecture {name!r} has no such argument{near(key, taken)}"
            raise fail(f"model.architecture.{key}", message, where)
    if model.frontend is None:
        raise fail("model.frontend", "missing: an architecture needs a frontend", where)
