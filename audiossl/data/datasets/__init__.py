"""Known data sets: rows of the manifest format from their published layouts on disk.

Each file here holds one family, in `DATASETS`. `read("esc50")` finds the set by its usual folder
name in a folder that AUDIOSSL_DATA names, or at `root`, and gives its clips with labels, the
official folds or splits, and groups (source, speaker) that should not be on both sides of a split.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING

from audiossl.data import reading
from audiossl.data.datasets.dataset import Dataset
from audiossl.data.rows import SHOWN, Row
from audiossl.errors import UsageError

if TYPE_CHECKING:
    from audiossl.config.sections import DataSection

__all__ = ["Dataset", "get", "names", "read", "rows_of", "sources"]

_log = logging.getLogger(__name__)


@functools.cache
def _all() -> dict[str, Dataset]:
    modules = (
        importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)
    )
    found = [dataset for module in modules for dataset in getattr(module, "DATASETS", ())]
    return {dataset.name: dataset for dataset in sorted(found, key=lambda dataset: dataset.name)}


def names() -> list[str]:
    """Names of the data sets, sorted."""
    return list(_all())


def get(name: str) -> Dataset:
    """The data set of this name. Raises UsageError with the nearest name."""
    from audiossl.errors import near

    if name not in _all():
        raise UsageError(f"unknown data set {name!r}{near(name, names())}")
    return _all()[name]


def read(name: str, root: str | os.PathLike[str] | None = None) -> list[Row]:
    """Rows of a data set; a warning says what the copy lacks.

    name: of the set.
    root: its folder or one that holds it; None: AUDIOSSL_DATA names it.

    Raises UsageError if there is no such set, it is not found, its layout differs, or files of its
    tables are missing (in a set that is collected clip by clip, such as AudioSet, they are only
    counted).
    """
    dataset = get(name)
    folder = dataset.find(root)
    rows, missing = dataset.rows(folder)
    if missing:
        more = ", ..." if len(missing) > SHOWN else ""
        message = (
            f"{folder}: {name}: {len(missing):,} of {len(rows) + len(missing):,} files are missing:"
            f" {', '.join(missing[:SHOWN])}{more}"
        )
        if not dataset.gaps:
            raise UsageError(message)
        _log.warning("warning: %s", message)
    short = [
        f"{'fold ' if part.isdigit() else ''}{part} {here:,} of {whole:,}"
        for part, (here, whole) in dataset.parts(rows).items()
        if here < whole and (here or not dataset.by_parts)
    ]
    if short and not missing:
        _log.warning("warning: %s: %s: not the whole set: %s", folder, name, ", ".join(short))
    return rows


def rows_of(source: str, root: str | None = None) -> tuple[list[Row], Path]:
    """Rows of a data set, manifest, folder or shards, and the folder that holds their files."""
    place = Path(source).expanduser()
    if source in names() and not place.exists():
        folder = get(source).find(root)
        return read(source, folder), folder
    folder = Path(root) if root else place if place.is_dir() else place.parent
    return reading.read(place, root), folder


def sources(data: DataSection) -> list[dict[str, str]]:
    """Entries about the data in a model's config: the recipe's `sources`, and those of its set."""
    own = [get(data.dataset).source] if data.dataset else []
    return [*data.sources, *(line for line in own if line not in data.sources)]
