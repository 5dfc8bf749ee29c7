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
from torch import Tensor, nn
from torch.optim import Optimizer

from audiossl.atomic import atomic_write, sync
from audiossl.caches import sha256
from audiossl.engine.parallel import assembled, sharded_like
from audiossl.errors import ModelError, OutputError

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
        _write_json(working / FACTS, {**facts, **bits()})
        _write_json(working / MANIFEST, {name: sha256(working / name) for name in (TENSORS, FACTS)})
        shutil.rmtree(final, ignore_errors=True)
        os.replace(working, final)
        sync(folder)
    except OSError as error:
        raise OutputError(f"{final}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(working, ignore_errors=True)
    return final


def prune(folder: Path, newest: Path, keep: int) -> None:
    """Remove all but `newest` and the `keep - 1` states before it.

    Later ones were left by a run that went back to an earlier state, because they were damaged.
    """
    states = _states(folder)
    place = states.index(newest)
    unfinished = folder.glob(f"{PREFIX}*{UNFINISHED}")  # of a save that was killed
    for path in (*states[:place], *states[place + keep :], *unfinished):
        shutil.rmtree(path, ignore_errors=True)


def newest(folder: Path, warn: Callable[[str], None]) -> tuple[Path, dict[str, Any]] | None:
    """(place, facts) of the newest whole state; None when there is none at all.

    A damaged state is named through `warn` and the one before it taken. Raises ModelError when all
    are damaged.
    """
    states = _states(folder)
    for path in states:
        try:
            return path, _verified(path)
        except (OSError, ValueError, RecursionError) as error:
            warn(f"checkpoint {path.name} is damaged ({error}): going back to the one before")
    if states:
        raise ModelError(f"{folder}: all {len(states)} checkpoints are damaged")
    return None


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a state that `newest` has found whole."""
    try:
        return load_file(path / TENSORS)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path / TENSORS}: {error}") from error


def pack(
    method: nn.Module, average: nn.Module | None, optimizer: Optimizer, keep: bool = True
) -> dict[str, Tensor]:
    """All tensors of a run: `method.*`, `ema.*` and, by parameter number, `optimizer.N.*`.

    All processes must call it, since shards are put together; those that do not `keep` the result
    get nothing.
    """
    named = {f"method.{name}": value for name, value in method.state_dict().items()}
    if average is not None:
        named |= {f"ema.{name}": value for name, value in average.state_dict().items()}
    for number, values in optimizer.state_dict()["state"].items():
        for key, value in values.items():
            if value is not None:  # SGD without momentum
                named[f"optimizer.{number}.{key}"] = torch.as_tensor(value)
    return gathered(named, keep)


def gathered(named: dict[str, Tensor], keep: bool = True) -> dict[str, Tensor]:
    """Whole tensors from shards, which come together on the CPU, one after the other."""
    whole = {}
    for name, value in named.items():
        tensor = assembled(value)
        if keep:
            whole[name] = tensor if tensor is value else tensor.cpu()
    return whole


def unpack(
    tensors: dict[str, Tensor], method: nn.Module, average: nn.Module | None, optimizer: Optimizer
) -> None:
    """Undo `pack`, however the parameters are sharded now.

    The optimiser's rates are not stored: they follow from the step.
    """
    _load(method, select(tensors, "method."))
    if average is not None:
        _load(average, select(tensors, "ema."))
    parameters = [value for group in optimizer.param_groups for value in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in select(tensors, "optimizer.").items():
        number, _, key = name.partition(".")
        value = sharded_like(value, parameters[int(number)])
        state.setdefault(int(number), {})[key] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _load(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    own = module.state_dict()
    module.load_state_dict(
        {name: sharded_like(value, own.get(name, value)) for name, value in tensors.items()}
    )


def not_finite(tensors: dict[str, Tensor]) -> str | None:
    """The name of a tensor that holds NaN or infinity, if one does."""
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            return name
    return None


def select(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under `prefix`, without it."""
    return {n.removeprefix(prefix): value for n, value in tensors.items() if n.startswith(prefix)}


def _states(folder: Path) -> list[Path]:
    """Newest first."""
    found = [path for path in folder.glob(f"{PREFIX}*") if path.suffix != UNFINISHED]
    return sorted(found, key=lambda path: path.name, reverse=True)


def _verified(path: Path) -> dict[str, Any]:
    """The facts of a state, once both files are known to be what was written."""
    expected = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    if not isinstance(expected, dict) or set(expected) != {TENSORS, FACTS}:
        raise ValueError(f"{MANIFEST} does not name the state's files")
    for name, digest in expected.items():
        if sha256(path / name) != digest:
            raise ValueError(f"{name} is not what was written")
    return json.loads((path / FACTS).read_text(encoding="utf-8"))


def _alone(value: Tensor) -> Tensor:
    """A copy: safetensors takes neither shared memory (tied weights) nor channels-last layout."""
    return value.detach().cpu().clone(memory_format=torch.contiguous_format)


def bits() -> dict[str, Any]:
    """What the last bits of a sum depend on, apart from the numbers and the processes."""
    return {"threads": torch.get_num_threads(), "torch": torch.__version__}


def _write_json(path: Path, values: dict[str, Any]) -> None:
    with atomic_write(path) as file:
        file.write(json.dumps(values, indent=1).encode("utf-8"))
