"""From a recipe to what the loop runs: model, method, training and evaluation items."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from audiossl import methods
from audiossl.data import manifest
from audiossl.data.loader import Clips, Windows
from audiossl.data.manifest import Row
from audiossl.engine.blocks import set_checkpointing
from audiossl.errors import ModelError, RecipeError
from audiossl.hub import ModelConfig
from audiossl.model import Model, load
from audiossl.recipe import Recipe

EVALUATIONS = 50  # at most, when the recipe does not say how often
CROP_SECONDS = 5.0  # when neither the recipe nor the model says


@dataclass
class Job:
    """Everything a run needs.

    weights: of balanced sampling, None without. bad: files found unreadable, and why. files: how
    many there are in all. fingerprint: of the data. processes: that work on it together.
    """

    recipe: Recipe
    model: Model
    method: Any
    train: Any
    valid: Any | None
    weights: np.ndarray | None = None
    bad: list[tuple[str, str]] = field(default_factory=list)
    files: int = 0
    fingerprint: str = ""
    processes: int = 1

    @property
    def clips(self) -> int:
        """Draws of one update: the global batch."""
        train = self.recipe.train
        return train.batch_size * train.accumulate * self.processes

    @property
    def steps(self) -> int:
        """Updates of the whole run."""
        train = self.recipe.train
        if train.steps is not None:
            return train.steps
        return max(1, math.ceil((train.epochs or 0) * self._steps_an_epoch))

    @property
    def eval_every(self) -> int:
        """Updates between evaluations: by default an epoch, but no more than EVALUATIONS in all."""
        default = max(1, round(self._steps_an_epoch), math.ceil(self.steps / EVALUATIONS))
        return self.recipe.train.eval_every or default

    @property
    def _steps_an_epoch(self) -> float:
        return len(self.train) / self.clips


def seed_all(*numbers: int) -> None:
    """Set every global generator from these numbers alone.

    The loop does it before each forward pass with (seed, step, part), so no generator's state is
    ever carried along: what came before, an evaluation or an interruption, changes nothing.
    """
    words = np.random.SeedSequence(numbers).generate_state(3, np.uint64)
    torch.manual_seed(int(words[0] >> np.uint64(1)))
    np.random.seed(int(words[1] >> np.uint64(32)))
    random.seed(int(words[2]))


def prepare(recipe: Recipe, processes: int = 1) -> Job:
    """Build everything, seeded. Raises RecipeError, UsageError, ModelError or InputError."""
    module = methods.load(recipe.method)
    config = module.Config(**_shallow(recipe.config))
    own_data = getattr(module, "datasets", None)
    train_rows, valid_rows = ([], []) if own_data else read_rows(recipe)
    seed_all(recipe.train.seed)
    model = build_model(recipe, train_rows)
    if recipe.train.checkpointing:
        set_checkpointing(model)
    method = module.Method(model, config)
    if own_data:
        train, valid = own_data(recipe, config, model)
        job = Job(recipe, model, method, train, valid)
    else:
        job = _with_clips(recipe, model, method, train_rows, valid_rows)
    return dataclasses.replace(job, processes=processes)


def read_rows(recipe: Recipe) -> tuple[list[Row], list[Row]]:
    """(training, evaluation) rows of the data section; no group is in both."""
    data = recipe.data
    source = data.train or data.folder
    if source is None:
        message = "missing: a manifest or a folder of audio, such as data.train=clips/"
        raise RecipeError(f"recipe data.train: {message}")
    rows = manifest.read(source, data.root)
    if data.valid is None:
        train, valid = manifest.split(rows, data.valid_folds, data.valid_fraction)
    else:
        train = [row for row in rows if row.split in ("", "train")]
        valid = [row for row in manifest.read(data.valid, data.root) if row.split != "train"]
        manifest.check_disjoint(train, valid)
    if not train:
        raise RecipeError(f"recipe data: no row of {source} is left for training")
    return train, valid


def needs_rows(recipe: Recipe) -> bool:
    """Whether the model's size hangs on the data: a head without `data.labels`."""
    return recipe.model.head is not None and recipe.data.labels is None


def build_model(recipe: Recipe, rows: Sequence[Row] = ()) -> Model:
    """The recipe's model, random or `from` another, with a head for the classes of the data."""
    section, head = recipe.model, recipe.model.head
    start = load(section.from_) if section.from_ else None
    old = start.config if start else None
    if head is not None:
        labels = recipe.data.labels or manifest.labels_of(rows)
        if not labels:
            raise RecipeError("recipe data.labels: missing: the data names no label either")
        head = {**head, "labels": labels}
    elif old is not None:
        head = old.head
    window = section.window_seconds or recipe.data.crop_seconds or (old and old.window_seconds)
    config = ModelConfig(
        name=recipe.name,
        architecture=dict(old.architecture if old else section.architecture or {}),
        frontend=dict(section.frontend or (old.frontend if old else {})),
        head=head,
        task="tag" if head else "embed",
        window_seconds=window or CROP_SECONDS,
        method=recipe.method,
        licence=section.licence or (old.licence if old else ""),
        training={"recipe": recipe.name, "seed": recipe.train.seed, "data": recipe.data.sources},
    )
    if old is not None:
        config.training["from"] = old.name
    try:
        model = Model(config)
    except (TypeError, ValueError, ModelError) as error:
        raise RecipeError(f"recipe model: {error}") from error
    if start is not None:
        model.encoder.load_state_dict(start.encoder.state_dict())
        if model.head is not None and start.head is not None and _same_head(config, start.config):
            model.head.load_state_dict(start.head.state_dict())
    return model


def _with_clips(
    recipe: Recipe, model: Model, method: Any, train_rows: list[Row], valid_rows: list[Row]
) -> Job:
    data, labels = recipe.data, model.labels
    crop = data.crop_seconds or model.config.window_seconds or CROP_SECONDS
    _check_labels(labels, train_rows)
    train = Clips(train_rows, labels, model.rate, crop, recipe.train.seed, data.short, data.augment)
    valid = Windows(valid_rows, labels, model.rate, crop, data.short) if valid_rows else None
    if data.cache == "memory":
        train.fill_cache()
        if valid is not None:
            valid.fill_cache()
    weights = manifest.balanced_weights(train_rows, labels) if data.balanced else None
    rows = [*train_rows, *valid_rows]
    bad = [(str(clips.rows[i].path), why) for clips in (train, valid) if clips is not None
           for i, why in clips.bad.items()]  # fmt: skip
    return Job(
        recipe, model, method, train, valid, weights, bad, len(rows), manifest.fingerprint(rows)
    )


def _check_labels(labels: Sequence[str], rows: Sequence[Row]) -> None:
    if labels and not any(set(labels) & set(row.labels) for row in rows):
        found = ", ".join(manifest.labels_of(rows)[:5]) or "none"
        raise RecipeError(f"recipe data.labels: no training row has one of them (found: {found})")


def _same_head(new: ModelConfig, old: ModelConfig) -> bool:
    return new.head is not None and new.head == old.head


def _shallow(config: Any) -> dict[str, Any]:
    return {item.name: getattr(config, item.name) for item in dataclasses.fields(config)}
