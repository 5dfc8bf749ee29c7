"""What several architectures share: when tokens are, the transformer block, the heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiossl.errors import ModelError


class Timing(NamedTuple):
    """Where an encoder's tokens over time stand in a spectrogram, in frames.

    Frame f lies between f and f + 1; token k between first + k * hop and `width` after that.
    """

    first: float
    hop: float
    width: float


class DropPath(nn.Module):
    """Leaves out a residual branch for whole samples at random, in training (stochastic depth)."""

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"drop_path: expected 0 <= rate < 1, got {rate}")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = torch.rand(x.shape[0], *[1] * (x.ndim - 1), device=x.device) >= self.rate
        return x * keep / (1 - self.rate)  # the division keeps the expected value


class Attention(nn.Module):
    """Multi-head self-attention over tokens (batch, tokens, dim)."""

    def __init__(self, dim: int, heads: int, qkv_bias: bool = True) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim {dim} is not a multiple of heads {heads}")
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # 3 x (batch, heads, tokens, dim / heads)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, dim))


class Mlp(nn.Module):
    """Two linear layers with an exact (erf) GELU between."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(
        self,
        dim: int,
        heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        eps: float = 1e-6,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, heads, qkv_bias)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, round(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class LinearHead(nn.Module):
    """Embedding (batch, dim) -> logits (batch, classes)."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class LayerNormLinearHead(nn.Module):
    """Embedding (batch, dim) -> LayerNorm -> logits (batch, classes), as AST and PaSST have it."""

    def __init__(self, dim: int, classes: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.linear = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x))


HEADS: dict[str, type[nn.Module]] = {"linear": LinearHead, "layernorm_linear": LayerNormLinearHead}
READ_BY_OTHERS = {"name", "labels", "activation"}  # of a head's config: no argument of its module


def build_head(dim: int, config: Mapping[str, Any]) -> nn.Module:
    """The head of `config`, with random weights: (batch, dim) -> (batch, number of labels).

    config: `{"name": "linear" | "layernorm_linear", "labels": [...], **arguments}`; "activation" is
    read by the model that scores.
    Raises ModelError on an unknown name or argument, or when no label is given.
    """
    name, labels = config.get("name"), config.get("labels")
    if name not in HEADS:
        raise ModelError(f"head: unknown name {name!r}: one of {', '.join(sorted(HEADS))}")
    if not isinstance(labels, list) or not labels:
        raise ModelError("head: labels must be a list that is not empty")
    arguments = {key: value for key, value in config.items() if key not in READ_BY_OTHERS}
    try:
        return HEADS[name](dim, len(labels), **arguments)
    except TypeError as error:
        raise ModelError(f"head {name!r}: {error}") from error
