"""THE training loop: the only one. What it knows of a method is this.

    methods/NAME.py
      Config                  dataclass: the recipe's `method` section; a property `on_waves` may
                              name the key for which `loss` needs the clips' waves
      Method(model, config)   nn.Module; `.model` is the hub-style Model that is kept
        loss(batch) -> (loss, {name: tensor})
            batch             tensors by name, a whole batch of what the items below give; of clips
                              `wave`, with data.cache: features `spec`, and
                              `.model.spectrogram(batch)` gives a spectrogram of either
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
Several processes take turns in the one stream of draws and number their passes across all of them:
R processes that accumulate a passes do what one does that accumulates R x a.

What that asks of a method: where "weight" is 0, the loss must still be a number; `loss` changes
buffers in place (of several processes' the first one's are kept, but for batch norm, whose
statistics are put together); `after_step` sees the method itself and is seeded alike in all
processes, with train.parallel: fsdp it sees shards and may treat parameters only elementwise.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from audiossl.data.draws import Stream
from audiossl.data.loader import train_loader
from audiossl.data.skips import Skips
from audiossl.engine import run_folder as run
from audiossl.engine.distributed import Team, join
from audiossl.engine.job import Job, prepare
from audiossl.engine.log import Board, Metrics, Silent, Watch, check_tracker
from audiossl.engine.signals import Stop
from audiossl.engine.state import Progress, State
from audiossl.engine.step import Step, Update
from audiossl.engine.validate import evaluate
from audiossl.errors import AudiosslError
from audiossl.recipe.loading import Recipe

SMALLER_IS_BETTER = ("loss", "ece", "top_ece")


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
    """Train by `recipe` into its run folder `recipe.out`, with the other processes if there are.

    max_steps: end after so many updates (the schedule stays that of the recipe). time_limit: end,
    saved, after so many seconds. resume: go on from the newest whole checkpoint in the folder, as a
    process that torchrun has restarted does anyway.
    SIGINT, SIGTERM, SIGHUP and SIGUSR1 end the run, saved, after the update at work.
    Raises RecipeError, UsageError, ModelError, InputError or OutputError; AudiosslError with code
    "not-finite" when the loss is no number any more, "process-lost" when another process died.
    """
    if recipe.train.threads is not None:
        torch.set_num_threads(recipe.train.threads)
    check_tracker(recipe.train.tracker)
    stop = Stop(time_limit)
    with join(device) as team:
        watch = watch if watch is not None and team.leads else Silent()
        result = _fit(recipe, team, stop, watch, max_steps, resume, overwrite)
    stop.leave()
    return result


def _fit(
    recipe: Recipe,
    team: Team,
    stop: Stop,
    watch: Watch,
    max_steps: int | None,
    resume: bool,
    overwrite: bool,
) -> Result:
    folder = Path(recipe.out)
    resume = team.first(lambda: resume or run.is_resumed(folder))

    def check() -> None:
        run.check(folder, recipe, resume, overwrite, team.size)

    team.first(check)
    if resume:
        recipe = replace(recipe, name=team.first(lambda: run.name_of(folder, recipe)))
    job = prepare(recipe, team.size)
    with contextlib.ExitStack() as held:
        team.first(lambda: run.claim(folder, held))
        team.first(check)  # another process may have been there since
        loop = Loop(job, folder, team, watch)
        if resume:
            loop.resume()

        def begin() -> None:
            run.open_run(folder, recipe, resume)
            run.describe(folder, job, team.device)

        team.first(begin)
        with stop:
            loop.run(stop, max_steps)
    progress = loop.progress
    ended = stop.reason if progress.step < loop.steps else None
    return Result(folder, progress.step, progress.last, progress.best_step, ended)


class Loop:
    """One run, in one of its processes."""

    def __init__(self, job: Job, folder: Path, team: Team, watch: Watch) -> None:
        self.job, self.folder, self.team, self.watch = job, folder, team, watch
        self.train, self.method = job.recipe.train, job.method
        self.steps, self.eval_every = job.steps, job.eval_every
        self.step = Step(job, team)
        self.state = State(job, self.step, folder, watch.say)
        self.metrics = Metrics(folder / run.METRICS)
        self.skips = Skips(job.recipe.data.max_bad_fraction, job.files, watch.say)

    @property
    def progress(self) -> Progress:
        return self.state.progress

    def resume(self) -> None:
        """Go on from the newest whole state; without one, from the beginning."""
        self.state.restore()
        self.team.first(lambda: self.metrics.cut_after(self.progress.step))

    def run(self, stop: Stop, max_steps: int | None = None) -> None:
        """Updates until the end, `max_steps` or a wish to stop; then everything is saved."""
        progress, last = self.progress, min(self.steps, max_steps or self.steps)
        self._note(self.job.bad)
        batches = self._batches() if progress.step < last else iter(())
        self.watch.begin(self.job.recipe.name, last, progress.step)
        try:
            with self._tracked():
                self._run(stop, batches, last)
        finally:
            self.watch.end()

    def _run(self, stop: Stop, batches: Iterator[dict[str, Any]], last: int) -> None:
        progress = self.progress
        saved = progress.step
        self.method.train()
        while progress.step < last:
            self._update(batches)
            if progress.step % self.eval_every == 0 or progress.step == self.steps:
                bad = self._evaluate()
                self._save()
                saved = progress.step
                self._note(bad)
            if stop.agree(self.team):
                self.watch.say(f"{stop.reason}: saving after step {progress.step}")
                break
        if saved != progress.step:
            self._save()

    def _note(self, skipped: list[tuple[str, str]]) -> None:
        """Say which files cannot be read. Raises InputError when they are too many."""
        self.team.first(lambda: self.skips.note(skipped))

    def _save(self) -> None:
        self.team.first(self.metrics.sync)  # no state is newer than the lines it follows on
        self.state.save()

    def _tracked(self) -> Any:
        if self.train.tracker is None or not self.team.leads:
            return contextlib.nullcontext()
        board = Board(self.folder / run.BOARD, self.progress.step)
        self.metrics.boards.append(board)
        return contextlib.closing(board)

    def _batches(self) -> Iterator[dict[str, Any]]:
        data, train, team = self.job.recipe.data, self.train, self.team
        stream = Stream(
            len(self.job.train), train.batch_size, train.seed, self.progress.drawn,
            self.job.weights, team.rank, team.size,
        )  # fmt: skip
        return train_loader(self.job.train, stream, data.workers)

    def _update(self, batches: Iterator[dict[str, Any]]) -> None:
        progress = self.progress
        update = self.step.update(batches, progress.step)
        if update.skipped:
            self._note(update.skipped)
        if update.done:
            progress.bad = 0
            progress.count += 1
            for name, value in update.means.items():
                progress.sums[name] = progress.sums.get(name, 0.0) + value
        else:
            progress.bad, progress.left_out = progress.bad + 1, progress.left_out + 1
            self.team.first(lambda: self._left_out(update))
        progress.step += 1
        progress.drawn += self.job.clips
        self.watch.step(
            progress.step, {"loss": update.means["loss"], "lr": update.rate}, self.job.clips
        )
        if progress.step % self.train.log_every == 0 or progress.step == self.steps:
            self._log(update.rate)

    def _left_out(self, update: Update) -> None:
        """Say which update was left out, and where its batches are named. Raises AudiosslError
        when it is one too many."""
        progress, limit = self.progress, self.train.max_bad_steps
        path = run.note_bad(self.folder, progress.step, self.job, update)
        what = (
            f"step {progress.step}: the loss is {update.means['loss']} and the gradient's norm"
            f" {update.means['grad_norm']}"
        )
        if progress.bad < limit:
            self.watch.say(
                f"warning: {what}: left out ({progress.bad} in a row, {limit} end the run);"
                f" its batches are named in {path}"
            )
            return
        raise AudiosslError(
            f"{what}, after {progress.bad - 1} like it: training has diverged (a lower train.lr, a"
            " longer train.warmup or train.clip may help); the batches are named in"
            f" {path.parent}/{run.BAD}*, the last good state is kept",
            code="not-finite",
        )

    def _log(self, rate: float) -> None:
        """A line of means since the last one; updates that were left out are only counted."""
        progress = self.progress
        means = {name: total / progress.count for name, total in progress.sums.items()}
        line = {**self._place(), "lr": rate, **means, "left_out": progress.left_out}
        self._add(line)
        progress.sums, progress.count = {}, 0

    def _add(self, line: dict[str, Any]) -> None:
        self.team.first(lambda: self.metrics.add(line))

    def _place(self) -> dict[str, Any]:
        epoch = self.progress.drawn / len(self.job.train)
        return {"step": self.progress.step, "epoch": round(epoch, 6)}

    def _evaluate(self) -> list[tuple[str, str]]:
        """Evaluate what is kept, and keep it as `best` if it is; which files were left out."""
        if self.job.valid is None:
            return []
        train, workers = self.train, self.job.recipe.data.workers
        with self.state.kept_weights():
            values, bad = evaluate(
                self.method, self.job.valid, train.batch_size, train.seed, self.team, workers
            )
            self.progress.last = values
            self._add({**self._place(), **{f"valid_{n}": v for n, v in values.items()}})
            shown = " ".join(f"{name} {value:.4f}" for name, value in values.items())
            self.watch.say(f"step {self.progress.step}: {shown}")
            if self._is_best(values):
                self.state.save_model(run.BEST)
        return bad

    def _is_best(self, values: dict[str, float]) -> bool:
        monitor = self.train.monitor or ("map" if "map" in values else "loss")
        value, best = values.get(monitor, math.nan), self.progress.best
        if not math.isfinite(value):
            self.watch.say(f"warning: step {self.progress.step}: no {monitor} to judge it by")
            return False
        better = best is None or (value < best if monitor in SMALLER_IS_BETTER else value > best)
        if better:
            self.progress.best, self.progress.best_step = value, self.progress.step
        return better
