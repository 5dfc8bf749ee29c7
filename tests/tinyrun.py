"""A tiny run of `tiny/supervised` on clips of its own, and what must be the same about two runs.

Use as a plugin: `pytest_plugins = ("tinyrun",)`. The tests also import from it, so pytest comes too
late to rewrite asserts, of which there are none: PYTEST_DONT_REWRITE
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from audiossl.engine import train
from audiossl.engine.log import Silent
from audiossl.recipe import loading as recipe

RATE = 16000
PITCH = {"high": 2500, "low": 300, "mid": 900}  # Hz

# The tiny recipe with a small vision transformer in place of the convolutional network.
VIT = (
    "model.architecture={name: vit, dim: 16, depth: 2, heads: 2, mel: 64, frames: 96}",
    "train.layer_decay=0.75",
)


def write_clips(folder: Path) -> Path:
    """24 clips of a second: a tone and some noise, three labels by subfolder."""
    rng = np.random.default_rng(0)
    time = np.arange(RATE) / RATE
    for label, pitch in PITCH.items():
        (folder / label).mkdir()
        for i in range(8):
            tone = np.sin(2 * np.pi * pitch * rng.uniform(0.9, 1.1) * time)
            wave = 0.3 * tone + 0.02 * rng.standard_normal(RATE)
            soundfile.write(folder / label / f"{i}.wav", wave, RATE)
    return folder


@dataclass
class Fit:
    """fit("name", "key=value", ..., resume=True): the tiny recipe into folder/name."""

    clips: Path
    folder: Path

    def given(self, name: str, *overrides: str) -> list[str]:
        return [f"data.train={self.clips}", f"out={self.folder / name}", *overrides]

    def __call__(self, name: str, *overrides: str, **options: Any) -> train.Result:
        torch.set_num_threads(1)
        return train.fit(recipe.load("tiny/supervised", self.given(name, *overrides)), **options)


@pytest.fixture(scope="module")
def tiny_clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture
def fit(tiny_clips: Path, tmp_path: Path) -> Fit:
    return Fit(tiny_clips, tmp_path)


class Listener(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def say(self, text: str) -> None:
        self.texts.append(text)


def lines(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def digests(folder: Path) -> dict[str, str]:
    """Of everything that must come out the same, however the run was interrupted."""
    files = [
        folder / "metrics.jsonl",
        *folder.glob("*/*.safetensors"),
        *folder.glob("*/config.json"),
    ]
    files += sorted((folder / "checkpoints").glob("*/*"))[-3:]
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(files)
    }
