"""`audiossl models`: what models there are, and what each is."""

from __future__ import annotations

import json
from typing import Any

import click

from audiossl.commands import options

LISTED = click.option(
    "-f",
    "--format",
    "format_",
    type=click.Choice(["auto", "table", "json"]),
    default="auto",
    help="auto: table on a terminal, json otherwise.",
)


@click.group(name="models")
def command() -> None:
    """List, show and check models."""


def as_json(format_: str) -> bool:
    import sys

    return format_ == "json" or (format_ == "auto" and not sys.stdout.isatty())


@command.command()
@LISTED
@options.common
def ls(format_: str, quiet: bool) -> None:
    """The models that are here."""
    from audiossl import hub

    rows = [hub.describe(name) for name in hub.embedded()]
    if as_json(format_):
        click.echo(json.dumps(rows, ensure_ascii=False, indent=1))
        return
    columns = ("name", "task", "labels", "rate", "megabytes", "licence")
    widths = [
        max(len(str(row[c])) for row in [*rows, dict(zip(columns, columns, strict=True))])
        for c in columns
    ]
    for row in [dict(zip(columns, columns, strict=True)), *rows]:
        cells = (str(row[c]).ljust(w) for c, w in zip(columns, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


@command.command()
@click.argument("name", shell_complete=options.complete_models)
@click.option("--labels", is_flag=True, help="Only the labels, one a line.")
@LISTED
@options.common
def show(name: str, labels: bool, format_: str, quiet: bool) -> None:
    """What a model is: architecture, labels, data, licence, numbers."""
    from audiossl import hub

    if labels:
        click.echo("\n".join(hub.read_config(hub.resolve(name)).labels))
        return
    facts = hub.describe(name, details=True)
    if as_json(format_):
        click.echo(json.dumps(facts, ensure_ascii=False, indent=1))
        return
    for key, value in facts.items():
        click.echo(f"{key:14} {in_words(value)}")


def in_words(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(in_words(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {in_words(item)}" for key, item in value.items())
    return str(value)
