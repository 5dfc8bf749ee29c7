"""The processes of one run: who they are, and how they agree.

`torchrun --nproc-per-node 2 -m audiossl pretrain RECIPE` starts the same command twice, with RANK,
WORLD_SIZE and LOCAL_RANK in the environment. Each has its own device; what they say to each other
goes over gloo on a CPU, gradients on GPUs over NCCL. Only the first process writes and talks. The
run's folder lies where all machines see it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from audiossl.errors import AudiosslError, UsageError

ENVIRONMENT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
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

    Raises UsageError for a device that several cannot have; AudiosslError "process-lost" when
    another process has died.
    """
    if not _started_together():
        yield Team(torch.device(device))
        return
    place = _own_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo")
    try:
        yield Team(place, dist.get_rank(), dist.get_world_size())
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and not any(word in str(error) for word in LOST):
            raise
        raise AudiosslError(
            "another process of this run has ended: see what it said; the last good state is kept"
            " (torchrun --max-restarts N starts all again from there)",
            code="process-lost",
        ) from error
    else:
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
