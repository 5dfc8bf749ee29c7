"""The compiled scan and convolution (selective_scan.cpp) for float32 tensors on a CPU.

Loaded by ctypes from a shared library that is built when this package is installed, where there is
a C++ compiler. Without it `loaded()` is None and torch does the work. The library takes the widest
instructions that the processor has. The environment variable AUDIOSSL_SCAN holds it back: `torch`
leaves the library out, `portable` or `avx2` leave out what is wider.

ctypes gives the interpreter's lock back during a call. The work is spread over clips and ranges of
channels on at most torch's own number of threads.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import math
import mmap
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from audiossl.errors import UsageError

NAME = "audiossl.kernels._selective_scan"
SWITCH = "AUDIOSSL_SCAN"
LANES = {"portable": 4, "avx2": 8, "avx512": 16}  # floats side by side
TILE = PADDED = 16  # as in selective_scan.cpp
ALONE = 500_000  # numbers of state below which a second thread would cost more than it gives


class _Rows(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("batch", ctypes.c_int64), ("token", ctypes.c_int64))


def _structure(*fields: str) -> Any:
    """The fields of a struct in C, as words `type:name name ...`."""
    kinds = {"n": ctypes.c_int64, "rows": _Rows, "p": ctypes.c_void_p}
    listed = []
    for field in fields:
        kind, names = field.split(":")
        listed += [(name, kinds[kind]) for name in names.split()]
    return type("_Structure", (ctypes.Structure,), {"_fields_": listed})


_Scan = _structure(
    "n:batch tokens channels states softplus",
    "rows:u delta B C z more y",
    "p:A D bias first last saved",
)
_ScanGradient = _structure("rows:dy du ddelta dz", "p:dB dC dA dD dbias dlast dfirst")
_Conv = _structure("n:batch tokens channels taps before", "rows:x y", "p:weight bias")
_ConvGradient = _structure("rows:dy dx", "p:dweight dbias")
_Mixer = _structure(
    "n:batch tokens dim channels states rank taps accumulate",
    "rows:in out",
    "p:in_proj out_proj",
    *(f"p:{way}_{name}" for way in ("ahead", "back")
      for name in ("conv_weight", "conv_bias", "x_proj", "dt_proj", "dt_bias", "A", "D")),
    "p:scratch",
)  # fmt: skip
BYTES = sum(map(ctypes.sizeof, (_Scan, _ScanGradient, _Conv, _ConvGradient, _Mixer)))


def loaded() -> ctypes.CDLL | None:
    """The compiled functions, None where they are not there or not wanted."""
    return None if os.environ.get(SWITCH) == "torch" else _load()


def instructions() -> str:
    """What the library computes with, one of LANES; empty where there is no library."""
    found = loaded()
    lanes = found.audiossl_lanes(_most()) if found else 0
    return next((name for name, wide in LANES.items() if wide == lanes), "")


def scan(tensors: Sequence[Tensor | None], softplus: bool, reverse: bool) -> tuple[Tensor, Tensor]:
    """`selective_scan` for float32 tensors on a CPU, where `loaded()` is not None.

    tensors: u, delta, A, B, C, D, z, delta_bias, state.
    """
    return _ScanFunction.apply(torch.is_grad_enabled(), softplus, reverse, *tensors)  # type: ignore[return-value]


def causal_conv_silu(x: Tensor, weight: Tensor, bias: Tensor, reverse: bool) -> Tensor:
    """`selective_scan.causal_conv_silu` for float32 tensors on a CPU."""
    return _ConvFunction.apply(x, weight, bias, reverse)  # type: ignore[return-value]


def can_mix(tokens: Tensor) -> bool:
    """Whether `mix` can do the work: no gradient is wanted, and these are its kind of numbers."""
    plain = tokens.device.type == "cpu" and tokens.dtype == torch.float32
    wanted = torch.is_grad_enabled() or torch.is_autocast_enabled("cpu")
    return plain and not wanted and loaded() is not None


class Scratch:
    """Memory that calls of `mix` share: as much as the largest of them has asked for.

    In large pages where there are any: the rows of a tile lie in as many small ones, and looking up
    their addresses costs a seventh of the time.
    """

    def __init__(self) -> None:
        self._numbers = torch.empty(0)

    def take(self, count: int) -> Tensor:
        """At least `count` float32 numbers."""
        if len(self._numbers) < count:
            block = mmap.mmap(-1, 4 * count, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            with contextlib.suppress(AttributeError, OSError):  # not Linux, or not allowed
                block.madvise(mmap.MADV_HUGEPAGE)
            self._numbers = torch.frombuffer(block, dtype=torch.float32)
        return self._numbers


def mix(
    tokens: Tensor,
    in_proj: Tensor,
    out_proj: Tensor,
    ahead: Sequence[Tensor],
    back: Sequence[Tensor],
    scratch: Scratch,
    out: Tensor | None = None,
) -> Tensor:
    """A whole bidirectional mixer (see models/ssamba.py), without gradients, in float32.

    tokens: (batch, tokens, dim). in_proj: (2 width, dim). out_proj: (dim, width). ahead, back: of
    each direction the weight (width, taps) and bias (width,) of the convolution, x_proj (rank + 2
    states, width), dt_proj's weight (width, rank) and bias, A (width, states), D (width,).
    out: is added to where it is given, else new: (batch, tokens, dim).
    """
    batch, length, dim = tokens.shape
    width, taps = ahead[0].shape
    states, rank = ahead[5].shape[1], ahead[3].shape[1]
    result = tokens.new_empty(tokens.shape) if out is None else out
    threads = torch.get_num_threads() if batch * length * width * states >= ALONE else 1
    room = scratch.take(max(1, threads // 2) * length * 3 * width)
    tokens = _readable(tokens)
    weights = [value.contiguous() for value in (in_proj, out_proj, *ahead, *back)]
    mixer = _Mixer(
        *(batch, length, dim, width, states, rank, taps, int(out is not None)),
        *(_rows(value, False) for value in (tokens, result)),
        *(value.data_ptr() for value in (*weights, room)),
    )
    found = loaded()
    assert found is not None
    if found.audiossl_mix(ctypes.byref(mixer), threads, _most()):
        raise MemoryError("audiossl_mix: no memory left")
    return result


class _ScanFunction(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, learning: bool, softplus: bool, reverse: bool, *tensors: Any
    ) -> tuple[Tensor, Tensor]:
        u, delta, A, B, C, D, z, bias, state = map(_readable, tensors)
        A, D, bias, state = map(_whole, (A, D, bias, state))
        kept = u, delta, A, B, C, D, z, bias, state
        y, last = u.new_empty(u.shape), u.new_empty(len(u), *A.shape)
        saved = None
        if learning and any(ctx.needs_input_grad):
            tiles, groups = math.ceil(u.shape[1] / TILE), math.ceil(u.shape[2] / PADDED)
            saved = u.new_empty(len(u), tiles, groups * PADDED, A.shape[1])
        ctx.save_for_backward(*kept, saved)
        ctx.softplus, ctx.reverse = softplus, reverse
        _call("audiossl_scan", u, A.shape[1], _scan(kept, softplus, reverse, y, last, saved))
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dlast: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        *kept, saved = ctx.saved_tensors
        u, _, A, _, _, D, z, bias, state = kept
        batch, tokens, channels = u.shape
        parts, _ = _parts(u, A.shape[1])
        du, ddelta = u.new_empty(2, *u.shape)
        dz = None if z is None else u.new_empty(u.shape)
        dB, dC = u.new_empty(2, parts, batch, tokens, A.shape[1])
        dA, dfirst = u.new_empty(2, batch, *A.shape)
        dD, dbias = u.new_empty(2, batch, channels)
        dy, dlast = _readable(dy), dlast.contiguous()
        gradients = _ScanGradient(
            *(_rows(value, ctx.reverse) for value in (dy, du, ddelta, dz)),
            *(_pointer(value) for value in (dB, dC, dA, dD, dbias, dlast, dfirst)),
        )
        scan = _scan(kept, ctx.softplus, ctx.reverse, None, None, saved)
        _call("audiossl_scan_backward", u, A.shape[1], scan, gradients)
        dB, dC = (value.sum(0).flip(1) if ctx.reverse else value.sum(0) for value in (dB, dC))
        dD, dbias = (None if v is None else total.sum(0) for v, total in ((D, dD), (bias, dbias)))
        dstate = None if state is None else dfirst
        return None, None, None, du, ddelta, dA.sum(0), dB, dC, dD, dz, dbias, dstate


class _ConvFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, reverse: bool) -> Tensor:  # type: ignore[override]
        x, weight, bias = _readable(x), weight.contiguous(), bias.contiguous()
        y = x.new_empty(x.shape)
        ctx.save_for_backward(x, weight, bias)
        ctx.reverse = reverse
        _call("audiossl_conv", x, 1, _conv(x, weight, bias, reverse, y))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        x, weight, bias = ctx.saved_tensors
        dx = x.new_empty(x.shape)
        dweight, dbias = x.new_empty(len(x), *weight.shape), x.new_empty(len(x), len(bias))
        rows = _rows(_readable(dy), ctx.reverse), _rows(dx, ctx.reverse)
        gradients = _ConvGradient(*rows, dweight.data_ptr(), dbias.data_ptr())
        _call("audiossl_conv_backward", x, 1, _conv(x, weight, bias, ctx.reverse, None), gradients)
        return dx, dweight.sum(0), dbias.sum(0), None


def _scan(
    tensors: Any,
    softplus: bool,
    reverse: bool,
    y: Tensor | None,
    last: Tensor | None,
    saved: Tensor | None,
) -> Any:
    u, delta, A, B, C, D, z, bias, state = tensors
    return _Scan(
        *(*u.shape, A.shape[1], int(softplus)),
        *(_rows(value, reverse) for value in (u, delta, B, C, z, None, y)),
        *(_pointer(value) for value in (A, D, bias, state, last, saved)),
    )


def _conv(x: Tensor, weight: Tensor, bias: Tensor, reverse: bool, y: Tensor | None) -> Any:
    rows = (_rows(x, reverse), _rows(y, reverse))
    return _Conv(*x.shape, weight.shape[1], 0, *rows, weight.data_ptr(), bias.data_ptr())


def _call(name: str, over: Tensor, states: int, *structures: Any) -> None:
    """Call the function of that name; `over` (batch, tokens, channels) says how much work it is."""
    found = loaded()
    assert found is not None
    parts, threads = _parts(over, states)
    pointers = (ctypes.byref(structure) for structure in structures)
    if getattr(found, name)(*pointers, parts, threads, _most()):
        raise MemoryError(f"{name}: no memory left")


def _parts(over: Tensor, states: int) -> tuple[int, int]:
    """Ranges of channels for each clip, and threads."""
    batch, groups = len(over), max(1, math.ceil(over.shape[2] / PADDED))
    threads = torch.get_num_threads() if over.numel() * states >= ALONE else 1
    return (1 if batch % threads == 0 else min(threads, groups)), threads


def _most() -> int:
    """Lanes at most. Raises UsageError on a value of AUDIOSSL_SCAN that is none."""
    name = os.environ.get(SWITCH) or "avx512"
    if name not in LANES:
        raise UsageError(f"{SWITCH}={name}: expected torch, {', '.join(LANES)} or nothing")
    return LANES[name]


def _rows(value: Tensor | None, reverse: bool) -> _Rows:
    """Where the first row in the order of the scan lies, and how far apart rows are."""
    if value is None or not value.numel():
        return _Rows()
    start, step = value.data_ptr(), value.stride(1)
    if reverse:
        start += (value.shape[1] - 1) * step * value.element_size()
    return _Rows(start, value.stride(0), -step if reverse else step)


def _pointer(value: Tensor | None) -> int | None:
    return None if value is None else value.data_ptr()


def _readable(value: Any) -> Any:
    """As it lies if the numbers of a row lie side by side."""
    return value if value is None or value.stride(-1) == 1 else value.contiguous()


def _whole(value: Any) -> Any:
    return None if value is None else value.contiguous()


@functools.cache
def _load() -> ctypes.CDLL | None:
    try:
        spec = importlib.util.find_spec(NAME)
        if spec is None or spec.origin is None:
            return None
        found = ctypes.CDLL(spec.origin)
        if found.audiossl_bytes() != BYTES:
            return None  # built from other sources than these
        number, pointer = ctypes.c_int64, ctypes.c_void_p
        found.audiossl_lanes.argtypes = [number]
        found.audiossl_mix.argtypes = [pointer, number, number]
        for name in ("scan", "conv"):
            forward = getattr(found, f"audiossl_{name}")
            backward = getattr(found, f"audiossl_{name}_backward")
            forward.argtypes = [pointer, number, number, number]
            backward.argtypes = [pointer, *forward.argtypes]
    except (ImportError, OSError, AttributeError):
        return None  # built for another machine, from older sources, or something else altogether
    return found
