"""`config.json` of a model folder: read as if an enemy had written it, before anything is built.

Size, depth, keys, types and numbers are bounded here, so that what follows meets only plain values.
No torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import audiossl
from audiossl.errors import ModelError, near
from audiossl.hub.strict_json import MAX_LINE, read_json

CONFIG = "config.json"
FORMAT = 1  # of config.json: raised when an old reader would misread a new folder
TASKS = ("tag", "embed")
ACTIVATIONS = ("sigmoid", "softmax")

MAX_LABELS = 100_000
MAX_SIZE = 2**24  # any width, depth, rate or length in an architecture or a frontend
# What a frontend allocates grows with the product of these.
MAX_FRONTEND = {"mels": 1024, "n_fft": 2**17, "window": 2**17, "hop": 2**17}


@dataclass
class ModelConfig:
    """What `config.json` says: enough to rebuild the model, and where it comes from.

    `architecture`, `frontend`, `head`: `{"name": ..., **arguments}`; a frontend may have "preset"
    in place of "name"; `head` is None for an encoder.
    `training`: recipe, data with licences, seeds; free in form, never needed to load.
    `sha256`: of the weights, in hex; written by `save_model`, empty when it was not recorded.
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
    sha256: str = ""

    @property
    def labels(self) -> list[str]:
        return list(self.head["labels"]) if self.head else []

    @property
    def data(self) -> list[str]:
        """Names of the training data, with their licences where they are given."""
        entries = self.training.get("data", [])
        entries = entries if isinstance(entries, list) else [entries]
        return [_in_words(entry) for entry in entries]


def read_config(folder: Path) -> ModelConfig:
    """`config.json` of a model folder, checked key by key. Raises ModelError."""
    path = folder / CONFIG
    data = read_json(path)
    try:
        return parse(data)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def parse(data: dict[str, Any]) -> ModelConfig:
    """The config that `data` describes. Raises ModelError naming the key that is wrong."""
    data = dict(data)
    refuse_code(data)
    if "format" not in data and ("model_type" in data or "architectures" in data):
        raise ModelError(
            "a checkpoint of transformers: run `audiossl models convert FOLDER --out NEW`"
        )
    if data.pop("format", None) != FORMAT:
        raise ModelError(f"not a model of this program (format {FORMAT} expected)")
    data.pop("audiossl", None)
    known = [item.name for item in fields(ModelConfig)]
    for key in data:
        if key not in known:
            raise ModelError(f"unknown key {key!r}{near(key, known, otherwise='')}")
    for key in ("name", "architecture", "frontend"):
        if key not in data:
            raise ModelError(f"key {key!r} is missing")
    for key, value in data.items():
        _CHECKS[key](value, key)
    config = ModelConfig(**data)
    if config.task == "tag" and config.head is None:
        raise ModelError("task is 'tag' but head is null: a tagger needs labels")
    return config


def config_json(config: ModelConfig) -> str:
    """`config.json` as text."""
    values = {item.name: getattr(config, item.name) for item in fields(ModelConfig)}
    if not config.sha256:
        del values["sha256"]
    header = {"format": FORMAT, "audiossl": audiossl.__version__}
    return json.dumps({**header, **values}, indent=1, ensure_ascii=False) + "\n"


def refuse_code(data: dict[str, Any]) -> None:
    """Raise ModelError when a config asks for code of its own, here or in transformers' form."""
    for key in ("auto_map", "trust_remote_code", "custom_pipelines"):
        if data.get(key):
            raise ModelError(f"{key!r} asks to run code that comes with the model: refused")


# --- JSON -----------------------------------------------------------------------------------------


# --- fields ---------------------------------------------------------------------------------------


def _line(value: Any, key: str) -> None:
    if not isinstance(value, str):
        raise _wrong(key, "text", value)
    if len(value) > MAX_LINE or "\n" in value or "\t" in value:
        raise ModelError(f"{key}: expected one line of at most {MAX_LINE} characters")


def _name(value: Any, key: str) -> None:
    _line(value, key)
    if not value.strip():
        raise ModelError(f"{key}: empty")


def _one_of(choices: tuple[str, ...]) -> Callable[[Any, str], None]:
    def check(value: Any, key: str) -> None:
        if value not in choices:
            hint = near(str(value), choices, otherwise="") or f": one of {', '.join(choices)}"
            raise ModelError(f"{key}: unknown value {_shown(value)}{hint}")

    return check


def _seconds(value: Any, key: str) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(key, "a number", value)
    if not 0 < value <= 3600:
        raise ModelError(f"{key}: expected between 0 and 3600, got {value}")


def _object_field(value: Any, key: str) -> None:
    if not isinstance(value, dict):
        raise _wrong(key, "an object", value)


def _architecture(value: Any, key: str) -> None:
    _object_field(value, key)
    if "name" not in value:
        raise ModelError(f"{key}: no name")
    _name(value["name"], f"{key}.name")
    _bounded(value, key)


def _frontend(value: Any, key: str) -> None:
    _object_field(value, key)
    if "name" not in value and "preset" not in value:
        raise ModelError(f"{key}: neither name nor preset")
    _bounded(value, key)
    for part, highest in MAX_FRONTEND.items():
        if isinstance(value.get(part), int | float) and value[part] > highest:
            raise ModelError(f"{key}.{part}: {value[part]} is more than {highest}")


def _head(value: Any, key: str) -> None:
    if value is None:
        return
    _architecture(value, key)
    names = value.get("labels")
    if not isinstance(names, list) or not names:
        raise ModelError(f"{key}.labels: expected a list that is not empty")
    if len(names) > MAX_LABELS:
        raise ModelError(f"{key}.labels: more than {MAX_LABELS}")
    for name in names:
        _name(name, f"{key}.labels")
    if "activation" in value:
        _one_of(ACTIVATIONS)(value["activation"], f"{key}.activation")


def _digest(value: Any, key: str) -> None:
    if not isinstance(value, str) or len(value) != 64 or value.strip("0123456789abcdef"):
        raise _wrong(key, "64 hex digits", value)


_CHECKS: dict[str, Callable[[Any, str], None]] = {
    "name": _name,
    "architecture": _architecture,
    "frontend": _frontend,
    "head": _head,
    "task": _one_of(TASKS),
    "window_seconds": _seconds,
    "method": _line,
    "licence": _line,
    "source": _line,
    "training": _object_field,
    "sha256": _digest,
}


def _bounded(value: Any, key: str) -> None:
    """No number in an architecture, a frontend or a head is larger than any real one."""
    if isinstance(value, dict):
        for name, item in value.items():
            _bounded(item, f"{key}.{name}")
    elif isinstance(value, list):
        for item in value:
            _bounded(item, key)
    elif isinstance(value, int | float) and abs(value) > MAX_SIZE:
        raise ModelError(f"{key}: {value} is more than {MAX_SIZE}")


def _wrong(key: str, expected: str, value: Any) -> ModelError:
    return ModelError(f"{key}: expected {expected}, got {_shown(value)}")


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _in_words(entry: Any) -> str:
    if not isinstance(entry, dict):
        return str(entry)
    licence = entry.get("licence")
    name = str(entry.get("name", "?"))
    return f"{name} ({licence})" if licence else name
