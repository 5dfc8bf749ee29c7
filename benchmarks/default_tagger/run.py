"""Make the default tagger and measure it: one command from sounds to model card.

    python benchmarks/default_tagger/run.py --data FOLDER --out FOLDER [--jobs 2] [--ship]

FOLDER of --data holds esc10, urbansound8k, philharmonia_notes, speech_commands, fsdd,
music_examples, text (AudioCaps captions) and teachers (YAMNet tflite). Needed besides audiossl:
`pip install ai-edge-litert scikit-learn scipy tinysoundfont` (the last with --no-deps), `espeak-ng`
in the PATH, and Debian's apt-get to download packages (nothing is installed). Every stage whose
result is in the --out folder already is left out, so a run goes on where it was stopped.

1. prepare.py     sounds, YAMNet's view of every clip, YAMNet as a model, the bank of distillation
2. distil         recipe tagger_distill on sounds of no fold -> runs/base, and fold.py -> runs/base/
                  folded, without batch norms
3. distil         recipe tagger_distill from there, with training folds: for the odd splits, the
                  even ones, and for everything ("all")
   head.py        a head for each split of protocol.py, and one for everything
4. measure.py     accuracy, YAMNet's probe, calibration, unknown sounds, time -> numbers.json
5. --ship         the model of everything, its head scaled by Platt's (a, b), with its card, to
                  audiossl/pretrained/tagger
"""

from __future__ import annotations

import argparse
import fcntl
import json
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import measure
import numpy as np
import protocol
from card import ship
from fold import fold
from head import give_head
from prepare import prepare, table

from audiossl.engine.train import fit
from audiossl.recipe import loading as recipes

SHARE_OF_OTHERS = 0.1  # of the sounds of no fold, heard again beside a half's folds
FOLDED = "folded"  # folder of the model of the base whose batch norms are folded
# What differs from the recipe once the student can stand alone.
AFTER_BASE = ("train.steps=5000", "train.lr=1e-3", "method.forced=0", "train.batch_size=8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the default tagger and measure it.")
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--out", type=Path, required=True, help="folder for everything made here")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--ship", action="store_true", help="put the model into the package")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    lock = (out / "lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)  # a second run in this folder waits for the first
    prepare(arguments.data, out, arguments.jobs)
    train_base(out, arguments.jobs)
    with ProcessPoolExecutor(arguments.jobs) as pool:
        list(pool.map(distil, ("odd", "even"), [out] * 2))
    distil("all", out, arguments.jobs)
    with ProcessPoolExecutor(arguments.jobs) as pool:
        splits = (None, *protocol.SPLITS)
        list(pool.map(name_sounds, splits, [out] * 5, [arguments.data] * 5))
    numbers = report(out, arguments.data, arguments.jobs)
    (out / "numbers.json").write_text(json.dumps(numbers, indent=1) + "\n")
    if arguments.ship:
        ship(tagger(out, None), numbers, protocol.sources())


def train_base(out: Path, threads: int) -> None:
    """Distillation on the sounds that belong to no fold and no held-out package."""
    folder = out / "runs" / "base"
    if not (folder / FOLDED).exists():
        teach(out, protocol.write_bank(out, "base", ["other"]), folder, f"train.threads={threads}")
        fold(folder / "last", folder / FOLDED)


def distil(half: str, out: Path, threads: int = 1) -> None:
    """Distillation with the training folds of the half's splits, from the base."""
    folder = out / "runs" / half / "distilled"
    if (folder / "done").exists():
        return
    never = set().union(*(protocol.left_out(split) for split in protocol.HALVES[half]))
    parts = sorted({protocol.clip_part(clip) for clip in table(out)} - never)
    bank = protocol.write_bank(out, half, parts, {"other": SHARE_OF_OTHERS})
    start = f"model.from={out / 'runs' / 'base' / FOLDED}"
    teach(out, bank, folder, start, f"train.threads={threads}", *AFTER_BASE)


def name_sounds(split: int | None, out: Path, data: Path) -> None:
    """Give the distilled encoder of the split's half the split's labels."""
    half = next(name for name, splits in protocol.HALVES.items() if split in (splits or (None,)))
    if not tagger(out, split).exists():
        clips_table = protocol.write_clips(out, data, table(out), split)
        encoder = out / "runs" / half / "distilled" / "last"
        give_head(encoder, clips_table, out, protocol.LABELS, tagger(out, split))


def tagger(out: Path, split: int | None) -> Path:
    """Model folder of the split's tagger; None: of the one that ships."""
    return out / "runs" / str(split or "all") / "tagger"


def teach(out: Path, bank: Path, folder: Path, *overrides: str) -> None:
    """Run the recipe of distillation on the segments of table `bank`."""
    wanted = [f"method.teacher={out / 'yamnet'}", f"data.train={bank}", f"data.root={out}"]
    fit(recipes.load("tagger_distill", [*wanted, *overrides, f"out={folder}"]), overwrite=True)
    (folder / "done").touch()


def measure_split(split: int, out: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """Logits of the split's test clips (clips, labels), and the accuracies."""
    clips, embedding = table(out), np.load(out / "heard.npz")["embedding"]
    tested = [i for i, clip in enumerate(clips) if protocol.is_test(clip, split)]
    logits = measure.answers(tagger(out, split), out, clips, tested)
    head = measure.accuracy(logits, clips, split)
    return logits, {"head": head, "yamnet_probe": measure.probe(embedding, clips, split)}


def report(out: Path, data: Path, jobs: int) -> dict[str, Any]:
    """Everything that is said about the tagger, from the four splits' models."""
    clips = table(out)
    targets = measure.truth(out, data, clips)
    hand = measure.by_hand(targets, clips)
    with ProcessPoolExecutor(jobs) as pool:
        done = list(pool.map(measure_split, protocol.SPLITS, [out] * len(protocol.SPLITS)))
    logits = {split: one for split, (one, _) in zip(protocol.SPLITS, done, strict=True)}
    result: dict[str, Any] = {
        "splits": {split: one for split, (_, one) in zip(protocol.SPLITS, done, strict=True)}
    }
    tested = {k: np.flatnonzero(np.isfinite(logits[k][:, 0])) for k in protocol.SPLITS}
    scores = {}
    for split in protocol.SPLITS:  # scaled by what the other three splits say
        others = [k for k in protocol.SPLITS if k != split]
        a, b = _platt(logits, hand, tested, others)
        scores[split] = 1 / (1 + np.exp(-(a * logits[split] + b)))
        result["splits"][split]["unknown"] = measure.unknown(scores[split], targets, clips, split)
    result["mean"] = _means(result["splits"])
    said = np.concatenate([scores[k][tested[k]] for k in protocol.SPLITS])
    for name, true in (("calibration", hand), ("all_pairs", targets)):
        true = np.concatenate([true[tested[k]] for k in protocol.SPLITS])
        result[name] = measure.reliability(said, true)
    result["platt"] = _platt(logits, hand, tested, list(protocol.SPLITS))
    result["milliseconds_10s"] = measure.milliseconds(tagger(out, None))
    return result


def _platt(logits: Any, targets: np.ndarray, tested: Any, splits: list[int]) -> tuple[float, float]:
    return measure.platt(
        np.concatenate([logits[k][tested[k]] for k in splits]),
        np.concatenate([targets[tested[k]] for k in splits]),
    )


def _means(splits: dict[int, Any]) -> dict[str, Any]:
    head = {
        m.name: float(np.mean([s["head"][m.name] for s in splits.values()]))
        for m in protocol.MEASURED
    }
    probe = {
        m.name: {
            c: float(np.mean([s["yamnet_probe"][m.name][c] for s in splits.values()]))
            for c in splits[1]["yamnet_probe"][m.name]
        }
        for m in protocol.MEASURED
    }
    kinds = splits[1]["unknown"]
    unknown = {k: float(np.mean([s["unknown"][k] for s in splits.values()])) for k in kinds}
    return {"head": head, "yamnet_probe": probe, "unknown": unknown}


if __name__ == "__main__":
    main()
