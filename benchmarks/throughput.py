"""`audiossl tag FOLDER` over a thousand files: how long, and how much of the machine it uses.

The folder holds the clips of tests/data/clips over and over (links, so every file is decoded).
These take turns: the graph with all cores and with one job, the torch backend, and the loop one
would write with librosa and torch. Use of the cores is CPU time over wall time and cores, start-up
included.

python benchmarks/throughput.py [--files 1000] [--rounds 3]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import measure
from tagging import CLIPS, children

LOOP = """
import sys, pathlib, librosa, torch, audiossl
model = audiossl.load("tagger")
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    wave, _ = librosa.load(path, sr=16000)
    with torch.inference_mode():
        scores = model.scores(model(torch.from_numpy(wave)[None]))[0]
    print(path, *sorted(zip(scores.tolist(), model.labels))[-5:])
"""


def fill(folder: Path, count: int) -> float:
    """Link `count` files into `folder`; seconds of sound in them."""
    import soundfile

    clips = sorted(path for path in CLIPS.iterdir() if path.suffix in (".flac", ".ogg", ".wav"))
    for number in range(count):
        clip = clips[number % len(clips)]
        (folder / f"{number:05d}{clip.suffix}").symlink_to(clip)
    lengths = [soundfile.info(str(clip)).duration for clip in clips]
    return sum(lengths[number % len(clips)] for number in range(count))


def commands(folder: Path) -> dict[str, list[str]]:
    tag = [str(Path(sys.executable).parent / "audiossl"), "tag", str(folder), "--format", "jsonl"]
    return {
        "audiossl tag": tag,
        "audiossl tag --jobs 1": [*tag, "--jobs", "1"],
        "audiossl tag --backend torch": [*tag, "--backend", "torch"],
        "a loop with librosa and torch": [sys.executable, "-c", LOOP, str(folder)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    cores = os.cpu_count() or 1
    print(measure.machine("torch", "onnxruntime", "librosa"), "\n")
    with tempfile.TemporaryDirectory() as place:
        seconds = fill(Path(place), args.files)
        wall: dict[str, list[float]] = {}
        used: dict[str, list[float]] = {}
        for _ in range(args.rounds):
            for name, command in commands(Path(place)).items():
                start, before = time.perf_counter(), children()
                subprocess.run(command, check=True, capture_output=True)
                wall.setdefault(name, []).append(time.perf_counter() - start)
                used.setdefault(name, []).append((children() - before) / wall[name][-1] / cores)
    title = f"Tag {args.files} files, {seconds / 60:.0f} minutes of sound, from nothing, wall time"
    print(measure.table(title, wall, "audiossl tag", args.files, "file"))
    print(f"### Share of {cores} cores that was at work\n\n| | median |\n|---|---|")
    for name, shares in used.items():
        print(f"| {name} | {100 * statistics.median(shares):.0f} % |")
    print()


if __name__ == "__main__":
    main()
