"""Augmentation: of one wave in the loader (numpy), of a batch or a spectrogram in training (torch).

What works on one wave draws from a generator made of (seed, epoch, position); what works on a batch
draws from torch's global generator, which the loop seeds from (seed, step). So a resumed run, or
one with another number of workers, sees the same data.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from audiossl.sections import Augment


def augment_wave(wave: np.ndarray, config: Augment, rng: np.random.Generator) -> np.ndarray:
    """wave: (samples,) float32, at least one -> (samples,) float32.

    Every draw is made whether it is used or not, so that switching one augmentation off leaves the
    others' draws as they were.
    """
    chance = rng.random(3)
    offset = int(rng.integers(0, len(wave)))
    gain = rng.random()
    snr, exponent, noise_seed = rng.random(), rng.random(), int(rng.integers(2**31))
    if chance[0] < config.roll:
        wave = np.roll(wave, offset)
    if chance[1] < config.invert:
        wave = -wave
    if chance[2] < config.noise:
        noise = coloured_noise(
            len(wave), _between(config.noise_exponent, exponent), np.random.default_rng(noise_seed)
        )
        wave = add_noise(wave, noise, _between(config.noise_snr_db, snr))
    if config.gain_db is not None:
        wave = wave * 10 ** (_between(config.gain_db, gain) / 20)
    return np.ascontiguousarray(wave, np.float32)


def coloured_noise(samples: int, exponent: float, rng: np.random.Generator) -> np.ndarray:
    """(samples,) float32 of unit power whose power spectrum falls as 1 / f^exponent."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    frequency = np.arange(len(spectrum), dtype=np.float64)
    frequency[:1] = 1  # the constant part: kept finite, then removed
    spectrum *= frequency ** (-exponent / 2)
    spectrum[:1] = 0
    noise = np.fft.irfft(spectrum, samples)
    power = np.mean(noise**2)
    return (noise / np.sqrt(power) if power > 0 else noise).astype(np.float32)


def add_noise(wave: np.ndarray, noise: np.ndarray, snr_db: float) -> np.ndarray:
    """`wave` plus unit-power `noise` at this signal-to-noise ratio; a silent wave stays silent."""
    power = float(np.mean(np.square(wave, dtype=np.float64)))
    return wave + noise * np.float32(np.sqrt(power * 10 ** (-snr_db / 10)))


def mixup(
    inputs: Tensor,
    targets: Tensor,
    probability: float,
    alpha: float = 1.0,
    labels: Literal["mix", "union"] = "mix",
) -> tuple[Tensor, Tensor]:
    """Each item with `probability` mixed with another of the batch: l * x + (1 - l) * other.

    inputs: (batch, ...) waves or spectrograms; targets: (batch, classes), -1 unknown.
    l is drawn from Beta(alpha, alpha). "mix" weighs the targets as the inputs (Zhang et al. 2018);
    "union" says that what is in either is in the mixture. A class unknown in one of the two is
    unknown in the mixture, unless (union) it is present in the other.
    """
    batch = len(inputs)
    other = torch.randperm(batch, device=inputs.device)
    weight = torch.distributions.Beta(alpha, alpha).sample((batch,)).to(inputs)
    chosen = torch.rand(batch, device=inputs.device) < probability
    weight = torch.where(chosen, weight, torch.ones_like(weight))
    share = weight.view(batch, *[1] * (inputs.ndim - 1))
    mixed = share * inputs + (1 - share) * inputs[other]
    row = weight.view(batch, 1).to(targets)
    unknown = (targets < 0) | (targets[other] < 0)
    if labels == "union":
        new = torch.maximum(targets, targets[other])
        new = torch.where(unknown & (new < 1), torch.full_like(new, -1), new)
    else:
        new = row * targets + (1 - row) * targets[other]
        new = torch.where(unknown, torch.full_like(new, -1), new)
    return mixed, torch.where(row < 1, new, targets)


class SpecAugment(nn.Module):
    """Masks random bands of mels and frames, in training only (Park et al. 2019, no time warp).

    spec (batch, mel, frames) -> the same shape. Each of `freq_masks` bands has a width drawn from
    0..`freq_width` mels, each of `time_masks` one from 0..`time_width` frames, for each item apart.
    Masked values become the item's mean, so that a mask is neither loud nor silent.
    """

    def __init__(
        self, freq_masks: int = 0, freq_width: int = 0, time_masks: int = 0, time_width: int = 0
    ) -> None:
        super().__init__()
        self.freq_masks, self.freq_width = freq_masks, freq_width
        self.time_masks, self.time_width = time_masks, time_width

    def forward(self, spec: Tensor) -> Tensor:
        if not self.training:
            return spec
        batch, mel, frames = spec.shape
        mask = torch.zeros(batch, mel, frames, dtype=torch.bool, device=spec.device)
        for _ in range(self.freq_masks):
            mask |= _band(batch, mel, self.freq_width, spec.device)[:, :, None]
        for _ in range(self.time_masks):
            mask |= _band(batch, frames, self.time_width, spec.device)[:, None, :]
        return torch.where(mask, spec.mean((1, 2), keepdim=True), spec)


def jitter(spec: Tensor, noise: float, shift: int) -> Tensor:
    """Noise on a spectrogram and a shift in time, as AST and SSAST are fine-tuned on short clips.

    spec: (batch, mel, frames), normalised -> the same shape. Each item gets uniform noise from 0 to
    a level of its own, itself uniform from 0 to `noise`, and is rolled by -shift .. shift - 1
    frames. Source: YuanGongND/ast src/dataloader.py, with noise 0.1 and shift 10.
    """
    batch, _, frames = spec.shape
    level = noise * torch.rand(batch, 1, 1, device=spec.device)
    offset = torch.randint(-shift, max(shift, 1), (batch, 1, 1), device=spec.device)
    places = (torch.arange(frames, device=spec.device) - offset) % frames  # (batch, 1, frames)
    return (spec + level * torch.rand_like(spec)).gather(2, places.expand_as(spec))


def _band(batch: int, size: int, width: int, device: torch.device) -> Tensor:
    """(batch, size) bool: one band an item, its width uniform in 0..width, wholly inside."""
    span = (torch.rand(batch, device=device) * (min(width, size) + 1)).long()
    start = (torch.rand(batch, device=device) * (size - span + 1)).long()
    places = torch.arange(size, device=device)
    return (places >= start[:, None]) & (places < (start + span)[:, None])


def _between(bounds: tuple[float, float], share: float) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * share
