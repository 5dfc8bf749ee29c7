"""Evaluation of a method: mean loss, and metrics of its scores pooled by clip."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import nn

from audiossl.data.loader import SKIPPED, valid_loader
from audiossl.engine.job import seed_all
from audiossl.evaluate import metrics

STEP = 2**31  # stands for the step when random parts of a loss are seeded: no training step is it


@torch.inference_mode()
def evaluate(
    method: nn.Module,
    items: Any,
    batch_size: int,
    seed: int,
    device: torch.device,
    workers: int = 0,
) -> tuple[dict[str, float], list[tuple[str, str]]]:
    """({"loss", and with scores and targets those of metrics.summary}, [(file, why skipped)]).

    A clip's score is the mean over its windows. Random parts of a loss (masks) are the same at each
    evaluation.
    """
    was_training = method.training
    method.eval()
    total = weights = 0.0
    skipped: dict[str, str] = {}
    scores, targets, index = [], [], []
    for number, batch in enumerate(valid_loader(items, batch_size, workers)):
        seed_all(seed, STEP, number)
        skipped.update(batch.pop(SKIPPED, ()))
        batch = to_device(batch, device)
        loss, values = method.loss(batch)  # type: ignore[operator]
        weight = float(values.get("weight", 1.0))
        total, weights = total + float(loss) * weight, weights + weight
        if "scores" in values:
            scores.append(values["scores"].float().cpu().numpy())
            targets.append(batch["target"].cpu().numpy())
            index.append(batch["index"].cpu().numpy())
    method.train(was_training)
    result = {"loss": total / weights} if weights else {}
    if scores and math.isfinite(result.get("loss", math.nan)):
        result |= metrics.summary(*pool(*map(np.concatenate, (scores, targets, index))))
    return result, list(skipped.items())


def pool(
    scores: np.ndarray, targets: np.ndarray, index: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(windows, classes), (windows, classes), (windows,) -> (clips, classes) twice: mean score."""
    _, first, clip, counts = np.unique(
        index, return_index=True, return_inverse=True, return_counts=True
    )
    pooled = np.zeros((len(first), scores.shape[1]))
    np.add.at(pooled, clip, scores)
    return pooled / counts[:, None], targets[first]


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Tensors of a batch on `device`."""
    if device.type == "cpu":
        return batch
    return {
        name: value.to(device, non_blocking=True) if torch.is_tensor(value) else value
        for name, value in batch.items()
    }
