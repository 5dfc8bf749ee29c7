"""Clips and models of the probes' tests: three kinds of sound that a tiny encoder tells apart.

Use as a plugin: `pytest_plugins = ("probe_clips",)`. The tests also import from it, so pytest comes
too late to rewrite asserts, of which there are none: PYTEST_DONT_REWRITE
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from audiossl.data.manifest import write as write_manifest
from audiossl.data.rows import Row
from audiossl.hub.config import ModelConfig
from audiossl.model import Model

RATE = 16000
LABELS = ("high & <low>", "noise", "tone")
FRONTEND = {"name": "logmel", "rate": RATE, "mels": 32, "n_fft": 512, "hop": 160}


def sound(label: str, rng: np.random.Generator, seconds: float) -> np.ndarray:
    """(samples,) of a kind, somewhere in pitch and loudness."""
    time = np.arange(round(seconds * RATE)) / RATE
    if label == "noise":
        wave = rng.normal(0, 0.3, len(time))
    else:
        pitch = rng.uniform(300, 600) if label == "tone" else rng.uniform(3000, 5000)
        wave = 0.5 * np.sin(2 * np.pi * pitch * time) + rng.normal(0, 0.02, len(time))
    return rng.uniform(0.3, 1) * wave


def write_clips(folder: Path, clips: int = 36, seconds: float = 0.5) -> list[Row]:
    """Clips in groups of two, four folds; the manifest is `clips.csv`."""
    rng = np.random.default_rng(0)
    rows = []
    for place in range(clips):
        label = LABELS[place // 2 % 3]
        path = folder / f"{place:02}.wav"
        soundfile.write(path, sound(label, rng, seconds), RATE)
        group = f"source {place // 2}"
        rows.append(Row(path, labels=(label,), fold=str(place // 6 % 4), group=group, number=place))
    write_manifest(folder / "clips.csv", rows)
    return rows


def convolutional() -> Model:
    """Tokens over time only, no class token."""
    architecture = {"name": "dscnn", "widths": [8, 24], "strides": [2, 2], "stem": 8}
    return _model("conv", architecture)


def transformer(class_tokens: int = 1) -> Model:
    """Tokens in a grid of 2 x 6 for half a second, with class tokens."""
    architecture = {
        "name": "vit", "dim": 24, "depth": 1, "heads": 2, "mel": 32, "frames": 48,
        "patch": [16, 8], "class_tokens": class_tokens,
    }  # fmt: skip
    return _model("vit", architecture)


def _model(name: str, architecture: dict) -> Model:
    torch.manual_seed(1)
    config = ModelConfig(
        name=name, task="embed", architecture=architecture, frontend=FRONTEND, window_seconds=0.5
    )
    return Model(config).eval()


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """36 clips of half a second in their own folder with a manifest."""
    return write_clips(tmp_path_factory.mktemp("clips"))
