"""Metrics of scores against labels, vectorised over classes.

scores: (clips, classes) float, higher = more; targets: (clips, classes), 1 present, 0 absent and
below 0 unknown: an unknown pair takes part in nothing. A class without a known positive (or, for
auroc, without a known negative) has no value: NaN in the per-class functions, left out of means.
Clips with equal scores stand at one threshold, as scikit-learn has it.

weights: (replicates, clips), how often each clip counts in each resampling of the clips; the
functions that take it give one value a replicate, the same as on clips repeated so often.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

CHUNK = 1 << 22  # weights worked on at once
BINS = 15  # of the calibration error (Guo et al. 2017, arXiv 1706.04599)

Array = NDArray[np.float64]


def accuracy(scores: ArrayLike, targets: ArrayLike, top: int = 1) -> float:
    """Share of clips with one of their labels among the `top` scores; NaN without labelled clips.

    Clips without a present label don't count. Among equal scores the first class wins.
    """
    return _mean(hits(scores, targets, top))


def hits(scores: ArrayLike, targets: ArrayLike, top: int = 1) -> Array:
    """(clips,) 1 where one of a clip's labels is among its `top` scores, else 0; NaN without."""
    scores, targets = _arrays(scores, targets)
    best = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    hit = np.take_along_axis(targets > 0, best, axis=1).any(1)
    return np.where((targets > 0).any(1), hit, np.nan)


def average_precision(
    scores: ArrayLike, targets: ArrayLike, weights: ArrayLike | None = None
) -> Array:
    """(classes,) or (replicates, classes): sum over thresholds of (recall gained) x precision.

    NaN without a positive.
    """
    scores, targets = _arrays(scores, targets)
    if weights is not None:
        return _weighted(_weighted_precision, scores, targets, weights)
    curve = _Curve(scores, targets)
    seen = np.maximum(curve.positives + curve.negatives, 1)
    gained = np.diff(curve.positives, axis=0, prepend=0)
    total = curve.positives[-1]
    return _divide((gained * curve.positives / seen).sum(0), total)


def mean_average_precision(scores: ArrayLike, targets: ArrayLike, average: str = "macro") -> float:
    """macro: mean over classes (AudioSet's mAP, BirdSet's cmAP); micro: all pairs in one line;
    samples: mean over the clips that have a label."""
    scores, targets = _arrays(scores, targets)
    if average == "micro":
        scores, targets = scores.reshape(-1, 1), targets.reshape(-1, 1)
    elif average == "samples":
        scores, targets = scores.T, targets.T
    elif average != "macro":
        raise ValueError(f"average: macro, micro or samples, got {average!r}")
    return _mean(average_precision(scores, targets))


def auroc(scores: ArrayLike, targets: ArrayLike, weights: ArrayLike | None = None) -> Array:
    """(classes,) or (replicates, classes): area under the ROC curve, ties count one half."""
    scores, targets = _arrays(scores, targets)
    if weights is not None:
        return _weighted(_weighted_area, scores, targets, weights)
    curve = _Curve(scores, targets)
    gained = np.diff(curve.negatives, axis=0, prepend=0)
    before = np.concatenate([np.zeros_like(curve.positives[:1]), curve.positives[:-1]])
    area = (gained * (curve.positives + before) / 2).sum(0)
    return _divide(area, curve.positives[-1] * curve.negatives[-1])


def d_prime(area: ArrayLike) -> Array:
    """Separation of two unit Gaussians with this area under the ROC curve: sqrt(2) * z(area)."""
    normal = NormalDist()

    def one(value: float) -> float:
        if not 0 < value < 1:  # NaN falls through to itself, the ends go to infinity
            return math.nan if math.isnan(value) else math.copysign(math.inf, value - 0.5)
        return math.sqrt(2) * normal.inv_cdf(value)

    return np.array([one(float(value)) for value in np.atleast_1d(np.asarray(area))])


def calibration_error(scores: ArrayLike, targets: ArrayLike, bins: int = BINS) -> float:
    """Expected calibration error of independent labels: over `bins` equal bins of the score, the
    mean of |share present - mean score|, weighed by the pairs in the bin. scores in [0, 1]."""
    scores, targets = _arrays(scores, targets)
    known = targets >= 0
    return _binned(scores[known], (targets[known] > 0).astype(np.float64), bins)


def top_calibration_error(scores: ArrayLike, targets: ArrayLike, bins: int = BINS) -> float:
    """The same for exclusive labels: the highest score of a clip against its being right."""
    scores, targets = _arrays(scores, targets)
    labelled = (targets > 0).any(1)
    if not labelled.any():
        return math.nan
    scores, targets = scores[labelled], targets[labelled]
    best = scores.argmax(1)[:, None]
    right = np.take_along_axis(targets > 0, best, axis=1)
    top = np.take_along_axis(scores, best, axis=1)
    return _binned(top.ravel(), right.ravel().astype(np.float64), bins)


def summary(scores: ArrayLike, targets: ArrayLike) -> dict[str, float]:
    """What an evaluation reports; values that have no meaning for these targets are left out.

    accuracy and top_ece only where no clip has several labels; dprime is that of the mean area.
    """
    scores, targets = _arrays(scores, targets)
    area = _mean(auroc(scores, targets))
    values: dict[str, Any] = {
        "map": mean_average_precision(scores, targets),
        "auroc": area,
        "dprime": float(d_prime(area)[0]),
        "ece": calibration_error(scores, targets),
    }
    if ((targets > 0).sum(1) <= 1).all():
        values["accuracy"] = accuracy(scores, targets)
        values["top_ece"] = top_calibration_error(scores, targets)
    return {name: float(value) for name, value in values.items() if math.isfinite(value)}


class _Curve:
    """Counts above each threshold, (clips, classes); rows inside a tie repeat the tie's start."""

    def __init__(self, scores: Array, targets: Array) -> None:
        order = np.argsort(-scores, axis=0, kind="stable")
        ranked = np.take_along_axis(scores, order, axis=0)
        labels = np.take_along_axis(targets, order, axis=0)
        last_of_tie = np.ones(ranked.shape, bool)
        last_of_tie[:-1] = ranked[1:] != ranked[:-1]
        self.positives = _at_ends((labels > 0).cumsum(0), last_of_tie)
        self.negatives = _at_ends((labels == 0).cumsum(0), last_of_tie)


def _weighted(
    of_one_class: Callable[[Array, NDArray[np.bool_], Array], Array],
    scores: Array,
    targets: Array,
    weights: ArrayLike,
) -> Array:
    """(replicates, classes), class by class: scores of the known clips from the highest."""
    counts = np.asarray(weights)
    if counts.ndim != 2 or counts.shape[1] != len(scores):
        raise ValueError(f"expected weights (replicates, {len(scores)}), got {counts.shape}")
    values = np.empty((len(counts), scores.shape[1]))
    for i in range(scores.shape[1]):
        known = np.flatnonzero(targets[:, i] >= 0)
        order = known[np.argsort(-scores[known, i], kind="stable")]
        ranked, present = scores[order, i], targets[order, i] > 0
        for start in range(0, len(counts), step := max(1, CHUNK // max(1, len(order)))):
            part = slice(start, start + step)
            values[part, i] = of_one_class(ranked, present, counts[part, order].astype(np.float64))
    return values


def _weighted_precision(ranked: Array, present: NDArray[np.bool_], weights: Array) -> Array:
    """(replicates,): each present clip's precision where its tie group ends, weighed."""
    end = np.searchsorted(-ranked, -ranked, side="right") - 1
    positives, seen = (weights * present).cumsum(1), weights.cumsum(1)
    precision = _divide(positives[:, end], seen[:, end])
    return _divide((weights * present * np.nan_to_num(precision)).sum(1), weights @ present)


def _weighted_area(ranked: Array, present: NDArray[np.bool_], weights: Array) -> Array:
    """(replicates,): for each absent clip the positives above it, those of its tie by half."""
    end = np.searchsorted(-ranked, -ranked, side="right")
    begin = np.searchsorted(-ranked, -ranked, side="left")
    above = np.pad((weights * present).cumsum(1), ((0, 0), (1, 0)))
    area = (weights * ~present * (above[:, end] + above[:, begin]) / 2).sum(1)
    return _divide(area, (weights @ present) * (weights @ ~present))


def _at_ends(counts: NDArray[np.int64], ends: NDArray[np.bool_]) -> Array:
    """Counts as they stand at the last tie's end: counts never fall, so a running maximum does."""
    return np.maximum.accumulate(np.where(ends, counts, 0), axis=0).astype(np.float64)


def _binned(scores: Array, right: Array, bins: int) -> float:
    if not len(scores):
        return math.nan
    which = np.clip((scores * bins).astype(np.int64), 0, bins - 1)
    gap = np.bincount(which, right, bins) - np.bincount(which, scores, bins)
    return float(np.abs(gap).sum() / len(scores))


def _arrays(scores: ArrayLike, targets: ArrayLike) -> tuple[Array, Array]:
    first, second = np.asarray(scores, np.float64), np.asarray(targets, np.float64)
    if first.ndim != 2 or first.shape != second.shape or not len(first):
        raise ValueError(f"expected two tables of one shape, got {first.shape} and {second.shape}")
    if not np.isfinite(first).all():
        raise ValueError("scores must be finite")
    return first, second


def _divide(part: Array, whole: Array) -> Array:
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)


def _mean(values: Array) -> float:
    good = values[np.isfinite(values)]
    return float(good.mean()) if len(good) else math.nan
