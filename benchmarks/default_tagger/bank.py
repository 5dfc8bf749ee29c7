"""The bank of distillation: segments of 3.855 s, 384 frames, in segments/PART/NUMBER.wav.

Clean segments cut every clip into pieces; the others are mixtures of up to three with changes of
speed, filters, noise and gain, so that hours of sound become days. Each part of the bank (esc10-1,
urbansound8k-2, ...) holds clips of one fold only, mixed with each other and with sounds of no fold,
so a fold can be left out: labelled or not, not one sample of it is then heard.
"""

from __future__ import annotations

import random
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
from scipy import signal
from sounds import HELD_OUT, RATE

SAMPLES = 383 * 160 + 400  # of a segment: 384 frames
MIXTURES = {"other": 14_000, "held_out": 400, "esc10": 1_700, "urbansound8k": 2_200, "notes": 500}
CHUNK = 40  # segments that a process makes at a time


@dataclass(frozen=True)
class Job:
    """Some segments: each a list of clips, the first of which is the one that counts."""

    recipes: tuple[tuple[str, ...], ...]
    mixed: bool
    seed: str
    first: int  # number of the first segment in its part
    folder: Path


def part_of(source: str, fold: int) -> str:
    """The part of the bank that a clip belongs to."""
    if source in ("esc10", "urbansound8k"):
        return f"{source}-{fold}"
    if source in HELD_OUT:
        return "held_out"
    return f"notes-{fold}" if fold else "other"


def without_shared(clips: list[dict[str, str]]) -> list[dict[str, str]]:
    """Leave out clips whose recording is in more than one part: it could cross a split."""
    seen: dict[str, set[str]] = {}
    for clip in clips:
        seen.setdefault(clip["group"], set()).add(part_of(clip["source"], int(clip["fold"])))
    return [clip for clip in clips if len(seen[clip["group"]]) == 1 or clip["fold"] == "0"]


def make(clips: list[dict[str, str]], out: Path, jobs: int) -> None:
    """Write the bank of all `clips` (rows of clips.csv) to `out`."""
    parts: dict[str, list[str]] = {}
    for clip in without_shared(clips):
        part = part_of(clip["source"], int(clip["fold"]))
        parts.setdefault(part, []).append(str(out / clip["path"]))
    with ProcessPoolExecutor(jobs) as pool:
        for part, paths in sorted(parts.items()):
            folder = out / "segments" / part
            folder.mkdir(parents=True, exist_ok=True)
            list(pool.map(_work, _plan(part, paths, parts["other"], folder)))


def _plan(part: str, paths: list[str], others: list[str], folder: Path) -> list[Job]:
    rng = random.Random(part)
    clean = [(path, str(start)) for path in paths for start in _cuts(path)]
    pool = paths if part == "other" else paths + rng.choices(others, k=len(paths) // 2)
    mixtures = []
    for path in rng.choices(paths, [_weight(path) for path in paths], k=_number(part)):
        mixtures.append((path, *rng.choices(pool, k=rng.choice([0, 0, 1, 1, 2]))))
    plan, first = [], 0
    for mixed, recipes in ((False, clean), (True, mixtures)):
        for start in range(0, len(recipes), CHUNK):
            some = tuple(recipes[start : start + CHUNK])
            plan.append(Job(some, mixed, f"{part}:{start}", first, folder))
            first += len(some)
    return plan


def _number(part: str) -> int:
    return MIXTURES[part.rpartition("-")[0] or part]


def _cuts(path: str) -> list[int]:
    samples = soundfile.info(path).frames
    starts = list(range(0, max(1, samples - SAMPLES + 1), SAMPLES))
    if samples - SAMPLES - starts[-1] > RATE:
        starts.append(samples - SAMPLES)
    return starts


def _weight(path: str) -> float:
    return min(soundfile.info(path).frames, 10 * RATE) ** 0.5


def _work(job: Job) -> None:
    rng = random.Random(job.seed)
    for number, recipe in enumerate(job.recipes, job.first):
        wave = _mix(recipe, rng) if job.mixed else _cut(recipe[0], int(recipe[1]), number % 2 == 0)
        soundfile.write(job.folder / f"{number:06d}.wav", wave, RATE, subtype="PCM_16")


def _cut(path: str, start: int, repeat: bool) -> np.ndarray:
    """A piece of a clip; a clip that is too short is repeated, or followed by silence."""
    wave = soundfile.read(path, dtype="float32")[0][start : start + SAMPLES]
    if len(wave) < SAMPLES and repeat and len(wave) > RATE // 20:
        return np.tile(wave, SAMPLES // len(wave) + 1)[:SAMPLES]
    return np.pad(wave, (0, SAMPLES - len(wave)))


def _mix(paths: tuple[str, ...], rng: random.Random) -> np.ndarray:
    """The first clip, changed, with the others, changed, at -14 to 8 dB of its level."""
    wave = _vary(soundfile.read(paths[0], dtype="float32")[0], rng)
    for path in paths[1:]:
        other = _vary(soundfile.read(path, dtype="float32")[0], rng)
        wave = wave + other * _level(wave) / _level(other) * 10 ** (rng.uniform(-14, 8) / 20)
    if rng.random() < 0.2:
        noise = np.random.default_rng(rng.randrange(2**31)).standard_normal(SAMPLES)
        wave = wave + noise * _level(wave) * 10 ** (rng.uniform(-35, -8) / 20)
    gain = 10 ** (rng.uniform(-24, 6) / 20) if rng.random() < 0.6 else 1.0
    return (wave * min(gain, 1 / max(1e-6, float(np.abs(wave).max())))).astype(np.float32)


def _vary(wave: np.ndarray, rng: random.Random) -> np.ndarray:
    """Another speed, another spectral balance, another place in time; (SAMPLES,)."""
    if rng.random() < 0.5:
        speed = rng.choice([0.8, 0.87, 0.93, 1.07, 1.15, 1.25])
        wave = soxr.resample(wave, RATE, RATE * speed, quality="QQ")
    if rng.random() < 0.4:
        wave = _filter(wave, rng)
    if len(wave) >= SAMPLES:
        start = rng.randrange(len(wave) - SAMPLES + 1)
        return wave[start : start + SAMPLES]
    if rng.random() < 0.5 and len(wave):
        return np.roll(np.tile(wave, SAMPLES // len(wave) + 1), rng.randrange(SAMPLES))[:SAMPLES]
    before = rng.randrange(SAMPLES - len(wave) + 1)
    return np.pad(wave, (before, SAMPLES - len(wave) - before))


def _filter(wave: np.ndarray, rng: random.Random) -> np.ndarray:
    kind = rng.random()
    if kind < 0.3:
        sections = signal.butter(1, rng.uniform(1500, 6000), fs=RATE, output="sos")
    elif kind < 0.6:
        sections = signal.butter(1, rng.uniform(80, 600), "high", fs=RATE, output="sos")
    else:  # a bell of up to 10 dB (R. Bristow-Johnson's equaliser)
        gain = 10 ** (rng.uniform(-10, 10) / 40)
        angle = 2 * np.pi * rng.uniform(200, 6000) / RATE
        alpha = np.sin(angle) / 2 / rng.uniform(0.5, 2)
        above = np.array([1 + alpha * gain, -2 * np.cos(angle), 1 - alpha * gain])
        below = np.array([1 + alpha / gain, -2 * np.cos(angle), 1 - alpha / gain])
        sections = np.concatenate([above, below])[None] / below[0]
    return np.asarray(signal.sosfilt(sections, wave), np.float32)


def _level(wave: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(wave)))) + 1e-5
