"""A small convolutional encoder for log-mel spectrograms: the default tagger's network.

    spec (batch, mel, frames) -> 3x3 convolution, stride 2
      -> depthwise-separable blocks, in stages that begin with a stride of 2 -> mean over bands
      -> tokens (batch, tokens, dim), one every `2 * product of strides` frames
      -> mean over time

Convolutional over time: any number of frames goes in. The blocks are MobileNet's (Howard et al.
2017, arXiv:1704.04861, section 3.1: 3x3 depthwise, batch norm, ReLU, 1x1 pointwise, batch norm,
ReLU), with ReLU6 for ReLU as in that paper's implementation. A convolution of stride 2 is padded at
the upper and the later edge only, TensorFlow's way, so that the weights of a network made there,
YAMNet for one, mean the same here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from audiossl.models.parts.layers import Timing

MIN_FRAMES = 96  # shorter spectrograms are repeated: YAMNet's patch, about one second
WIDTHS = (64, 128, 128, 256, 256, 512, 512, 512, 512, 1024)
STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 2, 1)


class ConvNorm(nn.Sequential):
    """Convolution, batch norm and ReLU6; without `norm` the convolution has a bias instead.

    (batch, channels, bands, frames) -> (batch, width, bands / stride, frames / stride)
    """

    def __init__(
        self,
        channels: int,
        width: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        norm: bool = True,
    ) -> None:
        super().__init__()
        around = kernel // 2 if stride == 1 else 0
        self.pad = nn.ZeroPad2d((0, 1, 0, 1)) if stride == 2 else nn.Identity()
        self.conv = nn.Conv2d(channels, width, kernel, stride, around, groups=groups, bias=not norm)
        self.norm = nn.BatchNorm2d(width) if norm else nn.Identity()
        self.act = nn.ReLU6(inplace=True)


class SeparableBlock(nn.Sequential):
    """3x3 depthwise, then 1x1 pointwise.

    (batch, channels, bands, frames) -> (batch, width, bands / stride, frames / stride)
    """

    def __init__(self, channels: int, width: int, stride: int = 1, norm: bool = True) -> None:
        super().__init__()
        self.depthwise = ConvNorm(channels, channels, 3, stride, groups=channels, norm=norm)
        self.pointwise = ConvNorm(channels, width, 1, norm=norm)


class DSCNN(nn.Module):
    """Encoder: `encoder(spec)` gives tokens over time, `encoder.embed(spec)` their mean.

    widths, strides: channels and stride of each block, the same stride over bands and frames; the
    last width is that of tokens and embedding, `dim`.
    stem: channels of the first, dense convolution.
    norm: batch norms, without which a network with random weights hardly learns.
    Raises ValueError when widths and strides differ in number or a stride is neither 1 nor 2.
    """

    def __init__(
        self,
        widths: Sequence[int] = WIDTHS,
        strides: Sequence[int] = STRIDES,
        stem: int = 32,
        norm: bool = True,
    ) -> None:
        super().__init__()
        if len(widths) != len(strides):
            raise ValueError(f"dscnn: {len(widths)} widths but {len(strides)} strides")
        if any(stride not in (1, 2) for stride in strides):
            raise ValueError(f"dscnn: strides must be 1 or 2, got {tuple(strides)}")
        self.dim = widths[-1]
        hop = 2 * math.prod(strides)
        # Padded at its later edge only, a convolution of stride 2 looks half its stride later than
        # one padded at both: with every one of them, token k is centred on frame hop * (k + 1) - 1.
        self.timing = Timing(hop / 2 - 0.5, hop, hop)
        stages: list[list[nn.Module]] = [[ConvNorm(1, stem, 3, 2, norm=norm)]]
        for channels, width, stride in zip((stem, *widths[:-1]), widths, strides, strict=True):
            if stride == 2:
                stages.append([])
            stages[-1].append(SeparableBlock(channels, width, stride, norm))
        self.stages = nn.Sequential(*(nn.Sequential(*stage) for stage in stages))

    def image(self, spec: Tensor) -> Tensor:
        """spec: (batch, mel, frames) -> what `stages` reads: (batch, 1, mel, 96 frames or more)."""
        frames = max(spec.shape[-1], MIN_FRAMES)  # no `if`: an exported graph is for any number
        times = (frames + spec.shape[-1] - 1) // spec.shape[-1]
        return spec.repeat(1, 1, times)[..., :frames].unsqueeze(1)

    def forward(self, spec: Tensor) -> Tensor:
        """spec: (batch, mel, frames), log-mel -> tokens (batch, tokens, dim), in [0, 6]."""
        return self.tokens(self.stages(self.image(spec)))

    def tokens(self, last: Tensor) -> Tensor:
        """last: (batch, dim, bands, tokens), the last stage's map -> its mean over bands, (batch,
        tokens, dim)."""
        return last.mean(dim=2).transpose(1, 2)

    def timeline(self, spec: Tensor) -> Tensor:
        """spec: (batch, mel, frames) -> (batch, moments, dim): the tokens, which are `timing`'s."""
        return self(spec)

    def embed(self, spec: Tensor) -> Tensor:
        """spec: (batch, mel, frames) -> (batch, dim), the mean of the tokens over time."""
        return self(spec).mean(dim=1)


def build(
    widths: Sequence[int] = WIDTHS,
    strides: Sequence[int] = STRIDES,
    stem: int = 32,
    norm: bool = True,
) -> nn.Module:
    """The encoder with random weights; arguments as `DSCNN` has them.

    Convolution weights lie channels-last in memory, which is the fast layout on CPUs.
    """
    return DSCNN(widths, strides, stem, norm).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
