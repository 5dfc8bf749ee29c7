"""Recipes: strict YAML -> dataclasses, with `key=value` overrides and one `base:`.

    recipe = recipe.load("tiny/supervised", ["train.lr=3e-4", "data.train=clips/"])

Imports no torch, so a typo ends in a fraction of a second, in the method's own section too: its
`Config` is read out of the method's source (`method_config`), not out of the imported module.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import types
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from audiossl.config.sections import Augment, DataSection, ModelSection, Recipe, TrainSection
from audiossl.config.typed_yaml import MAX_BYTES, Node, build_dataclass, fail, free, parse
from audiossl.errors import RecipeError, near

__all__ = ["Augment", "DataSection", "ModelSection", "Recipe", "TrainSection", "load", "loads"]

# Ways to say what is evaluated: one of them.
VALID = ("valid", "valid_folds", "valid_fraction", "valid_split")
# Within a section, a key puts these of an underlying layer out of force (`model.from=x` on the
# command line replaces the recipe's architecture), unless that layer has the key itself: another
# `from` is fine-tuned like the first, with the frontend that the recipe gives it.
REPLACES = {
    "model": {"from": ("architecture", "frontend"), "architecture": ("from", "change")},
    "data": {
        "train": ("folder", "dataset"),
        "folder": ("train", "dataset"),
        "dataset": ("train", "folder"),
    },
    "train": {"steps": ("epochs",), "epochs": ("steps",)},
}
SECTIONS = {"model": ModelSection, "data": DataSection, "train": TrainSection}
TOP = ("base", "method", *SECTIONS, "out")


def names() -> list[str]:
    """Recipes in this package: `tagger`, `tiny/supervised`, ..."""
    root = _folder()
    files = root.rglob("*.yaml")
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in files)


def find(name: str, beside: Path | None = None) -> Path:
    """The file of a recipe given by path (also relative to folder `beside`) or by name."""
    for path in (beside / name if beside else Path(name), Path(name)):
        if path.suffix in (".yaml", ".yml") and path.is_file():
            return path
    if name in names():
        return _folder() / f"{name}.yaml"
    if Path(name).exists():
        raise RecipeError(f"recipe {name}: not a YAML file")
    if name.endswith((".yaml", ".yml")):
        raise RecipeError(f"no recipe {name!r}: no such file")
    raise RecipeError(
        f"no recipe {name!r}{near(name, names(), '`audiossl recipes ls` lists them')}"
    )


def load(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe `name` (a path, or a name in this package) with `key.path=value` overrides.

    Raises RecipeError naming key, value, line and way out.
    """
    path = find(name)
    root = _with_base(path, ())
    for override in overrides:
        root = merge(root, _override(override))
    return build(root, _name_of(path), describe(read(path)))


def loads(text: str, name: str = "recipe") -> Recipe:
    """The recipe that `text` is; `base` may only be a name in this package."""
    root = parse(text, name)
    return build(_based(root, None, ()), name, describe(text))


def read(path: Path) -> str:
    """Text of a recipe's file, no larger than a recipe may be."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise RecipeError(f"recipe {path}: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise fail("", f"larger than {MAX_BYTES // 1000} kB: not a recipe", str(path))
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise fail("", "not UTF-8 text", str(path)) from None


def describe(text: str) -> str:
    """The first line of a recipe's header comment."""
    first = text.lstrip("\ufeff").partition("\n")[0]
    return first.lstrip("#").strip() if first.startswith("#") else ""


def build(root: Node, name: str, description: str = "") -> Recipe:
    """Typed values of a recipe's nodes."""
    keys = _map(root, "")
    for key in keys:
        if key not in TOP:
            where = root.key_places.get(key) or keys[key].where
            raise fail(key, f"unknown key{near(key, TOP)}", where)
    if "method" not in keys:
        raise fail("method", "missing: which method trains?", root.where)
    method, config = _method(keys["method"])
    sections = {
        key: build_dataclass(cls, keys.get(key) or Node(root.where, keys={}), key)
        for key, cls in SECTIONS.items()
    }
    out = keys["out"].text if "out" in keys else f"runs/{name.replace('/', '-')}"
    if not out:
        raise fail("out", "expected a folder", keys["out"].where)
    _check(sections["model"], sections["data"], sections["train"], root)
    if sections["data"].cache == "features":
        _check_waves(sections["data"].augment, config, root)
    return Recipe(name, method, config, **sections, out=out, description=description)


def to_yaml(recipe: Recipe) -> str:
    """The resolved recipe as YAML that loads to the same values."""
    text = yaml.dump(to_dict(recipe), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    header = f"# {recipe.description}\n" if recipe.description else ""
    return header + text


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """The resolved recipe by section and key, without keys that are not set."""
    values: dict[str, Any] = {"method": {"name": recipe.method, **_plain(recipe.config)}}
    values |= {key: _plain(getattr(recipe, key)) for key in SECTIONS}
    values["out"] = recipe.out
    return values


def merge(under: Node, over: Node) -> Node:
    """`over` on `under`, key by key; a list, a scalar or a map of another `name` is replaced."""
    if under.keys is None or over.keys is None:
        return over
    keys, places = dict(under.keys), dict(under.key_places)
    for key, value in over.keys.items():
        below = keys.get(key)
        if below is None or below.keys is None or value.keys is None or _renamed(below, value):
            keys[key] = value
            places[key] = over.key_places.get(key) or value.where
            continue
        below = _without_replaced(below, value, REPLACES.get(key, {}))
        keys[key] = merge(below, value)
    return Node(under.where, keys=keys, key_places=places)


@functools.cache
def method_config(name: str) -> type:
    """The `Config` dataclass of methods/NAME.py, made from its source without importing torch.

    Only the dataclasses of the file, its literal constants and its imports from dataclasses, typing
    and this package's torch-free modules are run, so a Config may be built of these and no others.
    """
    path = resources.files("audiossl.methods") / f"{name}.py"
    allowed = ("dataclasses", "typing", "audiossl.config.typed_yaml", "audiossl.config.sections")
    body: list[ast.stmt] = [
        node
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if (isinstance(node, ast.ImportFrom) and node.module in allowed)
        or (isinstance(node, ast.ClassDef) and any(map(_is_dataclass, node.decorator_list)))
        or (isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant))
    ]
    module = types.ModuleType(f"audiossl.methods.{name}")
    exec(compile(ast.Module(body, []), str(path), "exec", dont_inherit=True), module.__dict__)
    return module.Config


def _is_dataclass(decorator: ast.expr) -> bool:
    call = decorator.func if isinstance(decorator, ast.Call) else decorator
    return isinstance(call, ast.Name) and call.id == "dataclass"


def _folder() -> Path:
    return Path(str(resources.files("audiossl.recipes")))


def _name_of(path: Path) -> str:
    folder = _folder()
    inside = path.is_relative_to(folder)
    return (path.relative_to(folder) if inside else Path(path.name)).with_suffix("").as_posix()


def _with_base(path: Path, seen: tuple[Path, ...]) -> Node:
    real = path.resolve()
    if real in seen:
        raise fail("base", "a recipe cannot be its own base", str(path))
    return _based(parse(read(path), str(path)), path.parent, (*seen, real))


def _based(root: Node, beside: Path | None, seen: tuple[Path, ...]) -> Node:
    base = _map(root, "").get("base")
    if base is None:
        return root
    if not base.text:
        raise fail("base", f"expected the name or path of a recipe, got {base.shown()}", base.where)
    try:
        path = find(base.text, beside)
    except RecipeError as error:
        raise fail("base", error.message, base.where) from None
    return merge(_with_base(path, seen), root)


def _override(text: str) -> Node:
    """`train.lr=3e-4` as a tree with this one leaf."""
    key, equals, value = text.partition("=")
    where = f"override {text if len(text) <= 60 else text[:57] + '...'}"
    parts = [part.strip() for part in key.split(".")]
    if not equals or not all(parts):
        raise RecipeError(f"override {text!r}: expected key.path=value, such as train.lr=3e-4")
    node = parse(value, where, line_numbers=False) if value.strip() else Node(where, text="")
    if parts[0] == "base":
        raise fail("base", "cannot be overridden: name that recipe instead", where)
    for part in reversed(parts):
        node = Node(where, keys={part: node}, key_places={part: where})
    return node


def _map(node: Node, key: str) -> dict[str, Node]:
    if node.keys is None:
        raise fail(key, f"expected keys, got {node.shown()}", node.where)
    return node.keys


def _renamed(below: Node, value: Node) -> bool:
    """Whether both are maps with a `name` and it differs: then the old arguments mean nothing."""
    old, new = (node.keys.get("name") if node.keys else None for node in (below, value))
    return old is not None and new is not None and old.text != new.text


def _without_replaced(below: Node, value: Node, replaces: dict[str, tuple[str, ...]]) -> Node:
    new = (value.keys or {}).keys() - (below.keys or {}).keys()
    drop = {old for key in new for old in replaces.get(key, ())}
    kept = {key: node for key, node in (below.keys or {}).items() if key not in drop}
    return dataclasses.replace(below, keys=kept)


def _method(node: Node) -> tuple[str, Any]:
    from audiossl import methods

    keys = dict(_map(node, "method"))
    name = keys.pop("name", None)
    if name is None or not name.text:
        raise fail("method.name", "missing", node.where)
    if name.text not in methods.names():
        hint = near(name.text, methods.names())
        raise fail("method.name", f"unknown method {name.text!r}{hint}", name.where)
    rest = dataclasses.replace(node, keys=keys)
    return name.text, build_dataclass(method_config(name.text), rest, "method")


def _check(model: ModelSection, data: DataSection, train: TrainSection, root: Node) -> None:
    """What no single key can tell."""

    def place(section: str, key: str = "") -> str:
        node = _map(root, "").get(section)
        inner = node.key_places.get(key) if node else None
        return inner or root.key_places.get(section) or root.where

    if (model.from_ is None) == (model.architecture is None):
        raise fail("model", "give either `from` or `architecture`", place("model"))
    if model.change is not None and model.from_ is None:
        message = "what `from` gives can be changed; an architecture says all itself"
        raise fail("model.change", message, place("model", "change"))
    if model.change is not None and "name" in model.change:
        message = "the architecture stays the one of `from`"
        raise fail("model.change.name", message, place("model", "change"))
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


def _check_waves(augment: Augment, config: Any, root: Node) -> None:
    """Nothing may be asked to be done to waves where only their spectrograms are at hand."""
    on_waves = getattr(config, "on_waves", None)
    asked = [(("data", "augment", key), augment) for key in augment.active]
    asked += [(("method", on_waves), config)] if on_waves else []
    for path, section in asked:
        value = getattr(section, path[-1])
        message = f"{value!r} works on waves, and `data.cache: features` keeps none of them"
        way_out = "change it, or set data.cache to none or memory"
        raise fail(".".join(path), f"{message}: {way_out}", _place(root, path))


def _place(root: Node, path: Sequence[str]) -> str:
    """Where a key is set, or the nearest one above it that is."""
    where, node = root.where, root
    for key in path:
        if not node.keys or key not in node.keys:
            break
        where, node = node.key_places.get(key) or where, node.keys[key]
    return where


def _check_architecture(model: ModelSection, where: str) -> None:
    """The name of the architecture and of its arguments, read from the model file's source."""
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


def _plain(value: Any) -> Any:
    """Dataclasses as maps by key, without the keys that are not set; tuples as lists."""
    if dataclasses.is_dataclass(value):
        pairs = ((item.name, getattr(value, item.name)) for item in dataclasses.fields(value))
        return {name.rstrip("_"): _plain(item) for name, item in pairs if item is not None}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


class _Dumper(yaml.SafeDumper):
    """Quotes each text that this module's own reader would take for a number or true or null."""


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    plain = _reads_back(text)
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else '"')


def _reads_back(text: str) -> bool:
    try:
        return free(Node("", text=text)) == text
    except RecipeError:
        return False


_Dumper.add_representer(str, _represent_text)
