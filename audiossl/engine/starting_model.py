"""The model that a recipe starts from: new, or another's weights with changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from audiossl.data import datasets
from audiossl.data.rows import Row, labels_of
from audiossl.errors import ModelError, RecipeError
from audiossl.hub.config import ModelConfig
from audiossl.model import Model, load
from audiossl.recipe.loading import Recipe

CROP_SECONDS = 5.0  # when neither the recipe nor the model says
POOL_NORMS = ("norm.", "fc_norm.")  # of an encoder: which there are hangs on how it pools


def build_model(recipe: Recipe, rows: Sequence[Row] = ()) -> Model:
    """The recipe's model, random or `from` another, with a head for the classes of the data."""
    section, head = recipe.model, recipe.model.head
    start = load(section.from_) if section.from_ else None
    old = start.config if start else None
    if head is not None:
        labels = recipe.data.labels or labels_of(rows)
        if not labels:
            raise RecipeError("recipe data.labels: missing: the data names no label either")
        head = {**head, "labels": labels}
    elif old is not None:
        head = old.head
    window = section.window_seconds or recipe.data.crop_seconds or (old and old.window_seconds)
    change = section.change or {}
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
            _adopt(model.encoder, start.encoder, change, section.ssast_positions)
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


def _adopt(encoder: Any, other: Any, change: dict[str, Any], ssast: bool | None) -> None:
    """Give `encoder` the weights of `other`, which differs by `change`.

    The norm that a change of pooling adds stays new, and one that it takes away is left behind.
    Raises ValueError naming anything else that does not fit.
    """
    if ({"frames", "stride"} & change.keys() or ssast is not None) and hasattr(other, "refit"):
        frames, stride = change.get("frames", other.frames), change.get("stride")
        other.refit(frames, stride, bool(ssast))
    own, theirs = encoder.state_dict(), other.state_dict()
    free = POOL_NORMS if {"pooling", "final_norm"} & change.keys() else ()
    differ = {name for name in own.keys() ^ theirs.keys() if not name.startswith(free)}
    differ |= {n for n in own.keys() & theirs.keys() if own[n].shape != theirs[n].shape}
    if differ:
        some = ", ".join(sorted(differ)[:3])
        raise ValueError(f"{len(differ)} of its tensors do not fit the weights there are: {some}")
    encoder.load_state_dict({name: theirs.get(name, own[name]) for name in own})


def _same_head(new: ModelConfig, old: ModelConfig) -> bool:
    return new.head is not None and new.head == old.head
