"""Write a model folder. Imports torch when it writes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from audiossl.atomic import atomic_write
from audiossl.errors import OutputError
from audiossl.hub.config import CONFIG, ModelConfig, config_json
from audiossl.hub.folder import CARD, WEIGHTS

if TYPE_CHECKING:
    from torch import Tensor


def write_folder(
    tensors: Mapping[str, Tensor], config: ModelConfig, folder: Path, card: str | None = None
) -> None:
    """Write a model folder whose config names the sha256 of its weights. Raises OutputError.

    tensors: `encoder.*` and `head.*`.
    """
    from safetensors.torch import save

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: {error.strerror}") from error
    weights = save({name: value.detach().cpu().contiguous() for name, value in tensors.items()})
    config = replace(config, sha256=hashlib.sha256(weights).hexdigest())
    with atomic_write(folder / WEIGHTS, needed=len(weights)) as file:
        file.write(weights)
        file.flush()
        os.fsync(file.fileno())
        # Both are on the disk before either gets its name: a crash between the two renamings would
        # leave a pair that does not match, so nothing slow stands there.
        with atomic_write(folder / CONFIG) as described:
            described.write(config_json(config).encode("utf-8"))
    if card is not None:
        with atomic_write(folder / CARD) as file:
            file.write(card.encode("utf-8"))
