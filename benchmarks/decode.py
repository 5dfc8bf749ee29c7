"""Decode and resample to 16 kHz, one core, CPU time: audiossl.audio.read against its peers.

They are librosa.load, soundfile with torchaudio's resampling (its defaults), and the floor: what
libsndfile and soxr alone take, the whole file at once, with nothing checked.

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
import soxr
import torch

from audiossl._torchaudio import torchaudio
from audiossl.audio import reading as audio

RATE, SECONDS, FILES = 44100, 5, 12
TARGET = 16000


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


def by_torchaudio(path: Path) -> object:
    wave = torch.from_numpy(soundfile.read(path, dtype="float32")[0])
    return torchaudio.functional.resample(wave, RATE, TARGET)


def floor(path: Path) -> object:
    return soxr.resample(soundfile.read(path, dtype="float32")[0], RATE, TARGET)


def over(paths: list[Path], read: Callable[[Path], object]) -> Callable[[], None]:
    def run() -> None:
        for path in paths:
            read(path)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    print(measure.machine("soundfile", "soxr", "librosa", "torchaudio"), "\n")
    with tempfile.TemporaryDirectory() as name:
        for suffix in ("wav", "flac", "ogg", "mp3"):
            paths = make_files(Path(name), suffix)
            seconds = measure.interleaved(
                {
                    "audiossl.audio.read": over(paths, lambda path: audio.read(path, TARGET)),
                    "librosa.load": over(paths, lambda path: librosa.load(path, sr=TARGET)),
                    "soundfile + torchaudio": over(paths, by_torchaudio),
                    "soundfile + soxr alone": over(paths, floor),
                },
                rounds,
            )
            title = f"Decode and resample, {suffix}, {SECONDS} s at 44.1 kHz to 16 kHz"
            print(measure.table(title, seconds, "audiossl.audio.read", FILES, "file"))


if __name__ == "__main__":
    main()
