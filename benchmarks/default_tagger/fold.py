"""Fold batch norms into the convolutions before them: the same network, without them.

Their statistics are those of the sounds so far; what is learned after this keeps none. For a batch
norm with weight g, bias b, mean m and variance v after a convolution with weights w:

    w' = w g / sqrt(v + eps)        b' = b - m g / sqrt(v + eps)
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from audiossl.model import Model, load, save_model
from audiossl.models.dscnn import ConvNorm


def fold(folder: Path, target: Path) -> None:
    """Model folder of a DSCNN with batch norms -> model folder of the same without."""
    model = load(str(folder))
    config = replace(model.config, architecture={**model.config.architecture, "norm": False})
    folded = Model(config)
    with torch.no_grad():
        for old, new in zip(_parts(model.encoder), _parts(folded.encoder), strict=True):
            norm = old.norm
            scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
            new.conv.weight.copy_(old.conv.weight * scale.view(-1, 1, 1, 1))
            new.conv.bias.copy_(norm.bias - norm.running_mean * scale)
    save_model(folded, target)


def _parts(encoder: nn.Module) -> list[Any]:
    return [module for module in encoder.modules() if isinstance(module, ConvNorm)]
