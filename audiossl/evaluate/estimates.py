"""From the scores of many fitted probes to metrics, and to what makes each uncertain.

accuracy      one label a clip: share of clips whose highest score is at their label
top1          several labels: share of clips whose highest score is at one of their labels
cmap          macro average precision, the mean over classes (BirdSet's cmAP, AudioSet's mAP)
auroc         area under the ROC curve, the mean over classes
map_samples   the mean over clips of the average precision of their own ranking of the classes
dprime        sqrt(2) z(auroc); not there where auroc is 1

A class without a positive among the tested clips has no value and no weight; neither has a clip
without a label in accuracy, top1 and map_samples.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from audiossl.evaluate import metrics

Array = NDArray[np.float64]
Index = NDArray[np.int64]


class Scored(Protocol):
    """Scores (tested clips, classes) of one fitted probe on the clips at `test`."""

    @property
    def seed(self) -> int: ...
    @property
    def test(self) -> Index: ...
    @property
    def scores(self) -> NDArray[np.float32]: ...


def estimates(
    units: Iterable[Scored],
    targets: NDArray[np.float32],
    tested: Index,
    weights: NDArray[np.uint16],
    single: bool,
) -> dict[str, tuple[float, float, list[float]]]:
    """Metric -> (mean over folds and seeds, variance of it over draws of clips, means of seeds).

    targets: (clips, classes); tested: sorted places of all clips that any unit tests; weights:
    (replicates, tested clips), the draws. Metrics without a value in any unit are left out.
    """
    values: dict[str, dict[int, list[float]]] = {}
    draws: dict[str, list[Array]] = {}
    for unit in units:
        own = weights[:, np.searchsorted(tested, unit.test)]
        for name, (value, drawn) in measure(unit.scores, targets[unit.test], own, single).items():
            values.setdefault(name, {}).setdefault(unit.seed, []).append(value)
            draws.setdefault(name, []).append(drawn)
    found = {}
    for name, by_seed in values.items():
        of_seeds = [float(mean(np.array(own))) for own in by_seed.values()]
        if np.isfinite(of_seeds).all():
            drawn = mean(np.array(draws[name]))
            found[name] = float(np.mean(of_seeds)), float(np.nanvar(drawn, ddof=1)), of_seeds
    return found


def measure(
    scores: NDArray[np.float32],
    targets: NDArray[np.float32],
    weights: NDArray[np.uint16],
    single: bool,
) -> dict[str, tuple[float, Array]]:
    """Metric -> (value, values (replicates,) with the clips weighed); NaN where there is none."""
    hits = metrics.hits(scores, targets)
    ranked = metrics.average_precision(scores.T, targets.T)  # of each clip's ranking
    precision = metrics.average_precision(scores, targets)
    area = metrics.auroc(scores, targets)
    drawn_precision = metrics.average_precision(scores, targets, weights)
    drawn_area = metrics.auroc(scores, targets, weights)
    return {
        "accuracy" if single else "top1": (float(mean(hits)), weighed(hits, weights)),
        "cmap": (float(mean(precision)), mean(drawn_precision.T)),
        "auroc": (float(mean(area)), mean(drawn_area.T)),
        "map_samples": (float(mean(ranked)), weighed(ranked, weights)),
    }


def mean(values: Array) -> Array:
    """Over the first axis, of the numbers that are there; NaN where there is none."""
    there = np.isfinite(values)
    total = np.where(there, values, 0).sum(0)
    return np.where(there.any(0), total / np.maximum(there.sum(0), 1), np.nan)


def weighed(values: Array, weights: NDArray[np.uint16]) -> Array:
    """(clips,) and (replicates, clips) -> (replicates,): the means over clips that have a value."""
    there = np.isfinite(values)
    count = weights[:, there].sum(1, dtype=np.float64)
    total = weights[:, there] @ values[there]
    return np.divide(total, count, out=np.full(len(weights), np.nan), where=count > 0)
