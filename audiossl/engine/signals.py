"""Signals that end a run: the first lets the loop save and leave, a second Ctrl-C leaves now."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any

from audiossl.engine.distributed import Team

ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class Stop:
    """Context: `reason` is not None once the run should end. Only the main thread gets signals.

    SIGINT, SIGTERM, SIGHUP (unless nohup has it ignored) and SIGUSR1 (which Slurm sends before it
    kills) ask for the end, and so does `seconds` of run time. `leave()` then ends the process as
    the signal would have.
    """

    def __init__(self, seconds: float | None = None) -> None:
        self.deadline = None if seconds is None else time.monotonic() + seconds
        self.number: int | None = None
        self.reason: str | None = None  # as agreed
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in ASKING:
                if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._asked)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _asked(self, number: int, _frame: FrameType | None) -> None:
        if number == self.number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number

    def agree(self, team: Team) -> str | None:
        """Why the run should end, None if it should go on. What one is asked to, all do."""
        late = self.deadline is not None and time.monotonic() >= self.deadline
        asked = team.gather((self.number, late))
        numbers = [number for number, _ in asked if number is not None]
        if numbers:
            self.number = numbers[0]
            self.reason = signal.Signals(numbers[0]).name
        elif any(late for _, late in asked):
            self.reason = "time limit"
        return self.reason

    def leave(self) -> None:
        """After the context: pass the signal on to whoever handled it before."""
        if self.number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.number is not None:
            hung_up = self.number == signal.SIGHUP
            signal.raise_signal(signal.SIGHUP if hung_up else signal.SIGTERM)
