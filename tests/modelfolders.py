"""Model folders and a cache for the tests of names, configs and commands.

Use as a plugin: `pytest_plugins = ("modelfolders",)`. The tests also import from it, so pytest
comes too late to rewrite its asserts, which have messages of their own: PYTEST_DONT_REWRITE
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from audiossl.hub import cache as hub_cache
from audiossl.hub.cache import Receipt
from audiossl.hub.config import ModelConfig, config_json

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "0123456ffffffffffffffffffffffffffffffff0"
CONFIG: dict[str, Any] = {
    "name": "toy",
    "task": "tag",
    "architecture": {"name": "dscnn", "widths": [8, 8], "strides": [1, 2], "stem": 8},
    "frontend": {"name": "logmel", "rate": 16000, "mels": 16, "n_fft": 512, "hop": 160},
    "head": {"name": "linear", "labels": ["cat", "dog"]},
    "licence": "MIT",
    "training": {"data": [{"name": "toys", "licence": "CC0"}, "more toys"]},
}
WEIGHTS = save({"encoder.weight": np.ones((2, 3), dtype=np.float32)})


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own."""
    monkeypatch.setenv("AUDIOSSL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_model(folder: Path, **changes: Any) -> Path:
    """A folder that looks like a model from outside: hub.py does not look at the tensors."""
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    (folder / "config.json").write_text(config_json(ModelConfig(**{**CONFIG, **changes})))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model(tmp_path / "toy")


def put(name: str, commit: str = COMMIT) -> Path:
    """A finished model in the cache, as a download leaves it."""
    parsed = hub_cache.parse(name)
    made = write_model(hub_cache.folder_of(parsed, commit))
    receipt = Receipt(parsed.id, commit, "https://hub.test", "audiossl", "mit")
    hub_cache.write_receipt(made, receipt)
    hub_cache.pin(parsed, commit)
    return made


def flip(path: Path) -> None:
    """One bit of the last byte."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
