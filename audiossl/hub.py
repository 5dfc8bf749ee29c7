"""Model folders: find them by name and say what they are, without loading them (no torch here).

A model is a folder `model.safetensors` + `config.json` (+ `README.md`, its card). Names resolve, in
this order, as an embedded model of this package or a local folder.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import audiossl
from audiossl.errors import ModelError

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


def config_json(config: ModelConfig) -> str:
    """`config.json` as text."""
    values = {item.name: getattr(config, item.name) for item in fields(ModelConfig)}
    header = {"format": FORMAT, "audiossl": audiossl.__version__}
    return json.dumps({**header, **values}, indent=1, ensure_ascii=False) + "\n"


def digest(name: str) -> str:
    """sha256 over the weights and configuration of model `name`."""
    folder = resolve(name)
    return hashlib.sha256((sha256(folder / WEIGHTS) + sha256(folder / CONFIG)).encode()).hexdigest()


def sha256(path: Path) -> str:
    """Hex digest of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def named(node: dict[str, Any], what: str) -> dict[str, Any]:
    """The node itself, if it says which architecture it is."""
    if not isinstance(node.get("name"), str):
        raise ModelError(f"config: {what} has no name")
    return node


def describe(name: str, details: bool = False) -> dict[str, Any]:
    """Facts about a model for people and programs; `details` adds those that take a page."""
    folder = resolve(name)
    config = read_config(folder)
    size = (folder / WEIGHTS).stat().st_size
    facts: dict[str, Any] = {
        "name": config.name,
        "task": config.task,
        "labels": len(config.labels),
        "rate": config.frontend.get("rate"),
        "megabytes": round(size / 1e6, 2),
        "licence": config.licence,
    }
    if details:
        facts |= {
            "folder": str(folder),
            "sha256": sha256(folder / WEIGHTS),
            "architecture": config.architecture,
            "frontend": config.frontend,
            "window_seconds": config.window_seconds,
            "method": config.method,
            "source": config.source,
            "training": config.training,
            "labels": config.labels,
        }
    return facts


def __getattr__(name: str) -> Any:
    import importlib

    return getattr(importlib.import_module("audiossl.model"), name)
