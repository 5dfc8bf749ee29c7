"""Write the generated parts of README.md and docs/: command help and the recipe table.

`python tests/generate_docs.py` (make docs); a test checks that they are current. A part stands
between `<!-- generated: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click

from audiossl.commands.main import COMMANDS, cli

ROOT = Path(__file__).parents[1]
PART = re.compile(r"(<!-- generated: (?P<name>[^>]+?) -->\n)(?P<body>.*?)(<!-- end -->)", re.DOTALL)
WIDTH = 100  # columns of help text


def pages() -> list[Path]:
    """Every page that may have generated parts."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands() -> Iterator[tuple[list[str], click.Context]]:
    """Every command and subcommand: its words and a context to ask it for help."""
    settings = {**cli.context_settings, "terminal_width": WIDTH}
    top = click.Context(cli, info_name="audiossl", **settings)
    for name in COMMANDS:
        yield from _below(cli, top, [name])


def _below(
    group: click.Group, above: click.Context, words: list[str]
) -> Iterator[tuple[list[str], click.Context]]:
    command = group.get_command(above, words[-1])
    assert command is not None, words
    context = click.Context(command, parent=above, info_name=words[-1], terminal_width=WIDTH)
    yield words, context
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            yield from _below(command, context, [*words, name])


def all_help() -> str:
    """Help of every command under a heading of its own, a subcommand one level deeper."""
    parts = []
    for words, context in commands():
        heading = f"{'#' * (len(words) + 1)} audiossl {' '.join(words)}"
        parts.append(f"{heading}\n\n```\n{context.get_help()}\n```\n")
    return "\n".join(parts)


def recipe_table() -> str:
    """Every recipe with the first line of its header."""
    root = ROOT / "recipes"
    rows = ["| recipe | what it trains |", "|---|---|"]
    for path in sorted(root.rglob("*.yaml")):
        name = path.relative_to(root).with_suffix("")
        first = path.read_text(encoding="utf-8").splitlines()[0]
        rows.append(f"| `{name}` | {first.removeprefix('#').strip()} |")
    return "\n".join(rows) + "\n"


GENERATED = {"help": all_help, "recipes": recipe_table}


def current(text: str) -> str:
    """`text` with every generated part made anew."""

    def replace(match: re.Match[str]) -> str:
        return f"{match[1]}{GENERATED[match['name']]()}{match[4]}"

    return PART.sub(replace, text)


if __name__ == "__main__":
    for page in pages():
        page.write_text(current(page.read_text(encoding="utf-8")), encoding="utf-8")
