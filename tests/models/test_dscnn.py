"""The depthwise-separable CNN against a slow version of its block, and what its shapes promise."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from audiossl import models
from audiossl.errors import ModelError
from audiossl.models.dscnn import DSCNN, MIN_FRAMES, ConvNorm, SeparableBlock

SMALL = {"widths": (6, 8, 12), "strides": (2, 2, 1), "stem": 4}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def slow_block(block: SeparableBlock, x: torch.Tensor, stride: int) -> torch.Tensor:
    """One output value at a time, batch norms in eval mode."""
    _, channels, bands, frames = x.shape
    before = 0 if stride == 2 else 1
    padded = torch.nn.functional.pad(x, (before, 1, before, 1))
    rows, columns = (bands - before) // stride + before, (frames - before) // stride + before
    inner = torch.zeros(len(x), channels, rows, columns)
    for c in range(channels):
        for row in range(rows):
            for column in range(columns):
                top, left = row * stride, column * stride
                patch = padded[:, c, top : top + 3, left : left + 3]
                inner[:, c, row, column] = (patch * block.depthwise.conv.weight[c, 0]).sum((1, 2))
    inner = slow_norm(block.depthwise, inner).clamp(0, 6)
    mixed = torch.einsum("bchw,oc->bohw", inner, block.pointwise.conv.weight[:, :, 0, 0])
    return slow_norm(block.pointwise, mixed).clamp(0, 6)


def slow_norm(part: ConvNorm, x: torch.Tensor) -> torch.Tensor:
    shape = (1, -1, 1, 1)
    if part.conv.bias is not None:
        return x + part.conv.bias.view(shape)
    norm = part.norm
    assert isinstance(norm, torch.nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scaled = (x - norm.running_mean.view(shape)) / torch.sqrt(
        norm.running_var.view(shape) + norm.eps
    )
    return scaled * norm.weight.view(shape) + norm.bias.view(shape)


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize(("channels", "width", "stride"), [(4, 4, 1), (4, 6, 1), (4, 4, 2)])
@pytest.mark.parametrize("shape", [(7, 10), (8, 9)])
def test_block_equals_the_slow_version(
    channels: int, width: int, stride: int, norm: bool, shape: tuple[int, int]
) -> None:
    block = SeparableBlock(channels, width, stride, norm)
    for part in block.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean = torch.randn_like(part.running_mean)  # type: ignore[arg-type]
            part.running_var = torch.rand_like(part.running_var) + 0.5  # type: ignore[arg-type]
    block.eval()
    x = torch.randn(2, channels, *shape) * 4  # some of it above 6
    with torch.no_grad():
        assert torch.allclose(block(x), slow_block(block, x, stride), atol=1e-5)


def test_stages_begin_with_a_stride_of_two() -> None:
    encoder = DSCNN(widths=(4, 6, 6, 8), strides=(1, 2, 1, 2), stem=4)
    sizes = [tuple(stage(image).shape[1:]) for stage, image in _walk(encoder)]
    assert sizes == [(4, 8, 48), (6, 4, 24), (8, 2, 12)]
    assert [len(stage) for stage in encoder.stages] == [2, 2, 1]  # type: ignore[arg-type]


def _walk(encoder: DSCNN) -> Iterator[tuple[torch.nn.Module, torch.Tensor]]:
    """Each stage with what it reads."""
    x = encoder.image(torch.randn(1, 16, 96))
    for stage in encoder.stages:
        yield stage, x
        x = stage(x)


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
