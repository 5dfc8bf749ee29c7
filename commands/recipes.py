"""`audiossl recipes`: list, show, check and copy training recipes."""

from __future__ import annotations

from pathlib import Path

import click

from . import options
from .listing import LISTED, say


@click.group(name="recipes")
def command() -> None:
    """List, show, check and copy training recipes."""


@command.command()
@LISTED
@options.common
def ls(format_: str, quiet: bool) -> None:
    """List the recipes in this package."""
    from audiossl.recipe import loading as recipes

    rows = [
        {"name": name, "description": recipes.describe(recipes.read(recipes.find(name)))}
        for name in recipes.names()
    ]
    if say(rows, format_):
        return
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        click.echo(f"{row['name']:{width}}  {row['description']}")


@command.command()
@click.argument("name", shell_complete=options.complete_recipes)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--resolved", is_flag=True, help="Fill in the base recipe, the overrides and all defaults."
)
@options.common
def show(name: str, overrides: tuple[str, ...], resolved: bool, quiet: bool) -> None:
    """Print a recipe as YAML: its file, or all its values with --resolved."""
    from audiossl.recipe import loading as recipes

    if overrides and not resolved:
        raise click.UsageError("KEY=VALUE is shown only with --resolved: add it")
    if resolved:
        from audiossl.recipe.resolved import to_yaml

        click.echo(to_yaml(recipes.load(name, overrides)), nl=False)
    else:
        click.echo(recipes.read(recipes.find(name)), nl=False)


@command.command()
@click.argument("names", nargs=-1, required=True, shell_complete=options.complete_recipes)
@options.common
def check(names: tuple[str, ...], quiet: bool) -> int:
    """Check recipes without running them; one line per wrong recipe, and exit code 2."""
    from audiossl.errors import EXIT_OK, EXIT_USAGE, RecipeError
    from audiossl.recipe import loading as recipes

    from .main import say_error

    bad = 0
    for name in names:
        try:
            recipes.load(name)
        except RecipeError as error:
            bad += 1
            say_error(error.message)
        else:
            if not quiet:
                click.echo(f"{name}: ok", err=True)
    return EXIT_USAGE if bad else EXIT_OK


@command.command()
@click.argument("name", shell_complete=options.complete_recipes)
@click.argument("target", type=click.Path(), default=".")
@click.option("--on-exists", type=click.Choice(["error", "overwrite"]), default="error",
              help="What to do if the file exists already.")  # fmt: skip
@options.common
def copy(name: str, target: str, on_exists: str, quiet: bool) -> None:
    """Copy a recipe to TARGET, a file or a folder, to edit it."""
    from audiossl.atomic import atomic_write
    from audiossl.errors import OutputError
    from audiossl.recipe import loading as recipes

    source = recipes.find(name)
    path = Path(target)
    if path.is_dir() or target.endswith("/"):
        path = path / source.name
    if path.exists() and on_exists == "error":
        raise OutputError(f"{path} exists: --on-exists overwrite, or another name")
    if not path.parent.is_dir():
        raise OutputError(f"{path.parent}: no such folder")
    with atomic_write(path) as file:
        file.write(source.read_bytes())
    click.echo(str(path))
