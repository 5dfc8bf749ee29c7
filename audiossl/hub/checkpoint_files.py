"""The files of a published checkpoint, read: safetensors, indexed parts, pickles in their cage."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from audiossl.errors import ModelError, one_line
from audiossl.hub import pickles
from audiossl.hub.strict_json import read_json
from audiossl.hub.tensors import some
from audiossl.models.parts.published import Checkpoint

SAFE = ".safetensors"
INDEX = ".index.json"
STANDARD = (  # names a model folder on the Hub gives its weights, best first
    f"model{SAFE}",
    f"model{SAFE}{INDEX}",
    "pytorch_model.bin",
    f"pytorch_model.bin{INDEX}",
)
SIDECARS = ("config.json", "preprocessor_config.json")
INDEX_BYTES = 32 * 2**20  # the index of the largest models has a few million
HEADER_BYTES = 32 * 2**20  # of a safetensors file: about 100 a tensor


def read(
    source: str | Path, *, allow_pickles: bool = False, overrides: Mapping[str, Any] | None = None
) -> Checkpoint:
    """Tensors and sidecars at `source`, a file or a folder as the Hub has it.

    allow_pickles: also take .pt .pth .ckpt .bin. Raises ModelError.
    """
    source = Path(source)
    path = _weights_file(source) if source.is_dir() else source
    if not path.is_file():
        raise ModelError(f"{source}: no such checkpoint")
    sidecars = {}
    if source.is_dir() or path.name in STANDARD:  # what lies beside a lone file is not its own
        sidecars = {
            name: read_json(path.with_name(name))
            for name in SIDECARS
            if path.with_name(name).is_file()
        }
    if "format" in sidecars.get("config.json", {}):
        raise ModelError(f"{source}: already a model folder of this program")
    tensors = {}
    for part in _parts(path):
        loaded = _read_part(part, allow_pickles)
        twice = sorted(set(tensors) & set(loaded))
        if twice:
            raise ModelError(f"{part}: {some(twice)} also in another part")
        tensors.update(loaded)
    return Checkpoint(_cleaned(tensors, path), sidecars, overrides or {})


def _weights_file(folder: Path) -> Path:
    for name in STANDARD:
        if (folder / name).is_file():
            return folder / name
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise ModelError(f"{folder}: {error.strerror}") from error
    found = [path for path in paths if path.suffix in (SAFE, *pickles.SUFFIXES)]
    if len(found) != 1:
        what = f"{len(found)} weight files" if found else "no weights"
        raise ModelError(f"{folder}: {what}: name one {SAFE} {' '.join(pickles.SUFFIXES)} file")
    return found[0]


def _parts(path: Path) -> list[Path]:
    """The files that hold the tensors: the one, or those that an index names beside it."""
    if not path.name.endswith(INDEX):
        return [path]
    table = read_json(path, INDEX_BYTES).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise ModelError(f"{path}: no weight_map")
    names = sorted({str(name) for name in table.values()})
    for name in names:
        if (
            Path(name).name != name
            or "\\" in name
            or Path(name).suffix not in (SAFE, *pickles.SUFFIXES)
        ):
            raise ModelError(f"{path}: {name!r} is not a file beside it: refused")
    return [path.with_name(name) for name in names]


def _read_part(path: Path, allow_pickles: bool) -> dict[str, Tensor]:
    if not path.is_file():
        raise ModelError(f"{path}: missing")
    if path.suffix == SAFE:
        return read_safetensors(path)
    if path.suffix not in pickles.SUFFIXES:
        raise ModelError(f"{path}: not a checkpoint: expected {SAFE} {' '.join(pickles.SUFFIXES)}")
    if not allow_pickles:
        raise ModelError(f"{path}: a pickle: run `audiossl models convert FILE` first")
    return pickles.read(path)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; whatever is wrong with it is a ModelError."""
    try:
        tensors = load_file(path)  # checks sizes and offsets
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > HEADER_BYTES:
                raise ValueError(f"a header of {length} bytes")
            json.loads(file.read(length), object_pairs_hook=_without_twins)
    except (SafetensorError, OSError, ValueError, LookupError, RuntimeError) as error:
        raise ModelError(f"{path}: {one_line(str(error))}") from error
    return tensors


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of a header; of two entries with one name, readers differ in which they take."""
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"twice: {some(sorted({n for n in names if names.count(n) > 1}))}")
    return table


def _cleaned(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Without DataParallel's prefix, in float32, and finite."""
    if not tensors:
        raise ModelError(f"{path}: no tensors")
    prefix = "module." if all(name.startswith("module.") for name in tensors) else ""
    clean = {}
    for name, value in tensors.items():
        if value.is_floating_point():
            value = value.float()
            if not value.isfinite().all():
                raise ModelError(f"{path}: {name} holds NaN or infinity")
        clean[name.removeprefix(prefix)] = value
    return clean
