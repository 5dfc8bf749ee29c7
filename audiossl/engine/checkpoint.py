"""Training states on disk, from which a run goes on to the same bytes.

    checkpoints/step-00001200/state.safetensors   method, moving average, optimiser
                              state.json          step, draws used, best, sums since the last line
                              manifest.json       sha256 of the two, written last

A folder is written under another name, flushed, then renamed: what bears the name is whole. No
generator's state is kept, because each step seeds all generators from (seed, step).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from audiossl.atomic import atomic_write
from audiossl.errors import ModelError
from audiossl.hub import sha256

TENSORS, FACTS, MANIFEST = "state.safetensors", "state.json", "manifest.json"
PREFIX, UNFINISHED = "step-", ".tmp"


def write(folder: Path, step: int, tensors: dict[str, Tensor], facts: dict[str, Any]) -> Path:
    """Write one state as folder/step-NNNNNNNN. Raises OutputError and leaves nothing behind."""
    final = folder / f"{PREFIX}{step:08d}"
    working = final.with_name(final.name + UNFINISHED)
    shutil.rmtree(working, ignore_errors=True)
    try:
        working.mkdir(parents=True)
        packed = save({name: _alone(value) for name, value in tensors.items()})
        with atomic_write(working / TENSORS) as file:
            file.write(packed)
        _write_json(working / FACTS, facts)
        _write_json(working / MANIFEST, {name: sha256(working / name) for name in (TENSORS, FACTS)})
        shutil.rmtree(final, ignore_errors=True)
        os.replace(working, final)
        _sync(folder)
    except BaseException:
        shutil.rmtree(working, ignore_errors=True)
        raise
    return final


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` states."""
    for path in _states(folder)[keep:]:
        shutil.rmtree(path, ignore_errors=True)


def read_newest(
    folder: Path, warn: Callable[[str], None]
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """(tensors, facts) of the newest whole state; None when there is none at all.

    A damaged state is named through `warn` and the one before it taken. Raises ModelError when all
    are damaged.
    """
    states = _states(folder)
    for path in states:
        try:
            return _read(path)
        except (OSError, ValueError, SafetensorError) as error:
            warn(f"checkpoint {path.name} is damaged ({error}): going back to the one before")
    if states:
        raise ModelError(f"{folder}: all {len(states)} checkpoints are damaged")
    return None


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as tensors `NUMBER.key`; its rates follow from the step."""
    state = optimizer.state_dict()["state"]
    return {
        f"{number}.{key}": torch.as_tensor(value)
        for number, values in state.items()
        for key, value in values.items()
        if value is not None
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Undo `flatten_optimizer`."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        number, _, key = name.partition(".")
        state.setdefault(int(number), {})[key] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def select(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under `prefix`, without it."""
    return {n.removeprefix(prefix): value for n, value in tensors.items() if n.startswith(prefix)}


def _states(folder: Path) -> list[Path]:
    """Newest first."""
    found = [path for path in folder.glob(f"{PREFIX}*") if path.suffix != UNFINISHED]
    return sorted(found, key=lambda path: path.name, reverse=True)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    expected = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    if set(expected) != {TENSORS, FACTS}:
        raise ValueError(f"{MANIFEST} does not name the state's files")
    for name, digest in expected.items():
        if sha256(path / name) != digest:
            raise ValueError(f"{name} is not what was written")
    return load_file(path / TENSORS), json.loads((path / FACTS).read_text(encoding="utf-8"))


def _alone(value: Tensor) -> Tensor:
    """A copy: safetensors takes neither shared memory (tied weights) nor channels-last layout."""
    return value.detach().cpu().clone(memory_format=torch.contiguous_format)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    with atomic_write(path) as file:
        file.write(json.dumps(values, indent=1).encode("utf-8"))


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
