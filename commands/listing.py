"""Output of commands that list things: a table on a terminal, JSON lines otherwise."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

LISTED = click.option(
    "-f",
    "--format",
    "format_",
    type=click.Choice(["auto", "table", "jsonl", "json"]),
    default="auto",
    help="auto: table on a terminal, else jsonl.",
)


def say(value: Any, format_: str) -> bool:
    """Print a record, or a list of records, as JSON; False if a table is wanted instead."""
    if format_ == "json":
        click.echo(json.dumps(value, ensure_ascii=False, indent=1))
    elif format_ == "jsonl" or (format_ == "auto" and not sys.stdout.isatty()):
        for record in value if isinstance(value, list) else [value]:
            click.echo(json.dumps(record, ensure_ascii=False))
    else:
        return False
    return True


def say_table(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    table = [columns, *([in_words(row[column]) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(columns))]
    for line in table:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


def in_words(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(in_words(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {in_words(item)}" for key, item in value.items())
    return "-" if value is None else str(value)
