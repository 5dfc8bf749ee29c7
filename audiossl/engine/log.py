"""What a run says: metrics.jsonl for programs, progress for people.

metrics.jsonl holds one plain JSON object a line and nothing of the clock, so a run that was
interrupted and resumed writes the same bytes as one that was not.
"""

from __future__ import annotations

import json
import math
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any, Protocol, TextIO

from audiossl.atomic import atomic_write
from audiossl.errors import OutputError

LINE_SECONDS = 10.0  # at least between two plain lines of progress


class Metrics:
    """metrics.jsonl: lines are appended whole and flushed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, values: dict[str, Any]) -> None:
        line = json.dumps({key: _finite(value) for key, value in values.items()}) + "\n"
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            raise OutputError(f"{self.path}: {error.strerror}") from error

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


class Lines(Silent):
    """Plain lines, for logs and pipes."""

    def __init__(self, stream: TextIO = sys.stderr) -> None:
        self.stream, self.steps = stream, 0
        self.last = self.started = time.monotonic()
        self.clips = 0

    def begin(self, title: str, steps: int, done: int) -> None:
        self.steps = steps
        self.last = self.started = time.monotonic()
        self.say(f"{title}: {steps} steps" + (f", going on after {done}" if done else ""))

    def step(self, step: int, values: dict[str, float], clips: int) -> None:
        self.clips += clips
        now = time.monotonic()
        if now - self.last >= LINE_SECONDS or step == self.steps:
            self.last = now
            shown = " ".join(f"{name} {value:.4g}" for name, value in values.items())
            speed = self.clips / max(now - self.started, 1e-9)
            self.say(f"step {step}/{self.steps} {shown} {speed:.0f} clips/s {memory()}")

    def say(self, text: str) -> None:
        self.stream.write(text + "\n")
        self.stream.flush()


class Bar(Silent):
    """A live line on a terminal: loss, rate, memory, time left."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[values]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self.clips, self.started = 0, time.monotonic()

    def begin(self, title: str, steps: int, done: int) -> None:
        self.started = time.monotonic()
        self.task = self.progress.add_task(title, total=steps, completed=done, values="")
        self.progress.start()

    def step(self, step: int, values: dict[str, float], clips: int) -> None:
        self.clips += clips
        speed = self.clips / max(time.monotonic() - self.started, 1e-9)
        shown = " ".join(f"{name} {value:.4g}" for name, value in values.items())
        text = f"{shown} {speed:.0f} clips/s {memory()}"
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
    """Highest memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kB on Linux, bytes on macOS
    return f"{peak / (1 << 30 if sys.platform == 'darwin' else 1 << 20):.1f} GB"


def _finite(value: Any) -> Any:
    """JSON has no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
