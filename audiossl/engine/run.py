"""The run folder: what was asked, by which program, on which data.

recipe.yaml      the resolved recipe: runs again as it is
run.json         command, versions, threads, data fingerprint, parameters
metrics.jsonl    see log.py
checkpoints/     see checkpoint.py
best/  last/     model folders
"""

from __future__ import annotations

import contextlib
import json
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import audiossl
from audiossl import recipe as recipes
from audiossl.atomic import atomic_write
from audiossl.errors import AudiosslError, OutputError, UsageError
from audiossl.model import parameters
from audiossl.recipe import Recipe

RECIPE, FACTS, METRICS, CHECKPOINTS = "recipe.yaml", "run.json", "metrics.jsonl", "checkpoints"
BEST, LAST = "best", "last"
MAY_CHANGE = {"out": None, "data": ("workers", "cache"), "train": ("keep_checkpoints",)}


def open_run(folder: Path, recipe: Recipe, resume: bool, overwrite: bool) -> None:
    """Make the run folder, or check that this recipe may go on in it.

    Raises UsageError when the folder holds another run, OutputError when it cannot be written.
    """
    there = (folder / RECIPE).exists()
    if there and resume:
        _check_same(folder / RECIPE, recipe)
    elif there and overwrite:
        _clear(folder)
    elif folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file: the run needs a folder of this name")
    elif there:
        raise UsageError(
            f"{folder} holds a run: --resume goes on with it, --out names another folder,"
            " --on-exists overwrite removes it"
        )
    elif folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise UsageError(f"{folder} is not empty and holds no run: --out names another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: {error.strerror}") from error
    with atomic_write(folder / RECIPE) as file:
        file.write(recipes.to_yaml(recipe).encode("utf-8"))


def describe(folder: Path, model: torch.nn.Module, fingerprint: str, device: torch.device) -> None:
    """Write run.json."""
    facts = {
        "command": sys.argv,
        "audiossl": audiossl.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "parameters": parameters(model),
        "data": fingerprint,
    }
    with atomic_write(folder / FACTS) as file:
        file.write((json.dumps(facts, indent=1) + "\n").encode("utf-8", "backslashreplace"))


@contextlib.contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """An empty folder to write into, which takes the place of `folder` when the block ends.

    Two renames: for a moment `folder` is not there, but it is never half of the old and the new.
    """
    new, old = (folder.with_name(f".{folder.name}.{word}") for word in ("new", "old"))
    shutil.rmtree(new, ignore_errors=True)
    if old.exists() and not folder.exists():
        old.rename(folder)  # a run was killed between the two renames
    try:
        new.mkdir(parents=True)
        yield new
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    except OSError as error:
        raise OutputError(f"{folder}: {error.strerror}") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
        elif old.exists():
            old.rename(folder)


def not_finite(
    folder: Path, step: int, loss: float, norm: float, index: list[int]
) -> AudiosslError:
    """Name the batch of a diverged update in a file; the error that ends the run."""
    path = folder / f"not-finite-{step:08d}.json"
    facts = {"step": step, "loss": str(loss), "grad_norm": str(norm), "index": index}
    with atomic_write(path) as file:
        file.write(json.dumps(facts).encode("ascii"))
    return AudiosslError(
        f"step {step}: the loss is {loss} and the gradient's norm {norm}: training has diverged"
        " (a lower train.lr, a longer train.warmup or train.clip may help); the batch is named in"
        f" {path}, the last good state is kept",
        code="not-finite",
    )


def _check_same(path: Path, recipe: Recipe) -> None:
    """--resume means the same run: what decides the weights must not have changed."""
    old = _flat(_deciding(recipes.load(str(path))))
    new = _flat(_deciding(recipe))
    for key in sorted({*old, *new}):
        if old.get(key) != new.get(key):
            raise UsageError(
                f"recipe {key}: {new.get(key)!r}, but the run in {path.parent} was begun with"
                f" {old.get(key)!r}: give it back, or start anew with --out"
            )


def _deciding(recipe: Recipe) -> dict[str, Any]:
    values = recipes.to_dict(recipe)
    for section, keys in MAY_CHANGE.items():
        if keys is None:
            values.pop(section, None)
        for key in keys or ():
            values.get(section, {}).pop(key, None)
    return values


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _clear(folder: Path) -> None:
    """Remove what a run writes, and nothing else."""
    for name in (CHECKPOINTS, BEST, LAST):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in (RECIPE, FACTS, METRICS):
        (folder / name).unlink(missing_ok=True)
