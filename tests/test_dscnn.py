"""The depthwise-separable CNN against a slow version of its block, and what its shapes promise."""

from __future__ import annotations

import pytest
import torch

from audiossl import models
from audiossl.errors import ModelError
from audiossl.models.dscnn import DSCNN, MIN_FRAMES, SeparableBlock

SMALL = {"widths": (6, 8, 12), "strides": (2, 2, 1), "stem": 4}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def slow_block(block: SeparableBlock, x: torch.Tensor, stride: int) -> torch.Tensor:
    """One output value at a time, batch norms in eval mode."""
    _, channels, bands, frames = x.shape
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1))
    rows, columns = -(-bands // stride), -(-frames // stride)
    inner = torch.zeros(len(x), channels, rows, columns)
    for c in range(channels):
        for row in range(rows):
            for column in range(columns):
                top, left = row * stride, column * stride
                patch = padded[:, c, top : top + 3, left : left + 3]
                inner[:, c, row, column] = (patch * block.depthwise.weight[c, 0]).sum((1, 2))
    inner = torch.relu(slow_norm(block.norm1, inner))
    mixed = torch.einsum("bchw,oc->bohw", inner, block.pointwise.weight[:, :, 0, 0])
    out = torch.relu(slow_norm(block.norm2, mixed))
    return out + x if block.identity else out


def slow_norm(norm: torch.nn.BatchNorm2d, x: torch.Tensor) -> torch.Tensor:
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None
    assert var is not None
    shape = (1, -1, 1, 1)
    scaled = (x - mean.view(shape)) / torch.sqrt(var.view(shape) + norm.eps)
    return scaled * norm.weight.view(shape) + norm.bias.view(shape)


@pytest.mark.parametrize(("channels", "width", "stride"), [(4, 4, 1), (4, 6, 1), (4, 4, 2)])
def test_block_equals_the_slow_version(channels: int, width: int, stride: int) -> None:
    block = SeparableBlock(channels, width, stride)
    for norm in (block.norm1, block.norm2):
        norm.running_mean = torch.randn_like(norm.running_mean)  # type: ignore[arg-type]
        norm.running_var = torch.rand_like(norm.running_var) + 0.5  # type: ignore[arg-type]
    block.eval()
    x = torch.randn(2, channels, 7, 10)
    assert block.identity is (channels == width and stride == 1)
    with torch.no_grad():
        assert torch.allclose(block(x), slow_block(block, x, stride), atol=1e-5)


def test_tokens_embedding_and_their_numbers() -> None:
    model = models.build("dscnn", **SMALL).eval()
    spec = torch.randn(2, 64, 384)
    with torch.no_grad():
        tokens, embedding = model(spec), model.embed(spec)  # type: ignore[operator]
    assert tokens.shape == (2, 384 // 8, 12)
    assert model.dim == 12
    assert (tokens >= 0).all()
    assert torch.allclose(embedding, tokens.mean(1))


@pytest.mark.parametrize("frames", [1, 2, 7, 95, 96, 97, 1000])
def test_any_length(frames: int) -> None:
    model = models.build("dscnn", **SMALL).eval()
    with torch.no_grad():
        assert model.embed(torch.randn(1, 64, frames)).isfinite().all()  # type: ignore[operator]


def test_a_short_clip_is_repeated() -> None:
    model = models.build("dscnn", **SMALL).eval()
    short = torch.randn(1, 64, 40)
    repeated = torch.cat([short, short, short], dim=2)[..., :MIN_FRAMES]
    with torch.no_grad():
        assert torch.equal(model(short), model(repeated))


def test_convolutional_over_time() -> None:
    """A shift by whole tokens shifts the tokens, away from the edges."""
    model = models.build("dscnn", **SMALL).eval()
    spec = torch.randn(1, 64, 480)
    with torch.no_grad():
        tokens, later = model(spec), model(spec[..., 80:])
    assert torch.allclose(tokens[:, 20:50], later[:, 10:40], atol=1e-5)


def test_a_batch_gives_what_single_clips_give() -> None:
    model = models.build("dscnn", **SMALL).eval()
    spec = torch.randn(3, 64, 120)
    with torch.no_grad():
        single = torch.cat([model(one[None]) for one in spec])
        assert torch.allclose(model(spec), single, atol=1e-5)


def test_gradient_reaches_every_weight() -> None:
    model = models.build("dscnn", **SMALL)
    model.embed(torch.randn(4, 64, 128)).square().sum().backward()  # type: ignore[operator]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="2 widths but 1 strides"):
        DSCNN(widths=(4, 4), strides=(1,))
    with pytest.raises(ValueError, match="strides must be 1 or 2"):
        DSCNN(widths=(4,), strides=(3,))
    with pytest.raises(ModelError, match="wdths"):
        models.build("dscnn", wdths=(4,))
