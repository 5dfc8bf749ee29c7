"""What a model is, without loading it."""

from __future__ import annotations

import hashlib
from typing import Any

from audiossl.caches import sha256
from audiossl.frontend.presets import PRESETS
from audiossl.hub import cache as hub_cache
from audiossl.hub.config import CONFIG, ModelConfig, read_config
from audiossl.hub.find import resolve
from audiossl.hub.folder import WEIGHTS


def digest(name: str) -> str:
    """sha256 that changes whenever the weights or the configuration of model `name` do."""
    folder = resolve(name)
    config = sha256(folder / CONFIG)
    if read_config(folder).sha256:  # the config names its weights, and loading checks them
        return config
    return hashlib.sha256((sha256(folder / WEIGHTS) + config).encode()).hexdigest()


def describe(name: str, details: bool = False) -> dict[str, Any]:
    """Facts about a model that is here; `details` adds those that take a page.

    `rate` in Hz; `labels` a count, or with `details` the names. Raises ModelError.
    """
    folder = resolve(name, download=False)
    config = read_config(folder)
    receipt = hub_cache.read_receipt(folder)
    facts: dict[str, Any] = {
        "name": name,
        "task": config.task,
        "labels": len(config.labels),
        "rate": _rate(config),
        "megabytes": round((folder / WEIGHTS).stat().st_size / 1e6, 2),
        "licence": config.licence,
        "data": config.data,
        "sha256": config.sha256 or sha256(folder / WEIGHTS),
    }
    if receipt is not None:
        facts |= {"licence": config.licence or receipt.licence, "commit": receipt.commit}
    if details:
        facts |= {
            "title": config.name,
            "folder": str(folder),
            "architecture": config.architecture,
            "frontend": config.frontend,
            "window_seconds": config.window_seconds,
            "method": config.method,
            "source": config.source,
            "training": config.training,
            "labels": config.labels,
        }
    if details and receipt is not None:
        facts |= {"endpoint": receipt.endpoint, "downloaded": receipt.downloaded}
    return facts


def _rate(config: ModelConfig) -> int | None:
    preset = PRESETS.get(str(config.frontend.get("preset")), {})
    return config.frontend.get("rate", preset.get("rate"))
