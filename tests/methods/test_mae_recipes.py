"""The tiny recipes of Bird-MAE and Audio-MAE: a whole session on short clips, in seconds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from audiossl import methods
from audiossl.engine import train
from audiossl.errors import RecipeError
from audiossl.hub.config import ModelConfig
from audiossl.model import Model, load, parameters
from audiossl.recipe import loading as recipe

RATE = 16000
GOLDEN = {  # the first losses for seed 0 on the clips below
    "tiny/bird_mae": [1.252158, 1.223736, 1.164898],
    "tiny/audio_mae": [1.101363, 1.028801, 1.009985],
    "tiny/bird_mae_finetune": [0.216374, 0.150334, 0.126247],
}

Fit = Callable[..., Path]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 clips of a second: pulses of a tone in some noise, three labels."""
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    seconds = np.arange(RATE) / RATE
    for label, pitch in {"high": 2500, "low": 300, "mid": 900}.items():
        (folder / label).mkdir()
        for i in range(8):
            tone = np.sin(2 * np.pi * pitch * rng.uniform(0.9, 1.1) * seconds)
            pulse = np.sin(2 * np.pi * rng.uniform(2, 5) * seconds) > 0
            wave = 0.3 * tone * pulse + 0.01 * rng.standard_normal(RATE)
            soundfile.write(folder / label / f"{i}.wav", wave, RATE)
    return folder


@pytest.fixture(scope="module")
def fit(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Fit:
    """fit("tiny/bird_mae", "key=value", ...): its run folder."""
    torch.set_num_threads(1)

    def run(name: str, *overrides: str, **options: Any) -> Path:
        out = tmp_path_factory.mktemp("run")
        given = [f"data.train={clips}", "train.log_every=1", f"out={out / 'run'}", *overrides]
        return train.fit(recipe.load(name, given), **options).folder

    return run


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.fixture(scope="module")
def birds(fit: Fit) -> Path:
    return fit("tiny/bird_mae")


def test_bird_mae_learns(birds: Path) -> None:
    found = losses(birds)
    assert found[:3] == pytest.approx(GOLDEN["tiny/bird_mae"], rel=1e-4)
    assert np.mean(found[-5:]) < 0.8 * np.mean(found[:5])
    model = load(str(birds / "best"))
    assert model.embed(torch.randn(2, RATE)).shape == (2, 48)
    assert not any("decoder" in name for name in model.state_dict())


def test_fine_tuning_from_what_was_pretrained(fit: Fit, birds: Path) -> None:
    folder = fit("tiny/bird_mae_finetune", f"model.from={birds / 'best'}")
    found = losses(folder)
    # 40 updates lie before them: another processor's rounding has grown by then
    assert found[:3] == pytest.approx(GOLDEN["tiny/bird_mae_finetune"], rel=1e-2)
    assert np.mean(found[-5:]) < 0.8 * np.mean(found[:5])
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["valid_map"] > 0.9
    model = load(str(folder / "best"))
    assert model.labels == ["high", "low", "mid"]
    assert model.config.architecture["drop_path"] == 0.1
    assert model.config.training["from"] == "tiny/bird_mae"


def test_audio_mae_learns(fit: Fit) -> None:
    folder = fit("tiny/audio_mae")
    found = losses(folder)
    assert found[:3] == pytest.approx(GOLDEN["tiny/audio_mae"], rel=1e-4)
    assert np.mean(found[-5:]) < 0.8 * np.mean(found[:5])
    assert load(str(folder / "best")).embed(torch.randn(2, RATE)).shape == (2, 48)


EVERYTHING = ["data.augment.background_noise=0.5", "data.augment.no_call=0.3", "method.mixup=0.9"]
HIDDEN = ["method.hidden_time=0.2", "method.hidden_freq=0.3", "train.steps=4", "train.eval_every=4"]


def test_all_augmentations_together_resume_exactly(fit: Fit, birds: Path, clips: Path) -> None:
    given = [f"model.from={birds / 'best'}", f"data.augment.background={clips / 'low'}"]
    given += [*EVERYTHING, *HIDDEN]
    whole = fit("tiny/bird_mae_finetune", *given)
    pieces = fit("tiny/bird_mae_finetune", *given, max_steps=2)
    again = [*given, f"out={pieces}"]
    assert fit("tiny/bird_mae_finetune", *again, "data.workers=1", resume=True) == pieces
    for name in ("metrics.jsonl", "last/model.safetensors"):
        assert (pieces / name).read_bytes() == (whole / name).read_bytes(), name


def test_a_recipe_that_wants_backgrounds_says_so(fit: Fit) -> None:
    message = r"recipe data\.augment\.background: missing: a folder of recordings with none"
    with pytest.raises(RecipeError, match=message):
        fit("tiny/bird_mae_finetune", "data.augment.no_call=0.1")


@pytest.mark.parametrize(
    ("name", "patches", "encoder", "decoder"),
    [("audio_mae", 513, 136.993 - 51.344, 51.344), ("bird_mae", 257, 85.45, 25.877)],
)
def test_sizes_of_the_paper(name: str, patches: int, encoder: float, decoder: float) -> None:
    """Parameters in millions, the fixed tables of the authors' files among them."""
    got = recipe.load(name)
    module = methods.load(name)
    config = ModelConfig(
        name=name,
        architecture=got.model.architecture or {},
        frontend=got.model.frontend or {},
    )
    model = Model(config, empty=True)
    with torch.device("meta"):
        method = module.Method(model, got.config)
    own_norm = 2 * 768  # `fc_norm`, which pretraining files do not have
    assert (parameters(model) - own_norm + patches * 768) / 1e6 == pytest.approx(encoder, abs=5e-3)
    assert (parameters(method.decoder) + patches * 512) / 1e6 == pytest.approx(decoder, abs=1e-3)
