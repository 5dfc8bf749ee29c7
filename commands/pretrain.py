"""`audiossl pretrain`: train an encoder without labels, as a recipe describes."""

from __future__ import annotations

from typing import Any

import click

from .finetune import run, training


@click.command()
@training
def command(recipe: str, overrides: tuple[str, ...], **values: Any) -> None:
    """Train an encoder without labels, as a recipe describes.

    RECIPE is a YAML file or a name from `audiossl recipes ls`; KEY=VALUE changes one of its keys.
    The run's folder has the same files as that of `audiossl finetune`, which can start from the
    result: `model.from=runs/NAME/best`.

    \b
    audiossl pretrain mine.yaml data.folder=recordings/
    audiossl pretrain mine.yaml --out runs/a --resume --time-limit 3600
    """
    run(recipe, overrides, **values)
