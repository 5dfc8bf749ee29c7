"""The selective scan on a CPU against its peers, and SSAMBA-tiny against SSAST-tiny.

python benchmarks/selective_scan.py [--rounds 5] [--threads 1] [--tokens 512 1024 2048 4096 22016]
                                    [--only scan encoders training memory] [--plot FILE.png]

With one thread CPU seconds are compared, with more of them wall time, which wants a quiet machine.
Peers: the recurrence token by token in torch, as mamba's `selective_scan_ref` has it; transformers'
path for machines without CUDA; mamba.py's parallel scan; and our own torch path. Each gets its
inputs as they lie in memory in its own model: the first two channel by channel, the others token by
token. SSAST is measured with torch's scaled-dot-product attention and with softmax(q k) v written
out, as it was published.

The paper (arXiv:2405.11831): SSAMBA-tiny is 92.7 % faster than SSAST-tiny and takes 95.4 % less
memory at 22,000 tokens, on a GPU, with attention written out.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.util
import os
import statistics
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import torch
import torch.nn.functional as F
from torch import Tensor

from audiossl import models
from audiossl.kernels import native
from audiossl.kernels.selective_scan import selective_scan
from audiossl.models.parts.layers import Attention

OURS = "audiossl"
TORCH = "audiossl, torch path"
FORMULA = "token by token in torch (selective_scan_ref)"
TRANSFORMERS = "transformers, path without CUDA"
MAMBAPY = "mamba.py, parallel scan"
SSAMBA, SDPA, NAIVE = "SSAMBA-tiny", "SSAST-tiny, SDPA", "SSAST-tiny, attention written out"
STATES = 16
NAIVE_TOKENS = 4096  # more would take many gigabytes
Scan = Callable[..., Tensor]
Curves = dict[str, dict[int, float]]  # of each encoder, by number of tokens


def inputs(tokens: int, channels: int, grad: bool = False) -> list[Tensor]:
    """u, delta, A, B, C, D, z, bias as in a Mamba at its start, one clip; seed 0."""
    generator = torch.Generator().manual_seed(0)
    normal = functools.partial(torch.randn, generator=generator)
    step = torch.exp(torch.rand(channels, generator=generator) * 4.6 - 6.9)  # 0.001 to 0.1
    values = [
        F.silu(normal(1, tokens, channels)),
        0.5 * normal(1, tokens, channels),
        -torch.arange(1.0, STATES + 1).repeat(channels, 1),
        normal(1, tokens, STATES),
        normal(1, tokens, STATES),
        torch.ones(channels),
        normal(1, tokens, channels),
        step.expm1().log(),
    ]
    return [value.requires_grad_(grad) for value in values]


# --- scans: u, delta, A, B, C, D, z, bias -> y ----------------------------------------------------


def ours(*values: Tensor) -> Tensor:
    return selective_scan(*values, True)[0]  # type: ignore[arg-type]


def torch_path(*values: Tensor) -> Tensor:
    os.environ[native.SWITCH] = "torch"
    try:
        return ours(*values)
    finally:
        del os.environ[native.SWITCH]


def formula(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor
) -> Tensor:
    """Mamba, equations 2a and 2b: all decays at once, then a loop over the tokens; channels first,
    as mamba has it."""
    step = F.softplus(delta + bias[:, None])
    decay = torch.exp(step.unsqueeze(-1) * A[:, None])  # (batch, channels, tokens, states)
    into = (step * u).unsqueeze(-1) * B.transpose(1, 2).unsqueeze(1)
    h = into.new_zeros(len(u), *A.shape)
    y = []
    for t in range(u.shape[2]):
        h = decay[:, :, t] * h + into[:, :, t]
        y.append(torch.einsum("bdn,bn->bd", h, C[:, :, t]))
    return (torch.stack(y, 2) + D[:, None] * u) * F.silu(z)


def transformers(*values: Tensor) -> Tensor:
    if importlib.util.find_spec("torchaudio"):  # transformers imports it, unguarded, where it is
        importlib.import_module("audiossl._torchaudio")
    from transformers.models.mamba.modeling_mamba import mamba_selective_scan  # pyright: ignore

    y = mamba_selective_scan(*values, delta_softplus=True)
    return y[0] if isinstance(y, tuple) else y


def mambapy(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor
) -> Tensor:
    from mambapy.pscan import pscan  # pyright: ignore[reportMissingImports]

    step = F.softplus(delta + bias)
    into = (step * u).unsqueeze(-1) * B.unsqueeze(2)
    h = pscan(torch.exp(step.unsqueeze(-1) * A), into)
    return ((h @ C.unsqueeze(-1)).squeeze(3) + D * u) * F.silu(z)


SCANS: dict[str, Scan] = {
    OURS: ours,
    TORCH: torch_path,
    FORMULA: formula,
    TRANSFORMERS: transformers,
    MAMBAPY: mambapy,
}
CHANNELS_FIRST = (
    FORMULA,
    TRANSFORMERS,
)  # (batch, channels, tokens); the others (batch, tokens, ...)


def as_it_lies(name: str, values: list[Tensor]) -> list[Tensor]:
    """The inputs in the layout that a scan has in its own model."""
    if name not in CHANNELS_FIRST:
        return values
    return [
        value.detach().transpose(1, 2).contiguous().requires_grad_(value.requires_grad)
        if value.ndim == 3
        else value
        for value in values
    ]


def forward(name: str, values: list[Tensor]) -> Callable[[], object]:
    values = as_it_lies(name, values)

    def run() -> None:
        with torch.inference_mode():
            SCANS[name](*values)

    return run


def both(name: str, values: list[Tensor]) -> Callable[[], object]:
    values = as_it_lies(name, values)

    def run() -> None:
        for value in values:
            value.grad = None
        SCANS[name](*values).sum().backward()

    return run


def timed(
    candidates: measure.Candidates, rounds: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Seconds of one run; the quick ones run several times a turn, for a turn of some length."""
    times = {OURS: 10, TORCH: 2}

    def repeated(run: Callable[[], object], count: int) -> Callable[[], object]:
        def turn() -> None:
            for _ in range(count):
                run()

        return turn

    turns = {name: repeated(run, times.get(name, 1)) for name, run in candidates.items()}
    seconds = measure.interleaved(turns, rounds, clock)
    return {name: [v / times.get(name, 1) for v in values] for name, values in seconds.items()}


def check(tokens: int = 200, channels: int = 24) -> None:
    """All scans agree, so that none is fast by doing something else."""
    values = inputs(tokens, channels)
    expected = ours(*values)
    for name, scan in SCANS.items():
        y = scan(*as_it_lies(name, values))
        y = y.transpose(1, 2) if name in CHANNELS_FIRST else y
        difference = (y - expected).abs().max().item()
        assert difference < 1e-4, (name, difference)


def scans(rounds: int, clock: Callable[[], float]) -> None:
    for channels, tokens in ((384, 512), (384, 2048), (1536, 2048)):
        values = inputs(tokens, channels)
        candidates = {name: forward(name, values) for name in SCANS}
        seconds = timed(candidates, rounds, clock)
        title = f"Scan, forward, {tokens} tokens, {channels} channels"
        print(measure.table(title, seconds, OURS, 1, "scan"))
    # Gradients through a loop over tokens take time that grows with the square of their number.
    for tokens, names in ((512, tuple(SCANS)), (2048, (OURS, TORCH, MAMBAPY))):
        values = inputs(tokens, 384, grad=True)
        candidates = {name: both(name, values) for name in names}
        seconds = timed(candidates, max(1, rounds // 2), clock)
        title = f"Scan, forward and backward, {tokens} tokens, 384 channels"
        print(measure.table(title, seconds, OURS, 1, "scan"))


# --- encoders -------------------------------------------------------------------------------------


def written_out(self: Attention, x: Tensor) -> Tensor:
    """`Attention.forward` as timm 0.4.5 has it."""
    batch, tokens, dim = x.shape
    qkv = self.qkv(x).view(batch, tokens, 3, self.heads, dim // self.heads)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    share = (q @ k.transpose(-2, -1) * (dim // self.heads) ** -0.5).softmax(-1)
    return self.proj((share @ v).transpose(1, 2).reshape(batch, tokens, dim))


def encoder(name: str, tokens: int) -> Any:
    """Random weights; 8 patches high, so `tokens` patches are 2 * tokens frames."""
    torch.manual_seed(0)
    kind = "ssamba" if name == SSAMBA else "ssast"
    made = models.build(kind, size="tiny", frames=2 * tokens).eval()
    for module in made.modules():
        if name == NAIVE and isinstance(module, Attention):
            module.forward = types.MethodType(written_out, module)
    return made


def embed(name: str, tokens: int) -> Callable[[], object]:
    made, spec = encoder(name, tokens), torch.randn(1, 128, 2 * tokens)

    def run() -> None:
        with torch.inference_mode():
            made.embed(spec)

    return run


def kinds(tokens: int) -> list[str]:
    return [SSAMBA, SDPA, NAIVE] if tokens <= NAIVE_TOKENS else [SSAMBA, SDPA]


def encoders(tokens: list[int], rounds: int, clock: Callable[[], float]) -> Curves:
    """Median seconds of a clip, which are also printed."""
    curves: Curves = {}
    for count in tokens:
        candidates = {name: embed(name, count) for name in kinds(count)}
        some = rounds if count <= NAIVE_TOKENS else max(1, rounds // 2)
        seconds = measure.interleaved(candidates, some, clock)
        print(measure.table(f"Encoder, one clip, {count} tokens", seconds, SSAMBA, 1, "clip"))
        for name, values in seconds.items():
            curves.setdefault(name, {})[count] = statistics.median(values)
    return curves


# --- training -------------------------------------------------------------------------------------


def training(rounds: int, clock: Callable[[], float]) -> None:
    """Forward and backward of a pair of SSAMBA-tiny's twelve, 4 clips of 512 tokens."""
    made: Any = models.build("ssamba", size="tiny", depth=2, frames=1024, drop_path=0.0).train()
    spec = torch.randn(4, 128, 1024)

    def step(scan: Scan | None) -> Callable[[], object]:
        from audiossl.models.parts import mamba

        own = mamba.selective_scan

        def replaced(*values: Any, reverse: bool) -> tuple[Tensor, None]:
            assert scan is not None
            *tensors, _softplus = values
            ordered = [v.flip(1) if v.ndim == 3 else v for v in tensors] if reverse else tensors
            y = scan(*ordered)
            return y.flip(1) if reverse else y, None

        def run() -> None:
            mamba.selective_scan = own if scan is None else replaced  # type: ignore[assignment]
            try:
                made.zero_grad()
                made.embed(spec).square().sum().backward()
            finally:
                mamba.selective_scan = own

        return run

    candidates = {OURS: step(None), TORCH: step(torch_path), MAMBAPY: step(mambapy)}
    seconds = measure.interleaved(candidates, rounds, clock)
    print(measure.table("Training step, 2 of 24 blocks, 4 x 512 tokens", seconds, OURS, 4, "clip"))


# --- memory ---------------------------------------------------------------------------------------


def peak(what: str, name: str, tokens: int) -> float:
    """MB that a process of its own needs beyond what it has after a first, short run."""
    command = [sys.executable, __file__, "--one", what, name, str(tokens)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def one(what: str, name: str, tokens: int) -> None:
    """In the child: print what `peak` says."""
    torch.set_num_threads(1)

    def job(count: int) -> Callable[[], object]:
        if what == "encoder":
            return embed(name, count)
        values = inputs(count, 384, grad=what == "both")
        return both(name, values) if what == "both" else forward(name, values)

    job(64)()
    run = job(tokens)  # its weights and inputs are there before
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here (Linux)
    before = resident("VmRSS")
    run()
    print(resident("VmHWM") - before)


def resident(which: str) -> float:
    """MB of this process, now ("VmRSS") or at most ("VmHWM")."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(which))


def memory(tokens: list[int]) -> Curves:
    """MB of the encoders, which are also printed, as are those of the scans."""
    curves: Curves = {}
    print("### Memory beyond weights and inputs, MB (one thread, peak of a process)\n")
    print("| | tokens | MB |\n|---|---|---|")
    for what, names in (("forward", SCANS), ("both", (OURS, TORCH, MAMBAPY))):
        title = "scan, forward" if what == "forward" else "scan, forward and backward"
        for name in names:
            print(f"| {title}: {name} | 4096 | {peak(what, name, 4096):.0f} |", flush=True)
    for count in tokens:
        for name in kinds(count):
            megabytes = peak("encoder", name, count)
            print(f"| {name} | {count} | {megabytes:.0f} |", flush=True)
            curves.setdefault(name, {})[count] = megabytes
    print()
    return curves


# --- picture --------------------------------------------------------------------------------------


def draw(path: Path, seconds: Curves, megabytes: Curves, clock: str) -> None:
    """Time and memory over the number of tokens, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    for axis, curves, title in (
        (axes[0], seconds, f"{clock} of a clip, s"),
        (axes[1], megabytes, "Memory beyond weights and input, MB"),
    ):
        for name, marker in ((SSAMBA, "o"), (SDPA, "s"), (NAIVE, "^")):
            points = sorted(curves[name].items())
            axis.plot(*zip(*points, strict=True), marker=marker, label=name)
        ticks = sorted(curves[SSAMBA])
        axis.set(xscale="log", yscale="log", title=title, xlabel="patches (tokens)")
        axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks], rotation=30)
        axis.set_xticks([], minor=True)
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("")
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--tokens", type=int, nargs="+", default=[512, 1024, 1400, 2048, 4096, 22016]
    )
    parts = ("scan", "encoders", "training", "memory")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw encoders and memory")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        return one(args.one[0], args.one[1], int(args.one[2]))
    torch.set_num_threads(args.threads)
    clock = time.process_time if args.threads == 1 else time.perf_counter
    print(measure.machine("torch", "transformers", "mambapy"))
    kind = native.instructions() or "none: torch alone"
    print(f"Threads: {args.threads}; compiled scan: {kind}\n")
    check()
    if "scan" in args.only:
        scans(args.rounds, clock)
    seconds = encoders(args.tokens, args.rounds, clock) if "encoders" in args.only else {}
    if "training" in args.only:
        training(args.rounds, clock)
    megabytes = memory(args.tokens) if "memory" in args.only else {}
    if args.plot and seconds and megabytes:
        draw(args.plot, seconds, megabytes, "CPU time" if args.threads == 1 else "Time")
    return None


if __name__ == "__main__":
    main()
