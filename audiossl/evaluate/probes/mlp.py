"""One hidden layer of 512 with ReLU, as Bird-MAE's MLP probe has it, on pooled features.

AdamW 1e-3 with weight decay 3e-4, the loop of gradient.py. Cross-entropy for one label a clip, the
asymmetric loss for several. Uses `epochs` and `batch_size`.
Deviation: Bird-MAE's learning rate is 3e-4, for training sets of thousands; with a few hundred
clips its number of updates leaves the probe unfinished.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from audiossl.evaluate.probes import Goal, Predict, Scores, Settings, gradient

NEEDS = "pooled"
HIDDEN = 512
RATE, DECAY = 1e-3, 3e-4


def fit(
    features: NDArray[np.float32],
    goal: Goal,
    settings: Settings,
    seed: int,
    valid: tuple[NDArray[np.float32], Goal] | None = None,
) -> Predict:
    """features: (clips, dim), best standardised. Scores are probabilities."""
    dim, classes = features.shape[1], goal.targets.shape[1]
    net = nn.Sequential(nn.Linear(dim, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, classes))
    gradient.initialise(net, torch.Generator().manual_seed(seed))
    inputs = torch.from_numpy(features)
    gradient.train(
        lambda places: gradient.goal_loss(net(inputs[places]), goal, places),
        [{"params": list(net.parameters()), "lr": RATE, "weight_decay": DECAY}],
        len(features),
        settings,
        seed,
    )

    @torch.no_grad()
    def predict(asked: NDArray[np.float32]) -> Scores:
        logits = net(torch.from_numpy(asked))
        return (logits.softmax(1) if goal.single else logits.sigmoid()).numpy()

    return predict
