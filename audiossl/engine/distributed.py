"""The processes of one run: who they are, and how they agree.

`torchrun --nproc-per-node 2 -m audiossl pretrain RECIPE` starts the same command twice, with RANK,
WORLD_SIZE and LOCAL_RANK in the environment. Each has its own device; what they say to each other
goes over gloo on a CPU, gradients on GPUs over NCCL. Only the first process writes and talks. The
run's folder lies where all machines see it.
"""

from __future__ import annotations

import contextlib
import gc
import os
import secrets
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore  # type: ignore[reportPrivateImportUsage]
from torch.distributed.rendezvous import rendezvous

from audiossl.errors import AudiosslError, UsageError

ENVIRONMENT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
MEET_SECONDS = 600.0  # until all processes have started
LOST = ("Connection closed", "Connection reset", "Broken pipe", "gloo/transport")  # a peer is gone

T = TypeVar("T")


@dataclass(frozen=True)
class Team:
    """Process `rank` of `size`, on its device. All call the same methods in the same order."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Everyone's value, in the order of ranks, for everyone."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def mean(self, number: float) -> float:
        """The mean of everyone's number, the same bits for everyone."""
        if self.size == 1:
            return number
        total = torch.tensor(number, dtype=torch.float64)
        dist.all_reduce(total)
        return float(total) / self.size

    def first(self, work: Callable[[], T]) -> T:
        """What `work()` gives in the first process, for everyone once it is done.

        Its AudiosslError ends all: raised in the first, which says it; the others leave with the
        same exit code.
        """
        if self.size == 1:
            return work()
        answer: list[Any] = [None, None]
        error = None
        if self.leads:
            try:
                answer[0] = work()
            except AudiosslError as caught:
                error, answer[1] = caught, caught.exit_code
        dist.broadcast_object_list(answer)
        if error is not None:
            raise error
        if answer[1] is not None:
            raise SystemExit(answer[1])
        return answer[0]


def rank() -> int:
    """Number of this process; 0 when it is alone."""
    return int(os.environ["RANK"]) if _started_together() else 0


@contextlib.contextmanager
def join(device: str) -> Iterator[Team]:
    """Meet the other processes; alone, there are none. `device`: cpu, cuda, ...

    Within the context, what uses the group is best held by a function's variables only.

    Raises UsageError for a device that several cannot have; AudiosslError "process-lost" when
    another process has died.
    """
    if not _started_together():
        yield Team(torch.device(device))
        return
    place = _own_device(device)
    backend = "cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo"
    store, number, size = next(rendezvous("env://"))
    try:
        store = PrefixStore(_password(store, number, size), store)
        dist.init_process_group(backend, store=store, rank=number, world_size=size)
        yield Team(place, number, size)
    except BaseException as error:
        # What uses the group must be gone before the group: C++ that drops the last hold on it
        # while Python's lock is taken waits for ever for the group's threads.
        traceback.clear_frames(error.__traceback__)
        gc.collect()
        if not _is_loss(error):
            raise
        raise AudiosslError(
            "another process of this run has ended: see what it said; the last good state is kept"
            " (torchrun --max-restarts N starts all again from there)",
            code="process-lost",
        ) from error
    else:
        gc.collect()
        dist.destroy_process_group()


def launcher() -> str | None:
    """What tells one torchrun from another; None when this process was started alone."""
    if "TORCHELASTIC_RESTART_COUNT" not in os.environ:
        return None
    given = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return given if given != "none" else f"process {os.getppid()}"


def restarted() -> bool:
    """Whether torchrun has started its processes again, after one of them died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def _password(store: Any, number: int, size: int) -> str:
    """A word that only the processes of this start share.

    torchrun's store outlives a restart, and with it what the dead had said in it: without names of
    their own, the living would look for them (pytorch/pytorch#135712).
    """
    mine = secrets.token_hex(8)
    if number:
        store.append("audiossl/asked", f"{mine} ")
        word = store.get(f"audiossl/answer/{mine}").decode()
        store.add(f"audiossl/heard/{word}", 1)
        return word
    answered: set[str] = set()
    deadline = time.monotonic() + MEET_SECONDS
    while store.add(f"audiossl/heard/{mine}", 0) < size - 1:
        if time.monotonic() > deadline:
            raise AudiosslError(f"not all {size} processes have come", code="process-lost")
        asked = store.get("audiossl/asked") if store.check(["audiossl/asked"]) else b""
        for other in set(asked.decode().split()) - answered:  # the dead are answered too
            store.set(f"audiossl/answer/{other}", mine)
            answered.add(other)
        time.sleep(0.01)
    return mine


def _is_loss(error: BaseException) -> bool:
    words = isinstance(error, RuntimeError) and any(word in str(error) for word in LOST)
    return words or isinstance(error, dist.DistError)


def _started_together() -> bool:
    return all(os.environ.get(name) for name in ENVIRONMENT) and os.environ["WORLD_SIZE"] != "1"


def _own_device(device: str) -> torch.device:
    if device == "cpu":
        return torch.device(device)
    if device != "cuda":
        raise UsageError(f"--device {device}: several processes take cpu, or cuda: a GPU for each")
    number, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if number >= there:
        raise UsageError(f"--device cuda: process {number + 1} of this machine, but {there} GPUs")
    torch.cuda.set_device(number)
    return torch.device(device, number)
