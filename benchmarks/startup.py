"""Start-up: CPU time of whole processes, `audiossl --help` against importing torch, librosa.

python benchmarks/startup.py [--rounds 7]
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import measure

AUDIOSSL = str(Path(sys.executable).parent / "audiossl")
CLIP = next((Path(__file__).parents[1] / "tests" / "data" / "clips").glob("*.*g"))


def process(*args: str) -> Callable[[], None]:
    def run() -> None:
        subprocess.run(args, stdout=subprocess.DEVNULL, check=True)

    return run


def children_seconds() -> float:
    """CPU seconds of all finished child processes."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    print(measure.machine("click", "torch", "librosa"), "\n")
    python = sys.executable
    seconds = measure.interleaved(
        {
            "audiossl --help": process(AUDIOSSL, "--help"),
            "audiossl --version": process(AUDIOSSL, "--version"),
            "python -c pass": process(python, "-c", "pass"),
            "python -c 'import torch'": process(python, "-c", "import torch"),
            "python, first librosa.load": process(
                python, "-c", f"import librosa; librosa.load({str(CLIP)!r})"
            ),
            "audiossl tag CLIP": process(AUDIOSSL, "tag", str(CLIP)),
        },
        rounds,
        children_seconds,
    )
    print(measure.table("Start-up, CPU time", seconds, "audiossl --help", 1, "process"))


if __name__ == "__main__":
    main()
