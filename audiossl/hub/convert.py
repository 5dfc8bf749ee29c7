"""Published checkpoints turned into model folders of this program.

    checkpoint = read("folder or file")      tensors and JSON; pickles only if asked for
    converted = convert(checkpoint)          our names, our config; all or nothing
    convert_folder(source, out)              both, and the folder written

What the published names mean stands at the end of each model's file (`LAYOUTS`, `PUBLISHED`); this
file finds the layout that fits, renames, and checks every tensor against the model it describes:
a missing, unknown or misshapen one is a ModelError that names it, never a partial load.

safetensors and JSON are read here; pickles only on request, by pickles.py.
"""

from __future__ import annotations

import importlib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from audiossl import frontend as frontends
from audiossl import labels, models
from audiossl.errors import AudiosslError, ModelError
from audiossl.hub import tensors as compare
from audiossl.hub.checkpoint_files import read
from audiossl.hub.config import ModelConfig, config_json, parse, refuse_code
from audiossl.hub.tensors import refuse, some
from audiossl.hub.writing import write_folder
from audiossl.models.parts import assembly
from audiossl.models.parts.published import Checkpoint, Layout, Published

log = logging.getLogger("audiossl")

OVERRIDES = ("labels", "architecture", "frontend", "licence", "source")
UNKNOWN = "unknown: see the checkpoint's own page"


@dataclass(frozen=True)
class Converted:
    """Our tensors (`encoder.*`, `head.*`) and config; `unused`: names left out on purpose."""

    tensors: dict[str, Tensor]
    config: ModelConfig
    layout: str
    unused: tuple[str, ...]


def convert_folder(
    source: str | Path,
    out: str | Path,
    *,
    layout: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Converted:
    """Convert the checkpoint at `source` (a folder or a file, pickles too) into model folder `out`.

    layout: its name, where it shall not be recognised; overrides: see `Checkpoint`.
    Raises ModelError on a checkpoint that is broken, unknown, incomplete or not to be trusted,
    OutputError when `out` cannot be written.
    """
    source, out = Path(source), Path(out)
    checkpoint = read(source, allow_pickles=True, overrides=overrides)
    name = source.stem if source.is_file() else source.resolve().name
    try:
        converted = convert(checkpoint, layout=layout, name=name, origin=origin(source.name))
    except ModelError as error:
        raise ModelError(f"{source}: {error}") from error
    write_folder(converted.tensors, converted.config, out)
    return converted


def convert(
    checkpoint: Checkpoint,
    *,
    layout: str | None = None,
    name: str = "converted",
    origin: Published | None = None,
) -> Converted:
    """`checkpoint` under our names, complete and checked. ModelError names what is wrong."""
    overrides = checkpoint.overrides
    for key in overrides:
        if key not in OVERRIDES:
            raise ModelError(f"unknown override {key!r}: one of {', '.join(OVERRIDES)}")
    found = _layout(checkpoint, layout)
    for sidecar in checkpoint.sidecars.values():
        refuse_code({key: value for key, value in sidecar.items() if key not in found.ignored})
    origin = origin if _belongs(origin, found) else None
    tensors, unused = _rename(checkpoint.tensors, found)
    try:
        values = found.config(checkpoint)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise ModelError(f"layout {found.name}: config: {type(error).__name__} {error}") from error
    for part in ("architecture", "frontend"):
        values[part] = {**values[part], **overrides.get(part, {})}
    if values["head"]:
        values["head"]["labels"] = _labels(values["head"], tensors, overrides)
    config = ModelConfig(
        name=name,
        licence=overrides.get("licence", origin.licence if origin else UNKNOWN),
        source=overrides.get("source", origin.source if origin else ""),
        training={"data": list(origin.training)} if origin else {},
        **values,
    )
    _check(tensors, config)
    if origin and origin.notice:
        log.warning("%s: %s", name, origin.notice)
    return Converted(tensors, config, found.name, unused)


def layouts() -> dict[str, Layout]:
    """All known layouts by name."""
    found = (layout for module in _models() for layout in getattr(module, "LAYOUTS", ()))
    return {layout.name: layout for layout in found}


def published() -> list[Published]:
    """All checkpoints known to convert, with their licences."""
    return [item for module in _models() for item in getattr(module, "PUBLISHED", ())]


def origin(name: str) -> Published | None:
    """What is known of the checkpoint `hf:owner/repo`, or of a file or folder named like one."""
    known = {item.name: item for item in published()}
    known |= {re.split("[/:]", item.name)[-1]: item for item in known.values()}
    return known.get(name)


# --- reading --------------------------------------------------------------------------------------


# --- renaming and checking ------------------------------------------------------------------------


def _layout(checkpoint: Checkpoint, name: str | None) -> Layout:
    known = layouts()
    if name is not None:
        if name not in known:
            raise ModelError(f"unknown layout {name!r}: one of {', '.join(sorted(known))}")
        return known[name]
    fits = [layout for layout in known.values() if _fits(layout, checkpoint.tensors)]
    if len(fits) == 1:
        return fits[0]
    names = some(sorted(checkpoint.tensors))
    if not fits:
        raise ModelError(f"no known layout (known: {', '.join(sorted(known))}) has {names}")
    raise ModelError(f"several layouts fit: name one of {', '.join(item.name for item in fits)}")


def _fits(layout: Layout, tensors: Mapping[str, Tensor]) -> bool:
    def found(pattern: str) -> bool:
        return any(re.fullmatch(pattern, name) for name in tensors)

    return all(map(found, layout.marks)) and not any(map(found, layout.absent))


def _belongs(origin: Published | None, layout: Layout) -> bool:
    """Whether both are of one architecture: a file's name alone is no proof of where it is from."""
    return any(
        layout in getattr(module, "LAYOUTS", ()) and origin in getattr(module, "PUBLISHED", ())
        for module in _models()
    )


def _rename(
    tensors: Mapping[str, Tensor], layout: Layout
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Our names, and the published names that the layout leaves out."""
    found: dict[str, dict[int, Tensor]] = {}  # a tensor that is stored whole is its own part 0
    unused, unexpected, twice = [], [], []
    for name, value in tensors.items():
        known, target = _target(name, layout)
        if not known:
            unexpected.append(name)
        elif target is None:
            unused.append(name)
        else:
            target, _, place = target.partition("@")
            parts = found.setdefault(target, {})
            if int(place or 0) in parts:
                twice.append(name)
            parts[int(place or 0)] = value
    refuse(layout.name, {"unexpected": unexpected, "twice": twice})
    joined = {
        name: _joined(name, [parts[place] for place in sorted(parts)])
        for name, parts in found.items()
    }
    return joined, tuple(unused)


def _target(name: str, layout: Layout) -> tuple[bool, str | None]:
    for pattern, target in layout.rows:
        match = re.fullmatch(pattern, name)
        if match:
            return True, None if target is None else match.expand(target)
    return False, None


def _joined(target: str, parts: list[Tensor]) -> Tensor:
    try:
        return parts[0].contiguous() if len(parts) == 1 else torch.cat(parts)
    except RuntimeError as error:
        shapes = ", ".join(str(tuple(part.shape)) for part in parts)
        raise ModelError(f"{target}: its parts {shapes} do not fit together") from error


def _check(tensors: Mapping[str, Tensor], config: ModelConfig) -> None:
    """The config can be read back, and its model has just these tensors in these shapes."""
    parse(json.loads(config_json(config)))
    try:
        frontends.build(config.frontend)
        with torch.device("meta"):  # shapes only: costs no memory, whatever the config claims
            encoder, head = assembly.build(config.architecture, config.head)
        parts = nn.ModuleDict({"encoder": encoder} | ({"head": head} if head else {}))
        expected = parts.state_dict()
    except AudiosslError as error:
        raise ModelError(f"config: {error}") from error
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ModelError(f"config: {type(error).__name__}: {error}") from error
    compare.check(config.architecture["name"], _facts(expected), _facts(tensors))


def _facts(tensors: Mapping[str, Tensor]) -> compare.Facts:
    return {name: (tuple(value.shape), str(value.dtype)) for name, value in tensors.items()}


def _labels(
    head: Mapping[str, Any], tensors: Mapping[str, Tensor], overrides: Mapping[str, Any]
) -> list[str]:
    """The user's labels, else the checkpoint's, else AudioSet's for 527, else numbers."""
    given = overrides.get("labels") or head.get("labels")
    if given:
        return [str(label) for label in given]
    classes = next((len(v) for k, v in tensors.items() if k.startswith("head.") and v.ndim == 2), 0)
    audioset = [entry.name for entry in labels.load("audioset")]
    return audioset if classes == len(audioset) else [f"class {i}" for i in range(classes)]


def _models() -> Iterator[Any]:
    for name in models.names():
        yield importlib.import_module(f"{models.__name__}.{name}")
