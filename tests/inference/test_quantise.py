"""int8 against its definition, written out in integers, and against float32 as a whole."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from probe_clips import RATE, convolutional, sound, transformer
from torch import Tensor, nn

from audiossl.commands import main  # pyright: ignore[reportMissingImports]
from audiossl.errors import UsageError
from audiossl.inference.quantise import int8
from audiossl.model import Model, save_model
from audiossl.models.parts.layers import Block


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


def test_tag_takes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever the batch size; the records of float32 but for small differences."""
    model = transformer()
    config = replace(model.config, task="tag", head={"name": "linear", "labels": ["a", "b", "c"]})
    torch.manual_seed(0)
    save_model(Model(config), tmp_path / "model")
    clip = tmp_path / "clip.wav"
    soundfile.write(clip, sound("tone", np.random.default_rng(0), 2.0), RATE)
    given = ["tag", str(clip), "-m", str(tmp_path / "model"), "--hop", "0.5", "-f", "jsonl"]
    given += ["--threshold", "0"]

    def scores(*more: str) -> list[dict[str, float]]:
        assert main._run([*given, *more]) == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        return [{one["label"]: one["score"] for one in line["labels"]} for line in lines]

    quantised = scores("--int8")
    assert quantised == scores("--int8", "--batch-size", "7")
    assert quantised != scores()
    for one, other in zip(quantised, scores(), strict=True):
        assert one == pytest.approx(other, abs=0.02)
    assert main._run([*given, "--int8", "--backend", "onnx"]) == 2
