"""Make the clips of tests/data/clips again: `python make_clips.py [SONIC_PI_SAMPLES_FOLDER]`.

Needs the Debian packages sonic-pi-samples (recordings, all CC0) and espeak-ng (speech); the rest is
computed here from fixed seeds. Encoders differ from version to version, so the files need not come
out byte for byte as they are committed.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import soxr

CLIPS = Path(__file__).parent / "clips"
SAMPLES = Path("/usr/share/sonic-pi/samples")
SENTENCE = "Hello. This is a test of speech. How are you today?"


def sample(name: str, rate: int, seconds: float | None = None, stereo: bool = False) -> np.ndarray:
    """A recording of sonic-pi-samples at `rate` Hz, faded out when it is cut at `seconds`."""
    wave, source = soundfile.read(SAMPLES / f"{name}.flac", dtype="float32", always_2d=True)
    wave = wave if stereo else wave.mean(axis=1)
    wave = soxr.resample(wave, source, rate)
    if seconds is not None and len(wave) > seconds * rate:
        wave = wave[: round(seconds * rate)].copy()
        fade = np.linspace(1, 0, round(0.05 * rate), dtype=np.float32)
        wave[-len(fade) :] *= fade if wave.ndim == 1 else fade[:, None]
    return wave


def placed(parts: list[tuple[float, np.ndarray]], seconds: float, rate: int) -> np.ndarray:
    """Sum of waves that start at their times; what reaches over the end is cut."""
    wave = np.zeros(round(seconds * rate))
    for start, part in parts:
        at = round(start * rate)
        part = part[: max(0, len(wave) - at)]
        wave[at : at + len(part)] += part
    return wave


def drum_kit(rate: int) -> np.ndarray:
    """A bar and a half of rock beat at 112 bpm."""
    hits = {
        "drum_bass_hard": [0, 3, 4, 8, 9],
        "drum_snare_hard": [2, 6, 10, 11],
        "drum_cymbal_closed": list(range(12)),
        "drum_cymbal_open": [7],
    }
    eighth = 60 / 112 / 2
    parts = [(at * eighth, sample(name, rate)) for name, times in hits.items() for at in times]
    return 0.5 * placed(parts, 3.1, rate)


def crow(rate: int) -> np.ndarray:
    caw = sample("misc_crow", rate)
    return placed([(0.2, caw), (0.9, 0.8 * caw), (1.9, 0.9 * caw)], 2.6, rate)


def siren(rate: int) -> np.ndarray:
    """A wailing siren: harmonics of a tone that climbs and falls."""
    time = np.arange(5 * rate) / rate
    pitch = 950 - 450 * np.cos(2 * np.pi * time / 2.5)
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    wave = np.sum([np.sin(k * phase) / k**1.2 for k in (1, 2, 3)], axis=0)
    echo = np.concatenate([np.zeros(rate // 8), wave])[: len(wave)]
    return 0.3 * (wave + 0.4 * echo) + 0.004 * np.random.default_rng(0).standard_normal(len(wave))


def clock(rate: int) -> np.ndarray:
    """Tick and tock, four a second: each a knock on a wooden case and a softer one after 20 ms."""
    rng = np.random.default_rng(1)
    time = np.arange(round(0.06 * rate)) / rate

    def knock(pitch: float) -> np.ndarray:
        ring = sum(np.sin(2 * np.pi * pitch * k * time) / k for k in (1, 1.59, 2.14))
        return (ring + 0.8 * rng.standard_normal(len(time))) * np.exp(-time / 0.006)

    ticks = [(0.1 + 0.25 * n, 0.1 * knock((2300, 1900)[n % 2])) for n in range(15)]
    falls = [(start + 0.02, 0.5 * wave) for start, wave in ticks]
    return placed(ticks + falls, 4.0, rate) + 0.0005 * rng.standard_normal(4 * rate)


def rain(rate: int) -> np.ndarray:
    """Hiss of far drops and a thousand near ones a second, each a short burst."""
    rng = np.random.default_rng(2)
    seconds = 6.0
    noise = rng.standard_normal(round(seconds * rate) + 1)
    drops = []
    for start in rng.uniform(0, seconds, 6000):
        time = np.arange(round(rng.uniform(0.002, 0.02) * rate)) / rate
        burst = rng.standard_normal(len(time)) * np.exp(-time / 0.001)
        drops.append((start, 0.05 * rng.pareto(2.5) * burst))
    return 0.02 * (noise[1:] + 0.3 * np.diff(noise)) + placed(drops, seconds, rate)


def tone(rate: int) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)


def speech(rate: int) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "speech.wav"
        subprocess.run(["espeak-ng", "-v", "en-gb", "-w", path, SENTENCE], check=True)
        wave, source = soundfile.read(path, dtype="float32")
    return soxr.resample(wave, source, rate)


RECIPES: dict[str, tuple[int, str, str, Callable[[int], np.ndarray]]] = {
    "drum kit.flac": (22050, "FLAC", "PCM_16", drum_kit),
    "guitar.ogg": (44100, "OGG", "VORBIS", lambda rate: sample("guit_em9", rate, 6, stereo=True)),
    "crow.wav": (16000, "WAV", "PCM_16", crow),
    "bass.mp3": (44100, "MP3", "MPEG_LAYER_III", lambda rate: sample("bass_woodsy_c", rate)),
    "tabla.ogg": (48000, "OGG", "VORBIS", lambda rate: sample("loop_tabla", rate, 5.33)),
    "drumroll.mp3": (32000, "MP3", "MPEG_LAYER_III", lambda rate: sample("drum_roll", rate, 5)),
    "bell.caf": (16000, "CAF", "ALAC_16", lambda rate: sample("perc_bell", rate, 4)),
    "burp.opus": (48000, "OGG", "OPUS", lambda rate: sample("misc_burp", rate)),
    "speech.flac": (16000, "FLAC", "PCM_16", speech),
    "siren.au": (8000, "AU", "ULAW", siren),
    "clock.wav": (11025, "WAV", "PCM_16", clock),
    "rain.ogg": (32000, "OGG", "VORBIS", rain),
    "tone.aiff": (8000, "AIFF", "PCM_16", tone),
}


def main() -> None:
    for name, (rate, kind, subtype, make) in RECIPES.items():
        wave = make(rate)
        wave = 0.9 * wave / max(0.9, np.abs(wave).max())
        soundfile.write(CLIPS / name, wave, rate, format=kind, subtype=subtype)


if __name__ == "__main__":
    SAMPLES = Path(sys.argv[1]) if len(sys.argv) > 1 else SAMPLES
    main()
