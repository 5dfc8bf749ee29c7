"""Does pretraining help? Few-shot fine-tuning from a pretrained encoder against random weights.

    python benchmarks/pretraining.py --data FOLDER --out FOLDER [--method ssast] [--jobs 2]

FOLDER of --data holds esc10/ and urbansound8k/ (`audio/` and the sets' own tables). Each method is
pretrained without labels by the recipe bench/METHOD, once for each of PRETRAININGS seeds, on
ESC-10's folds 1-3 and UrbanSound8K's fold 1. Then the recipe bench/few_shot trains all weights on
`SHOTS` clips a class drawn from the same folds, DRAWS times, from the pretrained encoder and, with
the same clips, seed and number of updates, from random weights. Accuracy is that of the last
update on ESC-10's fold 4 and UrbanSound8K's fold 2, which no training hears; nothing is chosen by
it. Runs that are done by the same recipe from the same tables and weights are left out, so a
benchmark goes on where it was stopped.

Prints two tables, gains and SSAMBA beside SSAST, and writes every single run to
OUT/pretraining.json. Intervals are those of the draws: with one pretraining a method (PRETRAININGS)
they say nothing of what another pretraining would have given.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from audiossl.data import splitting
from audiossl.recipe import resolved

METHODS = ("bird_mae", "ssast", "ssamba")
PRETRAININGS, DRAWS, SHOTS = 1, 4, 10


@dataclass(frozen=True)
class Source:
    """A labelled set: its table, and the folds that are trained and tested on."""

    name: str
    group: str  # column of the recording that a clip was cut from
    train: tuple[str, ...]
    test: tuple[str, ...]


SOURCES = (
    Source("esc10", "src_file", ("1", "2", "3"), ("4",)),
    Source("urbansound8k", "fsID", ("1",), ("2",)),
)


def main() -> int:
    parser = argparse.ArgumentParser(description="Few-shot accuracy with and without pretraining.")
    parser.add_argument("--data", type=Path, required=True, help="folder of the two data sets")
    parser.add_argument("--out", type=Path, required=True, help="folder for tables and runs")
    parser.add_argument("--method", action="append", choices=METHODS, help="default: all")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    arguments = parser.parse_args()
    methods = arguments.method or list(METHODS)
    out = arguments.out.resolve()
    write_tables(arguments.data.resolve(), out)
    for method in methods:
        start = time.monotonic()
        with ProcessPoolExecutor(arguments.jobs) as pool:
            list(
                pool.map(
                    pretrain, [out] * PRETRAININGS, [method] * PRETRAININGS, range(PRETRAININGS)
                )
            )
            jobs = [
                (out, method, source.name, draw, start_from)
                for source in SOURCES
                for draw in range(DRAWS)
                for start_from in ("random", "pretrained")
            ]
            list(pool.map(few_shot, *zip(*jobs, strict=True)))
        print(f"{method}: {(time.monotonic() - start) / 60:.1f} min", file=sys.stderr)
    results = collect(out)
    (out / "pretraining.json").write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))
    if {"ssast", "ssamba"} <= set(results):
        print("\n" + comparison(results))
    return 0


def write_tables(data: Path, out: Path) -> None:
    """OUT/tables: pretrain.csv without labels; SET-DRAW.csv and SET-test.csv with them."""
    from audiossl.data import manifest
    from audiossl.data.rows import Row

    folder = out / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    unlabelled = []
    for source in SOURCES:
        rows = read(data, source)
        train = [row for row in rows if row.fold in source.train]
        test = [row for row in rows if row.fold in source.test]
        splitting.apart(train, test)
        unlabelled += [Row(row.path) for row in train]
        manifest.write(folder / f"{source.name}-test.csv", test, root=data)
        for draw in range(DRAWS):
            shots = choose(train, np.random.default_rng(draw))
            manifest.write(folder / f"{source.name}-{draw}.csv", shots, root=data)
    manifest.write(folder / "pretrain.csv", unlabelled, root=data)
    (folder / "root").write_text(str(data))


def read(data: Path, source: Source) -> list[Any]:
    """Rows of a set: path, the one label, fold and group."""
    from audiossl.data.rows import Row

    folder = data / source.name
    with (folder / f"{source.name}.csv").open(newline="", encoding="utf-8") as file:
        return [
            Row(
                folder / "audio" / clip["filename"],
                labels=(clip["category"],),
                fold=clip["fold"],
                group=f"{source.name}-{clip[source.group]}",
            )
            for clip in csv.DictReader(file)
        ]


def choose(rows: list[Any], rng: np.random.Generator) -> list[Any]:
    """SHOTS rows of each label, from as many recordings as there are."""
    chosen = []
    for label in sorted({row.labels[0] for row in rows}):
        seen: dict[str, int] = {}
        ranked = []
        candidates = [row for row in rows if row.labels[0] == label]
        for place in rng.permutation(len(candidates)):
            row = candidates[place]
            seen[row.group] = seen.get(row.group, 0) + 1
            ranked.append((seen[row.group], len(ranked), row))
        chosen += [row for _, _, row in sorted(ranked)[:SHOTS]]
    return chosen


def pretrain(out: Path, method: str, seed: int) -> None:
    """One pretraining: OUT/runs/METHOD-SEED/last."""
    train(
        f"bench/{method}",
        out / "runs" / f"{method}-{seed}",
        f"data.train={out / 'tables' / 'pretrain.csv'}",
        f"data.root={(out / 'tables' / 'root').read_text()}",
        f"train.seed={seed}",
    )


def few_shot(out: Path, method: str, source: str, draw: int, start_from: str) -> None:
    """One fine-tuning: OUT/runs/METHOD-SET-DRAW-START/metrics.jsonl."""
    pretrained = out / "runs" / f"{method}-{draw % PRETRAININGS}" / "last"
    if start_from == "pretrained":
        start = f"model.from={pretrained}"
    else:
        config = json.loads((pretrained / "config.json").read_text())
        start = f"model.architecture={json.dumps(config['architecture'])}"
    train(
        "bench/few_shot",
        out / "runs" / f"{method}-{source}-{draw}-{start_from}",
        start,
        f"data.train={out / 'tables' / f'{source}-{draw}.csv'}",
        f"data.valid={out / 'tables' / f'{source}-test.csv'}",
        f"data.root={(out / 'tables' / 'root').read_text()}",
        f"train.seed={draw}",
    )


def train(recipe: str, folder: Path, *overrides: str) -> None:
    """Run a recipe of this package into `folder`, on one thread, unless that has been done."""
    from audiossl.engine.train import fit
    from audiossl.recipe import loading as recipes

    asked = recipes.load(recipe, [*overrides, "train.threads=1", f"out={folder}"])
    done, made_of = folder / "done", resolved.to_yaml(asked) + digests(asked)
    if not done.exists() or done.read_text() != made_of:
        fit(asked, overwrite=True)
        done.write_text(made_of)


def digests(asked: Any) -> str:
    """What the tables of a recipe and the model it starts from hold, in a line each."""
    from audiossl.caches import sha256
    from audiossl.hub.folder import WEIGHTS

    files = [asked.data.train, asked.data.valid]
    if asked.model.from_:
        files.append(Path(asked.model.from_) / WEIGHTS)
    return "".join(f"# {sha256(Path(path))} {path}\n" for path in files if path)


def collect(out: Path) -> dict[str, Any]:
    """{METHOD: {SET: {"random": [accuracy a draw], "pretrained": [...]}}, parameters} so far."""
    results: dict[str, Any] = {}
    for method in METHODS:
        for source in SOURCES:
            for start_from in ("random", "pretrained"):
                runs = [
                    out / "runs" / f"{method}-{source.name}-{draw}-{start_from}"
                    for draw in range(DRAWS)
                ]
                if all((run / "done").exists() for run in runs):
                    part = results.setdefault(method, {}).setdefault(source.name, {})
                    part[start_from] = [accuracy(run) for run in runs]
                    facts = json.loads((runs[0] / "run.json").read_text())
                    results[method]["parameters"] = facts["parameters"]
    return results


def accuracy(run: Path) -> float:
    """On the test fold, after the last update."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines if "valid_accuracy" in line][-1]["valid_accuracy"]


def table(results: dict[str, Any]) -> str:
    """Means and standard deviations over the draws, and the paired gain with its 95 % interval."""
    lines = [
        "| method | weights | set | from random weights | pretrained | gain (95 %) |",
        "|---|---|---|---|---|---|",
    ]
    for method, parts in results.items():
        for source in SOURCES:
            part = parts[source.name]
            gain = _difference(part["pretrained"], part["random"])
            lines.append(
                f"| `{method}` | {parts['parameters'] / 1e6:.2f} M | {source.name}"
                f" | {_spread(part['random'])} | {_spread(part['pretrained'])}"
                f" | {gain} |"
            )
    return "\n".join(lines)


def comparison(results: dict[str, Any]) -> str:
    """SSAMBA less SSAST, both pretrained, paired by the draws."""
    lines = ["| set | SSAMBA - SSAST, pretrained (95 %) |", "|---|---|"]
    for source in SOURCES:
        one, other = (results[m][source.name]["pretrained"] for m in ("ssamba", "ssast"))
        lines.append(f"| {source.name} | {_difference(one, other)} |")
    return "\n".join(lines)


def _difference(values: list[float], others: list[float]) -> str:
    """Mean of the paired differences and half their 95 % interval, in points."""
    gains = [a - b for a, b in zip(values, others, strict=True)]
    half = float(stats.t.ppf(0.975, len(gains) - 1)) * statistics.stdev(gains) / len(gains) ** 0.5
    return f"{100 * statistics.mean(gains):+.1f} ± {100 * half:.1f}"


def _spread(values: list[float]) -> str:
    return f"{100 * statistics.mean(values):.1f} ± {100 * statistics.stdev(values):.1f} %"


if __name__ == "__main__":
    sys.exit(main())
