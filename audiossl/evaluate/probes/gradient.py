"""The small loop that fits mlp, attentive and prototypical probes on frozen features.

engine/train.py is the loop for models: recipes, files, checkpoints. Here a few hundred updates of a
few thousand numbers are repeated for every fold, seed and number of shots, in threads, so all that
is random comes from one generator and nothing is written.

As Bird-MAE trains its probes (public code, few-shot configs): AdamW, warm-up over 6.7 % of the
updates, cosine to 0, gradients clipped to a norm of 2, 50 epochs, batches of 64.
Deviation: where 50 epochs are but a few updates (few shots of few classes), there are at least 100,
and more where a probe asks for them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from audiossl.evaluate.probes import Goal, Settings
from audiossl.methods import supervised

EPOCHS, LEAST = 50, 100  # updates
WARMUP = 0.067
CLIP = 2.0

Index = NDArray[np.int64]


def train(
    loss: Callable[[Index], Tensor],
    groups: Sequence[dict[str, Any]],
    clips: int,
    settings: Settings,
    seed: int,
    least: int = LEAST,
) -> None:
    """Minimise `loss(places of a batch)` over the parameters in `groups` (AdamW's, each its lr).

    least: updates, where the settings name no epochs.
    """
    rng = np.random.default_rng(seed)
    rates = [group["lr"] for group in groups]
    optimizer = torch.optim.AdamW(groups)  # type: ignore[arg-type]
    parameters = [value for group in groups for value in group["params"]]
    a_pass = math.ceil(clips / settings.batch_size)
    steps = a_pass * settings.epochs if settings.epochs else max(a_pass * EPOCHS, least)
    batches: list[Index] = []
    for step in range(steps):
        if step % a_pass == 0:
            batches = np.array_split(rng.permutation(clips), a_pass)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * share(step, steps)
        optimizer.zero_grad()
        loss(batches[step % a_pass]).backward()
        nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()


def share(step: int, steps: int) -> float:
    """Of the learning rate, at update `step` of `steps`."""
    warmup = max(1, round(WARMUP * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def goal_loss(logits: Tensor, goal: Goal, places: Index) -> Tensor:
    """Cross-entropy for one label a clip, Bird-MAE's asymmetric loss for several."""
    target = torch.from_numpy(goal.targets[places])
    if goal.single:
        return supervised.cross_entropy(logits, target)[0].mean()
    known = (target >= 0).to(logits)
    return (supervised.asymmetric(logits, target) * known).sum() / known.sum().clamp(min=1)


def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """torch's own initial values of linear layers, from `generator` alone."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)
            if layer.bias is not None:
                bound = 1 / math.sqrt(layer.in_features)
                nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
