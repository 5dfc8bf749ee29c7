"""The AudioSet ontology: names, what stands above and below each, and a forgiving look-up.

`ontology.json` holds the 632 classes of Google's ontology (CC BY-SA 4.0, see `sources.json`): a
graph without cycles in which 38 classes have more than one parent.
"""

from __future__ import annotations

import difflib
import json
import re
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from audiossl.errors import UsageError

FILE = Path(__file__).parent / "ontology.json"
SUGGESTIONS = 3


@dataclass(frozen=True)
class Node:
    """One class. `mid`: its id ("/m/0bt9lr"); `abstract`: a heading, never itself a label."""

    mid: str
    name: str
    children: tuple[str, ...] = ()
    abstract: bool = False


@cache
def nodes() -> Mapping[str, Node]:
    """All classes by id, in the ontology's order."""
    data = json.loads(FILE.read_text(encoding="utf-8"))["nodes"]
    return {
        mid: Node(mid, item["name"], tuple(item.get("children", ())), item.get("abstract", False))
        for mid, item in data.items()
    }


@cache
def names() -> tuple[str, ...]:
    """All class names, in the ontology's order."""
    return tuple(node.name for node in nodes().values())


def mid(name: str) -> str:
    """The id of class `name`. Raises UsageError with a suggestion."""
    return _mids()[find(name)]


def find(name: str, among: Sequence[str] | None = None) -> str:
    """The label that `name` means, as written in `among` (None: in the ontology).

    Case, spaces, underscores, punctuation and "and" do not matter ("gunshot_and_gunfire"), and one
    half of a double name will do ("gunfire"); in the ontology an id is a name as well.
    Raises UsageError with the nearest names.
    """
    if among is None and name in nodes():
        return nodes()[name].name
    choices = names() if among is None else among
    found = _lookup(name, choices)
    if found is None:
        raise UsageError(f"unknown label {name!r}{_hint(name, choices)}")
    return found


def children(name: str) -> list[str]:
    """The classes one step below `name`."""
    return [nodes()[child].name for child in nodes()[mid(name)].children]


def descendants(name: str) -> list[str]:
    """All classes below `name`, nearest first, without itself."""
    below = {key: node.children for key, node in nodes().items()}
    return _walk(mid(name), below)


def ancestors(name: str) -> list[str]:
    """All classes above `name`, nearest first, without itself."""
    return _walk(mid(name), _parents())


def matches(name: str, labels: Sequence[str]) -> list[int]:
    """Indices in `labels` (a model's) of what `name` asks for.

    A name in `labels` is that label alone; a class of the ontology that is not in `labels` stands
    for all labels below it ("Animal": Dog, Cat, ...). Raises UsageError with a suggestion.
    """
    own = _lookup(name, labels)
    if own is not None:
        return [labels.index(own)]
    known = _lookup(name, names())
    if known is None:
        raise UsageError(f"unknown label {name!r}{_hint(name, [*labels, *names()])}")
    below = set(descendants(known))
    found = [index for index, label in enumerate(labels) if label in below]
    if not found:
        above = [label for label in ancestors(known) if label in labels]
        hint = f": the nearest is {above[0]!r}" if above else ""
        raise UsageError(f"the model has no label {known!r} and none below it{hint}")
    return found


@cache
def _mids() -> Mapping[str, str]:
    return {node.name: key for key, node in nodes().items()}


@cache
def _parents() -> Mapping[str, tuple[str, ...]]:
    above: dict[str, list[str]] = {key: [] for key in nodes()}
    for key, node in nodes().items():
        for child in node.children:
            above[child].append(key)
    return {key: tuple(value) for key, value in above.items()}


def _walk(start: str, edges: Mapping[str, tuple[str, ...]]) -> list[str]:
    seen, queue = {start: None}, deque([start])
    while queue:
        for key in edges[queue.popleft()]:
            if key not in seen:
                seen[key] = None
                queue.append(key)
    return [nodes()[key].name for key in list(seen)[1:]]


def _words(name: str) -> list[str]:
    words = re.findall(r"[^\W_]+", name.casefold())
    return [word for word in words if word != "and"]


def _key(name: str) -> str:
    """What of a name counts when names are compared."""
    return "".join(_words(name))


def _lookup(name: str, choices: Sequence[str]) -> str | None:
    if name in choices:
        return name
    wanted = _key(name)
    if not wanted:
        return None
    whole = [choice for choice in choices if _key(choice) == wanted]
    if whole:
        return whole[0]
    halves = [choice for choice in choices if wanted in map(_key, choice.split(","))]
    return halves[0] if len(halves) == 1 else None


def _hint(name: str, choices: Sequence[str]) -> str:
    """What may have been meant: names that hold all of the words, then names spelled alike."""
    keys: dict[str, str] = {}
    for choice in choices:
        for part in (choice, *choice.split(",")):
            keys.setdefault(_key(part), choice)
    words = set(_words(name))
    holding = [choice for choice in choices if words and words <= set(_words(choice))]
    alike = [keys[key] for key in difflib.get_close_matches(_key(name), keys, n=SUGGESTIONS)]
    near = list(dict.fromkeys(holding + alike))[:SUGGESTIONS]
    return ": did you mean " + " or ".join(map(repr, near)) + "?" if near else ""
