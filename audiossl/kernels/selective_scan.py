"""The selective scan of Mamba, and the causal convolution before it, behind one function each.

    step_t = softplus(delta_t + delta_bias)
    h_t = exp(step_t A) h_(t-1) + step_t u_t B_t
    y_t = (h_t C_t + D u_t) silu(z_t)

Gu & Dao 2023 (arXiv:2312.00752), equations 2a, 2b and 4, with A discretised by zero-order hold and
B by Euler's rule, as their code does. Tokens come before channels here, which is how the linear
layers around the scan leave them, and `reverse` runs from the last token to the first.

What does the work: on a CPU native.py's compiled kernel where it was built, for float32 and less;
on a CUDA device mamba-ssm's where it is installed; otherwise torch_scan.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from audiossl.kernels import native, torch_scan


class Inputs(NamedTuple):
    """What `selective_scan` is called with."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    delta_bias: Tensor | None
    delta_softplus: bool
    reverse: bool
    state: Tensor | None


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    *,
    reverse: bool = False,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The recurrence of the module's docstring.

    u, delta, z: (batch, tokens, channels). A: (channels, states), negative. B, C: (batch, tokens,
    states). D, delta_bias: (channels,). Without delta_softplus, step_t = delta_t + delta_bias.
    state: (batch, channels, states) of h before the first token, zeros if None.
    -> y (batch, tokens, channels) in the type of u, and the state after the last token in the order
    of the scan, so a long sequence can go through piece by piece.
    Computed in float32 at least. Differentiable once in every tensor, but not by way of a state
    that mamba-ssm's kernel returned. Raises ValueError on shapes that do not fit.
    """
    given = Inputs(u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse, state)
    _check(given)
    kernel = mamba_kernel() if u.is_cuda and state is None and u.shape[1] else None
    if kernel is not None:
        y, last = _mamba(given, kernel)
    elif _is_native(u):
        tensors = u, delta, A, B, C, D, z, delta_bias, state
        singles = [None if value is None else value.float() for value in tensors]
        y, last = native.scan(singles, delta_softplus, reverse)
    else:
        y, last = _torch(given)
    return y.to(u.dtype), last


def causal_conv_silu(x: Tensor, weight: Tensor, bias: Tensor, *, reverse: bool = False) -> Tensor:
    """silu(bias + sum_k weight[:, -1 - k] x_(t - k)): depthwise, looking back only.

    x: (batch, tokens, channels). weight: (channels, width). bias: (channels,). With `reverse` back
    means towards later tokens. Beyond the ends x is 0. -> (batch, tokens, channels)
    Raises ValueError on shapes that do not fit.
    """
    if x.ndim != 3 or weight.ndim != 2 or not weight.shape[1]:
        shapes = f"{tuple(x.shape)}, {tuple(weight.shape)}"
        raise ValueError(
            f"expected x (batch, tokens, channels), weight (channels, width), got {shapes}"
        )
    _compare("weight", weight, (x.shape[2], weight.shape[1]))
    _compare("bias", bias, (x.shape[2],))
    if _is_native(x):
        return native.causal_conv_silu(x.float(), weight.float(), bias.float(), reverse).to(x.dtype)
    width, tokens = weight.shape[1], x.shape[1]
    padded = F.pad(x, (0, 0, 0, width - 1) if reverse else (0, 0, width - 1, 0))
    taps = weight.flip(1) if reverse else weight
    y = bias
    for k in range(width):
        y = torch.addcmul(y, padded[:, k : k + tokens], taps[:, k])
    return F.silu(y)


def _is_native(value: Tensor) -> bool:
    return value.device.type == "cpu" and value.dtype != torch.float64 and bool(native.loaded())


@functools.cache
def mamba_kernel() -> Callable[..., Any] | None:
    """mamba-ssm's scan for CUDA tensors, None where it does not import."""
    try:
        from mamba_ssm.ops.selective_scan_interface import (  # type: ignore[import-not-found]
            selective_scan_fn,
        )
    except Exception:  # a build for another torch fails in ways of its own
        return None
    return selective_scan_fn


def _torch(given: Inputs) -> tuple[Tensor, Tensor]:
    kind = torch.promote_types(given.u.dtype, torch.float32)
    u, delta, A, B, C = (value.to(kind) for value in given[:5])
    if given.delta_bias is not None:
        delta = delta + given.delta_bias
    if given.delta_softplus:
        delta = F.softplus(delta)
    start = u.new_zeros(len(u), *A.shape) if given.state is None else given.state.to(kind)
    inputs = u, delta, A, B, C
    if given.reverse:
        inputs = u.flip(1), delta.flip(1), A, B.flip(1), C.flip(1)
    y, last = torch_scan.scan(*inputs, start)
    if given.reverse:
        y = y.flip(1)
    if given.D is not None:
        y = torch.addcmul(y, u, given.D.to(kind))
    if given.z is not None:
        y = y * F.silu(given.z.to(kind))
    return y, last


def _mamba(given: Inputs, kernel: Callable[..., Any]) -> tuple[Tensor, Tensor]:
    """mamba-ssm's kernel: channels before tokens, one direction."""

    def turned(value: Tensor | None) -> Tensor | None:
        if value is None:
            return None
        ordered = value.flip(1) if given.reverse else value
        return ordered.to(given.u.dtype).transpose(1, 2).contiguous()

    y, last = kernel(
        turned(given.u),
        turned(given.delta),
        given.A.float(),
        turned(given.B),
        turned(given.C),
        None if given.D is None else given.D.float(),
        turned(given.z),
        None if given.delta_bias is None else given.delta_bias.float(),
        given.delta_softplus,
        return_last_state=True,
    )
    y = y.transpose(1, 2)
    return y.flip(1) if given.reverse else y, last.detach()  # it has no gradient for the state


def _check(given: Inputs) -> None:
    if given.u.ndim != 3 or given.A.ndim != 2:
        shapes = f"{tuple(given.u.shape)}, {tuple(given.A.shape)}"
        raise ValueError(
            f"expected u (batch, tokens, channels), A (channels, states), got {shapes}"
        )
    batch, tokens, channels = given.u.shape
    states = given.A.shape[1]
    wanted = {
        "delta": (batch, tokens, channels),
        "A": (channels, states),
        "B": (batch, tokens, states),
        "C": (batch, tokens, states),
        "D": (channels,),
        "z": (batch, tokens, channels),
        "delta_bias": (channels,),
        "state": (batch, channels, states),
    }
    for name, shape in wanted.items():
        _compare(name, getattr(given, name), shape)


def _compare(name: str, value: Tensor | None, shape: tuple[int, ...]) -> None:
    if value is not None and value.shape != shape:
        raise ValueError(f"{name}: expected {shape}, got {tuple(value.shape)}")
