"""Model folders: find them by name and say what they are, without loading them (no torch here).

A model is a folder `model.safetensors` + `config.json` (+ `README.md`, its card). Names resolve, in
this order, as an embedded model of this package, as `hf:owner/repo[@revision]` of the Hugging Face
Hub, or as a local folder.
"""

from __future__ import annotations

import difflib
import hashlib
import logging
from pathlib import Path
from typing import Any

from audiossl.errors import ModelError
from audiossl.frontend.presets import PRESETS
from audiossl.hub import cache as hub_cache
from audiossl.hub.cache import sha256
from audiossl.hub.config import CONFIG, ModelConfig, read_config

log = logging.getLogger("audiossl")

WEIGHTS = "model.safetensors"
CARD = "README.md"
PRETRAINED = Path(__file__).parents[1] / "pretrained"
# The embedded model that answers when --model is not given.
DEFAULTS = {"tag": "tagger", "embed": "tagger"}
PICKLES = (".pt", ".pth", ".ckpt", ".bin")


def embedded() -> list[str]:
    """Names of the models inside this package."""
    return sorted(path.parent.name for path in PRETRAINED.glob(f"*/{CONFIG}"))


def here() -> list[str]:
    """Names of all models that load without a network: embedded, then those of the Hub."""
    return [*embedded(), *(str(name) for name in hub_cache.entries())]


def resolve(name: str, *, download: bool = True) -> Path:
    """The folder of model `name`; its config and the shape of its weights file are sound.

    A model of the Hub that is not in the cache is downloaded, or with `download=False` is an error.
    Raises ModelError that says what to do, OutputError when a download cannot be written.
    """
    folder = _find(name, download)
    look_over(folder)
    return folder


def _find(name: str, download: bool) -> Path:
    if name in embedded():
        return PRETRAINED / name
    if not name.startswith(hub_cache.PREFIX):
        return _local(name)
    hub_name = hub_cache.parse(name)
    folder = hub_cache.find(hub_name)
    if folder is None and download:
        from audiossl.hub.download import obtain

        return obtain(hub_name)
    if folder is None:
        raise ModelError(f"{name} is not in the cache: run `audiossl models pull {name}`")
    log.info("%s is commit %s", name, folder.name)
    return folder


def _local(name: str) -> Path:
    try:
        folder = Path(name).expanduser()
        files = [part for part in (CONFIG, WEIGHTS) if (folder / part).is_file()]
        kind = "folder" if folder.is_dir() else "file" if folder.exists() else "none"
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(f"no model {name!r}: {error}") from error
    if not name or kind == "none":
        raise ModelError(f"no model {name!r}: neither embedded nor a folder ({_hint(name)})")
    if kind == "file":
        raise ModelError(
            f"{name} is a file, not a model folder ({WEIGHTS} + {CONFIG}){_way(folder)}"
        )
    if len(files) < 2:
        missing = [part for part in (CONFIG, WEIGHTS) if part not in files]
        raise ModelError(f"model folder {name} holds no {' and no '.join(missing)}")
    return folder


def _hint(name: str) -> str:
    near = difflib.get_close_matches(name, embedded(), n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    if name.count("/") == 1 and name[0] not in "./~":
        return f"for a model of the Hub write {hub_cache.PREFIX}{name}; see `audiossl models ls`"
    return "see `audiossl models ls`"


def _way(path: Path) -> str:
    if path.name in (WEIGHTS, CONFIG):
        return ": give the folder it is in"
    if path.suffix in (*PICKLES, ".safetensors"):
        return f": run `audiossl models convert {path} --out FOLDER`"
    return ""


def look_over(folder: Path) -> ModelConfig:
    """Check what costs nothing: the config, and that the weights are a safetensors file.

    Raises ModelError. What the tensors hold is checked by `verify` and when the model is loaded.
    """
    from safetensors import SafetensorError, safe_open

    config = read_config(folder)
    path = folder / WEIGHTS
    try:
        with safe_open(path, framework="numpy") as file:
            if not file.keys():
                raise ModelError(f"{path}: no tensors")
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{path}: not a safetensors file: {_first_line(error)}") from error
    return config


def verify(folder: Path) -> list[str]:
    """Compare the files of a model folder with the sha256 that was recorded of them.

    Returns the names of the files compared: none where nothing was recorded. Raises ModelError.
    """
    config = look_over(folder)
    receipt = hub_cache.read_receipt(folder)
    if receipt is not None:
        hub_cache.check_receipt(folder, receipt)
    weights = receipt.files[WEIGHTS]["sha256"] if receipt and WEIGHTS in receipt.files else None
    if config.sha256 and config.sha256 != (weights or sha256(folder / WEIGHTS)):
        raise ModelError(
            f"{folder / WEIGHTS}: damaged, or not the weights of this {CONFIG}: sha256 differs from"
            " the one recorded there: get the folder again from where it came"
        )
    return sorted({*(receipt.files if receipt else ()), *([WEIGHTS] if config.sha256 else ())})


def digest(name: str) -> str:
    """sha256 that changes whenever the weights or the configuration of model `name` do."""
    folder = resolve(name)
    config = sha256(folder / CONFIG)
    if read_config(folder).sha256:  # the config names its weights, and loading checks them
        return config
    return hashlib.sha256((sha256(folder / WEIGHTS) + config).encode()).hexdigest()


def named(node: dict[str, Any], what: str) -> dict[str, Any]:
    """The node itself, if it says which architecture it is."""
    if not isinstance(node.get("name"), str):
        raise ModelError(f"config: {what} has no name")
    return node


def describe(name: str, details: bool = False) -> dict[str, Any]:
    """Facts about a model that is here; `details` adds those that take a page.

    `rate` in Hz; `labels` a count, or with `details` the names. Raises ModelError.
    """
    folder = resolve(name, download=False)
    config = read_config(folder)
    receipt = hub_cache.read_receipt(folder)
    facts: dict[str, Any] = {
        "name": name,
        "task": config.task,
        "labels": len(config.labels),
        "rate": _rate(config),
        "megabytes": round((folder / WEIGHTS).stat().st_size / 1e6, 2),
        "licence": config.licence,
        "data": config.data,
        "sha256": config.sha256 or sha256(folder / WEIGHTS),
    }
    if receipt is not None:
        facts |= {"licence": config.licence or receipt.licence, "commit": receipt.commit}
    if details:
        facts |= {
            "title": config.name,
            "folder": str(folder),
            "architecture": config.architecture,
            "frontend": config.frontend,
            "window_seconds": config.window_seconds,
            "method": config.method,
            "source": config.source,
            "training": config.training,
            "labels": config.labels,
        }
    if details and receipt is not None:
        facts |= {"endpoint": receipt.endpoint, "downloaded": receipt.downloaded}
    return facts


def _rate(config: ModelConfig) -> int | None:
    preset = PRESETS.get(str(config.frontend.get("preset")), {})
    return config.frontend.get("rate", preset.get("rate"))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
