"""`audiossl finetune`: train a model on labelled recordings, as a recipe describes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from . import options

if TYPE_CHECKING:
    from audiossl.recipe.loading import Recipe

training = options.chain(
    click.argument("recipe", shell_complete=options.complete_recipes),
    click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]..."),
    click.option(
        "-o",
        "--out",
        metavar="FOLDER",
        type=click.Path(),
        help="Folder of the run.  [default: as the recipe says]",
    ),
    options.device,
    click.option("--max-steps", type=click.IntRange(1), help="Stop after this many updates."),
    click.option(
        "--time-limit",
        type=options.Finite(0),
        metavar="SECONDS",
        help="Save and stop after this time.",
    ),
    click.option(
        "--resume", is_flag=True, help="Continue the run in the folder exactly where it stopped."
    ),
    click.option(
        "--on-exists",
        type=click.Choice(["error", "overwrite"]),
        default="error",
        help="What to do if the folder holds a run already.",
    ),
    click.option(
        "--dry-run",
        is_flag=True,
        help="Only print the resolved recipe and the number of parameters.",
    ),
    options.common,
)


@click.command()
@training
def command(recipe: str, overrides: tuple[str, ...], **values: Any) -> None:
    """Train a model on labelled recordings, as a recipe describes.

    RECIPE is a YAML file or a name from `audiossl recipes ls`; KEY=VALUE changes one of its keys.
    The run's folder gets the resolved recipe, metrics.jsonl, checkpoints, and the models best/ and
    last/, which --model accepts. Ctrl-C saves and stops; --resume then gives the same result as a
    run that was never stopped.

    \b
    audiossl finetune tiny/supervised data.train=clips/
    audiossl finetune mine.yaml train.lr=3e-4 train.epochs=20 --out runs/a
    audiossl finetune mine.yaml --out runs/a --resume
    """
    run(recipe, overrides, **values)


def run(
    name: str,
    overrides: tuple[str, ...],
    *,
    out: str | None,
    device: str,
    dry_run: bool,
    on_exists: str,
    quiet: bool,
    **limits: Any,
) -> None:
    """Run a training command; torch is imported only after the recipe has been checked."""
    from audiossl.recipe import loading as recipes

    if on_exists == "overwrite" and limits["resume"]:
        raise click.UsageError(
            "--resume continues a run, --on-exists overwrite removes it: give one of them"
        )
    recipe = recipes.load(name, overrides)
    recipe.out = out or recipe.out
    from audiossl.engine import distributed

    first = distributed.rank() == 0  # of the processes that torchrun started, if any
    if dry_run:
        if first:
            preview(recipe)
        return
    from audiossl.device import pick_device
    from audiossl.engine import log, train

    result = train.fit(
        recipe,
        pick_device(device),
        overwrite=on_exists == "overwrite",
        watch=log.watch(quiet),
        **limits,
    )
    if first:
        report(result)


def preview(recipe: Recipe) -> None:
    """Print the resolved recipe, itself a valid recipe, and the number of parameters."""
    from audiossl.engine import job
    from audiossl.engine.starting_model import build_model
    from audiossl.model import parameters
    from audiossl.recipe.resolved import to_yaml

    rows = job.read_rows(recipe)[0] if job.needs_rows(recipe) else ()
    model = build_model(recipe, rows)
    click.echo(to_yaml(recipe), nl=False)
    click.echo(
        f"# parameters: {parameters(model):,} ({parameters(model.encoder):,} in the encoder)"
    )


def report(result: Any) -> None:
    """Print the result: lines on a terminal, JSON otherwise."""
    import json
    import sys

    best = result.folder / "best"
    record = {
        "run": str(result.folder),
        "best": str(best) if best.exists() else None,
        "steps": result.steps,
        "best_step": result.best_step,
        "metrics": result.metrics,
        "stopped": result.stopped,
    }
    if sys.stdout.isatty():
        for key, value in record.items():
            click.echo(f"{key:10} {value}")
    else:
        click.echo(json.dumps(record))
