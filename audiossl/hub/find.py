"""Model folders: find them by name and say what they are, without loading them (no torch here).

A model is a folder `model.safetensors` + `config.json` (+ `README.md`, its card). Names resolve, in
this order, as an embedded model of this package, as `hf:owner/repo[@revision]` of the Hugging Face
Hub, or as a local folder.
"""

from __future__ import annotations

import logging
from pathlib import Path

from audiossl.errors import ModelError, nearest
from audiossl.hub import cache as hub_cache
from audiossl.hub.config import CONFIG
from audiossl.hub.folder import WEIGHTS, check_shallow

log = logging.getLogger("audiossl")

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
    check_shallow(folder)
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
    alike = nearest(name, embedded())
    if alike:
        return f"did you mean {alike!r}?"
    if name.count("/") == 1 and name[0] not in "./~":
        return f"for a model of the Hub write {hub_cache.PREFIX}{name}; see `audiossl models ls`"
    return "see `audiossl models ls`"


def _way(path: Path) -> str:
    if path.name in (WEIGHTS, CONFIG):
        return ": give the folder it is in"
    if path.suffix in (*PICKLES, ".safetensors"):
        return f": run `audiossl models convert {path} --out FOLDER`"
    return ""
