"""Decode and resample to 16 kHz: audiossl.audio.read against librosa.load, one core, CPU time.

python benchmarks/decode.py [--rounds 7]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import librosa
import measure
import numpy as np
import soundfile

from audiossl import audio

RATE, SECONDS, FILES = 44100, 5, 12


def make_files(folder: Path, suffix: str) -> list[Path]:
    """Noise and a tone, 5 s, mono, 44.1 kHz; seed 0."""
    random = np.random.default_rng(0)
    paths = []
    for index in range(FILES):
        time = np.arange(RATE * SECONDS) / RATE
        wave = 0.3 * np.sin(2 * np.pi * (200 + 100 * index) * time)
        wave += 0.1 * random.standard_normal(len(time))
        paths.append(folder / f"{index}.{suffix}")
        soundfile.write(paths[-1], wave.astype(np.float32), RATE)
    return paths


def over(paths: list[Path], read: Callable[[Path], object]) -> Callable[[], None]:
    def run() -> None:
        for path in paths:
            read(path)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    print(measure.machine("soundfile", "soxr", "librosa"), "\n")
    with tempfile.TemporaryDirectory() as name:
        for suffix in ("wav", "flac", "ogg", "mp3"):
            paths = make_files(Path(name), suffix)
            seconds = measure.interleaved(
                {
                    "audiossl.audio.read": over(paths, lambda path: audio.read(path, 16000)),
                    "librosa.load": over(paths, lambda path: librosa.load(path, sr=16000)),
                },
                rounds,
            )
            title = f"Decode and resample, {suffix}, {SECONDS} s at 44.1 kHz to 16 kHz"
            print(measure.table(title, seconds, "audiossl.audio.read", FILES, "file"))


if __name__ == "__main__":
    main()
