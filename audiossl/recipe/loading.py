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
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from audiossl.config.sections import (
    SECTIONS,
    Augment,
    DataSection,
    ModelSection,
    Recipe,
    TrainSection,
)
from audiossl.config.typed_yaml import MAX_BYTES, Node, as_map, build_dataclass, fail, parse
from audiossl.errors import RecipeError, near
from audiossl.recipe.checks import check, check_waves

__all__ = ["Augment", "DataSection", "ModelSection", "Recipe", "TrainSection", "load", "loads"]

# Section -> key -> keys that it removes from the recipe below it (its base, or the file that the
# command line overrides): `model.from=x` removes the architecture and frontend of the file. If the
# recipe below has the key itself, nothing is removed: a new `from` keeps the recipe's frontend.
REPLACES = {
    "model": {
        "from": ("architecture", "frontend"),
        "architecture": ("from", "change", "ssast_positions"),
    },
    "data": {
        "train": ("folder", "dataset"),
        "folder": ("train", "dataset"),
        "dataset": ("train", "folder"),
    },
    "train": {"steps": ("epochs",), "epochs": ("steps",)},
}
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
    """The recipe in `text`; its `base` must be a name in this package."""
    root = parse(text, name)
    return build(_based(root, None, ()), name, describe(text))


def read(path: Path) -> str:
    """Text of a recipe's file. Raises RecipeError if it is too large or not UTF-8."""
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
    """The recipe that a tree of nodes describes. Raises RecipeError."""
    keys = as_map(root, "")
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
    check(sections["model"], sections["data"], sections["train"], root)
    if sections["data"].cache == "features":
        check_waves(sections["data"].augment, config, root)
    return Recipe(name, method, config, **sections, out=out, description=description)


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
    base = as_map(root, "").get("base")
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
    """`train.lr=3e-4` as a tree with a single leaf."""
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


def _renamed(below: Node, value: Node) -> bool:
    """Whether both are maps whose `name` differs: then the old arguments do not apply."""
    old, new = (node.keys.get("name") if node.keys else None for node in (below, value))
    return old is not None and new is not None and old.text != new.text


def _without_replaced(below: Node, value: Node, replaces: dict[str, tuple[str, ...]]) -> Node:
    new = (value.keys or {}).keys() - (below.keys or {}).keys()
    drop = {old for key in new for old in replaces.get(key, ())}
    kept = {key: node for key, node in (below.keys or {}).items() if key not in drop}
    return dataclasses.replace(below, keys=kept)


def _method(node: Node) -> tuple[str, Any]:
    from audiossl import methods

    keys = dict(as_map(node, "method"))
    name = keys.pop("name", None)
    if name is None or not name.text:
        raise fail("method.name", "missing", node.where)
    if name.text not in methods.names():
        hint = near(name.text, methods.names())
        raise fail("method.name", f"unknown method {name.text!r}{hint}", name.where)
    rest = dataclasses.replace(node, keys=keys)
    return name.text, build_dataclass(method_config(name.text), rest, "method")
