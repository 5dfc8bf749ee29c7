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
from audiossl.data import datasets, reading, splitting
from audiossl.data.clips import Clips, Windows, count_files
from audiossl.data.rows import Row, balanced_weights, fingerprint, labels_of
from audiossl.data.spectrogram_cache import SpectrogramCache
from audiossl.engine.blocks import set_checkpointing
from audiossl.engine.starting_model import CROP_SECONDS, build_model
from audiossl.errors import RecipeError
from audiossl.model import Model
from audiossl.recipe.loading import Recipe

EVALUATIONS = 50  # at most, when the recipe does not say how often


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

    def names(self, numbers: Sequence[int]) -> list[str]:
        """Of clips by their rows' numbers; none where a method brings its own data."""
        names = {row.number: row.name for row in getattr(self.train, "rows", ())}
        return [names[number] for number in numbers if number in names]

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
    _check_monitor(recipe, job)
    return dataclasses.replace(job, processes=processes)


def _check_monitor(recipe: Recipe, job: Job) -> None:
    monitor = recipe.train.monitor
    if monitor in (None, "loss") or job.valid is None or job.model.head is not None:
        return
    raise RecipeError(f"recipe train.monitor: {monitor!r} is of labels, and this model has none")


def read_rows(recipe: Recipe) -> tuple[list[Row], list[Row]]:
    """(training, evaluation) rows of the data section; no group is in both."""
    data = recipe.data
    source = data.train or data.folder or data.dataset
    if source is None:
        message = "missing: a manifest or a folder of audio, such as data.train=clips/"
        raise RecipeError(f"recipe data.train: {message}")
    augment = data.augment
    if augment.background is None and (augment.background_noise or augment.no_call):
        message = "missing: a folder of recordings with none of the classes; or set"
        raise RecipeError(
            f"recipe data.augment.background: {message} background_noise and no_call to 0"
        )
    if data.dataset:
        rows = datasets.read(data.dataset, data.root)
    else:
        rows = reading.read(source, data.root)
    train, valid = splitting.split(
        rows,
        data.valid_folds,
        data.valid_fraction,
        train_folds=data.train_folds,
        valid_split=data.valid_split,
        crossing=data.crossing,
    )
    if data.valid is not None:
        root = None if data.dataset else data.root
        valid = [row for row in reading.read(data.valid, root) if row.split != "train"]
        train = splitting.apart(train, valid, data.crossing)
    if not train:
        raise RecipeError(f"recipe data: no row of {source} is left for training")
    return train, valid


def needs_rows(recipe: Recipe) -> bool:
    """Whether the model's size hangs on the data: a head without `data.labels`."""
    return recipe.model.head is not None and recipe.data.labels is None


def _with_clips(
    recipe: Recipe, model: Model, method: Any, train_rows: list[Row], valid_rows: list[Row]
) -> Job:
    data, labels = recipe.data, model.labels
    crop = data.crop_seconds or model.config.window_seconds or CROP_SECONDS
    _check_labels(labels, train_rows)
    rate, features = model.rate, None
    if data.cache == "features":
        samples = max(1, round(crop * rate))
        features = SpectrogramCache(model.config.frontend, samples, data.short, data.cache_folder)
        features.check(train_rows)
    seed = recipe.train.seed
    train = Clips(train_rows, labels, rate, crop, seed, data.short, data.augment, features)
    valid = Windows(valid_rows, labels, rate, crop, data.short, features) if valid_rows else None
    if data.cache == "memory":
        train.fill_cache()
        if valid is not None:
            valid.fill_cache()
    weights = balanced_weights(train_rows, labels) if data.balanced else None
    rows = [*train_rows, *valid_rows]
    bad = [(clips.rows[i].name, why) for clips in (train, valid) if clips is not None
           for i, why in clips.bad.items()]  # fmt: skip
    files = count_files(train, valid)
    return Job(recipe, model, method, train, valid, weights, bad, files, fingerprint(rows))


def _check_labels(labels: Sequence[str], rows: Sequence[Row]) -> None:
    if labels and not any(set(labels) & set(row.labels) for row in rows):
        found = ", ".join(labels_of(rows)[:5]) or "none"
        raise RecipeError(f"recipe data.labels: no training row has one of them (found: {found})")


def _shallow(config: Any) -> dict[str, Any]:
    return {item.name: getattr(config, item.name) for item in dataclasses.fields(config)}
