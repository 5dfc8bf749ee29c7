"""k nearest neighbours by cosine, weighted by exp(similarity / temperature).

As in instance discrimination (Wu et al. 2018, arXiv 1805.01978, section 3.4) and DINO, with the
temperature 0.07 of both. A class's score is the weighted share of the neighbours that have it, of
those for which it is known. Uses `k` (at most the clips there are) and `temperature`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from audiossl.evaluate.probes import Goal, Predict, Scores, Settings

NEEDS = "pooled"
BLOCK = 1 << 24  # similarities at a time: 64 MB


def fit(
    features: NDArray[np.float32],
    goal: Goal,
    settings: Settings,
    seed: int,
    valid: tuple[NDArray[np.float32], Goal] | None = None,
) -> Predict:
    """features: (clips, dim). Nothing is learned: the clips are kept."""
    kept, k = _unit(features), min(settings.k, len(features))
    known, present = goal.targets >= 0, goal.targets > 0

    def predict(asked: NDArray[np.float32]) -> Scores:
        scores = np.empty((len(asked), goal.targets.shape[1]), np.float32)
        step = max(1, BLOCK // len(kept))
        for start in range(0, len(asked), step):
            similarity = _unit(asked[start : start + step]) @ kept.T
            nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
            near = np.take_along_axis(similarity, nearest, axis=1)
            # Relative to the nearest: the same shares, and no overflow at a small temperature.
            weight = np.exp((near - near[:, :1]) / settings.temperature)[:, :, None]
            total = (weight * known[nearest]).sum(1)
            share = (weight * present[nearest]).sum(1)
            scores[start : start + step] = share / np.maximum(total, np.finfo(np.float32).tiny)
        return scores

    return predict


def _unit(features: NDArray[np.float32]) -> NDArray[np.float32]:
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.maximum(length, np.finfo(np.float32).tiny)
