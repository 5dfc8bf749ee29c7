"""The README is current, its links lead somewhere, and its Python runs."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
sys.path.insert(0, str(ROOT / "tests"))

import generate_docs  # noqa: E402


def test_generated_parts_are_current() -> None:
    assert generate_docs.current(README) == README, "run `make docs`"
    assert README.count("<!-- generated:") == 2


def test_every_relative_link_leads_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", README):
        assert (ROOT / target).exists(), target


def test_every_command_that_is_shown_exists() -> None:
    verbs = set(re.findall(r"^audiossl ([a-z-]+)", README, re.MULTILINE))
    assert "tag" in verbs
    assert verbs <= set(generate_docs.COMMANDS)


def python_examples() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("program", python_examples())
def test_python_example_runs(program: str, clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clips)
    exec(compile(program, "README.md", "exec"), {})
