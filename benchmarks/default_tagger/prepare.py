"""Gather the sounds, ask the teacher about every clip, and make the bank of distillation.

OUT/clips.csv, OUT/clips/         sounds.py
OUT/heard.npz                     YAMNet about whole clips: embedding (clips, 1024), mean over
                                  its patches; scores (clips, 521), the highest of its patches
OUT/yamnet/                       YAMNet as a model of this package, teacher.py
OUT/segments/                     bank.py
"""

from __future__ import annotations

import csv
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import bank
import numpy as np
import soundfile
import sounds
import torch
from teacher import Yamnet, convert


def prepare(data: Path, out: Path, jobs: int) -> None:
    """Do whatever of the four is not done yet."""
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "clips.csv").exists():
        sounds.unpack(out / "packages")
        made = out / "made"
        clips = [
            *sounds.labelled(data),
            *sounds.unlabelled(data, out / "packages"),
            *sounds.speak(data, made / "speech", 160),
            *sounds.play(out / "packages", made / "music"),
            *sounds.compute(made / "formulas", 144),
        ]
        sounds.decode(clips, out, jobs)
    clips = table(out)
    if not (out / "heard.npz").exists():
        paths = [str(out / clip["path"]) for clip in clips]
        with ProcessPoolExecutor(jobs, initializer=_start, initargs=(data / "teachers",)) as pool:
            told = list(pool.map(_ask, paths, chunksize=50))
        embedding, scores = (np.stack(part) for part in zip(*told, strict=True))
        np.savez(out / "heard.npz", embedding=embedding, scores=scores.astype(np.float16))
    if not (out / "yamnet" / "config.json").exists():
        convert(data / "teachers", out / "yamnet")
    if not (out / "bank.done").exists():
        bank.make(clips, out, jobs)
        (out / "bank.done").touch()


def table(out: Path) -> list[dict[str, str]]:
    """Rows of clips.csv."""
    with (out / "clips.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def _start(teacher: Path) -> None:
    global YAMNET
    torch.set_num_threads(1)
    YAMNET = Yamnet(teacher)


def _ask(path: str) -> tuple[np.ndarray, np.ndarray]:
    return YAMNET.clip(soundfile.read(path, dtype="float32")[0])
