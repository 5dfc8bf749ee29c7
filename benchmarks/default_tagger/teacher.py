"""YAMNet as a teacher.

`Yamnet`: what it gives for a log-mel patch of 96 frames. The model file takes spectrograms,
(1, 96, 64), and is run by PyPI's `ai-edge-litert`. Its 1024-d embedding is an inner tensor, kept by
`experimental_preserve_all_tensors`, in 8 bits.

`convert`: the same network, in floats, as a model folder of this package, for distillation. There
it hears a whole segment at once instead of patches whose edges are zeros: what it gives for one
moment then does not hang on where a patch happened to end, so a student can learn it.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch

from audiossl import frontend
from audiossl.hub.config import ModelConfig
from audiossl.model import Model, save_model

FRAMES, HOP = 96, 48  # of a patch, and from one patch to the next, in frames of 10 ms
DIM, CLASSES = 1024, 521
WIDTHS = (64, 128, 128, 256, 256, *[512] * 6, 1024, 1024)
STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)


class Yamnet:
    """`folder` holds yamnet_spectra_in.tflite and yamnet_class_map.csv."""

    def __init__(self, folder: Path) -> None:
        from ai_edge_litert.interpreter import Interpreter  # pyright: ignore[reportMissingImports]

        self.interpreter = Interpreter(
            str(folder / "yamnet_spectra_in.tflite"),
            num_threads=1,
            experimental_preserve_all_tensors=True,
        )
        self.interpreter.allocate_tensors()
        details = self.interpreter.get_tensor_details()
        inner = next(d for d in details if d["name"].endswith("reduce_mean"))
        self.embedding, (self.scale, self.zero) = inner["index"], inner["quantization"]
        self.input = self.interpreter.get_input_details()[0]["index"]
        self.output = self.interpreter.get_output_details()[0]["index"]
        self.frontend = frontend.build({"preset": "yamnet"})

    def spec(self, wave: np.ndarray) -> np.ndarray:
        """(samples,) at 16 kHz -> (mel, frames)."""
        return self.frontend(torch.from_numpy(wave)[None])[0].numpy()

    def patches(self, spec: np.ndarray, starts: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings (patches, 1024) and scores (patches, 521) of `spec` from each start on."""
        embeddings = np.empty((len(starts), DIM), np.float32)
        scores = np.empty((len(starts), CLASSES), np.float32)
        for row, start in enumerate(starts):
            patch = np.ascontiguousarray(spec[:, start : start + FRAMES].T[None])
            self.interpreter.set_tensor(self.input, patch)
            self.interpreter.invoke()
            inner = self.interpreter.get_tensor(self.embedding).reshape(-1)
            embeddings[row] = (inner.astype(np.float32) - self.zero) * self.scale
            scores[row] = self.interpreter.get_tensor(self.output)[0]
        return embeddings, scores

    def clip(self, wave: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A whole clip -> its mean embedding (1024,) and its highest scores (521,).

        Patches lie 48 frames apart; what is left at the end has a patch of its own when it is a
        quarter of a hop or longer. A clip shorter than a patch is followed by zeros.
        """
        least = (FRAMES - 1) * 160 + 400
        spec = self.spec(np.pad(wave, (0, max(0, least - len(wave)))))
        starts = list(range(0, spec.shape[1] - FRAMES + 1, HOP))
        if spec.shape[1] - FRAMES - starts[-1] > HOP // 4:
            starts.append(spec.shape[1] - FRAMES)
        embeddings, scores = self.patches(spec, starts)
        return embeddings.mean(axis=0), scores.max(axis=0)


def classes(folder: Path) -> list[str]:
    """Display names of the 521 classes, in order."""
    with (folder / "yamnet_class_map.csv").open(newline="", encoding="utf-8") as file:
        return [row["display_name"] for row in csv.DictReader(file)]


def convert(folder: Path, target: Path) -> None:
    """Write YAMNet's encoder to the model folder `target`."""
    architecture = {"name": "dscnn", "widths": list(WIDTHS), "strides": list(STRIDES)}
    config = ModelConfig(
        name="yamnet",
        architecture={**architecture, "norm": False},
        frontend={"preset": "yamnet"},
        licence="Apache-2.0",
        source="google-coral/coralmicro, models/yamnet_spectra_in.tflite",
    )
    model = Model(config)
    convolutions = [m for m in model.encoder.modules() if isinstance(m, torch.nn.Conv2d)]
    for conv, (kernel, bias) in zip(convolutions, _kernels(folder), strict=True):
        with torch.no_grad():
            conv.weight.copy_(torch.from_numpy(kernel))
            conv.bias.copy_(torch.from_numpy(bias))  # type: ignore[union-attr]
    save_model(model, target)


def _kernels(folder: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weights as torch has them and bias of every convolution, in order."""
    from ai_edge_litert.interpreter import Interpreter  # pyright: ignore[reportMissingImports]

    interpreter = Interpreter(str(folder / "yamnet_spectra_in.tflite"))
    interpreter.allocate_tensors()
    details = {each["index"]: each for each in interpreter.get_tensor_details()}
    kernels = []
    for operation in interpreter._get_ops_details():
        if operation["op_name"] not in ("CONV_2D", "DEPTHWISE_CONV_2D"):
            continue
        kernel, bias = (_floats(interpreter, details[i]) for i in operation["inputs"][1:3])
        # (channels, time, mel, 1), depthwise (1, time, mel, channels) -> (channels, 1, mel, time)
        depthwise = operation["op_name"] == "DEPTHWISE_CONV_2D"
        kernels.append((kernel.transpose((3, 0, 2, 1) if depthwise else (0, 3, 2, 1)), bias))
    return kernels


def _floats(interpreter: Any, detail: dict[str, Any]) -> np.ndarray:
    """A constant tensor, from its integers and their scales."""
    facts = detail["quantization_parameters"]
    shape = [1] * len(detail["shape"])
    shape[facts["quantized_dimension"]] = -1
    return interpreter.get_tensor(detail["index"]) * facts["scales"].reshape(shape)
