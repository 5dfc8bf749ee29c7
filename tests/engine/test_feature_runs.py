"""Recipes with data.cache: features: what they may ask for, and runs that come to the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tinyrun import Fit, digests, lines

from audiossl.data import spectrogram_cache as features
from audiossl.data.draws import Draw
from audiossl.engine.job import prepare, seed_all
from audiossl.errors import RecipeError, UsageError
from audiossl.recipe import loading as recipe

pytest_plugins = ("tinyrun",)

GIVEN = ["data.train=x", "data.cache=features"]
REFUSED = {
    "data.augment.gain_db": ("supervised", ["data.augment.gain_db=[-6, 6]"], r"\(-6\.0, 6\.0\)"),
    "data.augment.noise": ("supervised", ["data.augment.noise=0.5"], "0.5"),
    "data.augment.roll": ("bird_mae", ["method.mixup=0", "data.augment.volume=0"], "1.0"),
    "method.mixup": ("bird_mae", ["data.augment={roll: 0, volume: 0}"], "0.3"),
    "method.mixup_on": ("supervised", ["method.mixup=0.5"], "'wave'"),
}


@pytest.mark.parametrize("key", REFUSED)
def test_nothing_can_be_done_to_waves(key: str) -> None:
    name, overrides, value = REFUSED[key]
    where = r"\(.*line \d+\)$" if key == "data.augment.roll" else r"\(.*\)$"
    message = f"^recipe {key}: {value} works on waves, .* none or memory {where}"
    with pytest.raises(RecipeError, match=message):
        recipe.load(f"tiny/{name}", [*GIVEN, *overrides])
    assert recipe.load(f"tiny/{name}", [*GIVEN, *overrides, "data.cache=memory"])


def test_what_is_not_in_use_is_not_in_the_way(fit: Fit) -> None:
    given = ["method.mixup=0.5", "method.mixup_on=spec", "data.augment.gain=0",
             "data.augment.gain_db=[-6, 6]"]  # fmt: skip
    recipe.load("tiny/supervised", [*GIVEN, *given])
    tied = ["data.crop_seconds=0.5", "model.frontend.edges=reflect"]
    with pytest.raises(RecipeError, match=r"model\.frontend\.edges 'reflect'.* longer clip's"):
        prepare(recipe.load("tiny/supervised", fit.given("x", *GIVEN[1:], *tied)))


@pytest.mark.parametrize("name", ["audio_mae", "bird_mae", "ssast", "ssamba", "passt"])
def test_methods_take_a_spectrogram_for_a_wave(fit: Fit, name: str) -> None:
    given = ["method.mixup=0"] if name == "bird_mae" else []
    job = prepare(recipe.load(f"tiny/{name}", [f"data.train={fit.clips}", *given]))
    item = job.train[Draw(0, 0, 3)]
    batch = {key: torch.stack([value] * 2) for key, value in item.items() if torch.is_tensor(value)}
    spec = {**batch, "spec": job.model.frontend(batch["wave"])}
    del spec["wave"]
    losses = []
    for one in (batch, spec):
        seed_all(0)
        losses.append(job.method.train().loss(one)[0])
    assert losses[0] == losses[1]


STEPS = ["train.steps=8", "train.eval_every=4", "train.log_every=5", "data.crop_seconds=0.4",
         "data.cache=features", "method.mixup=0.5", "method.mixup_on=spec",
         "method.freq_masks=1", "method.freq_width=8"]  # fmt: skip


def test_a_run_in_pieces_ends_with_the_same_bytes(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its features made on the way, found, lost, or made by workers."""
    decoded: list[Any] = []
    real = features.clip_blocks
    monkeypatch.setattr(features, "clip_blocks", lambda *a: decoded.append(a) or real(*a))
    stores = [f"data.cache_folder={tmp_path / name}" for name in ("one", "two")]
    whole = digests(fit("whole", *STEPS, stores[0]).folder)
    count = len(decoded)
    assert count
    found = fit("found", *STEPS, stores[0], max_steps=3)
    fit("found", *STEPS, stores[0], max_steps=6, resume=True)
    assert digests(fit("found", *STEPS, stores[0], resume=True).folder) == whole
    assert len(decoded) == count
    fit("lost", *STEPS, stores[0], "data.workers=2", max_steps=3)
    lost = fit("lost", *STEPS, stores[1], "data.workers=1", resume=True)
    assert digests(lost.folder) == whole
    assert found.steps == 3
    with pytest.raises(UsageError, match=r"recipe data\.cache: 'none', but .* with 'features'"):
        fit("found", *STEPS, "data.cache=none", resume=True)


def test_training_on_features_comes_to_that_on_waves(fit: Fit, tmp_path: Path) -> None:
    """Clips of one crop: nothing differs but float16's rounding."""
    given = ["train.steps=6", "train.eval_every=3", "train.log_every=1", "train.lr=1e-4"]
    waves = lines(fit("waves", *given, "data.cache=none").folder)
    kept = ["data.cache=features", f"data.cache_folder={tmp_path / 'kept'}"]
    for one, other in zip(waves, lines(fit("kept", *given, *kept).folder), strict=True):
        assert one.keys() == other.keys()
        for key in {"loss", "valid_loss"} & one.keys():
            assert one[key] == pytest.approx(other[key], rel=1e-3)
