"""A small tagger with an exported graph beside it, made once a test run.

Use as a plugin: `pytest_plugins = ("graphs",)`. The tests also import from it, so pytest comes too
late to rewrite its asserts, which it does not have: PYTEST_DONT_REWRITE
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from audiossl.export import export
from audiossl.hub import ModelConfig
from audiossl.model import Model, save_model

LABELS = ["Speech", "Dog", "Rain"]
ENCODER = {"name": "dscnn", "widths": [8, 16], "strides": [2, 2], "dim": 16, "stem": 4}


def small(seed: int = 0, **changes: Any) -> Model:
    """A model whose random weights are drawn wide, so that scores differ between waves."""
    torch.manual_seed(seed)
    config: dict[str, Any] = {
        "name": "small",
        "task": "tag",
        "architecture": ENCODER,
        "frontend": {"preset": "yamnet"},
        "head": {"name": "linear", "labels": LABELS},
        "window_seconds": 1.5,
    }
    model = Model(ModelConfig(**{**config, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5)
    return model


def saved(folder: Path, **changes: Any) -> Path:
    save_model(small(**changes), folder)
    return folder


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with a fresh graph; not to be changed."""
    folder = saved(tmp_path_factory.mktemp("graph") / "small")
    export(str(folder))
    return folder


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    return Path(shutil.copytree(exported, tmp_path / "small"))
