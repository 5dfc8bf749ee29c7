"""A model written as one ONNX file: frontend, encoder and head, for any batch and any length.

    audiossl models export tagger --onnx

torch.export traces the very modules that torch runs; only spectra are computed in another way
(spectrum.py). What is written was compared with torch first. audiossl/graph.py runs it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim

from audiossl import graph, hub
from audiossl.atomic import atomic_write
from audiossl.errors import ModelError, UsageError
from audiossl.graph import EMBEDDING, PREFIX, SCORES, WAVE
from audiossl.hub import WEIGHTS
from audiossl.inference import Inference
from audiossl.model import Model, load
from audiossl.spectrum import for_graph

TOLERANCE = (
    1e-4  # between torch and the graph: of scores, and of embeddings relative to the largest
)
# What may vary, the widest choice first.
SHAPES: tuple[dict[int, Any], ...] = ({0: Dim.DYNAMIC, 1: Dim.DYNAMIC}, {0: Dim.DYNAMIC}, {})
VARYING = ("batch and length", "batch", "nothing")


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


def export(name: str, out: Path | None = None) -> tuple[Path, str]:
    """Write model `name` as an ONNX graph to `out` (None: into its folder, where `tag` finds it).

    Returns the file, and what may vary in its input. Raises UsageError when what exports is not
    installed, ModelError when the model cannot be exported or the graph differs from torch,
    OutputError.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise UsageError(f"exporting needs {package}: pip install 'audiossl-toolkit[export]'")
    folder = hub.resolve(name)
    out = folder / graph.GRAPH if out is None else out
    model = load(name)
    weights = model.config.sha256 or hub.sha256(folder / WEIGHTS)
    size = round(Inference(model).window(None) * model.rate)
    program, varying = _traced(model, size)
    facts = graph.facts_of(model.config, weights) | {
        "model": model.name,
        "rate": str(model.rate),
        "longest": "" if model.longest is None else str(model.longest),
        "shortest": str(_shortest(model, size)),
        "torch": torch.__version__,
    }
    data = _serialised(program, facts)
    _compare(model, data, size, varying, out)
    with atomic_write(out, needed=len(data)) as file:
        file.write(data)
    return out, varying


def _traced(model: Model, size: int) -> tuple[Any, str]:
    """The ONNX program of `model`, and what may vary in its input."""
    whole = Whole(model)
    wave = torch.randn(2, size, generator=torch.Generator().manual_seed(0)) / 10
    names = [SCORES, EMBEDDING] if model.head is not None else [EMBEDDING]
    causes = []
    for shape, varying in zip(SHAPES, VARYING, strict=True):
        example = wave if 0 in shape else wave[:1]
        try:
            with _in_graph_form(model), _quietly():
                traced = torch.export.export(
                    whole, (example,), dynamic_shapes=(shape,), strict=False
                )
                program = torch.onnx.export(
                    traced, dynamo=True, input_names=[WAVE], output_names=names, verbose=False
                )
            return program, varying
        except Exception as error:  # the exporter's classes are as many as its steps
            causes.append(error)
    reason = (str(causes[-1]).strip().splitlines() or [type(causes[-1]).__name__])[0]
    raise ModelError(f"{model.name} cannot be exported: {reason}") from causes[-1]


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


def _serialised(program: Any, facts: dict[str, str]) -> bytes:
    """The file: the program, its metadata, and the seal."""
    proto = program.model_proto
    # The exporter's notes name every module and source line of the machine it ran on; shapes inside
    # the graph follow from its input's.
    for part in (proto.graph, *proto.graph.node, *proto.graph.input, *proto.graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    proto.graph.ClearField("value_info")
    for key, value in facts.items():
        proto.metadata_props.add(key=PREFIX + key, value=value)
    data = proto.SerializeToString()
    return data + graph.seal(data)


def _shortest(model: Model, size: int) -> int:
    """Samples that a wave needs at least; `size` are enough."""

    def enough(count: int) -> bool:
        try:
            with torch.inference_mode():
                model.embed(torch.zeros(1, count))
        except ValueError:  # an encoder's word for less than it can take
            return False
        return True

    low, high = 0, size  # too few, enough
    count = 1  # most take anything
    while high - low > 1:
        low, high = (low, count) if enough(count) else (count, high)
        count = (low + high) // 2
    return high


def _compare(model: Model, data: bytes, size: int, varying: str, out: Path) -> None:
    """Raise ModelError unless the graph gives what torch gives, on noise of two lengths."""
    session = graph.open_session(data, out)
    random = np.random.default_rng(0)
    shorter = max(size // 3 + 1, _shortest(model, size))
    sizes = (size, shorter) if varying == VARYING[0] else (size,)
    for count in sizes:
        wave = (0.1 * random.standard_normal((1, count))).astype(np.float32)
        with torch.inference_mode():
            expected = [value.numpy() for value in Whole(model)(torch.from_numpy(wave))]
        names = [output.name for output in session.get_outputs()]
        for name, ours, theirs in zip(
            names, session.run(None, {WAVE: wave}), expected, strict=True
        ):
            scale = 1.0 if name == SCORES else max(float(np.abs(theirs).max()), 1.0)
            difference = float(np.abs(ours - theirs).max()) / scale
            if not difference <= TOLERANCE:
                raise ModelError(
                    f"{model.name} cannot be exported: on {count} samples of noise the {name} of"
                    f" the graph are {difference:.2g} off torch's (at most {TOLERANCE:g})"
                )
