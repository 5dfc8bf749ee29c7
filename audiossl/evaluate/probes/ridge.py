"""The closed-form scaled probe: least squares on class indicators, its scores scaled afterwards.

    W = (X^T X / n + l2 I)^-1 X^T Y / n,   X and Y less their means

takes one singular value decomposition for all strengths and classes; for two classes its direction
is that of linear discriminant analysis (Hastie, Tibshirani, Friedman, The Elements of Statistical
Learning, exercise 4.2). The scores s are scaled into probabilities, softmax(a s), or sigmoid(a s +
b) with several labels a clip, where a and b have the greatest likelihood on held-out groups.
Uses `l2`; without it the value of GRID with the least squared error on held-out groups. Where there
is too little to hold out, l2 = 1 and a = 10.

An unknown target stands at its class's mean, so that it pulls to neither side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from audiossl.evaluate.probes import Goal, Predict, Scores, Settings
from audiossl.evaluate.probes.linear import Part, divisions, loss

NEEDS = "pooled"
GRID = tuple(10.0 ** (power / 2) for power in range(6, -7, -1))  # 1000 ... 1e-3
FALLBACK_L2, FALLBACK_SCALE = 1.0, 10.0
PULL = 1e-4  # towards the fallback, or scores that divide the classes would be scaled without end

Array = NDArray[np.float64]


def fit(
    features: NDArray[np.float32],
    goal: Goal,
    settings: Settings,
    seed: int,
    valid: Part | None = None,
) -> Predict:
    """features: (clips, dim), best standardised. Scores are probabilities."""
    grid = GRID if settings.l2 is None else (settings.l2,)
    parts = list(divisions(features, goal, seed, valid))
    strength = FALLBACK_L2 if settings.l2 is None else settings.l2
    scale, shift = FALLBACK_SCALE, 0.0
    if parts:
        held = [least_squares(*fitted, grid, asked=outside[0]) for fitted, outside in parts]
        targets = np.concatenate([outside[1].targets for _, outside in parts])
        scores = np.concatenate(held, axis=1)  # (strengths, held-out clips, classes)
        known = targets >= 0
        errors = [np.square(own - targets)[known].mean() for own in scores]
        best = int(np.argmin(errors))
        strength = grid[best]
        scale, shift = scaling(scores[best], targets, goal.single)

    def predict(asked: NDArray[np.float32]) -> Scores:
        (found,) = least_squares(features, goal, (strength,), asked)
        logits = torch.from_numpy(scale * found + shift)
        return (logits.softmax(1) if goal.single else logits.sigmoid()).float().numpy()

    return predict


def least_squares(
    features: NDArray[np.float32],
    goal: Goal,
    strengths: Sequence[float],
    asked: NDArray[np.float32],
) -> list[Array]:
    """For each strength the scores (asked clips, classes), near 1 for present and 0 for absent."""
    x = features.astype(np.float64)
    known = goal.targets >= 0
    y = np.where(known, goal.targets, 0.0)
    mean, share = x.mean(0), y.sum(0) / np.maximum(known.sum(0), 1)
    left, sizes, right = np.linalg.svd(x - mean, full_matrices=False)
    against = left.T @ np.where(known, y - share, 0.0)  # (rank, classes)
    directions = (asked - mean) @ right.T  # (asked clips, rank)
    shrunk = [sizes / (sizes**2 + len(x) * strength) for strength in strengths]
    return [directions @ (factor[:, None] * against) + share for factor in shrunk]


def scaling(scores: Array, targets: NDArray[np.float32], single: bool) -> tuple[float, float]:
    """(a, b) of greatest likelihood; b is 0 where softmax doesn't see it."""
    given, wanted = torch.from_numpy(scores), torch.from_numpy(targets.astype(np.float64))
    start = torch.tensor([math.log(FALLBACK_SCALE), 0.0], dtype=torch.float64)
    values = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([values], max_iter=50, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = values[0].exp() * given + values[1]
        value = loss(logits, wanted, single)[0] + PULL * (values - start).square().sum()
        value.backward()
        return value

    optimizer.step(closure)  # type: ignore[arg-type]
    scale, shift = values.detach().tolist()
    return math.exp(scale), shift
