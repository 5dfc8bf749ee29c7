"""A model written as one ONNX file: frontend, encoder and head, for any batch and any length.

    audiossl models export tagger --onnx

torch.export traces the very modules that torch runs; only spectra are computed in another way
(spectrum.py). What is written was compared first: with a copy of the model in float64, by what
rounding does to torch itself (`rounding`). inference/graph.py runs it.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim

from audiossl.atomic import atomic_write
from audiossl.caches import sha256
from audiossl.errors import ModelError, UsageError, first_line
from audiossl.frontend.spectrum import for_graph
from audiossl.hub import find as hub
from audiossl.hub.config import read_config
from audiossl.hub.folder import WEIGHTS
from audiossl.inference import graph
from audiossl.inference.graph import EMBEDDING, PREFIX, SCORES, WAVE
from audiossl.inference.sliding import Inference
from audiossl.model import Model, load

# How much further from float64 than torch in float32 a graph may be, which adds in another order;
# and, where torch happens to be exact, how many of float32's steps of the largest number.
FACTOR = 4
FLOOR = 32 * 2.0**-23
MOVED = 3  # waves that are tried beside the given one
MOST_BYTES = 2**31 - 2**24  # of weights: protobuf's 2 GB, less what else a graph holds
WINDOWS = 12  # as many times the model's own window are tried where it hears any length
Module = TypeVar("Module", bound=nn.Module)
# What may vary, the widest choice first.
SHAPES: tuple[dict[int, Any], ...] = ({0: Dim.DYNAMIC, 1: Dim.DYNAMIC}, {0: Dim.DYNAMIC}, {})
VARYING = ("batch and length", "batch", "nothing")
REFUSED = {"ssamba": "its selective scan is no operation of ONNX"}  # by architecture


class Whole(nn.Module):
    """wave (batch, samples) -> scores (batch, classes), for a model with labels, and embedding."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, wave: Tensor) -> tuple[Tensor, ...]:
        embedding = self.model.embed(wave)
        if self.model.head is None:
            return (embedding,)
        return self.model.scores(self.model.head(embedding)), embedding


def in_float64(model: Module) -> Module:
    """A copy of `model` that computes in float64: the reference for what float32 gives."""
    return copy.deepcopy(model).double()


def rounding(model: nn.Module, exact: nn.Module, wave: Tensor) -> list[tuple[Tensor, float]]:
    """A model's exact outputs for a wave, and how far from each a sound float32 result may be.

    No fixed number can say this. A spectrum's rounding is as large as that of a frame's loudest
    bin, and the logarithm makes much of it in bins that hold next to nothing (low-passed sound,
    pure tones); how it falls depends on the instruction set. So it is measured: torch in float32
    hears the wave and a few that differ from it by less than the last bit of its loudest sample.
    Their largest distance from float64 is allowed FACTOR times, and FLOOR in any case.

    model: wave (batch, samples), float32 -> a tensor or a tuple of tensors.
    exact: `model` in float64 (`in_float64`).
    wave: (batch, samples), float32.
    Returns for each output its values in float64 and the largest difference allowed.
    """
    with torch.inference_mode():
        outputs = _outputs(exact, wave.double())
        near = [_outputs(model, other) for other in neighbours(wave)]
    found = []
    for right, *values in zip(outputs, *near, strict=True):
        error = float((torch.stack(values) - right).abs().max())
        found.append((right, FACTOR * error + FLOOR * float(right.abs().max())))
    return found


def neighbours(wave: Tensor) -> list[Tensor]:
    """The wave, and MOVED others within the last bit of its loudest sample."""
    random = torch.Generator().manual_seed(0)
    step = 2.0**-23 * wave.abs().max()
    moves = [2 * torch.rand(wave.shape, generator=random) - 1 for _ in range(MOVED)]
    return [wave, *(wave + step * move for move in moves)]


def _outputs(model: nn.Module, wave: Tensor) -> tuple[Tensor, ...]:
    outputs = model(wave)
    return (outputs,) if isinstance(outputs, Tensor) else outputs


def export(name: str, out: Path | None = None) -> tuple[Path, str]:
    """Write model `name` as an ONNX graph to `out` (None: into its folder, where `tag` finds it).

    Returns the file, and what may vary in its input, in words. Raises UsageError when what exports
    is not installed, ModelError when the model cannot be exported or the graph differs from torch,
    OutputError.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise UsageError(f"exporting needs {package}: pip install 'audiossl-toolkit[export]'")
    folder = hub.resolve(name)
    out = folder / graph.GRAPH if out is None else out
    architecture = read_config(folder).architecture["name"]
    if architecture in REFUSED:
        raise ModelError(f"{name} cannot be exported: {REFUSED[architecture]}")
    if (folder / WEIGHTS).stat().st_size > MOST_BYTES:
        raise ModelError(f"{name} cannot be exported: one ONNX file holds at most 2 GB")
    model = load(name)
    size = round(Inference(model).window(None) * model.rate)
    program, varying = _traced(model, size)
    session = graph.open_session(program.SerializeToString(), out)
    exact = in_float64(model)
    _compare(model, exact, session, size, varying)
    least, most = _reach(model, exact, session, size) if varying == VARYING[0] else (size, size)
    facts = graph.facts_of(model.config, model.config.sha256 or sha256(folder / WEIGHTS)) | {
        "model": model.name,
        "rate": str(model.rate),
        "longest": "" if model.longest is None else str(model.longest),
        "least": str(least),
        "most": str(most),
        "torch": torch.__version__,
    }
    for key, value in facts.items():
        program.metadata_props.add(key=PREFIX + key, value=value)
    data = program.SerializeToString()
    with atomic_write(out, needed=len(data)) as file:
        file.write(data + graph.seal(data))
    return out, varying


def _traced(model: Model, size: int) -> tuple[Any, str]:
    """The ONNX program of `model`, and what may vary in its input."""
    whole = Whole(model)
    random = torch.Generator().manual_seed(0)
    names = [SCORES, EMBEDDING] if model.head is not None else [EMBEDDING]
    causes = []
    for shape, varying in zip(SHAPES, VARYING, strict=True):
        # At a length or batch that means something (the window, 1) a tracer finds special cases.
        count = size - size // 7 - 1 if 1 in shape else size
        example = torch.randn(2 if 0 in shape else 1, count, generator=random) / 10
        try:
            with _in_graph_form(model), _quietly():
                traced = torch.export.export(
                    whole, (example,), dynamic_shapes=(shape,), strict=False
                )
                program = torch.onnx.export(
                    traced, dynamo=True, input_names=[WAVE], output_names=names, verbose=False
                )
            return _bare(program.model_proto), varying  # type: ignore[union-attr]
        except Exception as error:  # the exporter's classes are as many as its steps
            causes.append(error)
    raise ModelError(f"{model.name} cannot be exported: {first_line(causes[-1])}") from causes[-1]


@contextlib.contextmanager
def _in_graph_form(model: Model) -> Iterator[None]:
    """Spectra by matrices instead of by FFT."""
    frontend = model.frontend
    before = frontend.spectrum
    frontend.spectrum = for_graph(before, len(frontend.analysis))  # type: ignore[assignment]
    try:
        yield
    finally:
        frontend.spectrum = before


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without what the exporter prints and warns of: nothing that its user could change."""
    loggers = [logging.getLogger(name) for name in ("torch", "torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.CRITICAL)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _bare(program: Any) -> Any:
    """Without the exporter's notes, which name every source line of the machine it ran on, and
    without the shapes inside, which follow from the input's."""
    for part in (program.graph, *program.graph.node, *program.graph.input, *program.graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    program.graph.ClearField("value_info")
    for value in (*program.graph.input, *program.graph.output):
        for size, name in zip(value.type.tensor_type.shape.dim, ("batch", "samples"), strict=False):
            if size.dim_param:
                size.dim_param = name
    return program


def _differences(
    model: Model, exact: Model, session: Any, count: int
) -> dict[str, tuple[float, float]]:
    """How far the graph is from float64 on `count` samples of noise, and how far it may be, by
    output."""
    random = np.random.default_rng(count)
    wave = (0.1 * random.standard_normal((1, count))).astype(np.float32)
    names = [output.name for output in session.get_outputs()]
    ours = session.run(names, {WAVE: wave})
    bounds = rounding(Whole(model), Whole(exact), torch.from_numpy(wave))
    return {
        name: (float(np.abs(mine - right.numpy()).max()), allowed)
        for name, mine, (right, allowed) in zip(names, ours, bounds, strict=True)
    }


def _compare(model: Model, exact: Model, session: Any, size: int, varying: str) -> None:
    """Raise ModelError unless the graph gives what torch gives, on noise of two lengths."""
    for count in (size, size // 2 + 1) if varying == VARYING[0] else (size,):
        for name, found in _differences(model, exact, session, count).items():
            difference, allowed = found
            if not difference <= allowed:
                raise ModelError(
                    f"{model.name} cannot be exported: on {count} samples of noise the graph is"
                    f" {difference:.2g} off torch's {name}, more than the {allowed:.2g} of rounding"
                )


def _reach(model: Model, exact: Model, session: Any, size: int) -> tuple[int, int]:
    """Least and most samples with which the graph was seen to give what torch gives.

    Modules may do otherwise with very short and very long waves, and a graph has one way only.
    """

    def agree(count: int) -> bool:
        try:
            differences = _differences(model, exact, session, count)
        except Exception:  # onnxruntime's classes of errors, or an encoder's ValueError
            return False
        return all(difference <= allowed for difference, allowed in differences.values())

    low, least = 0, size
    count = 1  # most models take anything
    while least - low > 1:
        low, least = (low, count) if agree(count) else (count, least)
        count = (low + least) // 2
    most, limit = size, model.longest or WINDOWS * size
    for count in sorted({limit, *(size << power for power in range(1, 5))}):
        if most < count <= limit and agree(count):
            most = count
    return least, most
