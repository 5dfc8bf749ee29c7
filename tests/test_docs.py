"""README and docs/ are current, their links lead somewhere, and the README's Python runs."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
sys.path.insert(0, str(ROOT / "tests"))

import generate_docs  # noqa: E402

PAGES = generate_docs.pages()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_generated_parts_are_current(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert generate_docs.current(text) == text, "run `make docs`"


def test_each_part_is_generated_once() -> None:
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    found = sorted(match["name"] for text in texts for match in generate_docs.PART.finditer(text))
    assert found == sorted(generate_docs.GENERATED)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", text):
        assert (page.parent / target).exists(), target


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
