"""Every key of every recipe file says what it does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

FOLDER = Path(__file__).parents[2] / "recipes"
FILES = sorted(FOLDER.rglob("*.yaml"))


def leaf_lines(node: yaml.Node) -> set[int]:
    """Lines (from 0) of the keys whose value is not a map."""
    assert isinstance(node, yaml.MappingNode)
    lines: set[int] = set()
    for key, value in node.value:
        inner = isinstance(value, yaml.MappingNode)
        lines |= leaf_lines(value) if inner else {key.start_mark.line}
    return lines


def uncommented(text: str) -> list[str]:
    """Lines with a leaf key that have no comment behind them or directly above."""
    lines = text.splitlines()
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    return [
        lines[i]
        for i in sorted(leaf_lines(node))
        if not re.search(r"\s#\s*\w", lines[i])
        and not (i > 0 and re.match(r"\s*#\s*\w", lines[i - 1]))
    ]


def test_a_key_without_comment_is_found() -> None:
    text = "# Title\n\na: 1  # why\nb:\n  # how\n  c: {d: 2}\n  e: 3\nf: x#y\n"
    assert uncommented(text) == ["  e: 3", "f: x#y"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_key_has_a_comment(path: Path) -> None:
    assert uncommented(path.read_text(encoding="utf-8")) == []


def test_the_recipes_are_found() -> None:
    assert {"supervised.yaml", "ssast.yaml"} <= {path.name for path in FILES}
