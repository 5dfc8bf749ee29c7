"""Evaluation of a method: mean loss, and metrics of its scores pooled by clip."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from audiossl.data.draws import SKIPPED
from audiossl.data.loader import valid_loader
from audiossl.engine.distributed import Team
from audiossl.engine.job import seed_all
from audiossl.evaluate import metrics

STEP = 2**31  # stands for the step when random parts of a loss are seeded: no training step is it


@dataclass
class _Batch:
    """What one batch gave: arrays as they come, (batch, classes) and (batch,)."""

    loss: float
    weight: float
    scores: np.ndarray | None = None
    targets: np.ndarray | None = None
    index: np.ndarray | None = None
    skipped: list[tuple[str, str]] = field(default_factory=list)


@torch.inference_mode()
def evaluate(
    method: nn.Module, items: Any, batch_size: int, seed: int, team: Team, workers: int = 0
) -> tuple[dict[str, float], list[tuple[str, str]]]:
    """({"loss", and with scores and targets those of metrics.summary}, [(file, why skipped)]).

    A clip's score is the mean over its windows. Random parts of a loss (masks) are the same at each
    evaluation. Several processes take the batches in turn, all equally many, and get one result.
    """
    was_training = method.training
    method.eval()
    loader = valid_loader(items, batch_size, workers, team.rank, team.size)
    mine = [
        _evaluated(method, batch, (seed, STEP, turn * team.size + team.rank), team.device)
        for turn, batch in enumerate(loader)
    ]
    method.train(was_training)
    everyone = team.gather(mine)
    batches = [one for turn in zip(*everyone, strict=True) for one in turn]
    return team.first(lambda: _summary(batches[: -(-len(items) // batch_size)]))


def _evaluated(
    method: Any, batch: dict[str, Any], seeds: tuple[int, ...], device: torch.device
) -> _Batch:
    seed_all(*seeds)
    skipped = list(batch.pop(SKIPPED, ()))
    batch = to_device(batch, device)
    loss, values = method.loss(batch)
    result = _Batch(float(loss), float(values.get("weight", 1.0)), skipped=skipped)
    if "scores" in values:
        result.scores = values["scores"].float().cpu().numpy()
        result.targets = batch["target"].cpu().numpy()
        result.index = batch["index"].cpu().numpy()
    return result


def _summary(batches: list[_Batch]) -> tuple[dict[str, float], list[tuple[str, str]]]:
    weights = sum(batch.weight for batch in batches)
    total = sum(batch.loss * batch.weight for batch in batches)
    result = {"loss": total / weights} if weights else {}
    scored = [
        (batch.scores, batch.targets, batch.index) for batch in batches if batch.scores is not None
    ]
    if scored and math.isfinite(result.get("loss", math.nan)):
        result |= metrics.summary(*pool(*map(np.concatenate, zip(*scored, strict=True))))
    skipped = dict(entry for batch in batches for entry in batch.skipped)
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
