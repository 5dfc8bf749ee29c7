"""Prototypical probe: Bird-MAE's PPNet on frozen tokens (Rauch et al. 2025, arXiv 2504.12880, and
its public code, from which the constants are).

    focal map: patch tokens - class token (both after the final norm), in the encoder's token grid
      -> bilinear upsampling x 2 -> cosine with each of 20 prototypes a class -> ReLU
      -> maximum over all places -> class by class: relu(weight) . similarities + bias
    loss = asymmetric loss (Ridnik et al. 2021; gammas 4 and 1, margin 0.05)
         + || P P^T - I || / elements, P the unit prototypes of each class

The cosine's details: two channels of 1e-4 are appended to tokens and prototypes; tokens become 64 x
/ sqrt(|x|^2 + 1e-4), prototypes p / (sqrt(|p|^2 + 1e-4) + 1e-4), and the product is divided by 64 *
1.01. Prototypes begin uniform in [0, 1), weights at 1, biases at -2. AdamW with a learning rate of
0.04 (weight decay 3e-4) for prototypes and 3e-4 (1e-4) for the last layer, the loop of gradient.py.
The upsampling has no parameters, so the published rate for it moves nothing. Uses `prototypes`,
`epochs` and `batch_size`. Scores are sigmoids, for one label a clip as well.

Upsampling is linear, so products are taken on the token grid and then upsampled: the same numbers
for a quarter of the work. Only the tokens' lengths need the upsampled tokens, and they are frozen.
Gradients go through the place of each maximum alone, so only it is computed with them.

Where an encoder has two class tokens, their mean is subtracted; where it has none, the mean of the
window's tokens; a window's prototypes are compared in all windows of a clip. Deviation: the public
code reads Bird-MAE's tokens, time by time (32 x 8), as a grid of 8 x 32, so that upsampling mixes
tokens that are no neighbours. Here the grid is the true one; `Prototypical` takes any.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiossl.evaluate.probes import Goal, Predict, Scores, Settings, gradient
from audiossl.evaluate.tokens import Index, Tokens
from audiossl.methods import supervised

NEEDS = "tokens"
EPSILON = 1e-4
EPSILON_CHANNELS = 2
SLACK = 1.01  # the cosine's divisor, which keeps it below 1
UPSAMPLING = 2
BIAS = -2.0
LEAST = 200  # updates: prototypes have a long way to go from their first values
PROTOTYPE_RATE, PROTOTYPE_DECAY = 0.04, 3e-4
LAST_LAYER_RATE, LAST_LAYER_DECAY = 3e-4, 1e-4


class LastLayer(nn.Module):
    """(batch, classes * prototypes) -> (batch, classes): each class sees its own prototypes."""

    def __init__(self, classes: int, prototypes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(classes, prototypes))
        self.bias = nn.Parameter(torch.full((classes,), BIAS))

    def forward(self, activations: Tensor) -> Tensor:
        own = activations.unflatten(1, self.weight.shape)
        return (own * self.weight.relu()).sum(-1) + self.bias


class Prototypical(nn.Module):
    """Focal tokens (batch, rows * columns, dim) and their grid -> logits (batch, classes).

    Its parameters have the published names and shapes: `prototype_vectors` (classes * prototypes,
    dim, 1, 1), `last_layer.weight` (classes, prototypes), `last_layer.bias` (classes,).
    """

    def __init__(self, dim: int, classes: int, prototypes: int = 20) -> None:
        super().__init__()
        self.prototype_vectors = nn.Parameter(torch.rand(classes * prototypes, dim, 1, 1))
        self.last_layer = LastLayer(classes, prototypes)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        return self.last_layer(self.activations(tokens, grid))

    def activations(
        self, tokens: Tensor, grid: tuple[int, int], lengths: Tensor | None = None
    ) -> Tensor:
        """(batch, classes * prototypes): the highest cosine of each prototype, never negative.

        lengths: `upsampled_lengths(tokens, grid)`, where they are known already.
        """
        if lengths is None:
            lengths = upsampled_lengths(tokens, grid)
        vectors = self.prototype_vectors.flatten(1)  # (prototypes, dim)
        eps = EPSILON_CHANNELS * EPSILON**2
        products = (tokens @ vectors.T).transpose(1, 2)
        with torch.no_grad():  # a prototype's own length decides nothing about its best place
            cosines = (upsampled(products, grid) + eps) / lengths[:, None]
            best = cosines.flatten(2).argmax(2)
        patches, weights = neighbours(grid)
        chosen = (products.gather(2, patches[best]) * weights[best]).sum(-1)
        norms = (vectors.square().sum(1) + eps + EPSILON).sqrt() + EPSILON
        return ((chosen + eps) / (SLACK * norms * lengths.flatten(1).gather(1, best))).relu()

    def orthogonality(self) -> Tensor:
        """How far the prototypes of each class are from being orthonormal: ||P P^T - I|| / numel.

        Without the appended channels.
        """
        vectors = self.prototype_vectors.flatten(1)
        norms = (vectors.square().sum(1, keepdim=True) + EPSILON).sqrt() + EPSILON
        unit = (vectors / norms).unflatten(0, self.last_layer.weight.shape)
        gram = unit @ unit.transpose(1, 2) - torch.eye(unit.shape[1])
        return gram.norm() / gram.numel()


def upsampled(values: Tensor, grid: tuple[int, int]) -> Tensor:
    """(batch, channels, rows * columns) -> (batch, channels, 2 rows, 2 columns), bilinear.

    An axis of one stays: its copies would change no maximum.
    """
    scale = [UPSAMPLING if side > 1 else 1 for side in grid]
    size = [side * factor for side, factor in zip(grid, scale, strict=True)]
    return F.interpolate(values.unflatten(2, grid), size=size, mode="bilinear")


@cache
def neighbours(grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Of each upsampled place the patches that it lies between, and their shares: (places, 4)."""
    shares = upsampled(torch.eye(grid[0] * grid[1])[None], grid).flatten(2)[0].T
    weights, patches = shares.topk(min(4, shares.shape[1]))
    return patches, weights


@torch.no_grad()
def upsampled_lengths(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """sqrt(|x|^2 + 1e-4) of upsampled tokens with their two channels: (batch, rows, columns)."""
    parts = [upsampled(clip[None].transpose(1, 2), grid).square().sum(1) for clip in tokens]
    return (torch.cat(parts) + EPSILON_CHANNELS * EPSILON**2 + EPSILON).sqrt()


def focal(window: Tensor, class_tokens: int) -> Tensor:
    """(class tokens + patches, dim) -> (patches, dim): what a patch has that the whole has not."""
    patches = window[class_tokens:]
    whole = window[:class_tokens] if class_tokens else patches
    return patches - whole.mean(0)


def fit(
    features: Tokens,
    goal: Goal,
    settings: Settings,
    seed: int,
    valid: tuple[Tokens, Goal] | None = None,
) -> Predict:
    """Scores are sigmoids."""
    net = Prototypical(features.dim, goal.targets.shape[1], settings.prototypes)
    generator = torch.Generator().manual_seed(seed)
    nn.init.uniform_(net.prototype_vectors, generator=generator)
    lengths: dict[int, Tensor] = {}

    def logits(clips: Tokens, places: Index, known: dict[int, Tensor]) -> Tensor:
        return net.last_layer(clip_activations(net, clips, places, known))

    def loss(places: Index) -> Tensor:
        target = torch.from_numpy(goal.targets[places])
        found = supervised.asymmetric(logits(features, places, lengths), target)
        counted = (target >= 0).to(found)
        return (found * counted).sum() / counted.sum().clamp(min=1) + net.orthogonality()

    last = list(net.last_layer.parameters())
    groups = [
        {"params": [net.prototype_vectors], "lr": PROTOTYPE_RATE, "weight_decay": PROTOTYPE_DECAY},
        {"params": last, "lr": LAST_LAYER_RATE, "weight_decay": LAST_LAYER_DECAY},
    ]
    gradient.train(loss, groups, len(features), settings, seed, LEAST)

    @torch.no_grad()
    def predict(asked: Tokens) -> Scores:
        parts = []
        for start in range(0, len(asked), settings.batch_size):
            places = np.arange(start, min(start + settings.batch_size, len(asked)))
            parts.append(logits(asked, places, {}).sigmoid().numpy())
        return np.concatenate(parts)

    return predict


def clip_activations(
    net: Prototypical, clips: Tokens, places: Index, lengths: dict[int, Tensor]
) -> Tensor:
    """(clips, classes * prototypes): each prototype's highest activation in all of a clip's
    windows. `lengths` keeps the tokens' lengths by window, for the next epoch."""
    parts, owners = [], []
    for grid, numbers, positions in clips.by_grid(places):
        tokens = torch.stack(
            [focal(clips.window(number), clips.class_tokens) for number in numbers]
        )
        missing = [i for i, number in enumerate(numbers) if number not in lengths]
        if missing:
            found = upsampled_lengths(tokens[missing], grid)
            lengths |= {numbers[i]: own for i, own in zip(missing, found, strict=True)}
        known = torch.stack([lengths[number] for number in numbers])
        parts.append(net.activations(tokens, grid, known))
        owners += positions
    values, owner = torch.cat(parts), torch.tensor(owners)
    # Activations are never negative, so 0 is where a maximum may begin.
    highest = values.new_zeros(len(places), values.shape[1])
    return highest.scatter_reduce(0, owner[:, None].expand_as(values), values, "amax")
