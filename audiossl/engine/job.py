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
from audiossl.data import datasets, manifest
from audiossl.data.loader import Clips, Windows, count_files
from audiossl.data.manifest import Row
from audiossl.data.spectrogram_cache import Features
from audiossl.engine.blocks import set_checkpointing
from audiossl.errors import ModelError, RecipeError
from audiossl.hub.config import ModelConfig
from audiossl.model import Model, load
from audiossl.recipe.loading import Recipe

EVALUATIONS = 50  # at most, when the recipe does not say how often
SSAST_BUG = (
    "ssast_bug"  # of `model.change`: how a position table follows, no argument to build with
)
POOL_NORMS = ("norm.", "fc_norm.")  # of an encoder: which there are hangs on how it pools
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
        rows = manifest.read(source, data.root)
    train, valid = manifest.split(
        rows,
        data.valid_folds,
        data.valid_fraction,
        train_folds=data.train_folds,
        valid_split=data.valid_split,
        crossing=data.crossing,
    )
    if data.valid is not None:
        root = None if data.dataset else data.root
        valid = [row for row in manifest.read(data.valid, root) if row.split != "train"]
        train = manifest.apart(train, valid, data.crossing)
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
    change = {key: value for key, value in (section.change or {}).items() if key != SSAST_BUG}
    architecture = old.architecture if old else section.architecture or {}
    config = ModelConfig(
        name=recipe.name,
        architecture={**architecture, **change},
        frontend=section.frontend or (_frontend(start, change) if start else {}),
        head=head,
        task="tag" if head else "embed",
        window_seconds=window or CROP_SECONDS,
        method=recipe.method,
        licence=section.licence or (old.licence if old else ""),
        training={
            "recipe": recipe.name,
            "seed": recipe.train.seed,
            "data": datasets.sources(recipe.data),
        },
    )
    if old is not None:
        config.training["from"] = old.name
    try:
        model = Model(config)
        if start is not None:
            _adopt(model.encoder, start.encoder, section.change or {})
    except (TypeError, ValueError, ModelError) as error:
        key = "model.change" if section.change else "model"
        raise RecipeError(f"recipe {key}: {error}") from error
    if start is not None and start.head is not None and _same_head(config, start.config):
        model.head.load_state_dict(start.head.state_dict())  # type: ignore[union-attr]
    return model


def _frontend(start: Model, change: dict[str, Any]) -> dict[str, Any]:
    """The model's own; where it cuts to a number of frames, to the encoder's new one."""
    frontend = dict(start.config.frontend)
    if "frames" in change and start.frontend.clip.frames is not None:
        frontend["frames"] = change["frames"]
    return frontend


def _adopt(encoder: Any, other: Any, change: dict[str, Any]) -> None:
    """Give `encoder` the weights of `other`, which differs by `change`.

    The norm that a change of pooling adds stays new, and one that it takes away is left behind.
    Raises ValueError naming anything else that does not fit.
    """
    if {"frames", "stride", SSAST_BUG} & change.keys() and hasattr(other, "refit"):
        frames, stride = change.get("frames", other.frames), change.get("stride")
        other.refit(frames, stride, change.get(SSAST_BUG, False))
    own, theirs = encoder.state_dict(), other.state_dict()
    free = POOL_NORMS if {"pooling", "final_norm"} & change.keys() else ()
    differ = {name for name in own.keys() ^ theirs.keys() if not name.startswith(free)}
    differ |= {n for n in own.keys() & theirs.keys() if own[n].shape != theirs[n].shape}
    if differ:
        some = ", ".join(sorted(differ)[:3])
        raise ValueError(f"{len(differ)} of its tensors do not fit the weights there are: {some}")
    encoder.load_state_dict({name: theirs.get(name, own[name]) for name in own})


def _with_clips(
    recipe: Recipe, model: Model, method: Any, train_rows: list[Row], valid_rows: list[Row]
) -> Job:
    data, labels = recipe.data, model.labels
    crop = data.crop_seconds or model.config.window_seconds or CROP_SECONDS
    _check_labels(labels, train_rows)
    rate, features = model.rate, None
    if data.cache == "features":
        samples = max(1, round(crop * rate))
        features = Features(model.config.frontend, samples, data.short, data.cache_folder)
        features.check(train_rows)
    seed = recipe.train.seed
    train = Clips(train_rows, labels, rate, crop, seed, data.short, data.augment, features)
    valid = Windows(valid_rows, labels, rate, crop, data.short, features) if valid_rows else None
    if data.cache == "memory":
        train.fill_cache()
        if valid is not None:
            valid.fill_cache()
    weights = manifest.balanced_weights(train_rows, labels) if data.balanced else None
    rows = [*train_rows, *valid_rows]
    bad = [(clips.rows[i].name, why) for clips in (train, valid) if clips is not None
           for i, why in clips.bad.items()]  # fmt: skip
    files = count_files(train, valid)
    return Job(recipe, model, method, train, valid, weights, bad, files, manifest.fingerprint(rows))


def _check_labels(labels: Sequence[str], rows: Sequence[Row]) -> None:
    if labels and not any(set(labels) & set(row.labels) for row in rows):
        found = ", ".join(manifest.labels_of(rows)[:5]) or "none"
        raise RecipeError(f"recipe data.labels: no training row has one of them (found: {found})")


def _same_head(new: ModelConfig, old: ModelConfig) -> bool:
    return new.head is not None and new.head == old.head


def _shallow(config: Any) -> dict[str, Any]:
    return {item.name: getattr(config, item.name) for item in dataclasses.fields(config)}
