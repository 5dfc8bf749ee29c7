"""What a run says: metrics.jsonl for programs, curves and progress for people.

metrics.jsonl holds one plain JSON object a line and nothing of the clock, so a run that was
interrupted and resumed writes the same bytes as one that was not.
"""

from __future__ import annotations

import datetime
import importlib.util
import json
import math
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any, Protocol, TextIO

import torch

from audiossl.atomic import atomic_write, sync
from audiossl.errors import OutputError, RecipeError

LINE_SECONDS = 10.0  # at least between two plain lines of progress


class Metrics:
    """metrics.jsonl: lines are appended whole and flushed, and shown on `boards`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.boards: list[Board] = []

    def add(self, values: dict[str, Any]) -> None:
        line = json.dumps({key: _finite(value) for key, value in values.items()}) + "\n"
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            raise OutputError(f"{self.path}: {error.strerror}") from error
        for board in self.boards:
            board.add(values)

    def sync(self) -> None:
        """Lines so far are on the disk."""
        if self.path.exists():
            sync(self.path)

    def cut_after(self, step: int) -> None:
        """Leave out lines of later steps, which a resumed run will write again."""
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines(keepends=True):
            try:
                if json.loads(line)["step"] <= step and line.endswith("\n"):
                    kept.append(line)
            except (ValueError, KeyError, TypeError):
                continue  # half a line of a killed run
        with atomic_write(self.path) as file:
            file.write("".join(kept).encode("utf-8"))


class Board:
    """The same numbers as curves, for `tensorboard --logdir runs`.

    after: the last step that stands; what an interrupted run said of later ones is hidden.
    """

    def __init__(self, folder: Path, after: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=after + 1)

    def add(self, values: dict[str, Any]) -> None:
        for name, value in values.items():
            if name != "step":
                part, _, rest = (
                    name.partition("_") if name.startswith("valid_") else ("train", "", name)
                )
                self.writer.add_scalar(f"{part}/{rest}", value, values["step"])

    def close(self) -> None:
        self.writer.close()


def check_tracker(name: str | None) -> None:
    """Raises RecipeError when the tracker's package is not there."""
    if name is not None and importlib.util.find_spec(name) is None:
        raise RecipeError(
            f"recipe train.tracker: {name} is not installed: pip install 'audiossl-toolkit[{name}]'"
        )


class Watch(Protocol):
    """Someone who looks on."""

    def begin(self, title: str, steps: int, done: int) -> None: ...

    def step(self, step: int, values: dict[str, float], clips: int) -> None:
        """After each update: its loss and rate, and the clips it used."""
        ...

    def say(self, text: str) -> None:
        """An evaluation, a warning."""
        ...

    def end(self) -> None: ...


class Silent:
    """Says nothing."""

    def begin(self, title: str, steps: int, done: int) -> None: ...

    def step(self, step: int, values: dict[str, float], clips: int) -> None: ...

    def say(self, text: str) -> None: ...

    def end(self) -> None: ...


class Pace:
    """Speed since the beginning, and the time that is left at it."""

    def __init__(self, steps: int, done: int) -> None:
        self.steps, self.done = steps, done
        self.started, self.clips = time.monotonic(), 0

    def shown(self, values: dict[str, float], clips: int) -> str:
        """`loss 0.5 lr 0.001 31 clips/s 1.2 GB`."""
        self.clips += clips
        numbers = " ".join(f"{name} {value:.4g}" for name, value in values.items())
        return f"{numbers} {self.clips / self._seconds():.0f} clips/s {memory()}"

    def left(self, step: int) -> str:
        """`0:05:12 left`."""
        seconds = self._seconds() * (self.steps - step) / max(step - self.done, 1)
        return f"{datetime.timedelta(seconds=round(seconds))} left"

    def _seconds(self) -> float:
        return max(time.monotonic() - self.started, 1e-9)


class Lines(Silent):
    """Plain lines, for logs and pipes."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr

    def begin(self, title: str, steps: int, done: int) -> None:
        self.pace, self.last = Pace(steps, done), time.monotonic()
        self.say(f"{title}: {steps} steps" + (f", going on after {done}" if done else ""))

    def step(self, step: int, values: dict[str, float], clips: int) -> None:
        text = self.pace.shown(values, clips)
        now = time.monotonic()
        if now - self.last >= LINE_SECONDS or step == self.pace.steps:
            self.last = now
            self.say(f"step {step}/{self.pace.steps} {text} {self.pace.left(step)}")

    def say(self, text: str) -> None:
        self.stream.write(text + "\n")
        self.stream.flush()


class Bar(Silent):
    """A live line on a terminal: loss, rate, memory, time left."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[values]}"),
            console=Console(stderr=True),
            transient=True,
        )

    def begin(self, title: str, steps: int, done: int) -> None:
        self.pace = Pace(steps, done)
        self.task = self.progress.add_task(title, total=steps, completed=done, values="")
        self.progress.start()

    def step(self, step: int, values: dict[str, float], clips: int) -> None:
        text = f"{self.pace.shown(values, clips)} {self.pace.left(step)}"
        self.progress.update(self.task, completed=step, values=text)

    def say(self, text: str) -> None:
        self.progress.console.print(text, markup=False, highlight=False)

    def end(self) -> None:
        self.progress.stop()


def watch(quiet: bool = False) -> Watch:
    """The right one for stderr: nothing when quiet, a live line on a terminal, else plain lines."""
    if quiet:
        return Silent()
    return Bar() if sys.stderr.isatty() and os.environ.get("TERM") != "dumb" else Lines()


def memory() -> str:
    """Highest memory of this process so far, on the GPU if it has one at work."""
    if torch.cuda.is_initialized():
        return f"{torch.cuda.max_memory_allocated() / (1 << 30):.1f} GB"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kB on Linux, bytes on macOS
    return f"{peak / (1 << 30 if sys.platform == 'darwin' else 1 << 20):.1f} GB"


def _finite(value: Any) -> Any:
    """JSON has no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
