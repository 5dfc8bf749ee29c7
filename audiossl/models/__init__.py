"""Encoders, one architecture per file: the file's name is the architecture's name.

Each file defines `build(**arguments) -> nn.Module`, an encoder with
`.dim`, `encoder(spec) -> tokens (batch, tokens, dim)` and `encoder.embed(spec) -> (batch, dim)`,
where `spec` is (batch, mel, frames) as the checkpoint's frontend gives it. It may define
`refit(frames, stride)`: keep what is learned for another length and other strides of patches.
One with class tokens in front says how many, `.class_tokens`, and one whose patches lie in a grid
`encoder.grid(frames) -> (rows, columns)`, read row by row.
One whose tokens have a place in time has `encoder.timeline(spec) -> (batch, moments, dim)` and
`.timing`, the Timing (layers.py) of those moments.

Imports no torch.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from audiossl.errors import ModelError, near

if TYPE_CHECKING:
    from torch import nn


def names() -> list[str]:
    """Architectures in this package, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.ispkg)


def build(name: str, /, **arguments: Any) -> nn.Module:
    """The encoder `name` with random weights. Raises ModelError on an unknown name or argument."""
    if name not in names():
        raise ModelError(f"unknown architecture {name!r}{near(name, names())}")
    builder = importlib.import_module(f"{__name__}.{name}").build
    check_arguments(builder, f"architecture {name!r}", arguments)
    return builder(**arguments)


def check_arguments(builder: Any, what: str, arguments: Mapping[str, Any]) -> None:
    """Raise ModelError naming the first argument that `builder` does not take."""
    known = inspect.signature(builder).parameters
    for key in arguments:
        if key not in known:
            raise ModelError(f"{what}: unknown argument {key!r}{near(key, known, otherwise='')}")
