"""YAML text -> typed values, strictly: the declared type decides how a scalar is read.

PyYAML's own resolver reads `1e-4` as text, `no` as False, `0123` as 83 and `12:30` as 750. Here
only YAML's events are used: a scalar stays text with its place until a declared type reads it.
Anchors, aliases, tags, duplicate keys, several documents, deep nesting and big files are refused,
so a hostile file can neither run code nor grow in memory. Imports no torch, no numpy.
"""

from __future__ import annotations

import math
import re
import types
import typing
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Annotated, Any, Literal, TypeVar, Union

import yaml

from audiossl.errors import RecipeError, near

MAX_BYTES = 1_000_000
MAX_DEPTH = 16
MAX_INTEGER = 10**15  # no count of steps, samples or bytes here comes near

_NULL = {"", "~", "null", "Null", "NULL"}
_TRUE, _FALSE = {"true", "True", "TRUE"}, {"false", "False", "FALSE"}
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*(_[0-9]+)*)\Z")
_NUMBER = re.compile(r"[-+]?([0-9]+(_[0-9]+)*\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?\Z")
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Made = TypeVar("Made")


@dataclass(frozen=True)
class Range:
    """Bounds of a number, for `Annotated[float, Range(0, 1)]`; `above` excludes its value."""

    low: float | None = None
    high: float | None = None
    above: float | None = None

    def broken_by(self, value: float) -> str | None:
        """The expectation that `value` breaks, in words; None if it is within the bounds."""
        if self.above is not None and value <= self.above:
            return f"a number above {self.above:g}"
        if self.low is not None and value < self.low:
            return f"at least {self.low:g}"
        if self.high is not None and value > self.high:
            return f"at most {self.high:g}"
        return None


@dataclass
class Node:
    """A piece of YAML and its place. Exactly one of `text`, `items`, `keys` is not None."""

    where: str
    text: str | None = None
    quoted: bool = False
    items: list[Node] | None = None
    keys: dict[str, Node] | None = None
    key_places: dict[str, str] = field(default_factory=dict)

    @property
    def null(self) -> bool:
        return self.text is not None and not self.quoted and self.text in _NULL

    def shown(self) -> str:
        if self.keys is not None:
            return f"keys ({', '.join(list(self.keys)[:3])}{', ...' if len(self.keys) > 3 else ''})"
        if self.items is not None:
            return f"a list of {len(self.items)}"
        text = self.text or ""
        return "nothing" if self.null else repr(text if len(text) <= 60 else text[:57] + "...")


def fail(key: str, message: str, where: str) -> RecipeError:
    """The error of one key: `recipe train.lr: expected a number, got 'fast' (my.yaml, line 7)`."""
    subject = f"recipe {key}" if key else "recipe"
    return RecipeError(f"{subject}: {message} ({where})")


def parse(text: str, source: str, line_numbers: bool = True) -> Node:
    """`text` as nodes; an empty text is an empty map. `source` names it in errors."""
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise fail("", f"larger than {MAX_BYTES // 1000} kB: not a recipe", source)

    def place(mark: Any) -> str:
        return f"{source}, line {mark.line + 1}" if line_numbers else source

    reader = _Reader(place)
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            reader.take(event)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = place(mark) if mark else source
        raise fail("", f"not valid YAML: {error.problem or error.context}", where) from None
    except yaml.YAMLError as error:
        message = " ".join(str(error).splitlines()[0].split())
        raise fail("", f"not valid YAML: {message}", source) from None
    return reader.root or Node(where=source, keys={})


@dataclass
class _Open:
    """A map or list being read, and in a map the key whose value comes next."""

    node: Node
    path: str
    key: str | None = None


class _Reader:
    """Builds the tree event by event, so that refused input is never built."""

    def __init__(self, place: Any) -> None:
        self.place = place
        self.root: Node | None = None
        self.open: list[_Open] = []

    def take(self, event: yaml.Event) -> None:
        where = self.place(event.start_mark)
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise fail("", "anchors and aliases (&name, *name) are not allowed", where)
        if isinstance(event, yaml.DocumentStartEvent) and self.root is not None:
            raise fail("", "more than one document", where)
        if isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            self.open.pop()
        elif isinstance(event, yaml.NodeEvent):
            self._node(event, where)

    def _node(self, event: yaml.NodeEvent, where: str) -> None:
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise fail("", f"the tag {tag!r} is not allowed: values are plain", where)
        if isinstance(event, yaml.ScalarEvent):
            # libyaml gives a plain scalar the style "", PyYAML's own parser None.
            self._attach(Node(where, text=event.value, quoted=bool(event.style)))
            return
        sequence = isinstance(event, yaml.SequenceStartEvent)
        node = Node(where, items=[]) if sequence else Node(where, keys={})
        path = self._attach(node)
        if len(self.open) == MAX_DEPTH:
            raise fail(path, f"nested deeper than {MAX_DEPTH} levels", where)
        self.open.append(_Open(node, path))

    def _attach(self, node: Node) -> str:
        """Add a node to the map or list being read; returns its path."""
        if not self.open:
            self.root = node
            return ""
        parent = self.open[-1]
        if parent.node.items is not None:
            parent.node.items.append(node)
            return _join(parent.path, str(len(parent.node.items) - 1))
        if parent.key is None:
            parent.key = self._key(parent, node)
            return parent.path
        path, keys = _join(parent.path, parent.key), parent.node.keys
        if keys is not None:
            keys[parent.key] = node
        parent.key = None
        return path

    def _key(self, parent: _Open, node: Node) -> str:
        if node.text is None:
            raise fail(parent.path, "a key must be plain text", node.where)
        if node.text in parent.node.key_places:
            raise fail(_join(parent.path, node.text), "given twice", node.where)
        parent.node.key_places[node.text] = node.where
        return node.text


def build(kind: Any, node: Node, key: str = "") -> Any:
    """The value of declared type `kind` that `node` stands for. Raises RecipeError.

    Kinds: bool, int, float, str, Any, Literal, Annotated[number, Range], X | None, unions, list[X],
    tuple[X, Y], dict[str, X] and dataclasses of these.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return _ranged(arguments, node, key)
    if origin in (Union, types.UnionType):
        return _union(arguments, node, key)
    if origin is Literal:
        return _literal(arguments, node, key)
    if origin in (list, tuple):
        return _sequence(origin, arguments, node, key)
    if origin is dict:
        keys = _expect(node, key, "keys", node.keys)
        return {name: build(arguments[1], item, _join(key, name)) for name, item in keys.items()}
    if is_dataclass(kind):
        return build_dataclass(kind, node, key)  # type: ignore[type-var]
    return _SCALARS[kind](node, key)


def build_dataclass(cls: type[Made], node: Node, key: str = "") -> Made:
    """An instance of dataclass `cls`; a trailing "_" of a field's name is not part of its key."""
    kinds = typing.get_type_hints(cls, include_extras=True)
    named = {item.name.rstrip("_"): item for item in fields(cls)}  # type: ignore[arg-type]
    keys = _expect(node, key, "keys", {} if node.null else node.keys)
    for name, value in keys.items():
        if name not in named:
            where: str = node.key_places.get(name) or value.where
            raise fail(_join(key, name), f"unknown key{near(name, named)}", where)
    values = {
        named[name].name: build(kinds[named[name].name], value, _join(key, name))
        for name, value in keys.items()
    }
    for name, item in named.items():
        if item.name not in values and item.default is item.default_factory is MISSING:
            raise fail(_join(key, name), "missing", node.where)
    return cls(**values)


def free(node: Node, key: str = "") -> Any:
    """A value without declared type: null, true/false, numbers (1e-4 too), else text."""
    if node.keys is not None:
        return {name: free(item, _join(key, name)) for name, item in node.keys.items()}
    if node.items is not None:
        return [free(item, _join(key, str(i))) for i, item in enumerate(node.items)]
    text = node.text or ""
    if node.quoted:
        return text
    if node.null:
        return None
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    if _INTEGER.match(text):
        return _integer(node, key)
    return _number(node, key) if _NUMBER.match(text) and not _odd(text) else text


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _expect(node: Node, key: str, what: str, value: Any) -> Any:
    if value is None:
        raise fail(key, f"expected {what}, got {node.shown()}", node.where)
    return value


def _odd(text: str) -> bool:
    """0123: octal to some readers, decimal to others, and so to nobody here."""
    return re.match(r"[-+]?0[0-9]", text) is not None


def _bool(node: Node, key: str) -> bool:
    _expect(node, key, "true or false", node.text if node.text in _TRUE | _FALSE else None)
    return node.text in _TRUE


def _str(node: Node, key: str) -> str:
    return _expect(node, key, "text", None if node.null else node.text)


def _number(node: Node, key: str) -> float:
    text = node.text or ""
    if text.lower().lstrip("+-") in ("nan", ".nan", "inf", ".inf", "infinity"):
        raise fail(key, f"expected a finite number, got {text!r}", node.where)
    good = _NUMBER.match(text) and not _odd(text)
    value = float(_expect(node, key, "a number", text if good else None))
    if not math.isfinite(value):
        raise fail(key, f"too large: {text!r}", node.where)
    return value


def _integer(node: Node, key: str) -> int:
    text = node.text or ""
    if _INTEGER.match(text):
        # The length is looked at first: int() of a million digits takes minutes.
        value = int(text) if len(text) <= 40 else MAX_INTEGER + 1
    else:
        number = _number(node, key) if _NUMBER.match(text) and not _odd(text) else 0.5
        value = int(number) if number.is_integer() else None
    value = _expect(node, key, "a whole number", value)
    if abs(value) > MAX_INTEGER:
        raise fail(key, f"too large: {node.shown()}", node.where)
    return value


def _none(node: Node, key: str) -> None:
    _expect(node, key, "nothing", True if node.null else None)


_SCALARS: dict[Any, Any] = {
    bool: _bool,
    int: _integer,
    float: _number,
    str: _str,
    type(None): _none,
    Any: free,
}


def _ranged(arguments: tuple[Any, ...], node: Node, key: str) -> Any:
    value = build(arguments[0], node, key)
    numbers = value if isinstance(value, list | tuple) else [value]
    for bounds in arguments[1:]:
        for number in numbers if isinstance(bounds, Range) else ():
            expected = bounds.broken_by(number) if number is not None else None
            if expected:
                raise fail(key, f"expected {expected}, got {number:g}", node.where)
    return value


def _union(arguments: tuple[Any, ...], node: Node, key: str) -> Any:
    """The first kind that reads the node; the error is that of the last one tried."""
    if node.null and type(None) in arguments:
        return None
    kinds = [kind for kind in arguments if kind is not type(None)]
    for kind in kinds[:-1]:
        try:
            return build(kind, node, key)
        except RecipeError:
            continue
    return build(kinds[-1], node, key)


def _literal(choices: tuple[Any, ...], node: Node, key: str) -> Any:
    for choice in choices:
        if node.text == str(choice):
            return choice
    hint = near(node.text or "", map(str, choices))
    if "did you mean" in hint:
        hint += f" (one of: {', '.join(map(str, choices))})"
    raise fail(key, f"unknown value {node.shown()}{hint}", node.where)


def _sequence(origin: Any, arguments: tuple[Any, ...], node: Node, key: str) -> Any:
    items = _expect(node, key, "a list", node.items)
    if origin is list:
        return [build(arguments[0], item, f"{key}.{i}") for i, item in enumerate(items)]
    if len(items) != len(arguments):
        raise fail(key, f"expected {len(arguments)} values, got {len(items)}", node.where)
    return tuple(
        build(kind, item, f"{key}.{i}")
        for i, (kind, item) in enumerate(zip(arguments, items, strict=True))
    )


def as_map(node: Node, key: str) -> dict[str, Node]:
    if node.keys is None:
        raise fail(key, f"expected keys, got {node.shown()}", node.where)
    return node.keys
