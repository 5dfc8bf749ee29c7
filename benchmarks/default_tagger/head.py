"""Give the distilled encoder its labels: one L2-regularised logistic regression a label.

The encoder stays as its teacher left it: fine-tuned on a few hundred clips a class it forgets more
than it learns (split 1: 86.3 % and 49.1 %). And stochastic updates of 48 thousand weights stay far
from the optimum that a quasi-Newton method finds in seconds: over the rows of the training table,
embeddings standardised,

    minimise  mean over rows of sum over known labels of BCE(w x + b, target)  +  penalty / 2 |w|^2

and fold the standardisation into w and b.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile
import torch
import torch.nn.functional as F
from torch import Tensor

from audiossl.data import reading
from audiossl.data import rows as tables
from audiossl.model import Model, load, save_model

PENALTY = 0.02  # 0.01 is better for ESC-10, 0.03 for UrbanSound8K, by a point
ROUNDS = 200  # as good as 500; after 60 what comes out still depends on rounding
WINDOW = 5.0  # seconds that `audiossl tag` hears at a time


def give_head(folder: Path, table: Path, root: Path, labels: list[str], target: Path) -> None:
    """Encoder `folder` with a head fitted on the rows of `table` -> tagger, model folder `target`.

    A run that is killed leaves no `target`: it is renamed to when it is whole.
    """
    torch.set_num_threads(1)  # first: OpenMP's threads do not come along when a process is forked
    encoder = load(str(folder))
    rows = reading.read(table, str(root))
    paths = sorted({row.path for row in rows})
    embedding = dict(zip(paths, embeddings(encoder, paths), strict=True))
    inputs = torch.stack([embedding[row.path] for row in rows])
    weight, bias = fit_head(inputs, torch.from_numpy(tables.targets(rows, labels)))
    head = {"name": "linear", "activation": "sigmoid", "labels": labels}
    config = replace(encoder.config, head=head, task="tag", window_seconds=WINDOW)
    tagger = Model(config)
    tagger.encoder.load_state_dict(encoder.encoder.state_dict())
    with torch.no_grad():
        linear = tagger.head.linear  # type: ignore[union-attr]
        linear.weight.copy_(weight)  # type: ignore[operator]
        linear.bias.copy_(bias)  # type: ignore[operator, union-attr]
    half = target.with_name(target.name + ".part")
    save_model(tagger, half)
    half.rename(target)


def embeddings(model: Model, paths: list[Path]) -> Tensor:
    """(clips, dim) of whole clips."""
    result = []
    with torch.inference_mode():
        for path in paths:
            wave = soundfile.read(path, dtype="float32")[0]
            wave = np.pad(wave, (0, max(0, 400 - len(wave))))  # one frame at least
            result.append(model.embed(torch.from_numpy(wave)[None])[0].clone())
    return torch.stack(result).clone()


def fit_head(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
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
        loss = (losses * known).sum() / len(x) + PENALTY / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    scaled = weight.detach() / spread
    return scaled, bias.detach() - scaled @ mean
