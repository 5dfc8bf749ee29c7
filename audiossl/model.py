"""A model in memory: frontend, encoder and head, loaded strictly and written whole.

Nothing but safetensors and JSON is ever read, and memory is bounded by the size of the weights file
whatever the config claims: the model is first laid out on torch's meta device, which has shapes but
no data, and compared with the file's header.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from audiossl import frontend as frontends
from audiossl.errors import ModelError, first_line
from audiossl.hub import find as hub
from audiossl.hub import tensors
from audiossl.hub.config import CONFIG, ModelConfig, read_config
from audiossl.hub.folder import WEIGHTS, verify
from audiossl.hub.writing import write_folder
from audiossl.models.parts import assembly

PARTS = ("encoder.", "head.")  # what the names of stored tensors begin with
FLOATS = ("F64", "F32", "F16", "BF16")  # read into float32
INTEGERS = {  # safetensors' names
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class Model(nn.Module):
    """Frontend, encoder and (for a tagger) head: wave in, logits or embedding out.

    `empty`: encoder and head on the meta device, to be filled.
    """

    backend = "torch"

    def __init__(self, config: ModelConfig, *, empty: bool = False) -> None:
        super().__init__()
        self.config = config
        self.frontend = frontends.build(config.frontend)
        with torch.device("meta") if empty else contextlib.nullcontext():
            self.encoder, self.head = assembly.build(config.architecture, config.head)

    @property
    def rate(self) -> int:
        return int(self.frontend.rate)

    @property
    def labels(self) -> list[str]:
        return self.config.labels

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def longest(self) -> int | None:
        """Samples it can hear of a wave; None: all."""
        return self.frontend.longest

    @property
    def window_seconds(self) -> float | None:
        return self.config.window_seconds

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def embed(self, wave: Tensor) -> Tensor:
        """wave: (batch, samples) at `rate`, float32 in [-1, 1] -> (batch, dim)."""
        return self.encoder.embed(self.frontend(wave))  # type: ignore[operator]

    def spectrogram(self, batch: Mapping[str, Tensor]) -> Tensor:
        """(batch, mel, frames) of a batch of clips: its `spec`, where that was kept from before, or
        the frontend's of its `wave`."""
        return batch["spec"] if "spec" in batch else self.frontend(batch["wave"])

    def classify(self, spec: Tensor) -> Tensor:
        """spec: (batch, mel, frames) from the frontend -> logits (batch, classes)."""
        if self.head is None:
            raise ModelError(f"{self.config.name} has no labels: it embeds, it does not tag")
        return self.head(self.encoder.embed(spec))  # type: ignore[operator]

    def forward(self, wave: Tensor) -> Tensor:
        """wave: (batch, samples) at `rate` -> logits (batch, classes)."""
        return self.classify(self.frontend(wave))

    def scores(self, logits: Tensor) -> Tensor:
        """Logits -> scores in [0, 1]: independent (sigmoid) or exclusive (softmax) labels."""
        activation = (self.config.head or {}).get("activation", "sigmoid")
        return logits.softmax(-1) if activation == "softmax" else logits.sigmoid()

    def predict(self, waves: np.ndarray) -> np.ndarray:
        """waves: (batch, samples) float32 at `rate` -> scores (batch, classes) in [0, 1]."""
        with torch.inference_mode():
            logits = self(torch.from_numpy(waves).to(self.device))
            return self.scores(logits).float().cpu().numpy()


def load(name: str = hub.DEFAULTS["tag"], device: str = "cpu") -> Model:
    """Model `name`, in eval mode on `device`. Strict: every tensor present, finite, none left over.

    `name`: embedded, a model folder, or `hf:owner/repo[@revision]`, downloaded on first use. Files
    are compared with the sha256 recorded of them, each time. Raises ModelError, or OutputError when
    a download cannot be written.
    """
    folder = hub.resolve(name)
    verify(folder)
    config, path = read_config(folder), folder / WEIGHTS
    try:
        with safe_open(path, framework="pt") as file:
            with _blaming(folder / CONFIG):
                model = _laid_out(config, len(file.keys()))
            _compare(model, file, path)
            _fill(model, file, path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: {error}") from error
    return model.to(device).eval()


def save_model(model: Model, folder: Path, card: str | None = None) -> None:
    """Write `model` to `folder`, each file under its name only when it is whole."""
    write_folder(_weights(model), model.config, folder, card)


def parameters(model: nn.Module) -> int:
    """Number of trainable numbers in `model`."""
    return sum(value.numel() for value in model.parameters())


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if name.startswith(PARTS)}


@contextlib.contextmanager
def _blaming(path: Path) -> Iterator[None]:
    """Whatever building a model raises is the fault of the config it is built from."""
    try:
        yield
    except ModelError as error:
        message = str(error)
        raise ModelError(
            message if str(path.parent) in message else f"{path}: {message}"
        ) from error
    except Exception as error:  # arguments of any value reach the builders: anything may come back
        reason = first_line(error)
        raise ModelError(f"{path}: {type(error).__name__}: {reason}") from error


def _laid_out(config: ModelConfig, tensors: int) -> Model:
    """The model without data, given up as soon as it has more parts than the file has tensors."""
    count = 0

    def counted(_module: nn.Module, _name: str, _value: Any) -> None:
        nonlocal count
        count += 1
        if count > 2 * tensors + 100:  # twice: a builder may make a layer and replace it
            raise ModelError(f"architecture has more parameters than {WEIGHTS} has tensors")

    hook = register_module_parameter_registration_hook(counted)
    try:
        model = Model(config, empty=True)
    finally:
        hook.remove()
    wanted = getattr(model.encoder, "mel", None)
    if wanted is not None and wanted != model.frontend.mels:
        raise ModelError(f"frontend gives {model.frontend.mels} mel bands, encoder takes {wanted}")
    return model


def _compare(model: Model, file: Any, path: Path) -> None:
    """Names, shapes and types of the stored tensors against those of the model."""
    stored = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    given = {name: (tuple(s.get_shape()), _kind(s.get_dtype())) for name, s in stored.items()}
    expected = {
        name: (tuple(value.shape), INTEGERS.get(value.dtype, "float"))
        for name, value in _weights(model).items()
    }
    tensors.check(str(path), expected, given)


def _kind(stored: str) -> str:
    """The type of a stored tensor; floats of any width are read into float32."""
    return "float" if stored in FLOATS else stored


def _fill(model: Model, file: Any, path: Path) -> None:
    """Give the model the tensors of the file, copied: the file may go or change afterwards."""
    filled_in = {}
    for name, value in _weights(model).items():
        # the same strides: some models keep their weights channels-last
        filled = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cpu")
        filled.copy_(file.get_tensor(name))
        if not _finite(filled):
            raise ModelError(f"{path}: {name} holds NaN or infinity")
        filled_in[name] = filled
    model.load_state_dict(filled_in, strict=False, assign=True)
    _fill_constants(model)


def _finite(value: Tensor) -> bool:
    if not value.is_floating_point() or not value.numel():
        return True
    low, high = value.aminmax()  # one pass, a quarter of isfinite's time; NaN comes through
    return bool(low.isfinite() and high.isfinite())


def _fill_constants(model: Model) -> None:
    """Tensors that are computed, not stored: take them from a model that was built with data."""
    empty = [name for name, value in model.named_buffers() if value.is_meta]
    if empty:
        computed = dict(Model(model.config).named_buffers())
        for name in empty:
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, computed[name])
