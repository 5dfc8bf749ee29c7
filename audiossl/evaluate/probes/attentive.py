"""Attentive probe: one learned query attends to a clip's patch tokens, then a linear layer.

Parts: keys and values, linear without bias; a learned query; scaled dot-product attention in heads;
LayerNorm; linear (Bird-MAE's attentive pooling, public code, after AIM, El-Nouby et al. 2024). All
windows of a clip are attended to at once. AdamW 1e-3 with weight decay 3e-4, the loop of
gradient.py. Cross-entropy for one label a clip, the asymmetric loss for several. Uses `epochs` and
`batch_size`.
Heads: of 64 dimensions, or of the next larger number that divides the tokens' (Bird-MAE takes the
encoder's heads). Tokens are those after the encoder's final norm (Bird-MAE: before it).

With a single query neither keys nor values need be made: q . (K x) is (K^T q) . x, and the weighted
mean of V x is V times the weighted mean of x. The same numbers for a fraction of the work.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from audiossl.evaluate.probes import Goal, Predict, Scores, Settings, gradient
from audiossl.evaluate.tokens import Index, Tokens

NEEDS = "tokens"
HEAD_DIM = 64
EPS = 1e-6  # of the norm
RATE, DECAY = 1e-3, 3e-4


class AttentivePooling(nn.Module):
    """tokens (batch, tokens, dim) -> (batch, dim). Names of parameters are the published ones."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.k = nn.Linear(dim, dim, bias=False)
        self.v = nn.Linear(dim, dim, bias=False)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """mask: (batch, tokens), True where a token counts."""
        shape = (self.heads, -1)
        query = self.cls_token.flatten().unflatten(0, shape)  # (heads, dim / heads)
        keys, values = (part.weight.unflatten(0, shape) for part in (self.k, self.v))
        asked = torch.einsum("hd,hdc->hc", query, keys) / query.shape[1] ** 0.5  # (heads, dim)
        scores = tokens @ asked.T  # (batch, tokens, heads)
        if mask is not None:
            scores = scores.masked_fill(~mask[..., None], -torch.inf)
        heard = scores.softmax(1).transpose(1, 2) @ tokens  # (batch, heads, dim)
        return torch.einsum("bhc,hdc->bhd", heard, values).flatten(1)


def heads_for(dim: int) -> int:
    """The largest number of heads of at least HEAD_DIM dimensions that divides `dim`, or 1."""
    return next(count for count in range(max(1, dim // HEAD_DIM), 0, -1) if dim % count == 0)


def fit(
    features: Tokens,
    goal: Goal,
    settings: Settings,
    seed: int,
    valid: tuple[Tokens, Goal] | None = None,
) -> Predict:
    """Scores are probabilities."""
    pooling = AttentivePooling(features.dim, heads_for(features.dim))
    norm = nn.LayerNorm(features.dim, eps=EPS)
    linear = nn.Linear(features.dim, goal.targets.shape[1])
    net = nn.ModuleList([pooling, norm, linear])
    generator = torch.Generator().manual_seed(seed)
    gradient.initialise(net, generator)
    nn.init.normal_(pooling.cls_token, std=0.02, generator=generator)

    def logits(clips: Tokens, places: Index) -> Tensor:
        return linear(norm(pooling(*padded(clips, places))))

    gradient.train(
        lambda places: gradient.goal_loss(logits(features, places), goal, places),
        [{"params": list(net.parameters()), "lr": RATE, "weight_decay": DECAY}],
        len(features),
        settings,
        seed,
    )

    @torch.no_grad()
    def predict(asked: Tokens) -> Scores:
        parts = []
        for start in range(0, len(asked), settings.batch_size):
            places = np.arange(start, min(start + settings.batch_size, len(asked)))
            found = logits(asked, places)
            parts.append((found.softmax(1) if goal.single else found.sigmoid()).numpy())
        return np.concatenate(parts)

    return predict


def padded(clips: Tokens, places: Index) -> tuple[Tensor, Tensor | None]:
    """Patch tokens of clips (batch, most tokens, dim), and which of them count; None: all."""
    own = [clips.patches(int(place)) for place in places]
    lengths = torch.tensor([len(part) for part in own])
    tokens = nn.utils.rnn.pad_sequence(own, batch_first=True)
    if bool((lengths == tokens.shape[1]).all()):
        return tokens, None
    return tokens, torch.arange(tokens.shape[1]) < lengths[:, None]
