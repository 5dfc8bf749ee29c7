"""A small convolutional encoder for log-mel spectrograms: the default tagger's network.

    spec (batch, mel, frames) -> normalise -> 3x3 convolution, stride 2
      -> depthwise-separable blocks -> mean over frequency -> 1x1 convolution -> ReLU
      -> tokens (batch, tokens, dim), one every `2 * product of strides` frames
      -> mean over time

Convolutional over time: any number of frames goes in. The blocks are MobileNet's (Howard et al.
2017, arXiv:1704.04861, section 3.1: 3x3 depthwise, batch norm, ReLU, 1x1 pointwise, batch norm,
ReLU), with an identity path where shapes allow it (an addition of this file, as in MobileNetV2).
The last ReLU is there because the embeddings it learns to regress are YAMNet's, which are means
of ReLU outputs and therefore never negative.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiossl.models.layers import Timing

MIN_FRAMES = 96  # shorter spectrograms are repeated: YAMNet's patch, about one second


class SeparableBlock(nn.Module):
    """3x3 depthwise, then 1x1 pointwise, each with batch norm and ReLU.

    (batch, channels, bands, frames) -> (batch, width, bands / stride, frames / stride)
    """

    def __init__(self, channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.pointwise = nn.Conv2d(channels, width, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.identity = channels == width and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.depthwise(x)), inplace=True)
        y = F.relu(self.norm2(self.pointwise(y)), inplace=True)
        return x + y if self.identity else y


class DSCNN(nn.Module):
    """Encoder: `encoder(spec)` gives tokens over time, `encoder.embed(spec)` their mean.

    widths, strides: channels and stride of each block, the same stride over bands and frames.
    stem: channels of the first, dense convolution.   dim: width of tokens and embedding.
    Raises ValueError when widths and strides differ in number or a stride is neither 1 nor 2.
    """

    def __init__(
        self,
        widths: Sequence[int] = (32, 64, 128, 128, 256, 256, 256, 512, 512),
        strides: Sequence[int] = (1, 2, 2, 1, 2, 1, 1, 1, 1),
        stem: int = 16,
        dim: int = 1024,
    ) -> None:
        super().__init__()
        if len(widths) != len(strides):
            raise ValueError(f"dscnn: {len(widths)} widths but {len(strides)} strides")
        if any(stride not in (1, 2) for stride in strides):
            raise ValueError(f"dscnn: strides must be 1 or 2, got {tuple(strides)}")
        self.dim = dim
        hop = 2 * math.prod(strides)
        # A 3x3 convolution padded by 1 looks one frame to either side of `stride * k`: however many
        # are stacked, token k is centred on frame `hop * k`.
        self.timing = Timing(0.5 - hop / 2, hop, hop)
        self.norm = nn.BatchNorm2d(1)  # learns the spectrogram's mean and scale
        self.stem = nn.Conv2d(1, stem, 3, 2, 1, bias=False)
        self.stem_norm = nn.BatchNorm2d(stem)
        inputs = (stem, *widths[:-1])
        self.blocks = nn.Sequential(
            *(SeparableBlock(*arguments) for arguments in zip(inputs, widths, strides, strict=True))
        )
        self.proj = nn.Conv2d(widths[-1], dim, 1, bias=False)
        self.proj_norm = nn.BatchNorm2d(dim)

    def forward(self, spec: Tensor) -> Tensor:
        """spec: (batch, mel, frames), log-mel -> tokens (batch, tokens, dim), never negative."""
        frames = max(spec.shape[-1], MIN_FRAMES)  # no `if`: an exported graph is for any number
        times = (frames + spec.shape[-1] - 1) // spec.shape[-1]
        spec = spec.repeat(1, 1, times)[..., :frames]
        x = self.norm(spec.unsqueeze(1))  # (batch, 1, mel, frames)
        x = F.relu(self.stem_norm(self.stem(x)), inplace=True)
        x = self.blocks(x).mean(dim=2, keepdim=True)  # (batch, width, 1, tokens)
        x = F.relu(self.proj_norm(self.proj(x)), inplace=True)
        return x.squeeze(2).transpose(1, 2)

    def timeline(self, spec: Tensor) -> Tensor:
        """spec: (batch, mel, frames) -> (batch, moments, dim): the tokens, which are `timing`'s."""
        return self(spec)

    def embed(self, spec: Tensor) -> Tensor:
        """spec: (batch, mel, frames) -> (batch, dim), the mean of the tokens over time."""
        return self(spec).mean(dim=1)


def build(
    widths: Sequence[int] = (32, 64, 128, 128, 256, 256, 256, 512, 512),
    strides: Sequence[int] = (1, 2, 2, 1, 2, 1, 1, 1, 1),
    stem: int = 16,
    dim: int = 1024,
) -> nn.Module:
    """The encoder with random weights; arguments as `DSCNN` has them.

    Convolution weights lie channels-last in memory, which is the fast layout on CPUs.
    """
    return DSCNN(widths, strides, stem, dim).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
