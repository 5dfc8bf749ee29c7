"""One update of the weights, by all processes together."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from audiossl.data.draws import SKIPPED
from audiossl.engine.blocks import compile_blocks, compiler_error
from audiossl.engine.distributed import Team
from audiossl.engine.job import Job, seed_all
from audiossl.engine.optim import Ema, build_optimizer, schedule, set_learning_rate
from audiossl.engine.parallel import clip_gradients, share, stored_buffers
from audiossl.engine.validate import to_device

AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Pass:
    """What one forward pass gave. index: the manifest rows of its clips, where it has them."""

    weight: float
    values: dict[str, float]
    index: list[int] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class Update:
    """What came of an update: the passes of all processes in order, and their means.

    done: whether the weights were changed; not if the loss or the gradient was not finite.
    """

    passes: list[Pass]
    means: dict[str, float]
    rate: float
    done: bool

    @property
    def skipped(self) -> list[tuple[str, str]]:
        return [entry for one in self.passes for entry in one.skipped]


class Step:
    """The method with all that changes it: gradients, optimiser, moving average.

    Pass number `part * processes + rank` of update `step` is seeded by (seed, step, number), and
    weighed by how much its loss was a mean over: so `accumulate` passes of R processes come to the
    same as R x `accumulate` of one.
    """

    def __init__(self, job: Job, team: Team) -> None:
        self.team, self.train = team, job.recipe.train
        train = self.train
        self.method = job.method.to(team.device)
        if train.compile:
            compile_blocks(self.method)
        self.ema = Ema(self.method.model, train.ema) if train.ema else None
        average = self.ema.model if self.ema is not None else None
        self.shared = share(self.method, train.parallel, team, average)
        self.optimizer = build_optimizer(self.method.named_parameters(), train)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.rate = schedule(train, job.steps)
        self.unit = 1.0  # the weight that stands for 1 in the gradients of the update at work
        enabled = train.precision == "fp16"
        self.scaler = torch.amp.GradScaler(team.device.type, enabled=enabled)

    def update(self, batches: Iterator[dict[str, Any]], step: int) -> Update:
        """Update number `step` of the weights, from `accumulate` passes in each process.

        Where the loss or the gradient is not finite, all is left as it was.
        """
        rate = self.rate(step)
        set_learning_rate(self.optimizer, rate)
        buffers = [(buffer, buffer.clone()) for buffer in stored_buffers(self.method)]
        mine = [self._pass(next(batches), step, part) for part in range(self.train.accumulate)]
        everyone = self.team.gather(mine)
        passes = [one for turn in zip(*everyone, strict=True) for one in turn]
        total = sum(one.weight for one in passes)
        names = {name: None for one in passes for name in one.values}
        means = {
            name: sum(one.values.get(name, 0.0) * one.weight for one in passes) / (total or 1.0)
            for name in names
        }
        norm = self._gradients(total) if total else 0.0
        done = math.isfinite(means["loss"]) and (math.isfinite(norm) or self._overflow())
        if total:  # else there is nothing to learn from
            if done:
                self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if done:
            self._follow(step, len(passes))
        else:
            for buffer, before in buffers:
                buffer.copy_(before)
        return Update(passes, {**means, "grad_norm": norm}, rate, done)

    def _pass(self, batch: dict[str, Any], step: int, part: int) -> Pass:
        """One forward and backward pass."""
        team, train = self.team, self.train
        skipped = batch.pop(SKIPPED, [])
        batch = to_device(batch, team.device)
        index = batch["index"].tolist() if "index" in batch else []
        seed_all(train.seed, step, part * team.size + team.rank)
        with self.shared.one_pass(last=part == train.accumulate - 1):
            loss, values = self._loss(batch)
            weight = float(values.pop("weight", 1.0))
            if part == 0:
                # Relative to the first pass: one pass alone is then not scaled at all.
                self.unit = team.mean(weight) or 1.0
            if weight or team.size > 1:  # several wait for each other's gradients
                self.scaler.scale(loss * (weight / self.unit)).backward()
        shown = {"loss": loss.detach(), **values}
        return Pass(weight, {name: float(value) for name, value in shown.items()}, index, skipped)

    def _loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        precision = AUTOCAST[self.train.precision]
        try:
            with torch.autocast(self.team.device.type, precision, enabled=precision is not None):
                loss, values = self.shared.loss(batch)
        except RuntimeError as error:
            told = compiler_error(error) if self.train.compile else None
            if told is None:
                raise
            raise told from error
        return loss, dict(values)

    def _gradients(self, total: float) -> float:
        """Make the gradients those of the mean over all that was known; their norm, unclipped."""
        self.scaler.unscale_(self.optimizer)
        scale = self.team.size * self.unit / total
        for parameter in self.parameters if scale != 1.0 else ():
            if parameter.grad is not None:
                parameter.grad.mul_(scale)
        return clip_gradients(self.parameters, self.train.clip)

    def _overflow(self) -> bool:
        """fp16 overflows by design: its scaler then leaves the update out and lowers itself. Below
        a scale of 1 it is something else."""
        return self.scaler.is_enabled() and self.scaler.get_scale() >= 1

    def _follow(self, step: int, passes: int) -> None:
        """What comes after the weights: the method's own update and the moving average."""
        if hasattr(self.method, "after_step"):
            seed_all(self.train.seed, step, passes)  # the same in all processes
            self.method.after_step(step)
        if self.ema is not None:
            self.ema.update(self.method.model)
