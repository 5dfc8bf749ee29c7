"""Encoder and head of a model, from what its config says of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from audiossl import models
from audiossl.errors import ModelError
from audiossl.models.parts.layers import build_head


def build(
    architecture: Mapping[str, Any], head: Mapping[str, Any] | None
) -> tuple[nn.Module, nn.Module | None]:
    """Encoder and head with random weights; the head is None where none is described.

    architecture: `{"name": ..., **arguments}`. head: as `build_head` takes it.

    Raises ModelError on unknown names and arguments.
    """
    arguments = dict(architecture)
    name = arguments.pop("name", None)
    if not isinstance(name, str):
        raise ModelError("config: architecture has no name")
    encoder = models.build(name, **arguments)
    return encoder, build_head(int(encoder.dim), head) if head else None  # type: ignore[arg-type]
