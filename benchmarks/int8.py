"""`--int8`: a transformer's linear layers in integers, against float32; one core.

The time is that of Audio-MAE's ViT-B (random weights: they change no time) on 10 s. Whether the
best label stays the same can only be said of a trained model on real sounds: --model FOLDER (one
that has labels) with --clips (a manifest, or a folder of sounds).

python benchmarks/int8.py [--rounds 7] [--model FOLDER --clips MANIFEST [--root FOLDER]]
"""

from __future__ import annotations

import argparse
import copy
import os

import measure
import numpy as np
import torch

from audiossl.data import reading
from audiossl.data.clip import read_clip
from audiossl.hub.config import ModelConfig
from audiossl.inference import network
from audiossl.inference.quantise import int8
from audiossl.model import Model

LARGE = ModelConfig(
    name="ViT-B",
    architecture={"name": "audio_mae"},
    frontend={"preset": "audiomae"},
    head={"name": "linear", "activation": "sigmoid", "labels": [str(i) for i in range(527)]},
)


def speed(rounds: int) -> None:
    """Both versions of the large model in turns."""
    torch.manual_seed(0)
    model = Model(LARGE).eval()
    quick = int8(copy.deepcopy(model))
    wave = torch.randn(1, round(10 * model.rate)) * 0.1

    def run(which: Model) -> object:
        with torch.inference_mode():
            return which(wave)

    candidates: measure.Candidates = {"int8": lambda: run(quick), "float32": lambda: run(model)}
    seconds = measure.interleaved(candidates, rounds)
    weights = sum(p.numel() for p in model.parameters()) / 1e6
    title = f"{LARGE.name}, {weights:.0f} M weights, 10 s, one core, CPU time"
    print(measure.table(title, seconds, "int8", 1, "clip"))


def agreement(name: str, clips: str, root: str | None) -> None:
    """How often the best label is the same in both, and how often each is right."""
    rows = reading.read(clips, root)
    exact, quick = (network.load(name, "cpu", "torch", int8=flag) for flag in (False, True))
    same, right, apart = 0, [0, 0], 0.0
    for row in rows:
        wave = read_clip(row, exact.rate)[None]
        scores = [np.asarray(each.predict(wave))[0] for each in (exact, quick)]
        best = [exact.labels[int(each.argmax())] for each in scores]
        same += best[0] == best[1]
        right = [count + (label in row.labels) for count, label in zip(right, best, strict=True)]
        apart = max(apart, float(np.abs(scores[0] - scores[1]).max()))
    print(f"### The same best label: {exact.name}, {len(rows)} clips\n")
    print("| same | right in float32 | right in int8 | largest difference of a score |")
    print("|---|---|---|---|")
    shares = " | ".join(f"{100 * count / len(rows):.1f} %" for count in (same, *right))
    print(f"| {shares} | {apart:.3f} |\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--model", metavar="FOLDER", default=os.environ.get("AUDIOSSL_INT8_MODEL"))
    parser.add_argument(
        "--clips", metavar="MANIFEST", default=os.environ.get("AUDIOSSL_INT8_CLIPS")
    )
    parser.add_argument("--root", metavar="FOLDER", help="that the manifest's paths start from")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(measure.machine("torch"), "\n")
    speed(args.rounds)
    if args.model and args.clips:
        agreement(args.model, args.clips, args.root)


if __name__ == "__main__":
    main()
