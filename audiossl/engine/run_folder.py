"""The run folder: what was asked, by which program, on which data.

recipe.yaml      the resolved recipe: runs again as it is
run.json         command, versions, machine, processes, data fingerprint, parameters
metrics.jsonl    see log.py
tensorboard/     the same numbers, with train.tracker: tensorboard
checkpoints/     see checkpoint.py
best/  last/     model folders
not-finite-*     batches that were left out, by clip and seed
"""

from __future__ import annotations

import contextlib
import json
import platform
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout

import audiossl
from audiossl.atomic import atomic_write
from audiossl.engine.distributed import launcher, restarted
from audiossl.engine.job import Job
from audiossl.engine.step import Update
from audiossl.errors import OutputError, UsageError
from audiossl.model import parameters
from audiossl.recipe import loading as recipes
from audiossl.recipe import resolved
from audiossl.recipe.loading import Recipe

RECIPE, FACTS, METRICS, CHECKPOINTS = "recipe.yaml", "run.json", "metrics.jsonl", "checkpoints"
BEST, LAST, BOARD, BAD = "best", "last", "tensorboard", "not-finite-"
LOCK = ".lock"
# What decides no weight, or only their last bits; where the data lie, when they are the same.
MAY_CHANGE = {
    "out": None,
    "data": ("workers", "cache_folder", "train", "folder", "valid", "root"),
    "train": ("keep_checkpoints", "max_bad_steps", "checkpointing", "parallel", "tracker"),
}


def check(folder: Path, recipe: Recipe, resume: bool, overwrite: bool, processes: int) -> None:
    """Whether this recipe may run in the folder; nothing is written yet.

    Raises UsageError when the folder holds another run, OutputError when it cannot be one.
    """
    try:
        _check_free(folder, resume, overwrite)
        if resume and (folder / RECIPE).exists():
            _check_same(folder, recipe, processes)
    except OSError as error:
        raise OutputError(f"{folder}: {error.strerror}") from error


def claim(folder: Path, held: ExitStack) -> None:
    """Make the run folder; until `held` is closed no other process works there.

    Raises UsageError when one does, OutputError when the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held.enter_context(FileLock(folder / LOCK, timeout=0))
    except Timeout as error:
        raise UsageError(f"{folder}: another process is at work in this run") from error
    except OSError as error:
        raise OutputError(f"{folder}: {error.strerror}") from error


def open_run(folder: Path, recipe: Recipe, resume: bool) -> None:
    """Write the recipe into a folder that has been claimed, in place of a run to be removed."""
    if not resume:
        _clear(folder)
    with atomic_write(folder / RECIPE) as file:
        file.write(resolved.to_yaml(recipe).encode("utf-8"))


def _check_free(folder: Path, resume: bool, overwrite: bool) -> None:
    there = (folder / RECIPE).exists()
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file: the run needs a folder of this name")
    if there and not (resume or overwrite):
        raise UsageError(
            f"{folder} holds a run: --resume goes on with it, --out names another folder,"
            " --on-exists overwrite removes it"
        )
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    if not there and any(not name.startswith(".") for name in names):
        raise UsageError(f"{folder} is not empty and holds no run: --out names another folder")


def describe(folder: Path, job: Job, device: torch.device) -> None:
    """Write run.json."""
    facts = {
        "recipe": job.recipe.name,
        "command": sys.argv,
        "audiossl": audiossl.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "machine": platform.platform(),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "processes": job.processes,
        "clips_an_update": job.clips,
        "steps": job.steps,
        "parameters": parameters(job.model),
        "data": job.fingerprint,
        "launcher": launcher(),
    }
    with atomic_write(folder / FACTS) as file:
        file.write((json.dumps(facts, indent=1) + "\n").encode("utf-8", "backslashreplace"))


def is_resumed(folder: Path) -> bool:
    """Whether torchrun has started this process anew to go on with the run that it had begun."""
    return restarted() and _facts(folder).get("launcher", launcher()) == launcher()


def name_of(folder: Path, recipe: Recipe) -> str:
    """What the run in a folder is called: its own recipe.yaml is but a copy of the one so named."""
    return str(_facts(folder).get("recipe", recipe.name))


def _facts(folder: Path) -> dict[str, Any]:
    """run.json as far as it can be read: a run goes on without it."""
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


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


def note_bad(folder: Path, step: int, job: Job, update: Update) -> Path:
    """Name the clips of an update that was left out in a file, with all it takes to redo it.

    Pass number p was seeded by (seed, step, p).
    """
    path = folder / f"{BAD}{step:08d}.json"
    passes = [
        {"loss": str(one.values["loss"]), "weight": one.weight, "index": one.index}
        for one in update.passes
    ]
    index = [number for one in update.passes for number in one.index]
    facts = {
        "step": step,
        "seed": job.recipe.train.seed,
        "loss": str(update.means["loss"]),
        "grad_norm": str(update.means["grad_norm"]),
        "lr": update.rate,
        "index": index,
        "clips": job.names(index),
        "passes": passes,
    }
    with atomic_write(path) as file:
        file.write(json.dumps(facts).encode("ascii"))
    return path


def _check_same(folder: Path, recipe: Recipe, processes: int) -> None:
    """--resume means the same run: what decides the weights must not have changed.

    Passes may move between processes: accumulate x processes is what counts.
    """
    begun = recipes.load(str(folder / RECIPE))
    old, new = _flat(_deciding(begun)), _flat(_deciding(recipe))
    passes = begun.train.accumulate * int(_facts(folder).get("processes", 1))
    if recipe.train.accumulate * processes == passes:
        old["train.accumulate"] = new["train.accumulate"]
    for key in sorted({*old, *new}):
        if old.get(key) != new.get(key):
            raise UsageError(
                f"recipe {key}: {new.get(key)!r}, but the run in {folder} was begun with"
                f" {old.get(key)!r}: give it back, or start anew with --out"
            )


def _deciding(recipe: Recipe) -> dict[str, Any]:
    values = resolved.to_dict(recipe)
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
    for name in (CHECKPOINTS, BEST, LAST, BOARD):
        shutil.rmtree(folder / name, ignore_errors=True)
    for path in (folder / METRICS, *folder.glob(f"{BAD}*.json"), folder / FACTS, folder / RECIPE):
        path.unlink(missing_ok=True)
