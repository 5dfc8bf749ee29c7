"""`audiossl pretrain`: train an encoder without labels, by a recipe."""

from __future__ import annotations

from typing import Any

import click

from .finetune import run, training


@click.command()
@training
def command(recipe: str, overrides: tuple[str, ...], **values: Any) -> None:
    """Train an encoder without labels, by a recipe.

    RECIPE is a YAML file or a name from `audiossl recipes ls`; KEY=VALUE changes a key of it. The
    run's folder is laid out as that of `audiossl finetune`, whose recipes start from the result:
    `model.from=runs/NAME/best`.

    \b
    audiossl pretrain mine.yaml data.folder=recordings/
    audiossl pretrain mine.yaml --out runs/a --resume --time-limit 3600
    """
    run(recipe, overrides, **values)
