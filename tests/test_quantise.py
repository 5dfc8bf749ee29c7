"""int8 against its definition, written out in integers, and against float32 as a whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from probe_clips import convolutional, transformer
from torch import Tensor, nn

from audiossl.errors import UsageError
from audiossl.models.layers import Block
from audiossl.quantise import int8


def by_hand(layer: nn.Linear, x: Tensor) -> Tensor:
    """int8 weights by output channel, activations by their range in 7 bits and one to spare."""
    scale = layer.weight.abs().amax(1, keepdim=True) / 127.5
    weight = (layer.weight / scale).round().clamp(-128, 127) * scale
    low, high = min(x.min().item(), 0.0), max(x.max().item(), 0.0)
    step = (high - low) / 127
    zero = round(-low / step)
    x = ((x / step).round() + zero).clamp(0, 127).sub(zero) * step
    return nn.functional.linear(x, weight, layer.bias)


@torch.no_grad()
def test_a_layer_is_its_definition() -> None:
    torch.manual_seed(0)
    block = Block(32, 2)
    x = torch.randn(5, 32)
    names = ("attn.qkv", "attn.proj", "mlp.fc1")
    layers: dict[str, Any] = {name: block.get_submodule(name) for name in names}
    expected = {name: by_hand(layer, x) for name, layer in layers.items()}
    model: Any = transformer()
    model.encoder.blocks = nn.ModuleList([block])
    int8(model)
    for name, value in expected.items():
        own = block.get_submodule(name)
        assert not isinstance(own, nn.Linear)
        error = (own(x) - value).abs().max()
        assert error < 0.02 * value.abs().max(), name


@torch.no_grad()
def test_embeddings_hardly_change() -> None:
    model: Any = transformer()
    wave = 0.1 * torch.randn(1, model.rate)
    before = model.embed(wave)
    after = int8(model).embed(wave)
    assert not torch.equal(before, after)
    assert torch.cosine_similarity(before, after).min() > 0.995


def test_where_it_does_not_go() -> None:
    with pytest.raises(UsageError, match="no transformer"):
        int8(convolutional())
