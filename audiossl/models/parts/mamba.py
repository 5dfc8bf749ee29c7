"""Vision Mamba's bidirectional mixer ("bimamba v2"), which stands where ViTs have attention.

    x, z = in_proj(tokens)                                  (batch, tokens, width) each
    for each direction, with weights of its own:
      u = silu(causal convolution of x)
      delta, B, C = x_proj(u);  delta = dt_proj(delta)
      y = selective scan of u by delta, A, B, C, gated by z
    out = out_proj(mean of both y)

Zhu et al., "Vision Mamba", ICML 2024 (arXiv:2401.09417); Gu & Dao, "Mamba" (arXiv:2312.00752).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiossl.kernels import native
from audiossl.kernels.selective_scan import causal_conv_silu, selective_scan

STEPS = (1e-3, 1e-1)  # range of softplus(bias of dt_proj) at the start: Mamba, section 3.6


class Direction(nn.Module):
    """What a mixer does in one direction: convolution, input-dependent delta, B and C, scan."""

    def __init__(self, width: int, rank: int, states: int, kernel: int) -> None:
        super().__init__()
        self.sizes = [rank, states, states]
        self.conv = nn.Conv1d(width, width, kernel, groups=width)  # holds the weights
        self.x_proj = nn.Linear(width, sum(self.sizes), bias=False)
        self.dt_proj = nn.Linear(rank, width)
        self.A_log = nn.Parameter(torch.empty(width, states))
        self.D = nn.Parameter(torch.ones(width))
        self._initialise(rank)

    def forward(self, x: Tensor, z: Tensor, reverse: bool) -> Tensor:
        """x, z: (batch, tokens, width) -> (batch, tokens, width)."""
        taps, offset = self.conv.weight.squeeze(1), self.conv.bias
        u = causal_conv_silu(x, taps, offset, reverse=reverse)  # type: ignore[arg-type]
        delta, B, C = self.x_proj(u).split(self.sizes, dim=-1)
        delta = F.linear(delta, self.dt_proj.weight)  # its bias is added in the scan
        bias = self.dt_proj.bias
        return selective_scan(u, delta, self.A, B, C, self.D, z, bias, True, reverse=reverse)[0]

    @property
    def A(self) -> Tensor:
        return -self.A_log.float().exp()

    def weights(self) -> list[Tensor]:
        """As `native.mix` takes them."""
        taps: list[Tensor] = [self.conv.weight.squeeze(1), self.conv.bias]  # type: ignore[list-item]
        step = self.dt_proj
        return [*taps, self.x_proj.weight, step.weight, step.bias, self.A, self.D]

    @torch.no_grad()
    def _initialise(self, rank: int) -> None:
        if self.A_log.is_meta:  # nothing to fill, and torch would spend a second finding that out
            return
        states = self.A_log.shape[1]
        self.A_log.copy_(torch.tensor([math.log(n) for n in range(1, states + 1)]))
        nn.init.uniform_(self.dt_proj.weight, -(rank**-0.5), rank**-0.5)
        low, high = (math.log(step) for step in STEPS)
        step = nn.init.uniform_(self.dt_proj.bias, low, high).exp_()
        step.expm1_().log_()  # softplus's inverse


class Mixer(nn.Module):
    """Vision Mamba's bidirectional mixer over tokens (batch, tokens, dim)."""

    def __init__(self, dim: int, states: int, expand: int, kernel: int) -> None:
        super().__init__()
        width, rank = expand * dim, math.ceil(dim / 16)
        self.in_proj = nn.Linear(dim, 2 * width, bias=False)
        self.ahead = Direction(width, rank, states, kernel)
        self.back = Direction(width, rank, states, kernel)
        self.out_proj = nn.Linear(width, dim, bias=False)

    def forward(self, tokens: Tensor, reverse: bool = False) -> Tensor:
        """With `reverse`, as if the tokens stood in reverse order, but in and out as they stand."""
        x, z = self.in_proj(tokens).chunk(2, dim=-1)
        y = self.ahead(x, z, reverse) + self.back(x, z, not reverse)
        return self.out_proj(y / 2)

    def infer(
        self, tokens: Tensor, reverse: bool, scratch: native.Scratch, out: Tensor | None = None
    ) -> Tensor:
        """The same in one go, without gradients; added to `out` where it is given."""
        ahead, back = (self.back, self.ahead) if reverse else (self.ahead, self.back)
        layers = self.in_proj.weight, self.out_proj.weight
        return native.mix(tokens, *layers, ahead.weights(), back.weights(), scratch, out)
