"""How several processes share one network: a copy each (DDP), or a part of it each (FSDP2).

Both average the processes' gradients. Passes of one update are numbered across processes, so that
R processes with a passes each do what one alone does with R x a; what makes them equal:

- the gradient is multiplied by the processes' number, since DDP and FSDP divide by it (step.py);
- batch norm's running statistics are moved on as if the passes had come one after the other;
- any other buffer that `loss` changes is the first process's.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from audiossl.engine.blocks import blocks_of
from audiossl.engine.distributed import Team

SMALL = 1e-6  # torch's own, in clip_grad_norm_


class Shared(Protocol):
    """A method's loss as all processes work on it."""

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]: ...

    def one_pass(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Around one forward and backward pass; gradients are averaged in the `last` one."""
        ...


class Alone:
    """One process."""

    def __init__(self, method: Any) -> None:
        self.method = method

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        return self.method.loss(batch)

    def one_pass(self, last: bool) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


class Replicated:
    """DDP. Parameters that a pass does not use are looked for, so that none is waited for."""

    def __init__(self, method: Any, team: Team) -> None:
        self.buffers = Buffers(method, team)
        places = [team.device] if team.device.type == "cuda" else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # broadcast_buffers: new name in 2.13
            self.module = nn.parallel.DistributedDataParallel(
                _Loss(method), places, find_unused_parameters=True, broadcast_buffers=False
            )

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        return self.module(batch)

    @contextlib.contextmanager
    def one_pass(self, last: bool) -> Iterator[None]:
        with self.buffers.agreed(), contextlib.nullcontext() if last else self.module.no_sync():
            yield


class Sharded:
    """FSDP2: parameters, gradients and optimiser are cut along their first dimension.

    The method's parameters and those of `others` (a moving average) become DTensors: to be called
    before the optimiser is built. Unlike with DDP, all processes must use the same parameters in a
    pass, and `after_step` sees parameters only element by element.
    """

    def __init__(self, method: Any, team: Team, *others: nn.Module) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        self.method, self.buffers = method, Buffers(method, team)
        self.scalars = [value for value in method.parameters() if not value.ndim]
        mesh = init_device_mesh(team.device.type, (team.size,))
        for tree in (method, *others):
            for value in tree.parameters():
                value.data = value.data.contiguous()  # FSDP takes no channels-last weights
            for block in blocks_of(tree):
                if any(True for _ in block.parameters()):
                    fully_shard(block, mesh=mesh)
            whole = {value for value in tree.parameters() if not value.ndim}
            fully_shard(tree, mesh=mesh, reshard_after_forward=True, ignored_params=whole)
        register_fsdp_forward_method(method, "loss")

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        return self.method.loss(batch)

    @contextlib.contextmanager
    def one_pass(self, last: bool) -> Iterator[None]:
        self.method.set_requires_gradient_sync(last)
        with self.buffers.agreed():
            yield
        for value in self.scalars if last else ():
            if value.requires_grad:
                value.grad = torch.zeros_like(value) if value.grad is None else value.grad
                dist.all_reduce(value.grad)
                value.grad /= dist.get_world_size()


def share(method: Any, kind: str, team: Team, average: nn.Module | None) -> Shared:
    """The method as `kind` (ddp or fsdp) has several processes work on it."""
    if team.size == 1:
        return Alone(method)
    if kind == "fsdp":
        return Sharded(method, team, *([] if average is None else [average]))
    return Replicated(method, team)


class _Loss(nn.Module):
    """DDP's hooks sit on `forward`; it advises not to look for unused parameters if it finds none,
    so there is one."""

    def __init__(self, method: Any) -> None:
        super().__init__()
        self.method = method
        self.unused = nn.Parameter(torch.zeros(1, device=next(method.parameters()).device))

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        return self.method.loss(batch)


class Buffers:
    """The buffers of a method after a pass of every process, the same in all of them."""

    def __init__(self, method: nn.Module, team: Team) -> None:
        self.team = team
        self.norms: list[Any] = [
            module
            for module in method.modules()
            if isinstance(module, _BatchNorm) and module.running_mean is not None
            and module.momentum is not None
        ]  # fmt: skip
        counted = {id(buffer) for norm in self.norms for buffer in norm.buffers()}
        self.others = lambda: [b for b in stored_buffers(method) if id(b) not in counted]

    @contextlib.contextmanager
    def agreed(self) -> Iterator[None]:
        before, counts = self._statistics(), self._counts()
        yield
        if self.norms:
            self._take_turns(before, counts)
        for buffer in self.others():
            dist.broadcast(buffer, 0)

    def _take_turns(self, before: Tensor, counts: Tensor) -> None:
        """A pass that calls a norm n times changes a statistic s to keep * s + own, with
        keep = (1 - momentum)^n; here each process's in turn."""
        sizes = [2 * norm.running_mean.numel() for norm in self.norms]
        calls = self._counts() - counts
        keep = torch.cat(
            [
                (1 - norm.momentum) ** number.expand(size)
                for norm, number, size in zip(self.norms, calls, sizes, strict=True)
            ]
        )
        own = self._statistics() - keep * before
        mine = torch.cat([keep, own, calls])
        everyone = [torch.empty_like(mine) for _ in range(self.team.size)]
        dist.all_gather(everyone, mine)
        for one in everyone:
            keep, own, calls = one.split([len(before), len(before), len(calls)])
            before = keep * before + own
            counts = counts + calls
        parts = before.split(sizes)
        for norm, part, count in zip(self.norms, parts, counts, strict=True):
            mean, variance = part.chunk(2)
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)
            norm.num_batches_tracked.copy_(count)

    def _statistics(self) -> Tensor:
        """(2 x channels of all norms,), copied."""
        parts = [part for norm in self.norms for part in (norm.running_mean, norm.running_var)]
        return torch.cat(parts) if parts else torch.empty(0)

    def _counts(self) -> Tensor:
        """(norms,) batches that each has seen: float64 is exact for them."""
        counts = [norm.num_batches_tracked for norm in self.norms]
        return torch.stack(counts).double() if counts else torch.empty(0)


def stored_buffers(module: nn.Module) -> list[Tensor]:
    """Buffers that are part of a state: the others are constants."""
    return [
        buffer
        for part in module.modules()
        for name, buffer in part._buffers.items()
        if buffer is not None and name not in part._non_persistent_buffers_set
    ]


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> float:
    """Scale gradients down to the norm `limit` (0: not at all); their norm before."""
    given = [value for value in parameters if value.grad is not None]
    gradients = [value.grad for value in given if value.grad is not None]
    shards = [gradient for gradient in gradients if _is_shard(gradient)]
    if not shards:
        return float(nn.utils.clip_grad_norm_(given, limit or math.inf))
    whole = [gradient for gradient in gradients if not _is_shard(gradient)]
    norms = [assembled(nn.utils.get_total_norm(part)) for part in (shards, whole) if part]
    norm = float(torch.linalg.vector_norm(torch.stack(norms)))
    if limit and norm > limit:
        for gradient in gradients:
            gradient.mul_(limit / (norm + SMALL))
    return norm


def assembled(value: Any) -> Tensor:
    """A whole tensor from its shards; all processes must ask."""
    return value.full_tensor() if _is_shard(value) else value


def sharded_like(value: Tensor, like: Any) -> Tensor:
    """This process's shard of a whole tensor, if `like` is one."""
    if not _is_shard(like) or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    value = value.to(like.device)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def _is_shard(value: Any) -> bool:
    """Whether it is a DTensor; to import that takes half a second, which most runs need not."""
    return hasattr(value, "full_tensor")
