"""Interleaved timing: candidates take turns, so a change of the machine's speed hits all alike.

CPU seconds of this process are the figure to quote (robust against other load on the machine);
ratios are formed round by round and their median and range are printed.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from importlib import metadata

Candidates = dict[str, Callable[[], object]]


def interleaved(
    candidates: Candidates, rounds: int, clock: Callable[[], float] = time.process_time
) -> dict[str, list[float]]:
    """Seconds of every candidate in every round, after one uncounted round."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds + 1):
        for name, run in candidates.items():
            start = clock()
            run()
            if number:
                seconds[name].append(clock() - start)
    return seconds


def ratios(seconds: dict[str, list[float]], ours: str, peer: str) -> list[float]:
    """How many times faster `ours` is than `peer`, round by round."""
    return [theirs / own for own, theirs in zip(seconds[ours], seconds[peer], strict=True)]


def table(title: str, seconds: dict[str, list[float]], ours: str, per: float, unit: str) -> str:
    """A Markdown table. `per`: units of work in one run (clips, files); `unit`: their name."""
    lines = [f"### {title}", "", f"| | ms per {unit} (median) | min-max | ours is faster by |"]
    lines.append("|---|---|---|---|")
    for name, values in seconds.items():
        middle, low, high = statistics.median(values), min(values), max(values)
        figures = f"{1e3 * middle / per:.2f} | {1e3 * low / per:.2f}-{1e3 * high / per:.2f}"
        if name == ours:
            ratio = "1"
        else:
            by_round = ratios(seconds, ours, name)
            ratio = (
                f"**{statistics.median(by_round):.2f}x** ({min(by_round):.2f}-{max(by_round):.2f})"
            )
        lines.append(f"| {name} | {figures} | {ratio} |")
    return "\n".join(lines) + "\n"


def machine(*distributions: str) -> str:
    """One line: processor, Python, versions of what was measured."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
        model = f"{names[0]}, {len(names)} cores"
    except (OSError, IndexError):
        pass
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in distributions)
    return f"{model}; Python {platform.python_version()}; {versions}"
