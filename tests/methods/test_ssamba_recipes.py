"""SSAMBA's recipes as they run, and as the authors' scripts have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from audiossl.engine import train
from audiossl.model import load
from audiossl.recipe import loading as recipe

RATE = 16000
PITCH = {"high": 2500, "low": 300}  # Hz
GOLDEN = [5.133680, 4.681038, 4.712740]  # first losses of `tiny/ssamba` on the clips below, seed 0


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 clips of a second: a trembling tone and some noise, two labels."""
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    time = np.arange(RATE) / RATE
    for label, pitch in PITCH.items():
        (folder / label).mkdir()
        for i in range(8):
            tone = np.sin(2 * np.pi * pitch * rng.uniform(0.9, 1.1) * time)
            tone *= 0.6 + 0.4 * np.sin(2 * np.pi * rng.uniform(1, 9) * time)
            wave = 0.3 * tone + 0.02 * rng.standard_normal(RATE)
            soundfile.write(folder / label / f"{i}.wav", wave, RATE)
    return folder


def run(name: str, clips: Path, out: Path, *overrides: str) -> Path:
    torch.set_num_threads(1)
    given = [f"data.folder={clips}", f"out={out}", "train.log_every=1", *overrides]
    return train.fit(recipe.load(name, given)).folder


def logged(folder: Path, name: str) -> list[float]:
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [row[name] for row in rows if name in row]


@pytest.fixture(scope="module")
def pretrained(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of tiny/ssamba."""
    return run("tiny/ssamba", clips, tmp_path_factory.mktemp("runs") / "ssamba", "train.steps=40")


def test_the_tiny_recipe_learns(pretrained: Path) -> None:
    assert logged(pretrained, "loss")[: len(GOLDEN)] == pytest.approx(GOLDEN, rel=1e-4)
    for name in ("loss", "nce", "mse"):
        values = logged(pretrained, name)
        assert sum(values[-5:]) < 0.8 * sum(values[:5]), name
    assert load(str(pretrained / "best")).config.method == "ssamba"


def test_fine_tuning_goes_on_from_it(pretrained: Path, clips: Path, tmp_path: Path) -> None:
    start = f"model.from={pretrained / 'best'}"
    folder = run("tiny/ssamba_finetune", clips, tmp_path / "tuned", start)
    losses = logged(folder, "loss")
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    tuned: Any = load(str(folder / "best"))
    assert tuned.encoder.grid(96) == (12, 9)
    assert tuned.encoder.pos_embed.shape == (1, 1 + 12 * 9, 32)
    for label in PITCH:
        wave = torch.from_numpy(soundfile.read(clips / label / "0.wav", dtype="float32")[0])
        scores = tuned(wave[None, : int(0.97 * RATE)])
        assert tuned.labels[int(scores.argmax())] == label


def test_recipes_of_the_paper() -> None:
    """What the authors' scripts say."""
    made = recipe.load("ssamba")
    assert made.config.hidden == 300
    numbers = (made.train.lr, made.train.batch_size, made.train.epochs, made.train.weight_decay)
    assert numbers == (1e-4, 64, 10, 5e-8)
    assert (made.train.betas, made.train.warmup) == ((0.95, 0.999), 1000)
    esc, audioset, commands = (
        recipe.load(f"ssamba_finetune{name}") for name in ("", "_audioset", "_speechcommands")
    )
    assert [r.train.lr for r in (esc, audioset, commands)] == [1e-4, 1e-4, 2.5e-4]
    assert [r.train.epochs for r in (esc, audioset, commands)] == [50, 50, 30]
    assert [r.train.batch_size for r in (esc, audioset, commands)] == [48, 24, 128]
    assert [r.config.mixup for r in (esc, audioset, commands)] == [0, 0.5, 0.6]
    for made, frames in ((esc, 512), (audioset, 1024), (commands, 128)):
        assert made.model.from_ == "runs/ssamba/best"
        assert made.model.change == {"frames": frames, "stride": [10, 10]}
    assert (audioset.train.step_start, audioset.train.step_every) == (15 * 833, 10 * 833)
