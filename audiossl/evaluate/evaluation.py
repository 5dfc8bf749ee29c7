"""Probes fitted and scored on rows whose features are known."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from audiossl.data.rows import Row, labels_of, targets
from audiossl.errors import InputError, UsageError
from audiossl.evaluate import fewshot, metrics, probes, protocol
from audiossl.evaluate.estimates import estimates
from audiossl.evaluate.intervals import bootstrap_weights, interval
from audiossl.evaluate.probe_record import ProbeRecord
from audiossl.evaluate.probes import Goal, Settings
from audiossl.evaluate.protocol import Split
from audiossl.evaluate.tokens import Tokens

log = logging.getLogger("audiossl")
SEEDS = 5  # where chance decides which clips train: few shots, held-out groups
FITS_AT_ONCE = 8  # each holds a batch of tokens
UNSEEN = -1.0  # score of a class without a training clip: below every probability
SMALLEST = 0.1  # of the mean deviation: what a feature's own is taken to be at least
TASKS = ("auto", "single", "multi")
Scores = NDArray[np.float32]
Index = NDArray[np.int64]
Progress = Callable[[str], None]


def silent(_what: str) -> None:
    """No progress."""


@dataclass(frozen=True)
class Options:
    """What is evaluated.

    probes: of probes.NAMES.
    shots: clips a class to train on; None: all.
    seeds: repetitions; None: 5 where chance decides which clips train, else 1.
    protocol: one of protocol.PROTOCOLS, or "auto".
    fraction: share of the groups that "holdout" tests.
    rule: one of fewshot.RULES, which clips may be few shots.
    task: "single" for one label a clip (softmax), "multi" for any number, "auto": as the rows are.
    standardise: pooled features by mean and deviation of the training side.
    settings: of the probes.
    """

    probes: tuple[str, ...] = ("linear",)
    shots: tuple[int | None, ...] = (None,)
    seeds: int | None = None
    protocol: str = "auto"
    fraction: float = 0.2
    rule: str = "any"
    task: str = "auto"
    standardise: bool = True
    settings: Settings = field(default_factory=Settings)


@dataclass(frozen=True)
class Unit:
    """One fitted probe: trained on the clips at `train`, scores (tested clips, classes)."""

    seed: int
    split: Split
    train: Index
    scores: Scores

    @property
    def test(self) -> Index:
        return self.split.test


@dataclass(frozen=True)
class Result:
    """One probe at one number of shots, over all folds and seeds."""

    probe: str
    shots: int | None
    units: list[Unit]
    records: list[ProbeRecord]


@dataclass
class Evaluation:
    """Rows that could be read and their features; `results` fits and scores the probes.

    data: its name in the records.
    model: its name in the records.
    rows: clips whose features are known.
    options: protocol and task are decided before, with the rows in `errors` too.
    pooled: (rows, dim) float32; None: no probe needs them.
    tokens: of the rows; None: no probe needs them.
    errors: rows that could not be read, and why.
    jobs: probes fitted at once; they change no result.
    progress: is told of each fitted probe.
    """

    data: str
    model: str
    rows: Sequence[Row]
    options: Options
    pooled: NDArray[np.float32] | None = None
    tokens: Tokens | None = None
    errors: Sequence[tuple[Row, InputError]] = ()
    jobs: int = 1
    progress: Progress = silent

    def __post_init__(self) -> None:
        self.labels = labels_of(self.rows)
        self.targets = targets(self.rows, self.labels)
        self.single = is_single(self.rows, self.options.task)
        self.protocol = protocol.choose(self.rows, self.options.protocol)
        self.groups = protocol.group_numbers(self.rows)

    def check(self) -> None:
        """Find what is wrong with rows and options before any work. Raises UsageError."""
        if self.errors:
            self._check_lost()
        count = len(self.labels)
        if count < 2:
            raise UsageError(f"{self.data}: {count} labels in its rows, a probe needs two")
        if lost := max(split.crossing for split in self._splits(seed=1)):
            clips = f"{lost} clip{'s' if lost > 1 else ''}"
            log.warning("warning: %s left out of training: their group is tested", clips)
        if {None} != set(self.options.shots) and not self.allowed.any():
            raise UsageError(f"rule {self.options.rule}: no recording is short enough")

    def _check_lost(self) -> None:
        """What is gone with the files that could not be read. Raises UsageError when that is too
        much for what was to be tested."""
        if not self.rows:
            raise UsageError(f"{self.data}: none of its {len(self.errors)} clips could be read")
        lost = protocol.lost([row for row, _ in self.errors], self.rows, self.protocol)
        if not lost:
            return
        names = ", ".join(lost)
        try:
            if len(self.labels) < 2:
                raise UsageError(f"{len(self.labels)} labels are left, a probe needs two")
            self._splits(seed=1)
        except UsageError as error:
            raise UsageError(f"{self.data}: no clip of {names} could be read: {error}") from None
        log.warning("warning: no clip of %s could be read: the rest is evaluated", names)

    def results(self) -> Iterator[Result]:
        """One a probe and number of shots, as soon as it is done. Raises UsageError."""
        if self.errors:
            self.check()  # again, with the rows that are left
        self._tell_scarce()
        for name in self.options.probes:
            for shots in self.options.shots:
                units = self._units(name, shots)
                yield Result(name, shots, units, self._records(name, shots, units))

    def _splits(self, seed: int) -> list[Split]:
        return protocol.splits(self.rows, self.protocol, self.options.fraction, seed)

    def _plan(self, shots: int | None) -> list[tuple[int, Split]]:
        chance = shots is not None or self.protocol == "holdout"
        seeds = range(1, 1 + (self.options.seeds or (SEEDS if chance else 1)))
        return [(seed, split) for seed in seeds for split in self._splits(seed)]

    def _tell_scarce(self) -> None:
        """Which classes have fewer clips to train on than are asked for."""
        wanted = max(shots or 1 for shots in self.options.shots)
        sides = [split.train for _, split in self._plan(wanted)]
        rule = ""
        if {None} != set(self.options.shots):
            sides = [train[self.allowed[train]] for train in sides]
            rule = "" if self.options.rule == "any" else f" (rule {self.options.rule})"
        if told := fewshot.scarce(self.targets, self.labels, sides, wanted):
            amount = f"fewer than {wanted} clips" if wanted > 1 else "no clip"
            log.warning("warning: %s to train on%s in some division: %s", amount, rule, told)

    def _units(self, name: str, shots: int | None) -> list[Unit]:
        plan = self._plan(shots)
        amount = "all clips" if shots is None else f"{shots} a class"
        if shots is not None:
            _ = self.allowed  # once, before there are threads
        units = []
        pool = ThreadPoolExecutor(min(self.jobs, FITS_AT_ONCE))
        try:
            for unit in pool.map(lambda item: self._unit(name, shots, *item), plan):
                units.append(unit)
                self.progress(f"{name}, {amount}, seed {unit.seed}, {unit.split.name}")
        finally:  # an interruption does not wait for fits that nobody will see
            pool.shutdown(wait=False, cancel_futures=True)
        return units

    def _unit(self, name: str, shots: int | None, seed: int, split: Split) -> Unit:
        train, valid = split.train, split.valid
        if shots is not None:
            allowed = train[self.allowed[train]]
            train = fewshot.draw(self.targets, self.groups, allowed, shots, seed)
            valid = valid[:0]  # a large validation set would not be few shots
        seen = np.any(self.targets[train] > 0, axis=0)
        if not seen.any():
            raise UsageError(f"{split.name}: no clip with a label is left to train on")
        module = probes.load(name)
        take = self._features(module.NEEDS, train)
        held = (take(valid), self._goal(valid, seen)) if len(valid) else None
        goal = self._goal(train, seen)
        predict = module.fit(take(train), goal, self.options.settings, seed, held)
        scores = np.full((len(split.test), len(self.labels)), UNSEEN, np.float32)
        scores[:, seen] = predict(take(split.test))
        return Unit(seed, split, train, scores)

    def _features(self, kind: str, train: Index) -> Callable[[Index], Any]:
        """places -> features; pooled ones standardised by the training clips alone."""
        if kind == "tokens":
            assert self.tokens is not None
            return self.tokens.take
        assert self.pooled is not None
        pooled = self.pooled
        mean, scale = standard(pooled[train]) if self.options.standardise else (0, 1)
        return lambda places: ((pooled[places] - mean) / scale).astype(np.float32)

    def _goal(self, places: Index, seen: NDArray[np.bool_]) -> Goal:
        return Goal(self.targets[places][:, seen], self.groups[places], self.single)

    @cached_property
    def allowed(self) -> NDArray[np.bool_]:
        """(rows,) whether a clip may be one of the few shots; opens files for some rules."""
        return fewshot.eligible(self.rows, self.options.rule)

    def _records(self, name: str, shots: int | None, units: Sequence[Unit]) -> list[ProbeRecord]:
        tested = np.unique(np.concatenate([unit.test for unit in units]))
        strata = self._strata(tested)
        weights = bootstrap_weights(self.groups[tested], strata)
        groups = len(np.unique(self.groups[tested]))
        seeds = len({unit.seed for unit in units})
        found: list[tuple[str, Sequence[float]]] = []
        for metric, (mean, variance, of_seeds) in estimates(
            units, self.targets, tested, weights, self.single
        ).items():
            ends = interval(mean, variance, of_seeds, groups, len(np.unique(strata)))
            found.append((metric, (mean, *ends)))
            if metric == "auroc":
                found.append(("dprime", [float(value) for value in metrics.d_prime(found[-1][1])]))
        return [
            ProbeRecord(
                self.data,
                name,
                shots,
                metric,
                mean,
                (low, high),
                seeds,
                len(units) // seeds,
                len(tested),
                self.protocol,
                self.model,
            )
            for metric, (mean, low, high) in found
            if np.isfinite([mean, low, high]).all()
        ]

    def _strata(self, tested: Index) -> Index:
        """(tested clips,) the fold of each, where the data give folds."""
        folds = [self.rows[place].fold for place in tested]
        if self.protocol != "folds":
            folds = [""] * len(tested)
        return np.unique(folds, return_inverse=True)[1]


def is_single(rows: Sequence[Row], task: str = "auto") -> bool:
    """Whether each clip has exactly one label. Raises UsageError when `task` says so and it isn't.

    Rows that name the classes they were judged for are of independent labels.
    """
    if task not in TASKS:
        raise UsageError(f"task {task!r}: one of {', '.join(TASKS)}")
    other = next((row for row in rows if len(row.labels) != 1 or row.known), None)
    if task == "single" and other is not None:
        raise UsageError(f"task single: {other.name} has {len(other.labels)} labels")
    return other is None if task == "auto" else task == "single"


def standard(train: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(clips, dim) -> mean and deviation (dim,) of the training clips.

    A feature that hardly moves in a few training clips may move a lot in others: deviations are at
    least a tenth of their mean.
    """
    mean, spread = train.mean(0, dtype=np.float64), train.std(0, dtype=np.float64)
    least = SMALLEST * spread.mean()
    return mean, np.maximum(spread, least) if least > 0 else np.ones_like(spread)
