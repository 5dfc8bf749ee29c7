"""The selective scan against a loop over tokens in float64, whatever path does the work."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from audiossl import diagnosis
from audiossl.errors import UsageError
from audiossl.kernels import native
from audiossl.kernels import selective_scan as kernel
from audiossl.kernels.selective_scan import causal_conv_silu, selective_scan

FORWARD, GRADIENT = 1e-5, 1e-5  # absolute; of the largest gradient
ORDERED = ("u", "delta", "B", "C", "z")  # tensors that have tokens


def inputs(
    batch: int, tokens: int, channels: int, states: int, seed: int = 0, **more: Any
) -> dict[str, Any]:
    """Float64, about as large as in a model; every argument is given."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    values = {
        "u": F.silu(normal(batch, tokens, channels)),
        "delta": normal(batch, tokens, channels) * 0.5,
        "A": -torch.exp(normal(channels, states) * 0.5),
        "B": normal(batch, tokens, states),
        "C": normal(batch, tokens, states),
        "D": 1 + 0.1 * normal(channels),
        "z": normal(batch, tokens, channels),
        "delta_bias": normal(channels) - 3,
        "state": normal(batch, channels, states),
        "delta_softplus": True,
    }
    return values | more


def as_type(values: dict[str, Any], kind: torch.dtype, grad: bool = False) -> dict[str, Any]:
    return {
        name: value.to(kind).detach().requires_grad_(grad) if torch.is_tensor(value) else value
        for name, value in values.items()
    }


def slow(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    reverse: bool = False,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Token by token, as the definition says."""
    h = u.new_zeros(len(u), *A.shape) if state is None else state
    y = [u.new_zeros(())] * u.shape[1]
    times = range(u.shape[1])
    for t in reversed(times) if reverse else times:
        step = delta[:, t] if delta_bias is None else delta[:, t] + delta_bias
        if delta_softplus:
            step = torch.log1p(torch.exp(step))
        h = torch.exp(step[..., None] * A) * h + (step * u[:, t])[..., None] * B[:, t, None]
        y[t] = (h * C[:, t, None]).sum(-1)
        if D is not None:
            y[t] = y[t] + D * u[:, t]
        if z is not None:
            y[t] = y[t] * z[:, t] / (1 + torch.exp(-z[:, t]))
    return torch.stack(y, 1) if y else torch.zeros_like(u), h


@pytest.fixture(params=["torch", *native.LANES])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each way of doing the work in turn."""
    monkeypatch.setenv(native.SWITCH, request.param)
    if request.param not in ("torch", native.instructions()):
        pytest.skip("not built here, or not for this processor")
    return request.param


SHAPES = [  # batch, tokens, channels, states
    (1, 1, 8, 16),
    (2, 7, 5, 3),
    (1, 64, 8, 16),
    (3, 65, 12, 1),
    (1, 130, 24, 16),
    (2, 33, 3, 17),
    (1, 5, 1, 1),
    (2, 0, 4, 4),
    (0, 6, 4, 4),
]


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_equal_to_the_loop(shape: tuple[int, ...], reverse: bool) -> None:
    exact = as_type(inputs(*shape, reverse=reverse), torch.float64, grad=True)
    single = as_type(exact, torch.float32, grad=True)
    expected, expected_state = slow(**exact)
    y, state = selective_scan(**single)
    assert y.dtype == state.dtype == torch.float32
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=FORWARD)
    torch.testing.assert_close(state.double(), expected_state, rtol=0, atol=FORWARD)
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    weight_state = torch.randn(state.shape, generator=generator, dtype=torch.float64)
    for one, other in ((expected, expected_state), (y, state)):
        ((one * weight).sum() + (other * weight_state).sum()).backward()
    for name, value in exact.items():
        if torch.is_tensor(value) and value.grad is not None:
            limit = GRADIENT * max(1e-30, value.grad.abs().max().item() if value.numel() else 0)
            difference = (single[name].grad.double() - value.grad).abs()
            assert not difference.numel() or difference.max().item() <= limit, name


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize(
    "absent", [("D",), ("z",), ("delta_bias",), ("state",), ("D", "z", "delta_bias", "state")]
)
@pytest.mark.parametrize("softplus", [False, True])
def test_what_may_be_left_out(absent: tuple[str, ...], softplus: bool) -> None:
    values = inputs(2, 19, 9, 5, **dict.fromkeys(absent))
    if not softplus:  # steps are positive
        values |= {"delta": values["delta"].abs() * 0.1, "delta_softplus": False}
        if values["delta_bias"] is not None:
            values["delta_bias"] = values["delta_bias"].abs() * 0.01
    expected = slow(**values)
    for got, wanted in zip(selective_scan(**as_type(values, torch.float32)), expected, strict=True):
        torch.testing.assert_close(got.double(), wanted, rtol=0, atol=FORWARD)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize(("batch", "threads"), [(1, 2), (1, 3), (3, 2)])
def test_threads_change_nothing_but_the_order_of_sums(batch: int, threads: int) -> None:
    """Enough work for several threads; 40 channels fill no whole number of vectors."""
    if native.loaded() is None:
        pytest.skip("torch's own business")
    values = as_type(inputs(batch, 900, 40, 16), torch.float32)
    assert batch * 900 * 40 * 16 > native.ALONE
    before, results = torch.get_num_threads(), []
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            given = as_type(values, torch.float32, grad=True)
            y, state = selective_scan(**given)
            (y.sum() + state.sum()).backward()
            results.append([y, state, *(given[name].grad for name in ("A", "B", "D", *ORDERED))])
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*results, strict=True):
        assert (one - other).abs().max() <= 2e-6 * one.abs().max()


@pytest.mark.usefixtures("path")
def test_what_is_no_number_is_not_lost() -> None:
    values = as_type(inputs(1, 20, 8, 4), torch.float32)
    for name in ("u", "delta", "B", "C", "z"):
        broken = {**values, name: values[name].clone()}
        broken[name][0, 7, 1] = float("nan")
        assert selective_scan(**broken)[0].isnan().any(), name


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("step", [-3.0, -10.0])
def test_what_grows_beyond_all_numbers_is_infinite(step: float) -> None:
    """Steps that nothing keeps positive: e^(48), or e^(160), which float32 does not have."""
    one, A = torch.ones(1, 1, 1), -torch.arange(1.0, 17)[None]
    ones = torch.ones(1, 1, 16)
    _, state = selective_scan(one, step * one, A, ones, ones, state=ones)
    torch.testing.assert_close(state[0], torch.exp(step * A) + step, rtol=1e-5, atol=0)


def test_the_switch_names_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.SWITCH, "sse9")
    values = as_type(inputs(1, 2, 3, 4), torch.float32)
    if native.loaded() is None:
        pytest.skip("the compiled kernel is not built here")
    with pytest.raises(UsageError, match="AUDIOSSL_SCAN=sse9: expected torch, portable, avx2"):
        selective_scan(**values)
    monkeypatch.setenv(native.SWITCH, "torch")
    assert (native.loaded(), native.instructions()) == (None, "")


def test_a_library_of_other_sources_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    if native.loaded() is None:
        pytest.skip("the compiled kernel is not built here")
    monkeypatch.setattr(native, "BYTES", native.BYTES + 8)
    monkeypatch.setattr(native, "_load", native._load.__wrapped__)
    assert native.loaded() is None


def test_doctor_names_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.SWITCH, "torch")
    assert diagnosis.facts()["machine"]["selective scan"].startswith("torch")
    monkeypatch.setenv(native.SWITCH, "portable")
    if native.loaded() is not None:
        assert diagnosis.facts()["machine"]["selective scan"] == "compiled (portable)"


def test_a_library_that_does_not_load_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Built for another machine, gone, or something else of that name."""
    native._load.cache_clear()
    for name in ("audiossl.kernels._no_such", "audiossl.kernels.native", "_heapq"):
        monkeypatch.setattr(native, "NAME", name)
        native._load.cache_clear()
        assert native.loaded() is None, name
        values = as_type(inputs(1, 2, 3, 4), torch.float32)
        assert selective_scan(**values)[0].isfinite().all()
    native._load.cache_clear()


@pytest.mark.parametrize("reverse", [False, True])
def test_gradients_are_the_derivatives(reverse: bool) -> None:
    values = as_type(inputs(2, 6, 3, 2), torch.float64, grad=True)
    names = [name for name, value in values.items() if torch.is_tensor(value)]

    def function(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        given = dict(zip(names, tensors, strict=True))
        return selective_scan(**given, delta_softplus=True, reverse=reverse)

    assert torch.autograd.gradcheck(function, [values[name] for name in names])


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("reverse", [False, True])
def test_pieces_with_carried_state_equal_the_whole(reverse: bool) -> None:
    whole = as_type(inputs(2, 50, 8, 16, reverse=reverse), torch.float32, grad=True)
    pieces = as_type(whole, torch.float32, grad=True)
    y, last = selective_scan(**whole)
    state, parts = pieces["state"], []
    spans = [slice(0, 20), slice(20, 21), slice(21, 50)]
    for span in reversed(spans) if reverse else spans:
        part = {name: pieces[name][:, span] for name in ORDERED}
        some, state = selective_scan(**{**pieces, **part, "state": state})
        parts.append(some)
    joined = torch.cat(parts[::-1] if reverse else parts, 1)
    torch.testing.assert_close(joined, y, rtol=0, atol=1e-6)
    torch.testing.assert_close(state, last, rtol=0, atol=1e-6)
    (y.sum() + last.sum()).backward()
    (joined.sum() + state.sum()).backward()
    for name in ("A", "state", *ORDERED):
        difference = (pieces[name].grad - whole[name].grad).abs().max()
        assert difference <= 2e-6 * whole[name].grad.abs().max(), name


@pytest.mark.usefixtures("path")
def test_views_with_any_strides_are_read_where_they_lie() -> None:
    """As the mixer has them: halves of one projection, thirds of another, and every other token."""
    plain = as_type(inputs(2, 21, 8, 4), torch.float32)
    xz = torch.stack([plain["u"], plain["z"]], 2).flatten(2)
    bc = torch.cat([plain["B"], plain["C"]], 2)
    views = {"u": xz[..., :8], "z": xz[..., 8:], "B": bc[..., :4], "C": bc[..., 4:]}
    spread = plain["delta"].repeat_interleave(2, 1)
    views["delta"] = spread[:, ::2]
    views["D"] = torch.stack([plain["D"], plain["D"]], 1)[:, 0]
    views["A"] = plain["A"].t().contiguous().t()
    expected = selective_scan(**plain)[0]
    got = selective_scan(**{**plain, **views})[0]
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
    turned = plain["u"].transpose(1, 2).contiguous().transpose(1, 2)
    got = selective_scan(**{**plain, "u": turned})[0]
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


@pytest.mark.usefixtures("path")
def test_steep_and_flat_steps_stay_finite() -> None:
    """softplus far out on both sides, decays that underflow, gates that saturate."""
    values = inputs(1, 40, 8, 4)
    values["delta"] = torch.linspace(-200, 90, 40).double()[None, :, None].expand(1, 40, 8)
    values["z"] = values["delta"].flip(1)
    values["A"] = values["A"] * 20
    expected = selective_scan(**values)
    got = selective_scan(**as_type(values, torch.float32))
    for single, exact in zip(got, expected, strict=True):
        assert single.isfinite().all()
        torch.testing.assert_close(single.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("path")
def test_half_precision_and_autocast_are_computed_in_single() -> None:
    values = as_type(inputs(1, 80, 8, 16), torch.float32)
    y, state = selective_scan(**values)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(selective_scan(**values)[0], y)
    half = {name: value.bfloat16() if name in ORDERED else value for name, value in values.items()}
    rounded = {name: value.float() if name in ORDERED else value for name, value in half.items()}
    got, got_state = selective_scan(**half)
    assert (got.dtype, got_state.dtype) == (torch.bfloat16, torch.float32)
    wanted, wanted_state = selective_scan(**rounded)
    torch.testing.assert_close(got, wanted.bfloat16(), rtol=0.01, atol=1e-3)
    torch.testing.assert_close(got_state, wanted_state)
    assert state.shape == got_state.shape


def kept_for_backward(tokens: int) -> int:
    """Numbers that autograd keeps of a scan, those of the inputs included, each storage once."""
    values = as_type(inputs(1, tokens, 32, 16), torch.float32, grad=True)
    storages = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // 4
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y, _ = selective_scan(**values)
    assert y.requires_grad
    return sum(storages.values())


@pytest.mark.usefixtures("path")
def test_nothing_as_large_as_all_states_is_kept_for_the_backward_pass() -> None:
    tokens = 640
    states, channels = 16, 32
    assert kept_for_backward(tokens) < tokens * channels * states
    assert kept_for_backward(2 * tokens) < 2.2 * kept_for_backward(tokens)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("u", (2, 5)),
        ("A", (3, 2, 2)),
        ("delta", (2, 5, 4)),
        ("A", (4, 2)),
        ("B", (2, 5, 3)),
        ("C", (2, 4, 2)),
        ("D", (2,)),
        ("z", (1, 5, 3)),
        ("delta_bias", (3, 1)),
        ("state", (2, 2, 3)),
    ],
)
def test_shapes_that_do_not_fit_are_named(name: str, shape: tuple[int, ...]) -> None:
    values = inputs(2, 5, 3, 2)
    with pytest.raises(ValueError, match="expected"):
        selective_scan(**{**values, name: torch.zeros(shape)})


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize(
    ("weight", "bias"), [((4, 4), (3,)), ((3, 4), (4,)), ((3, 0), (3,)), ((3,), (3,))]
)
def test_convolutions_that_do_not_fit_are_refused(
    weight: tuple[int, ...], bias: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="expected"):
        causal_conv_silu(torch.zeros(2, 5, 3), torch.zeros(weight), torch.zeros(bias))


# --- mamba-ssm ------------------------------------------------------------------------------------


def stand_in(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    return_last_state: bool,
) -> tuple[Tensor, Tensor]:
    """mamba-ssm's function as documented: channels before tokens; it asks for contiguous ones."""
    assert all(value.is_contiguous() for value in (u, delta, B, C) if value is not None)
    assert A.dtype == torch.float32
    assert return_last_state
    ordered = [value if value is None else value.transpose(1, 2) for value in (u, delta, B, C, z)]
    u, delta, B, C, z = ordered  # type: ignore[assignment]
    y, last = slow(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    return y.transpose(1, 2), last


@pytest.mark.parametrize("reverse", [False, True])
def test_mamba_ssm_is_given_its_own_layout(reverse: bool) -> None:
    values = as_type(inputs(2, 9, 4, 3, reverse=reverse, state=None), torch.float32)
    given = kernel.Inputs(**values)
    y, state = kernel._mamba(given, stand_in)
    expected, expected_state = selective_scan(**values)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(state, expected_state, rtol=0, atol=1e-5)


def test_without_mamba_ssm_there_is_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "mamba_ssm", None)
    kernel.mamba_kernel.cache_clear()
    assert kernel.mamba_kernel() is None
    kernel.mamba_kernel.cache_clear()


# --- convolution ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("batch", "tokens", "channels", "width"),
    [(2, 9, 5, 4), (1, 2, 8, 4), (1, 70, 16, 3), (1, 1, 3, 1), (2, 0, 4, 4)],
)
def test_convolution_equals_the_one_of_torch(
    batch: int, tokens: int, channels: int, width: int, reverse: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, tokens, channels, generator=generator)
    weight = torch.randn(channels, width, generator=generator)
    bias = torch.randn(channels, generator=generator)
    single = [value.clone().requires_grad_() for value in (x, weight, bias)]
    exact = [value.double().requires_grad_() for value in (x, weight, bias)]
    got = causal_conv_silu(*single, reverse=reverse)
    ordered = exact[0].flip(1) if reverse else exact[0]
    padded = F.pad(ordered.transpose(1, 2), (width, 0))
    wanted = F.conv1d(padded, exact[1].unsqueeze(1), exact[2], groups=channels)
    wanted = wanted[..., 1 : tokens + 1]
    wanted = F.silu(wanted).transpose(1, 2)
    wanted = wanted.flip(1) if reverse else wanted
    torch.testing.assert_close(got.double(), wanted, rtol=0, atol=1e-5)
    weights = torch.randn(x.shape, generator=generator)
    (got * weights).sum().backward()
    (wanted * weights).sum().backward()
    for value, other in zip(single, exact, strict=True):
        torch.testing.assert_close(value.grad.double(), other.grad, rtol=1e-5, atol=1e-5)
