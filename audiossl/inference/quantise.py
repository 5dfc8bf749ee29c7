"""Integer arithmetic for transformers on a CPU: less than two thirds of the time, a small error.

Weights of the linear layers are kept as int8, one scale an output channel; activations are brought
to uint8 anew in every call, by their range. Attention itself, norms and heads stay in float32.
"""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

from audiossl.errors import UsageError
from audiossl.model import Model
from audiossl.models.parts.layers import Block


def int8(model: Model) -> Model:
    """`model` itself, its encoder's transformer blocks with linear layers in int8 (`nn.Linear`
    only, replaced in place; nothing to train any more).

    An activation's range is that of a whole batch, so results depend on batch mates: callers give
    one window at a time. Raises UsageError where there is no transformer, or not on a CPU.
    """
    name = model.config.name
    if next(model.parameters()).device.type != "cpu":
        raise UsageError("--int8 is for the CPU: leave it out, or give --device cpu")
    blocks = [part for part in model.encoder.modules() if isinstance(part, Block)]
    if not blocks:
        raise UsageError(f"--int8: {name} has no transformer blocks, it would not gain")
    for block in blocks:
        _replace(block)
    return model


def _replace(block: nn.Module) -> None:
    quantization: Any
    with warnings.catch_warnings():  # torch sends users to torchao, whose int8 needs a compiler
        warnings.simplefilter("ignore")
        from torch.ao import quantization

        quantization.quantize_dynamic(
            block, {nn.Linear: quantization.per_channel_dynamic_qconfig}, inplace=True
        )
