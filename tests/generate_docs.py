"""Write the generated parts of README.md: command help and the recipe table.

`python tests/generate_docs.py` (make docs); a test checks that they are current. A part stands
between `<!-- generated: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import re
from pathlib import Path

import click

from audiossl.commands.main import COMMANDS, cli

README = Path(__file__).parents[1] / "README.md"
PART = re.compile(r"(<!-- generated: (?P<name>[^>]+?) -->\n)(?P<body>.*?)(<!-- end -->)", re.DOTALL)
WIDTH = 100  # columns of help text


def help_text(words: list[str]) -> str:
    """What `audiossl WORDS --help` prints."""
    command: click.Command = cli
    settings = {**cli.context_settings, "terminal_width": WIDTH}
    context = click.Context(cli, info_name="audiossl", **settings)
    for word in words:
        assert isinstance(command, click.Group)
        found = command.get_command(context, word)
        assert found is not None, word
        command = found
        context = click.Context(command, parent=context, info_name=word, terminal_width=WIDTH)
    return command.get_help(context)


def all_help() -> str:
    """Help of every command, folded away."""
    parts = []
    for name in COMMANDS:
        body = f"```\n{help_text([name])}\n```"
        parts.append(
            f"<details><summary><code>audiossl {name}</code>: {COMMANDS[name]}</summary>\n\n"
            f"{body}\n\n</details>\n"
        )
    return "\n".join(parts)


def recipe_table() -> str:
    """Every recipe with the first line of its header."""
    root = Path(__file__).parents[1] / "recipes"
    rows = ["| recipe | what it trains |", "|---|---|"]
    for path in sorted(root.rglob("*.yaml")):
        name = path.relative_to(root).with_suffix("")
        first = path.read_text(encoding="utf-8").splitlines()[0]
        rows.append(f"| `{name}` | {first.removeprefix('#').strip()} |")
    return "\n".join(rows) + "\n"


def generated(name: str) -> str:
    return {"help": all_help, "recipes": recipe_table}[name]()


def current(text: str) -> str:
    """`text` with every generated part made anew."""

    def replace(match: re.Match[str]) -> str:
        return f"{match[1]}{generated(match['name'])}{match[4]}"

    return PART.sub(replace, text)


if __name__ == "__main__":
    README.write_text(current(README.read_text(encoding="utf-8")), encoding="utf-8")
