"""THE training loop: the only one. What it knows of a method is this.

    methods/NAME.py
      Config                  dataclass: the recipe's `method` section
      Method(model, config)   nn.Module; `.model` is the hub-style Model that is kept
        loss(batch) -> (loss, {name: tensor})
            batch             tensors by name, a whole batch of what the items below give
            loss              a mean over something
            "weight"          how many things that was a mean over (default 1): accumulated passes
                              are weighed by it, so n passes give the gradient of one big batch
            "scores"          in evaluation, (batch, classes): compared with batch["target"]
            other names       logged as they are
        after_step(step)      optional: after each update (a teacher's average, a codebook)
      datasets(recipe, config, model) -> (train items, evaluation items or None)
            optional: the method's own data in place of the `data` section's clips. Train items have
            `len()` and `items[Draw]`, evaluation items `len()` and `items[int]`, each giving
            {name: tensor or number}; or `items.batch([...])` giving a whole batch at once, which
            suits arrays on disk. What is random about an item comes from `draw.generator(seed)`.

Exactness. Each forward pass seeds all generators from (seed, step, pass); the order of clips and
each clip's draws come from (seed, epoch, position). So the whole state of a run is: weights, moving
average, optimiser, step, number of draws used, best value, and the sums since the last log line.
One process is one stream of draws; several would take turns in the same stream.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audiossl.data.loader import SKIPPED, Skips, Stream, train_loader
from audiossl.engine import checkpoint, run
from audiossl.engine.job import Job, prepare, seed_all
from audiossl.engine.log import Metrics, Silent, Watch
from audiossl.engine.optim import Ema, build_optimizer, schedule, set_learning_rate
from audiossl.engine.signals import Stop
from audiossl.engine.validate import evaluate, to_device
from audiossl.errors import RecipeError
from audiossl.model import save_model
from audiossl.recipe import Recipe

AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
SMALLER_IS_BETTER = ("loss", "ece", "top_ece")


@dataclass
class Progress:
    """Where a run stands, apart from its tensors; plain numbers, exact in JSON."""

    step: int = 0  # updates done
    drawn: int = 0  # items used
    best: float | None = None
    best_step: int = 0
    sums: dict[str, float] = field(default_factory=dict)  # since the last log line
    count: int = 0
    last: dict[str, float] = field(default_factory=dict)  # of the newest evaluation


@dataclass(frozen=True)
class Result:
    """What came of a run. `stopped` says why it ended early, None if it did not."""

    folder: Path
    steps: int
    metrics: dict[str, float]
    best_step: int
    stopped: str | None = None


def fit(
    recipe: Recipe,
    device: str = "cpu",
    *,
    max_steps: int | None = None,
    time_limit: float | None = None,
    resume: bool = False,
    overwrite: bool = False,
    watch: Watch | None = None,
) -> Result:
    """Train by `recipe` into its run folder `recipe.out`.

    max_steps: end after so many updates (the schedule stays that of the recipe). time_limit: end,
    saved, after so many seconds. resume: go on from the newest whole checkpoint in the folder.
    SIGINT and SIGTERM end the run, saved, after the update at work.
    Raises RecipeError, UsageError, ModelError, InputError or OutputError; AudiosslError with code
    "not-finite" when the loss is no number any more.
    """
    if recipe.train.threads is not None:
        torch.set_num_threads(recipe.train.threads)
    job = prepare(recipe)
    folder = Path(recipe.out)
    run.open_run(folder, recipe, resume, overwrite)
    loop = Loop(job, folder, torch.device(device), watch or Silent())
    run.describe(folder, job.model, job.fingerprint, loop.device)
    if resume:
        loop.restore()
    with Stop(time_limit) as stop:
        loop.run(stop, max_steps)
    stop.leave()
    progress = loop.progress
    ended = stop.reason if progress.step < loop.steps else None
    return Result(folder, progress.step, progress.last, progress.best_step, ended)


class Loop:
    """One run in one process."""

    def __init__(self, job: Job, folder: Path, device: torch.device, watch: Watch) -> None:
        self.job, self.folder, self.device, self.watch = job, folder, device, watch
        self.train = train = job.recipe.train
        self.method = job.method.to(device)
        self.steps, self.eval_every = job.steps, job.eval_every
        self.optimizer = build_optimizer(self.method.named_parameters(), train)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.rate = schedule(train, self.steps)
        self.ema = Ema(self.method.model, train.ema) if train.ema else None
        self.scaler = torch.amp.GradScaler(device.type, enabled=train.precision == "fp16")
        self.metrics = Metrics(folder / run.METRICS)
        self.progress = Progress()
        self.skips = Skips(job.recipe.data.max_bad_fraction, job.files, watch.say)

    def run(self, stop: Stop, max_steps: int | None = None) -> None:
        """Updates until the end, `max_steps` or a wish to stop; then everything is saved."""
        progress, last = self.progress, min(self.steps, max_steps or self.steps)
        self.skips.note(self.job.bad)
        batches = iter(self._batches()) if progress.step < last else iter(())
        self.watch.begin(self.job.recipe.name, last, progress.step)
        saved = progress.step
        try:
            self.method.train()
            while progress.step < last:
                self._update(batches)
                if progress.step % self.eval_every == 0 or progress.step == self.steps:
                    self._evaluate()
                    self.save()
                    saved = progress.step
                if stop.reason:
                    self.watch.say(f"{stop.reason}: saving after step {progress.step}")
                    break
            if saved != progress.step:
                self.save()
        finally:
            self.watch.end()

    def _batches(self) -> Any:
        data, train = self.job.recipe.data, self.train
        stream = Stream(
            len(self.job.train), train.batch_size, train.seed, self.progress.drawn, self.job.weights
        )
        return train_loader(self.job.train, stream, data.workers)

    def _update(self, batches: Any) -> None:
        """One update of the weights from `accumulate` forward passes."""
        progress, train = self.progress, self.train
        rate = self.rate(progress.step)
        set_learning_rate(self.optimizer, rate)
        sums: dict[str, float] = {}
        first = total = 0.0
        index: list[int] = []
        for part in range(train.accumulate):
            batch = self._next(batches)
            index += batch["index"].tolist() if "index" in batch else []
            seed_all(train.seed, progress.step, part)
            loss, values = self._loss(batch)
            weight = float(values.pop("weight", 1.0))
            first = first or weight
            total += weight
            if weight:
                # Relative to the first pass: one pass alone is then not scaled at all.
                self.scaler.scale(loss * (weight / first)).backward()
            for name, value in {"loss": loss.detach(), **values}.items():
                sums[name] = sums.get(name, 0.0) + float(value) * weight
        means = {name: value / (total or 1.0) for name, value in sums.items()}
        norm = self._apply(first / total if total else 1.0, means["loss"], index)
        progress.step += 1
        progress.drawn += train.batch_size * train.accumulate
        self._log({**means, "grad_norm": norm}, rate)

    def _next(self, batches: Any) -> dict[str, Any]:
        batch = next(batches)
        self.skips.note(batch.pop(SKIPPED, ()))
        return to_device(batch, self.device)

    def _loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        precision = AUTOCAST[self.train.precision]
        with torch.autocast(self.device.type, precision, enabled=precision is not None):
            loss, values = self.method.loss(batch)
        return loss, dict(values)

    def _apply(self, scale: float, loss: float, index: list[int]) -> float:
        """Step the optimiser on the gradients times `scale`; their norm before clipping."""
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if scale != 1.0:
            for gradient in gradients:
                gradient.mul_(scale)
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, self.train.clip or math.inf))
        # fp16 overflows by design: its scaler then leaves the update out and lowers itself.
        if not math.isfinite(loss) or not (math.isfinite(norm) or self.scaler.is_enabled()):
            raise run.not_finite(self.folder, self.progress.step, loss, norm, index)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if hasattr(self.method, "after_step"):
            self.method.after_step(self.progress.step)
        if self.ema is not None:
            self.ema.update(self.method.model)
        return norm

    def _log(self, values: dict[str, float], rate: float) -> None:
        progress = self.progress
        for name, value in values.items():
            progress.sums[name] = progress.sums.get(name, 0.0) + value
        progress.count += 1
        clips = self.train.batch_size * self.train.accumulate
        self.watch.step(progress.step, {"loss": values["loss"], "lr": rate}, clips)
        if progress.step % self.train.log_every == 0 or progress.step == self.steps:
            means = {name: total / progress.count for name, total in progress.sums.items()}
            self.metrics.add({**self._place(), "lr": rate, **means})
            progress.sums, progress.count = {}, 0

    def _place(self) -> dict[str, Any]:
        epoch = self.progress.drawn / len(self.job.train)
        return {"step": self.progress.step, "epoch": round(epoch, 6)}

    def _evaluate(self) -> None:
        """Evaluate what is kept, and keep it as `best` if it is."""
        if self.job.valid is None:
            return
        train, workers = self.train, self.job.recipe.data.workers
        with self._kept_weights():
            values, bad = evaluate(
                self.method, self.job.valid, train.batch_size, train.seed, self.device, workers
            )
            self.skips.note(bad)
            self.progress.last = values
            self.metrics.add({**self._place(), **{f"valid_{n}": v for n, v in values.items()}})
            shown = " ".join(f"{name} {value:.4f}" for name, value in values.items())
            self.watch.say(f"step {self.progress.step}: {shown}")
            if self._is_best(values):
                self._save_model(run.BEST)

    def _is_best(self, values: dict[str, float]) -> bool:
        monitor = self.train.monitor or ("map" if "map" in values else "loss")
        if monitor not in values:
            raise RecipeError(f"recipe train.monitor: no {monitor!r} among {', '.join(values)}")
        value, best = values[monitor], self.progress.best
        better = best is None or (value < best if monitor in SMALLER_IS_BETTER else value > best)
        if not math.isfinite(value) or not better:
            return False
        self.progress.best, self.progress.best_step = value, self.progress.step
        return True

    def save(self) -> None:
        """The state to go on from, and the model as it is (as `best` too, if none is judged)."""
        if self.job.valid is None:
            self.progress.best_step = self.progress.step
        tensors = checkpoint.pack(self.method, self.ema, self.optimizer)
        facts = {"progress": vars(self.progress), "scaler": self.scaler.state_dict()}
        states = self.folder / run.CHECKPOINTS
        newest = checkpoint.write(states, self.progress.step, tensors, facts)
        checkpoint.prune(states, newest, self.train.keep_checkpoints)
        with self._kept_weights():
            self._save_model(run.LAST)
            if self.job.valid is None:
                self._save_model(run.BEST)

    def _save_model(self, name: str) -> None:
        model = self.method.model
        model.config.training["step"] = self.progress.step
        with run.replaced(self.folder / name) as folder:
            save_model(model, folder)

    def restore(self) -> None:
        """Go on from the newest whole state, if there is one."""
        found = checkpoint.read_newest(self.folder / run.CHECKPOINTS, self.watch.say)
        if found is None:
            self.watch.say("no checkpoint to go on from: this is the beginning")
        else:
            tensors, facts = found
            checkpoint.unpack(tensors, self.method, self.ema, self.optimizer)
            self.scaler.load_state_dict(facts["scaler"])
            self.progress = Progress(**facts["progress"])
        self.metrics.cut_after(self.progress.step)

    def _kept_weights(self) -> Any:
        """Context in which the method's model has the weights that are kept."""
        if self.ema is None:
            return contextlib.nullcontext()
        return self.ema.applied_to(self.method.model)
