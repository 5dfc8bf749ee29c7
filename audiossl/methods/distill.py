"""Distillation: a small encoder learns to give the embeddings and scores a teacher gave.

    wave -> tokens -> mean over each window of them: e -> compared with the teacher's embedding t
                                                   \\-> linear layer (not kept) -> its scores

Needs no labels: any sound that the teacher has heard will do. The teacher runs once, before; what
it said about the windows of each clip is read from a folder of arrays, row for row beside the
training manifest (so a clip must be exactly as long as `data.crop_seconds`):

    embedding.npy  (rows, windows, dim)       float16 or float32
    scores.npy     (rows, windows, classes)   float16 or float32, in [0, 1]

A teacher that hears about a second at a time thus teaches a student that hears the whole clip, at
one pass a clip however much its windows overlap.

The loss is

    L = mean_d ((e_d - t_d) / s_d)^2  +  cosine (1 - cos(e, t))  +  scores BCE(W e + b, teacher)

averaged over windows, with s_d the teacher's standard deviation over the rows, so that rare
directions of its embedding count like frequent ones, and the BCE summed over classes. After
Hinton et al. 2015 (arXiv:1503.02531, section 2: match soft targets) and Romero et al. 2015
(FitNets, arXiv:1412.6550, equation 3: match hidden features); the scaling by s_d and the weights
are choices of this project.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiossl.errors import RecipeError
from audiossl.model import Model
from audiossl.typed_yaml import Range

FLOOR = 0.05  # least standard deviation: a dimension that is nearly always 0 must not rule the loss
SPREAD_ROWS = 20_000  # rows that the standard deviation is estimated from, evenly spaced
RARE = -5.0  # first bias of the score layer: most classes are absent from most clips


@dataclass
class Config:
    teacher: str
    """Folder with embedding.npy and scores.npy, one row for each row of the training manifest."""
    window_tokens: Annotated[int, Range(low=1)] = 6
    """Tokens of the student that lie in one window of the teacher."""
    hop_tokens: Annotated[int, Range(low=1)] = 3
    """Tokens from one window to the next."""
    cosine: Annotated[float, Range(low=0)] = 2.0
    """Weight of the cosine distance."""
    scores: Annotated[float, Range(low=0)] = 0.2
    """Weight of the cross-entropy with the teacher's scores; 0: scores.npy is not read."""


class Method(nn.Module):
    """The encoder is trained; the score layer and the teacher's arrays are left behind.

    Raises RecipeError when an array is missing or its width is not the encoder's, and, at the first
    batch, when the student has not as many windows as the teacher.
    """

    spread: Tensor  # (dim,)

    def __init__(self, model: Model, config: Config) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self._embeddings = _array(config.teacher, "embedding.npy")
        encoder: Any = model.encoder
        dim, width = int(encoder.dim), self._embeddings.shape[2]
        if width != dim:
            raise RecipeError(f"method.teacher: {width} dimensions, but the encoder gives {dim}")
        self.register_buffer("spread", _spread(self._embeddings), persistent=False)
        self._scores = _array(config.teacher, "scores.npy") if config.scores > 0 else None
        if self._scores is not None:
            if self._scores.shape[:2] != self._embeddings.shape[:2]:
                raise RecipeError("method.teacher: embedding.npy and scores.npy differ in rows")
            self.classify = nn.Linear(dim, self._scores.shape[2])
            nn.init.constant_(self.classify.bias, RARE)

    def loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """batch: a spectrogram and index (batch,), the manifest rows of the clips."""
        embedding = self.windows(self.model.spectrogram(batch))  # (batch, windows, dim)
        target = _rows(self._embeddings, batch["index"]).to(embedding.device)
        if embedding.shape != target.shape:
            told, heard = target.shape[1], embedding.shape[1]
            raise RecipeError(f"method.teacher: {told} windows a clip, but the student has {heard}")
        regress = ((embedding - target) / self.spread).square().mean()
        angle = 1 - F.cosine_similarity(embedding, target, dim=-1).mean()
        loss = regress + self.config.cosine * angle
        parts = {"regress": regress.detach(), "angle": angle.detach()}
        if self._scores is not None:
            wanted = _rows(self._scores, batch["index"]).to(embedding.device)
            entropy = F.binary_cross_entropy_with_logits(
                self.classify(embedding), wanted, reduction="none"
            )
            scores = entropy.sum(dim=-1).mean()
            loss = loss + self.config.scores * scores
            parts["scores"] = scores.detach()
        return loss, parts

    def windows(self, spec: Tensor) -> Tensor:
        """spec: (batch, mel, frames) -> (batch, windows, dim), means of the student's tokens."""
        tokens = self.model.encoder(spec)  # (batch, tokens, dim)
        config = self.config
        return tokens.unfold(1, config.window_tokens, config.hop_tokens).mean(dim=-1)


def _array(folder: str, name: str) -> np.ndarray:
    path = Path(folder).expanduser() / name
    try:
        array = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise RecipeError(f"method.teacher: {path}: {error}") from error
    if array.ndim != 3 or array.size == 0 or array.dtype.kind != "f":
        raise RecipeError(f"method.teacher: {path}: expected floats (rows, windows, values)")
    return array


def _spread(embeddings: np.ndarray) -> Tensor:
    """Standard deviation of each dimension, (dim,), with `FLOOR` added in variance."""
    step = max(1, len(embeddings) // SPREAD_ROWS)
    variance = np.asarray(embeddings[::step], dtype=np.float32).var(axis=(0, 1))
    return torch.from_numpy(np.sqrt(variance + FLOOR**2))


def _rows(array: np.ndarray, index: Tensor) -> Tensor:
    return torch.from_numpy(array[index.cpu().numpy()].astype(np.float32))
