"""Augmentation of one wave in the loader; that of batches is in methods/parts/augment.py.

Every draw comes from a generator made of (seed, epoch, position), so a resumed run, or one with
another number of workers, sees the same data.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from audiossl.config.sections import Augment

SILENT = 1e-8  # root mean square below which a wave is not made louder

Background = Callable[[float, float], np.ndarray]  # (which, where), both in [0, 1) -> (samples,)


def augment_wave(
    wave: np.ndarray,
    config: Augment,
    rng: np.random.Generator,
    background: Background | None = None,
) -> np.ndarray:
    """Change a wave at random, as a recipe's `augment` says.

    wave: (samples,) float32, at least one sample.
    config: which changes, how often and how strong.
    rng: the source of every draw.
    background: gives a crop of other sound; None: no background is mixed in.

    Every draw is made whether it is used or not, so that switching one augmentation off does not
    change the draws of the others; draws for new augmentations come last. Returns (samples,)
    float32.
    """
    chance = rng.random(3)
    offset = int(rng.integers(0, len(wave)))
    gain = rng.random()
    snr, exponent, noise_seed = rng.random(), rng.random(), int(rng.integers(2**31))
    gain_chance, volume_chance, background_chance = rng.random(3)
    which, where, background_snr = rng.random(3)
    volume = 0.5 + rng.beta(10, 10)
    if chance[0] < config.roll:
        wave = np.roll(wave, offset)
    if chance[1] < config.invert:
        wave = -wave
    if volume_chance < config.volume:
        wave = wave * np.float32(volume)
    if background is not None and background_chance < config.background_noise:
        noise = unit_power(background(which, where))
        wave = add_noise(wave, noise, _between(config.background_snr_db, background_snr))
    if chance[2] < config.noise:
        noise = coloured_noise(
            len(wave), _between(config.noise_exponent, exponent), np.random.default_rng(noise_seed)
        )
        wave = add_noise(wave, noise, _between(config.noise_snr_db, snr))
    if config.gain_db is not None and gain_chance < config.gain:
        wave = wave * 10 ** (_between(config.gain_db, gain) / 20)
    return np.ascontiguousarray(wave, np.float32)


def coloured_noise(samples: int, exponent: float, rng: np.random.Generator) -> np.ndarray:
    """(samples,) float32 of unit power whose power spectrum falls as 1 / f^exponent."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    frequency = np.arange(len(spectrum), dtype=np.float64)
    frequency[:1] = 1  # the constant part: kept finite, then removed
    spectrum *= frequency ** (-exponent / 2)
    spectrum[:1] = 0
    return unit_power(np.fft.irfft(spectrum, samples))


def unit_power(wave: np.ndarray) -> np.ndarray:
    """(samples,) float32 with a mean square of 1; a silent wave stays silent."""
    power = np.mean(np.square(wave, dtype=np.float64))
    return (wave / np.sqrt(power) if power > 0 else wave).astype(np.float32)


def add_noise(wave: np.ndarray, noise: np.ndarray, snr_db: float) -> np.ndarray:
    """`wave` plus unit-power `noise` at this signal-to-noise ratio; a silent wave stays silent."""
    power = float(np.mean(np.square(wave, dtype=np.float64)))
    return wave + noise * np.float32(np.sqrt(power * 10 ** (-snr_db / 10)))


def rms(waves: Tensor) -> Tensor:
    """waves: (batch, samples) -> (batch, 1)."""
    return waves.square().mean(dim=1, keepdim=True).sqrt()


def _between(bounds: tuple[float, float], share: float) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * share
