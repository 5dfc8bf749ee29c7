"""A model as one ONNX file, run by onnxruntime: the same scores as torch's without importing it.

`model.onnx` stands beside the weights that it was made from (`audiossl models export NAME --onnx`):
wave (batch, samples) at the model's rate -> scores (batch, classes), with the frontend inside. It
is used only while it is fresh: it names the sha256 of those weights and of what its config builds.
The file ends in a seal, the sha256 of all before it, as one more entry of the format's own list of
metadata: onnxruntime reads any numbers as weights, so damage would go unheard.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from audiossl.caches import sha256
from audiossl.errors import ModelError, first_line
from audiossl.hub.config import CONFIG, ModelConfig, read_config
from audiossl.hub.folder import WEIGHTS

GRAPH = "model.onnx"
# Of the metadata: raised when an old reader would misread a new file, and when what this program
# builds of the same config computes other numbers.
FORMAT = "1"
PREFIX = "audiossl."  # of every key of the metadata
WAVE, SCORES, EMBEDDING = "wave", "scores", "embedding"  # names of the input and the outputs
NEEDS = "onnxruntime is not installed: pip install onnxruntime"
# A protobuf field: tag of ModelProto.metadata_props (14, length-delimited), its length, then the
# entry's key (field 1) and value (field 2). Fields may follow each other in any order, so it can
# simply be appended.
SEAL_KEY = f"{PREFIX}sha256".encode()
SEAL_BYTES = 2 + 2 + len(SEAL_KEY) + 2 + 64

Otherwise = Callable[[], Any]


class NoGraph(ModelError):
    """There is no graph to run here: none was exported, or nothing that runs it is installed."""


class Graph:
    """A network in onnxruntime, on the CPU, in the thread that calls it.

    Attributes: .config, .name, .labels, .rate (Hz), .longest (samples it hears of a wave, None:
    all), .window_seconds (None: no window of its own), .device.
    """

    backend, device = "onnx", "cpu"

    def __init__(
        self,
        config: ModelConfig,
        session: Any,
        facts: dict[str, str],
        otherwise: Otherwise | None = None,
    ) -> None:
        self.config, self.name, self.labels = config, config.name, config.labels
        self.window_seconds = config.window_seconds
        self.rate, self.least, self.most = (int(facts[key]) for key in ("rate", "least", "most"))
        self.longest = int(facts["longest"]) if facts["longest"] else None
        self._session, self._otherwise = session, otherwise
        self._model: Any = None
        self._lock = Lock()

    def predict(self, waves: np.ndarray) -> np.ndarray:
        """waves: (batch, samples) float32 at `rate` -> scores (batch, classes) in [0, 1].

        One wave at a time: a batch is no faster on a CPU, and results cannot depend on it. Waves
        longer or shorter than the graph is good for go to what it stands for, if that was given;
        else ValueError.
        """
        count = waves.shape[-1]
        if self.least <= count <= self.most:
            rows = [self._session.run([SCORES], {WAVE: wave[None]})[0] for wave in waves]
            return np.concatenate(rows)
        if self._otherwise is None:
            raise ValueError(
                f"{count} samples are not the {self.least} to {self.most} that {GRAPH} takes"
            )
        return self._original().predict(waves)

    def _original(self) -> Any:
        with self._lock:  # loaded once, whichever thread needs it first
            if self._model is None and self._otherwise is not None:
                self._model = self._otherwise()
            return self._model


def load(folder: Path, otherwise: Otherwise | None = None) -> Graph:
    """The graph of a model folder. Raises NoGraph, or ModelError when it is damaged or stale.

    It has to be of the weights that the config names; whether they are, `hub.verify` says.
    `otherwise`: loads the model in torch, for waves of lengths that the graph is not good for.
    """
    path = folder / GRAPH
    if not path.is_file():
        raise NoGraph(f"{folder} holds no {GRAPH}: run `audiossl models export {folder} --onnx`")
    if importlib.util.find_spec("onnxruntime") is None:
        raise NoGraph(NEEDS)
    config = read_config(folder)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}") from error
    if data[-SEAL_BYTES:] != seal(data[:-SEAL_BYTES]):
        raise ModelError(f"{path}: damaged: it does not end in the sha256 of what it holds")
    session = open_session(data, path)
    stored = session.get_modelmeta().custom_metadata_map
    facts = {key.removeprefix(PREFIX): value for key, value in stored.items()}
    _check(path, facts, config, config.sha256 or sha256(folder / WEIGHTS))
    try:
        return Graph(config, session, facts, otherwise)
    except (KeyError, ValueError) as error:
        raise ModelError(f"{path}: not a graph of this program: {error}") from error


def open_session(data: bytes, path: Path) -> Any:
    """An onnxruntime session, one thread, no spinning. Raises ModelError, NoGraph."""
    try:
        import onnxruntime
    except ImportError as error:
        raise NoGraph(f"onnxruntime does not import: {error}") from error
    onnxruntime.set_default_logger_severity(4)  # what it has to say comes as exceptions, too
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # Many files are worked on at once, each in a thread of its own; and results depend on the
    # number of threads inside an operation.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    # A graph may name other files as its weights: not any beyond its own folder.
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", os.path.realpath(path.parent)
    )
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # a class of its own for each of a dozen causes
        raise ModelError(f"{path}: onnxruntime cannot load it: {first_line(error)}") from error


def facts_of(config: ModelConfig, weights: str) -> dict[str, str]:
    """What makes a graph fresh: the metadata that names its weights and what its config builds."""
    head = config.head and {**config.head, "labels": len(config.labels)}  # their names may change
    built = json.dumps([config.architecture, config.frontend, head], sort_keys=True)
    return {
        "format": FORMAT,
        "weights": weights,
        "config": hashlib.sha256(built.encode()).hexdigest(),
    }


def state(folder: Path) -> str:
    """In a word or two: is there a graph in a model folder, and can it be used?"""
    try:
        load(folder)
    except ModelError as error:
        if not (folder / GRAPH).is_file():
            return "none"
        return str(error).removeprefix(f"{folder / GRAPH}: ")
    return "fresh"


def seal(data: bytes) -> bytes:
    """What ends a file whose other bytes are `data`: one more entry of its metadata."""
    value = hashlib.sha256(data).hexdigest().encode()
    entry = b"\x0a" + bytes([len(SEAL_KEY)]) + SEAL_KEY + b"\x12" + bytes([len(value)]) + value
    return b"\x72" + bytes([len(entry)]) + entry


def _check(path: Path, facts: dict[str, str], config: ModelConfig, weights: str) -> None:
    if facts.get("format") != FORMAT:
        raise ModelError(f"{path}: not a graph of this program (format {FORMAT} expected)")
    for key, value in facts_of(config, weights).items():
        if facts.get(key) != value:
            what = {"weights": WEIGHTS, "config": CONFIG}[key]
            raise ModelError(
                f"{path}: stale: made from another {what}: run `audiossl models export"
                f" {path.parent} --onnx`"
            )
