"""Clips for training and evaluation, in an order and with random draws that (seed, epoch, position)
alone decide: whatever the number of workers, and whenever a run was interrupted.

`Stream` is an endless line of positions; the one integer it starts from is all that a resumed run
needs. A dataset is asked for a `Draw` and makes its own generator from it.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from audiossl.data.draws import SKIPPED, Stream
from audiossl.errors import AudiosslError


class _Batches(Dataset[dict[str, Any] | AudiosslError]):
    """Asked for a list of draws, gives a batch, or the error that `_whole` raises.

    What a worker raises reaches the loop as a text with the worker's traceback.
    """

    def __init__(self, items: Any) -> None:
        self.items = items

    def __getitem__(self, draws: list[Any]) -> dict[str, Any] | AudiosslError:
        try:
            if hasattr(self.items, "batch"):
                return self.items.batch(draws)
            return collate([self.items[draw] for draw in draws])
        except AudiosslError as error:
            return error


def _whole(batch: dict[str, Any] | AudiosslError) -> dict[str, Any]:
    if isinstance(batch, AudiosslError):
        try:
            raise batch
        finally:
            del batch  # or error and frame would hold each other, and the frames the workers
    return batch


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Items -> batch: tensors stacked, numbers as tensors, the skipped joined."""
    skipped = [entry for item in items for entry in item.pop(SKIPPED, ())]
    return {**default_collate(items), SKIPPED: skipped}


def train_loader(items: Any, stream: Stream, workers: int = 0) -> Iterator[dict[str, Any]]:
    """Endless batches of `items` along `stream`."""
    return map(_whole, _loader(_Batches(items), stream, workers))


def valid_loader(
    items: Any, batch_size: int, workers: int = 0, turn: int = 0, turns: int = 1
) -> Iterator[dict[str, Any]]:
    """All items once, in order, the last batch perhaps smaller.

    Of several processes number `turn` of `turns` gets every `turns`-th batch; where these do not
    come out even, the first batch again, so that all get as many.
    """
    size = len(items)
    batches = [list(range(i, min(i + batch_size, size))) for i in range(0, size, batch_size)]
    batches += batches[:1] * (-len(batches) % turns)
    return map(_whole, _loader(_Batches(items), batches[turn::turns], workers))


def _loader(batches: _Batches, sampler: Any, workers: int) -> DataLoader[Any]:
    return DataLoader(
        batches,
        batch_size=None,
        sampler=sampler,
        num_workers=workers,
        worker_init_fn=_leave_signals_to_the_loop,
        pin_memory=torch.cuda.is_available(),
    )


def _leave_signals_to_the_loop(_worker: int) -> None:
    """Ctrl-C, torchrun and Slurm signal whole process groups: the loop saves first, and needs its
    workers for that. They end when it says so, or within seconds of its death."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
