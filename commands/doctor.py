"""`audiossl doctor`: show what is installed, what is missing and how to get it."""

from __future__ import annotations

import json

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.option(
    "--debug", is_flag=True, expose_value=False, help="Show a traceback when something goes wrong."
)
def command(as_json: bool) -> None:
    """Show what is installed, what is missing and how to get it."""
    from audiossl import diagnosis

    facts = diagnosis.facts()
    if as_json:
        click.echo(json.dumps(facts, indent=1))
        return
    for name, value in facts["machine"].items():
        click.echo(f"{name:16} {value}")
    for part in facts["parts"]:
        state = part["version"] or "missing"
        advice = f"  ({part['advice']})" if not part["version"] else ""
        click.echo(f"{part['name']:16} {state:12} {part['purpose']}{advice}")
