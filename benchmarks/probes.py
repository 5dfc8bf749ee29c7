"""Which probe makes most of frozen features of self-supervised encoders, with how many labels?

    python benchmarks/pretraining.py --data FOLDER --out FOLDER     # pretrains the encoders
    python benchmarks/probes.py --data FOLDER --out FOLDER [--jobs 2]

FOLDER of --data holds esc10/ and urbansound8k/. The encoders are OUT/runs/METHOD-0/last, as the
other benchmark leaves them after pretraining without labels on ESC-10's folds 1-3 and
UrbanSound8K's fold 1. Every probe trains on 1, 5 or 10 clips a class or on all clips of these same
folds, SEEDS times (the draw of the clips, where there is one, and the probe's own start), with the
settings that `audiossl probe` has by default. Accuracy is that on ESC-10's fold 4 and
UrbanSound8K's fold 2, which neither the encoder nor a probe trains on; nothing is chosen by it.

Prints a table and writes it, with every single run, to OUT/probes.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pretraining import METHODS, SOURCES, Source, read

from audiossl.evaluate.evaluation import Options

PROBES = ("prototypical", "linear", "mlp", "attentive", "knn")
SHOTS = (1, 5, 10, None)
SEEDS = 5


def main() -> int:
    parser = argparse.ArgumentParser(description="Accuracy of probes of frozen features.")
    parser.add_argument("--data", type=Path, required=True, help="folder of the two data sets")
    parser.add_argument("--out", type=Path, required=True, help="folder of pretraining.py's runs")
    parser.add_argument("--method", action="append", choices=METHODS, help="default: all")
    parser.add_argument("--jobs", type=int, default=2, help="probes fitted at a time")
    arguments = parser.parse_args()
    results: list[dict[str, Any]] = []
    for method in arguments.method or METHODS:
        model = arguments.out / "runs" / f"{method}-0" / "last"
        for source in SOURCES:
            start = time.monotonic()
            found = evaluate(model, arguments.data.resolve(), source, arguments.jobs)
            results += [{"encoder": method, "set": source.name, **result} for result in found]
            minutes = (time.monotonic() - start) / 60
            print(f"{method}, {source.name}: {minutes:.1f} min", file=sys.stderr)
    (arguments.out / "probes.json").write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))
    return 0


def evaluate(model: Path, data: Path, source: Source, jobs: int) -> list[dict[str, Any]]:
    """[{probe, shots, accuracies: one a seed}] of an encoder on a set."""
    import torch

    import audiossl
    from audiossl.evaluate import probe

    torch.set_num_threads(1)
    rows = [
        replace(row, split="train" if row.fold in source.train else "test")
        for row in read(data, source)
        if row.fold in source.train + source.test
    ]
    options = Options(probes=PROBES, shots=SHOTS, seeds=SEEDS, protocol="split")
    with probe.opened(
        audiossl.load(str(model)), rows, options, source.name, jobs=jobs
    ) as evaluation:
        return [
            {
                "probe": result.probe,
                "shots": result.shots,
                "accuracies": [accuracy(unit, evaluation.targets) for unit in result.units],
            }
            for result in evaluation.results()
        ]


def accuracy(unit: Any, targets: Any) -> float:
    """Share of a unit's tested clips whose highest score is that of their class."""
    return float(np.mean(unit.scores.argmax(1) == targets[unit.test].argmax(1)))


def table(results: list[dict[str, Any]]) -> str:
    """A line an encoder, set and number of shots; a column a probe: mean and deviation, in %."""
    lines = [
        f"| encoder | set | clips a class | {' | '.join(PROBES)} |",
        f"|---|---|---|{'---|' * len(PROBES)}",
    ]
    cases = dict.fromkeys((item["encoder"], item["set"], item["shots"]) for item in results)
    for case in cases:
        found = {
            item["probe"]: item["accuracies"]
            for item in results
            if (item["encoder"], item["set"], item["shots"]) == case
        }
        best = max(statistics.mean(values) for values in found.values())
        cells = [spread(found[name], best) for name in PROBES]
        encoder, name, shots = case
        lines.append(f"| `{encoder}` | {name} | {shots or 'all'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(values: list[float], best: float) -> str:
    """Mean ± standard deviation over the seeds, the line's best in bold."""
    mean = statistics.mean(values)
    text = f"{100 * mean:.1f} ± {100 * statistics.stdev(values):.1f}"
    return f"**{text}**" if mean == best else text


if __name__ == "__main__":
    sys.exit(main())
