"""How good are a model's frozen features for the classes of some data, with how many labels?

    records = probe.run("runs/bird_mae/best", "clips.csv", Options(probes=("prototypical",)))

rows -> features of every clip once -> for each probe, number of shots, seed and fold: fit on the
training side, score the test side -> metrics with 95 % intervals, one record each.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from audiossl.data import datasets
from audiossl.data.rows import Row
from audiossl.evaluate import probes
from audiossl.evaluate.evaluation import Evaluation, Options, Progress, silent
from audiossl.evaluate.features import Extractor, extract
from audiossl.evaluate.probe_record import ProbeRecord
from audiossl.hub import facts
from audiossl.model import Model, load


def run(
    model: str | Model,
    data: str | Path | Sequence[Row],
    options: Options | None = None,
    *,
    device: str = "cpu",
    cache: str | Path | None = None,
    jobs: int = 1,
    report: str | Path | None = None,
) -> list[ProbeRecord]:
    """Evaluate a model's features on labelled clips.

    model: a loaded one, or a name that `audiossl.load` takes.
    data: a manifest, a folder with a subfolder a label, the name of a data set, or rows.
    options: probes, shots and protocol; default: a linear probe on all clips.
    device: where a model given by name is loaded.
    cache: folder in which features are kept for the next run.
    jobs: threads; they change no result.
    report: HTML file to write.

    Files that cannot be read are left out; `opened` gives them. Raises UsageError, ModelError or
    OutputError.
    """
    loaded = load(model, device) if isinstance(model, str) else model
    digest = facts.digest(model) if isinstance(model, str) else ""
    name, rows = read_data(data)
    with opened(
        loaded, rows, options or Options(), name, digest=digest, cache=cache, jobs=jobs
    ) as evaluation:
        results = list(evaluation.results())
        if report is not None:
            from audiossl.evaluate.report import write

            write(report, evaluation, results)
    return [record for result in results for record in result.records]


@contextlib.contextmanager
def opened(
    model: Model,
    rows: Sequence[Row],
    options: Options,
    data: str,
    *,
    digest: str = "",
    cache: str | Path | None = None,
    pooled: bool = True,
    jobs: int = 1,
    progress: Progress = silent,
) -> Iterator[Evaluation]:
    """An Evaluation of `model` on `rows`, called `data`, whose features live as long as the block.

    digest: of the model's weights; without it `cache` is not used.
    cache: folder in which features are kept for the next run.
    pooled: extract pooled features also when no probe needs them (a report draws them).
    jobs: threads; they change no result.
    progress: is told of each file read and each probe fitted.

    Raises UsageError when rows and options do not go together, before any file is read, and
    OutputError.
    """
    whole = Evaluation(data, model.config.name, rows, options)
    whole.check()
    # Decided by all rows: files that cannot be read must not change what is measured.
    task = "single" if whole.single else "multi"
    options = replace(options, protocol=whole.protocol, task=task)
    kinds = {probes.load(name).NEEDS for name in options.probes} | ({"pooled"} if pooled else set())
    with contextlib.ExitStack() as stack:
        if cache is None or not digest:
            cache = stack.enter_context(tempfile.TemporaryDirectory(prefix="audiossl-"))
        found = {}
        for kind in sorted(kinds):
            extractor = Extractor(model, kind, jobs=jobs, progress=progress)
            found[kind] = extract(extractor, rows, digest, Path(cache))
        failed = {place: error for part in found.values() for place, error in part.errors.items()}
        good = np.array([place for place in range(len(rows)) if place not in failed], np.int64)
        own = {kind: np.searchsorted(part.places, good) for kind, part in found.items()}
        yield Evaluation(
            data,
            model.config.name,
            [rows[place] for place in good],
            options,
            found["pooled"].pooled[own["pooled"]] if "pooled" in found else None,  # type: ignore[index]
            found["tokens"].tokens.take(own["tokens"]) if "tokens" in found else None,  # type: ignore[union-attr]
            [(rows[place], failed[place]) for place in sorted(failed)],
            jobs,
            progress,
        )


def read_data(
    data: str | Path | Sequence[Row], root: str | None = None
) -> tuple[str, Sequence[Row]]:
    """Its name, and its rows. root: where a data set lies, or a manifest's paths begin.

    Raises UsageError.
    """
    if not isinstance(data, str | Path):
        return "rows", data
    name = str(data)
    if re.fullmatch(r"\w+", name) and not os.path.exists(name):
        return name, datasets.read(name, root)  # which knows the nearest name
    return name, datasets.rows_of(name, root)[0]
