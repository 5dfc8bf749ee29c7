"""A model folder: what stands in it, and whether it is whole."""

from __future__ import annotations

from pathlib import Path

from audiossl.caches import sha256
from audiossl.errors import ModelError, first_line
from audiossl.hub import cache as hub_cache
from audiossl.hub.config import CONFIG, ModelConfig, read_config

WEIGHTS = "model.safetensors"
CARD = "README.md"


def check_shallow(folder: Path) -> ModelConfig:
    """Check what costs nothing: the config, and that the weights are a safetensors file.

    Raises ModelError. What the tensors hold is checked by `verify` and when the model is loaded.
    """
    from safetensors import SafetensorError, safe_open

    config = read_config(folder)
    path = folder / WEIGHTS
    try:
        with safe_open(path, framework="numpy") as file:
            if not file.keys():
                raise ModelError(f"{path}: no tensors")
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{path}: not a safetensors file: {first_line(error)}") from error
    return config


def verify(folder: Path) -> list[str]:
    """Compare the files of a model folder with the sha256 that was recorded of them.

    Returns the names of the files compared: none where nothing was recorded. Raises ModelError.
    """
    config = check_shallow(folder)
    receipt = hub_cache.read_receipt(folder)
    if receipt is not None:
        hub_cache.check_receipt(folder, receipt)
    weights = receipt.files[WEIGHTS]["sha256"] if receipt and WEIGHTS in receipt.files else None
    if config.sha256 and config.sha256 != (weights or sha256(folder / WEIGHTS)):
        raise ModelError(
            f"{folder / WEIGHTS}: damaged, or not the weights of this {CONFIG}: sha256 differs from"
            " the one recorded there: get the folder again from where it came"
        )
    return sorted({*(receipt.files if receipt else ()), *([WEIGHTS] if config.sha256 else ())})
