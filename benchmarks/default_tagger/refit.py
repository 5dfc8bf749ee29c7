"""Fit the head anew on the finished encoder: one L2-regularised logistic regression a label.

The last step of training. Stochastic updates of 48 thousand head weights from a few hundred clips a
class stay far from the optimum, which a quasi-Newton method finds in seconds: over the rows of the
training table, embeddings standardised,

    minimise  mean over rows of sum over known labels of BCE(w x + b, target)  +  penalty / 2 |w|^2

and fold the standardisation into w and b.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
import torch
import torch.nn.functional as F
from torch import Tensor

from audiossl.data import manifest
from audiossl.model import Model, load, save_model

PENALTY = 0.03  # on splits 1 and 2 everything from 0.02 to 0.2 named as well
ROUNDS = 60


def refit(folder: Path, table: Path, root: Path, target: Path, penalty: float = PENALTY) -> None:
    """Model `folder` with a head fitted on the rows of `table` -> model folder `target`."""
    model = load(str(folder))
    rows = manifest.read(table, str(root))
    paths = sorted({row.path for row in rows})
    embedding = dict(zip(paths, embeddings(model, paths), strict=True))
    inputs = torch.stack([embedding[row.path] for row in rows])
    targets = torch.from_numpy(manifest.targets(rows, model.labels))
    weight, bias = fit_head(inputs, targets, penalty)
    with torch.no_grad():
        linear = model.head.linear  # type: ignore[union-attr]
        linear.weight.copy_(weight)  # type: ignore[operator]
        linear.bias.copy_(bias)  # type: ignore[operator, union-attr]
    save_model(model, target)


def embeddings(model: Model, paths: list[Path]) -> Tensor:
    """(clips, dim) of whole clips."""
    torch.set_num_threads(1)
    result = []
    with torch.inference_mode():
        for path in paths:
            wave = soundfile.read(path, dtype="float32")[0]
            wave = np.pad(wave, (0, max(0, 400 - len(wave))))  # one frame at least
            result.append(model.embed(torch.from_numpy(wave)[None])[0].clone())
    return torch.stack(result).clone()


def fit_head(inputs: Tensor, targets: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """inputs (rows, dim), targets (rows, labels) 1, 0 or -1 -> weight (labels, dim), bias."""
    mean, spread = inputs.mean(0), inputs.std(0) + 1e-3
    x, known = (inputs - mean) / spread, (targets >= 0).float()
    weight = torch.zeros(targets.shape[1], inputs.shape[1], requires_grad=True)
    bias = torch.full((targets.shape[1],), -3.0, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=ROUNDS, history_size=20, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = F.linear(x, weight, bias)
        losses = F.binary_cross_entropy_with_logits(logits, targets.clamp(min=0), reduction="none")
        loss = (losses * known).sum() / len(x) + penalty / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    scaled = weight.detach() / spread
    return scaled, bias.detach() - scaled @ mean
