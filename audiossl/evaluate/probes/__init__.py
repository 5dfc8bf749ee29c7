"""Probes: small classifiers on frozen features, one a file; the file's name is the probe's name.

Each file defines `NEEDS`, the kind of features it takes ("pooled" or "tokens"), and

    fit(features, goal, settings, seed, valid=None) -> predict

where `predict(features) -> scores (clips, classes)`, higher = more. The same arguments give the
same probe; nothing random is drawn from a global generator, so probes can be fitted in threads.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

NAMES = ("knn", "linear", "ridge", "mlp", "attentive", "prototypical")

Scores = NDArray[np.float32]
Predict = Callable[[Any], Scores]


@dataclass(frozen=True)
class Goal:
    """What is to be learned of the clips at hand.

    targets: (clips, classes) float32: 1 present, 0 absent, -1 unknown. groups: (clips,), which
    belong together. single: each clip has exactly one label.
    """

    targets: NDArray[np.float32]
    groups: NDArray[np.int64]
    single: bool

    def take(self, places: NDArray[np.int64]) -> Goal:
        """Only these clips."""
        return Goal(self.targets[places], self.groups[places], self.single)


@dataclass(frozen=True)
class Settings:
    """What can be set of the probes; each file says what it uses.

    k, temperature: of knn. l2: strength for linear and ridge, None: chosen by validation inside the
    training side. epochs, batch_size: of what is trained by gradient; epochs None: as many as
    gradient.py says. prototypes: a class.
    """

    k: int = 10
    temperature: float = 0.07
    l2: float | None = None
    epochs: int | None = None
    batch_size: int = 64
    prototypes: int = 20


def load(name: str) -> Any:
    """The module of probe `name`, one of NAMES."""
    return importlib.import_module(f"{__name__}.{name}")
