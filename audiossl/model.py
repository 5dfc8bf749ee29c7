"""A model in memory: frontend, encoder and head, loaded strictly and written whole.

Nothing but safetensors and JSON is ever read.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from audiossl import frontend as frontends
from audiossl import hub, models
from audiossl.atomic import atomic_write
from audiossl.errors import ModelError, UsageError
from audiossl.hub import CARD, CONFIG, WEIGHTS, ModelConfig
from audiossl.models.layers import build_head


class Model(nn.Module):
    """Frontend, encoder and (for a tagger) head: wave in, logits or embedding out."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.frontend = frontends.build(config.frontend)
        self.encoder = models.build(**hub.named(config.architecture, "architecture"))
        self.head = build_head(int(self.encoder.dim), config.head) if config.head else None

    @property
    def rate(self) -> int:
        return int(self.frontend.rate)

    @property
    def labels(self) -> list[str]:
        return self.config.labels

    def embed(self, wave: Tensor) -> Tensor:
        """wave: (batch, samples) at `rate`, float32 in [-1, 1] -> (batch, dim)."""
        return self.encoder.embed(self.frontend(wave))  # type: ignore[operator]

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


def load(name: str = hub.DEFAULTS["tag"], device: str = "cpu") -> Model:
    """Model `name`, in eval mode on `device`. Strict: every tensor present, none left over."""
    folder = hub.resolve(name)
    config = hub.read_config(folder)
    try:
        model = Model(config)
    except (TypeError, ValueError) as error:
        raise ModelError(f"{folder / CONFIG}: {error}") from error
    _fill(model, folder / WEIGHTS)
    return model.to(device).eval()


def save_model(model: Model, folder: Path, card: str | None = None) -> None:
    """Write `model` to `folder`, each file under its name only when it is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().cpu().contiguous() for name, value in _weights(model).items()}
    with atomic_write(folder / WEIGHTS) as file:
        file.write(save(weights))
    with atomic_write(folder / CONFIG) as file:
        file.write(hub.config_json(model.config).encode("utf-8"))
    if card is not None:
        with atomic_write(folder / CARD) as file:
            file.write(card.encode("utf-8"))


def pick_device(name: str, threads: int | None = None) -> str:
    """`auto`, or a device by name -> one that is there. Raises UsageError.

    `threads`: of torch inside one operation (CPU); results do not depend on the number of workers
    only when this does not either.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    if name == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"--device {name}: {reason}") from error
    return name


def parameters(model: nn.Module) -> int:
    """Number of trainable numbers in `model`."""
    return sum(value.numel() for value in model.parameters())


def _weights(model: Model) -> dict[str, Tensor]:
    parts = ("encoder.", "head.")
    return {name: value for name, value in model.state_dict().items() if name.startswith(parts)}


def _fill(model: Model, path: Path) -> None:
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: {error}") from error
    expected = _weights(model)
    missing, extra = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
    wrong = [
        f"{name} {tuple(tensors[name].shape)} instead of {tuple(value.shape)}"
        for name, value in expected.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    for what, which in (("missing", missing), ("unexpected", extra), ("wrong shape", wrong)):
        if which:
            more = f" and {len(which) - 3} more" if len(which) > 3 else ""
            raise ModelError(f"{path}: {what}: {', '.join(which[:3])}{more}")
    with torch.no_grad():
        for name, value in expected.items():
            value.copy_(tensors[name])
