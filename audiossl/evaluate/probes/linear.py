"""Logistic regression with an L2 penalty, fitted by L-BFGS to its optimum.

    minimise  mean over clips of loss(x W + b, target)  +  l2 / 2 |W|^2

One label a clip: softmax and cross-entropy (multinomial). Several: for each class a sigmoid and
binary cross-entropy over the clips where it is known (one against the rest), as one problem, which
falls apart into the classes'. Uses `l2`; without it the value with the least loss on held-out
groups of the training side (or on `valid`) is taken from GRID, and 1 / clips (scikit-learn's C = 1)
where there is too little to hold out.

With fewer clips than dimensions the optimum lies in the span of the clips: the problem is rotated
into it first (the penalty doesn't notice), which is what makes few shots and cross-validation fast.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from audiossl.evaluate.probes import Goal, Predict, Scores, Settings
from audiossl.evaluate.protocol import inner_folds

NEEDS = "pooled"
GRID = (10.0, 1.0, 0.1, 0.01, 1e-3, 1e-4)  # strong ones first: they are found at once
PATIENCE = 1  # values of the grid that may be worse before the search ends
ROUNDS = 500
TOLERANCE, COARSE = 1e-5, 1e-3  # of the gradient: of the probe, and while l2 is chosen

Part = tuple[NDArray[np.float32], Goal]


def fit(
    features: NDArray[np.float32],
    goal: Goal,
    settings: Settings,
    seed: int,
    valid: Part | None = None,
) -> Predict:
    """features: (clips, dim), best standardised. Scores are probabilities."""
    l2 = settings.l2
    if l2 is None:
        l2 = choose(features, goal, seed, valid)
    (weight, bias), *_ = path(features, goal, [l2])

    def predict(asked: NDArray[np.float32]) -> Scores:
        logits = torch.from_numpy(asked.astype(np.float64)) @ weight + bias
        return (logits.softmax(1) if goal.single else logits.sigmoid()).float().numpy()

    return predict


def choose(features: NDArray[np.float32], goal: Goal, seed: int, valid: Part | None) -> float:
    """The strength of GRID with the least mean loss on what is held out."""
    parts = list(divisions(features, goal, seed, valid))
    if not parts:
        return 1 / len(features)
    losses = np.zeros(len(GRID))
    for (inside, own), (outside, others) in parts:
        held = torch.from_numpy(outside.astype(np.float64))
        target = torch.from_numpy(others.targets.astype(np.float64))
        worse, found = 0, np.full(len(GRID), np.inf)
        for i, (weight, bias) in enumerate(path(inside, own, GRID, COARSE)):
            found[i] = float(loss(held @ weight + bias, target, goal.single)[0])
            worse = worse + 1 if found[i] > found.min() else 0
            if worse > PATIENCE:
                break
        losses += found * len(outside)
    return GRID[int(losses.argmin())]


def path(
    features: NDArray[np.float32],
    goal: Goal,
    strengths: Iterable[float],
    tolerance: float = TOLERANCE,
) -> Iterator[tuple[Tensor, Tensor]]:
    """(weight (dim, classes), bias (classes,)) float64 for each strength in turn, each fit begun
    where the one before ended."""
    x = torch.from_numpy(features.astype(np.float64))
    target = torch.from_numpy(goal.targets.astype(np.float64))
    basis = None
    if len(x) < x.shape[1]:
        basis, triangle = torch.linalg.qr(x.T)
        x = triangle.T  # (clips, clips): the clips' coordinates in their span
    start = torch.zeros(x.shape[1] + 1, target.shape[1], dtype=torch.float64)
    for strength in strengths:
        start = minimise(x, target, goal.single, strength, start, tolerance)
        weight = start[:-1] if basis is None else basis @ start[:-1]
        yield weight, start[-1]


def minimise(
    x: Tensor, target: Tensor, single: bool, l2: float, start: Tensor, tolerance: float
) -> Tensor:
    """x: (clips, dim), target: (clips, classes), start: (dim + 1, classes) -> optimum."""
    values = start.clone().requires_grad_()  # the last row is the bias
    optimizer = torch.optim.LBFGS(
        [values],
        max_iter=ROUNDS,
        history_size=20,
        tolerance_grad=tolerance,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    @torch.no_grad()
    def closure() -> Tensor:
        weight = values[:-1]
        value, slope = loss(x @ weight + values[-1], target, single)
        values.grad = torch.cat([x.T @ slope + l2 * weight, slope.sum(0, keepdim=True)])
        return value + l2 / 2 * weight.square().sum()

    optimizer.step(closure)  # type: ignore[arg-type]
    return values.detach()


def loss(logits: Tensor, target: Tensor, single: bool) -> tuple[Tensor, Tensor]:
    """Mean over clips of the cross-entropy, and its slope (clips, classes) by the logits.

    Unknown targets add nothing.
    """
    if single:
        shares = logits.log_softmax(1)
        value, slope = -(shares * target), shares.exp() - target
    else:
        known = (target >= 0).to(logits)
        # log(1 + e^l) - t l
        value = known * (torch.nn.functional.softplus(logits) - target.clamp(min=0) * logits)
        slope = known * (logits.sigmoid() - target.clamp(min=0))
    return value.sum() / len(logits), slope / len(logits)


def divisions(
    features: NDArray[np.float32], goal: Goal, seed: int, valid: Part | None
) -> Iterator[tuple[Part, Part]]:
    """(fitted, held out) for a choice: the clips given for it, or groups of the training side."""
    if valid is not None:
        yield (features, goal), valid
        return
    for train, held in inner_folds(goal.groups, goal.targets, seed):
        yield (features[train], goal.take(train)), (features[held], goal.take(held))
