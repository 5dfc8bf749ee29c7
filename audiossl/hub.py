"""Model folders: find them by name, load them strictly, write them whole.

A model is a folder `model.safetensors` + `config.json` (+ `README.md`, its card). Names resolve, in
this order, as an embedded model of this package or a local folder.
Nothing but safetensors and JSON is ever read.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

import audiossl
from audiossl import frontend as frontends
from audiossl import models
from audiossl.atomic import atomic_write
from audiossl.errors import ModelError
from audiossl.models.layers import build_head

FORMAT = 1  # of config.json: raised when an old reader would misread a new folder
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
PRETRAINED = Path(__file__).parent / "pretrained"
DEFAULTS = {"tag": "tagger"}  # the embedded model that answers when --model is not given


@dataclass
class ModelConfig:
    """What `config.json` says: enough to rebuild the model, and where it comes from.

    `architecture`, `frontend`, `head`: `{"name": ..., **arguments}`; `head` is None for an encoder.
    `training`: recipe, data with licences, seeds; free in form, never needed to load.
    """

    name: str
    architecture: dict[str, Any]
    frontend: dict[str, Any]
    head: dict[str, Any] | None = None
    task: str = "embed"
    window_seconds: float | None = None
    method: str = ""
    licence: str = ""
    source: str = ""
    training: dict[str, Any] = field(default_factory=dict)

    @property
    def labels(self) -> list[str]:
        return list(self.head["labels"]) if self.head else []


class Model(nn.Module):
    """Frontend, encoder and (for a tagger) head: wave in, logits or embedding out."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.frontend = frontends.build(config.frontend)
        self.encoder = models.build(**_named(config.architecture, "architecture"))
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


def embedded() -> list[str]:
    """Names of the models inside this package."""
    return sorted(path.parent.name for path in PRETRAINED.glob(f"*/{CONFIG}"))


def resolve(name: str) -> Path:
    """The folder of model `name`. Raises ModelError that says what was looked for."""
    if name in embedded():
        return PRETRAINED / name
    folder = Path(name).expanduser()
    if (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file():
        return folder
    if folder.is_dir():
        missing = [part for part in (CONFIG, WEIGHTS) if not (folder / part).is_file()]
        raise ModelError(f"model folder {name} holds no {' and no '.join(missing)}")
    if folder.exists():
        raise ModelError(f"{name} is not a model folder ({WEIGHTS} + {CONFIG})")
    near = difflib.get_close_matches(name, embedded(), n=1)
    hint = f"did you mean {near[0]!r}?" if near else "see `audiossl models ls`"
    raise ModelError(f"no model {name!r}: neither embedded nor a folder ({hint})")


def read_config(folder: Path) -> ModelConfig:
    """`config.json` of a model folder, checked key by key."""
    path = folder / CONFIG
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: {error}") from error
    if not isinstance(data, dict):
        raise ModelError(f"{path}: expected an object")
    if data.pop("format", None) != FORMAT:
        raise ModelError(f"{path}: not a model of this program (format {FORMAT} expected)")
    data.pop("audiossl", None)
    known = {item.name for item in fields(ModelConfig)}
    for key in data:
        if key not in known:
            raise ModelError(f"{path}: unknown key {key!r}")
    for key in ("name", "architecture", "frontend"):
        if key not in data:
            raise ModelError(f"{path}: key {key!r} is missing")
    for key in ("architecture", "frontend", "head", "training"):
        if not isinstance(data.get(key, {}), dict | None):
            raise ModelError(f"{path}: {key} must be an object")
    return ModelConfig(**data)


def load(name: str = DEFAULTS["tag"], device: str = "cpu") -> Model:
    """Model `name`, in eval mode on `device`. Strict: every tensor present, none left over."""
    folder = resolve(name)
    config = read_config(folder)
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
        file.write(config_json(model.config).encode("utf-8"))
    if card is not None:
        with atomic_write(folder / CARD) as file:
            file.write(card.encode("utf-8"))


def config_json(config: ModelConfig) -> str:
    """`config.json` as text."""
    values = {item.name: getattr(config, item.name) for item in fields(ModelConfig)}
    header = {"format": FORMAT, "audiossl": audiossl.__version__}
    return json.dumps({**header, **values}, indent=1, ensure_ascii=False) + "\n"


def sha256(path: Path) -> str:
    """Hex digest of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def parameters(model: nn.Module) -> int:
    """Number of trainable numbers in `model`."""
    return sum(value.numel() for value in model.parameters())


def _named(node: dict[str, Any], what: str) -> dict[str, Any]:
    if not isinstance(node.get("name"), str):
        raise ModelError(f"config: {what} has no name")
    return node


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
