"""What slides over sounds: torch's model or its exported graph, behind one interface (no torch)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from audiossl.errors import ModelError, UsageError
from audiossl.hub import find as hub
from audiossl.hub.config import ModelConfig
from audiossl.hub.folder import verify
from audiossl.inference import graph

if TYPE_CHECKING:
    from audiossl.model import Model

BACKENDS = ("auto", "torch", "onnx")

log = logging.getLogger("audiossl")


class Network(Protocol):
    """What tagging and sliding need to know of a network."""

    config: ModelConfig

    @property
    def name(self) -> str: ...

    @property
    def rate(self) -> int:
        """Hz."""
        ...

    @property
    def longest(self) -> int | None:
        """Samples it can hear of a wave; None: all."""
        ...

    @property
    def window_seconds(self) -> float | None:
        """Length of the windows it was made for; None: not known."""
        ...

    @property
    def device(self) -> Any:
        """Where it runs, in torch's words."""
        ...


class Classifier(Network, Protocol):
    """A network that gives scores."""

    @property
    def labels(self) -> list[str]: ...

    @property
    def backend(self) -> str:
        """ "torch" or "onnx"."""
        ...

    def predict(self, waves: np.ndarray) -> np.ndarray:
        """waves: (batch, samples) float32 at `rate` -> scores (batch, classes) in [0, 1]."""
        ...


def load(
    name: str,
    device: str = "cpu",
    backend: str = "auto",
    threads: int | None = None,
    int8: bool = False,
) -> Model | graph.Graph:
    """Model `name`, to classify with.

    `backend`: "onnx" (its exported graph, on the CPU), "torch", or "auto": the graph where the
    model has one that is fresh, onnxruntime is installed and `device` is "auto" or "cpu"; torch
    otherwise, and for waves of lengths that the graph is not good for. `threads`: of torch inside
    one operation (None: as torch has it). `int8`: torch, with a transformer's linear layers in
    integers (quantise.py).
    Raises ModelError; UsageError on a device that is not there, or not for this backend.
    """
    if backend not in BACKENDS:
        raise UsageError(f"backend: {backend!r} is not one of {', '.join(BACKENDS)}")
    if backend == "onnx" and device not in ("auto", "cpu"):
        raise UsageError(f"backend onnx runs on the CPU, not on {device}: backend torch does")
    by_torch = partial(_load_model, name, device, threads)
    if int8:
        return _quantised(by_torch, backend)
    if backend != "torch" and device in ("auto", "cpu"):
        folder = hub.resolve(name)
        if (folder / graph.GRAPH).is_file():
            verify(folder)  # damaged weights are an error, whatever would compute
        try:
            return graph.load(folder, by_torch if backend == "auto" else None)
        except graph.NoGraph:
            if backend == "onnx":
                raise
        except ModelError as error:
            if backend == "onnx":
                raise
            log.warning("warning: %s; torch is used instead", error)
    return by_torch()


def _quantised(by_torch: Callable[[], Model], backend: str) -> Model:
    if backend == "onnx":
        raise UsageError("int8 is for the backend torch")
    from audiossl.inference import quantise

    return quantise.int8(by_torch())


def _load_model(name: str, device: str, threads: int | None) -> Model:
    from audiossl import model
    from audiossl.device import pick_device

    return model.load(name, pick_device(device, threads))
