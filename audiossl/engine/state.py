"""The state of a run: where it stands, how it is saved, and how it is gone on from.

All processes call these together; the first one writes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from audiossl.engine import checkpoint
from audiossl.engine import run_folder as run
from audiossl.engine.job import Job
from audiossl.engine.step import Step
from audiossl.errors import AudiosslError, UsageError
from audiossl.hub.writing import write_folder
from audiossl.model import PARTS


@dataclass
class Progress:
    """Where a run stands, apart from its tensors; plain numbers, exact in JSON."""

    step: int = 0  # updates done or left out
    drawn: int = 0  # items used
    bad: int = 0  # updates in a row left out because the loss or gradient was not finite
    left_out: int = 0  # such updates in all
    best: float | None = None
    best_step: int = 0
    sums: dict[str, float] = field(default_factory=dict)  # since the last log line
    count: int = 0
    last: dict[str, float] = field(default_factory=dict)  # of the newest evaluation


class State:
    """The run's tensors and its progress, in memory and in its folder."""

    def __init__(self, job: Job, step: Step, folder: Path, say: Callable[[str], None]) -> None:
        self.job, self.step, self.team = job, step, step.team
        self.folder, self.say = folder, say
        self.progress = Progress()

    def save(self) -> None:
        """The model as it is (as `best` too, if none is judged), then the state to go on from: once
        that is there, all is.

        Raises AudiosslError when a tensor is not finite: what was saved before is kept.
        """
        judged = self.job.valid is not None
        if not judged:
            self.progress.best_step = self.progress.step
        step = self.step
        tensors = checkpoint.pack(step.method, step.ema, step.optimizer, self.team.leads)
        self.team.first(lambda: self._check(tensors))
        with self.kept_weights():
            self.save_model(*(run.LAST,) if judged else (run.LAST, run.BEST))
        self.team.first(lambda: self._write(tensors))

    def _check(self, tensors: dict[str, Tensor]) -> None:
        if broken := checkpoint.not_finite(tensors):
            raise AudiosslError(
                f"step {self.progress.step}: {broken} is not finite any more: training has"
                " diverged; the last good state is kept",
                code="not-finite",
            )

    def _write(self, tensors: dict[str, Tensor]) -> None:
        facts = {
            "progress": vars(self.progress),
            "scaler": self.step.scaler.state_dict(),
            "processes": self.team.size,
            "clips": self.job.clips,
            "data": self.job.fingerprint,
            "labels": self.job.model.labels,
        }
        states = self.folder / run.CHECKPOINTS
        newest = checkpoint.write(states, self.progress.step, tensors, facts)
        checkpoint.prune(states, newest, self.job.recipe.train.keep_checkpoints)

    def save_model(self, *names: str) -> None:
        """The method's model with the weights it has now, as `best` or `last`."""
        model = self.step.method.model
        model.config.training["step"] = self.progress.step
        parts = {n: value for n, value in model.state_dict().items() if n.startswith(PARTS)}
        tensors = checkpoint.gathered(parts, self.team.leads)

        def write() -> None:
            for name in names:
                with run.replaced(self.folder / name) as folder:
                    write_folder(tensors, model.config, folder)

        self.team.first(write)

    def kept_weights(self) -> contextlib.AbstractContextManager[None]:
        """Context in which the method's model has the weights that are kept."""
        if self.step.ema is None:
            return contextlib.nullcontext()
        return self.step.ema.applied_to(self.step.method.model)

    def restore(self) -> None:
        """Go on from the newest whole state, if there is one."""
        states = self.folder / run.CHECKPOINTS
        found = self.team.first(lambda: checkpoint.newest(states, self.say))
        if found is None:
            self.say("no checkpoint to go on from: this is the beginning")
            return
        path, facts = found
        self.team.first(lambda: self._check_data(facts))
        self._compare(facts)
        step = self.step
        checkpoint.unpack(checkpoint.read(path), step.method, step.ema, step.optimizer)
        step.scaler.load_state_dict(facts["scaler"])
        self.progress = Progress(**facts["progress"])

    def _check_data(self, facts: dict[str, Any]) -> None:
        """Raises UsageError when the data are not those that the run was begun with."""
        what = f"{self.folder}: the run was begun with"
        way = f"give them back, or start anew: --out, and model.from={self.folder / run.LAST}"
        labels = self.job.model.labels
        if facts.get("labels", labels) != labels:
            raise UsageError(f"{what} other labels ({', '.join(facts['labels'])}): {way}")
        if facts.get("data", self.job.fingerprint) != self.job.fingerprint:
            raise UsageError(f"{what} other data (files, sizes, labels or folds differ): {way}")

    def _compare(self, facts: dict[str, Any]) -> None:
        """Say what will come out otherwise than where the state was written."""
        for name, value in {**checkpoint.bits(), "processes": self.team.size}.items():
            if facts.get(name, value) != value:
                was = f"{name} {value} instead of {facts[name]}"
                self.say(f"warning: {was}: the last bits of the weights may differ")
        clips = facts.get("clips", self.job.clips)
        if clips != self.job.clips:
            self.say(
                f"warning: an update is now of {self.job.clips} clips, not {clips}: for the same"
                " global batch keep train.accumulate x processes"
            )
