"""Metrics of scores against labels, vectorised over classes.

scores: (clips, classes) float, higher = more; targets: (clips, classes), 1 present, 0 absent and
below 0 unknown: an unknown pair takes part in nothing. A class without a known positive (or, for
auroc, without a known negative) has no value: NaN in the per-class functions, left out of means.
Clips with equal scores stand at one threshold, as scikit-learn has it.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

BINS = 15  # of the calibration error (Guo et al. 2017, arXiv 1706.04599)

Array = NDArray[np.float64]


def accuracy(scores: ArrayLike, targets: ArrayLike, top: int = 1) -> float:
    """Share of clips with one of their labels among the `top` scores; NaN without labelled clips.

    Clips without a present label don't count. Among equal scores the first class wins.
    """
    scores, targets = _arrays(scores, targets)
    labelled = (targets > 0).any(1)
    best = np.argsort(-scores[labelled], axis=1, kind="stable")[:, :top]
    hits = np.take_along_axis(targets[labelled] > 0, best, axis=1).any(1)
    return float(hits.mean()) if labelled.any() else math.nan


def average_precision(scores: ArrayLike, targets: ArrayLike) -> Array:
    """(classes,) sum over thresholds of (recall gained) x precision; NaN without a positive."""
    curve = _Curve(*_arrays(scores, targets))
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


def auroc(scores: ArrayLike, targets: ArrayLike) -> Array:
    """(classes,) area under the ROC curve: ties count one half."""
    curve = _Curve(*_arrays(scores, targets))
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
