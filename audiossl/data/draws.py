"""The order in which clips are drawn, and what is drawn with each."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch.utils.data import Sampler

SKIPPED = "skipped"  # key of a batch: [(path, why)], taken out before a method sees the batch


class Draw(NamedTuple):
    """The `position`-th item of pass `epoch` is `index`; the pair (epoch, position) is unique."""

    epoch: int
    position: int
    index: int

    def generator(self, seed: int) -> np.random.Generator:
        """The source of everything random about this item."""
        return np.random.default_rng((seed, self.epoch, self.position))


class Items(Protocol):
    """What the loop can train on: a length, and one item (tensors and numbers by name) a draw.

    With a method `batch(draws) -> dict[str, Tensor]` it makes whole batches itself.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, draw: Draw, /) -> dict[str, Any]: ...


class Stream(Sampler[list[Draw]]):
    """Endless batches of draws over `size` items: epoch after epoch, each in its own order.

    size: number of items.
    batch_size: draws a batch.
    seed: with the epoch it decides the order.
    start: draws already used.
    weights: (size,) sum 1; with them an epoch draws with replacement.
    turn: number of this process.
    turns: number of processes; each takes every `turns`-th batch, so that together they use the
        draws that one alone would.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int,
        start: int = 0,
        weights: np.ndarray | None = None,
        turn: int = 0,
        turns: int = 1,
    ) -> None:
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.start, self.weights = start, weights
        self.turn, self.turns = turn, turns

    def __iter__(self) -> Iterator[list[Draw]]:
        return itertools.islice(self._batches(), self.turn, None, self.turns)

    def _batches(self) -> Iterator[list[Draw]]:
        epoch, position = divmod(self.start, self.size)
        order = self.order(epoch)
        while True:
            batch = []
            while len(batch) < self.batch_size:
                if position == self.size:
                    epoch, position = epoch + 1, 0
                    order = self.order(epoch)
                batch.append(Draw(epoch, position, int(order[position])))
                position += 1
            yield batch

    def order(self, epoch: int) -> np.ndarray:
        """(size,) int64: the items of one epoch in turn."""
        rng = np.random.default_rng((self.seed, epoch))
        if self.weights is None:
            return rng.permutation(self.size)
        return rng.choice(self.size, self.size, p=self.weights)
