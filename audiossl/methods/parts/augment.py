"""Augmentations of batches, in torch, that methods draw on the device."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from audiossl.data.augment import SILENT, rms


def mixup(
    inputs: Tensor,
    targets: Tensor,
    probability: float,
    alpha: float = 1.0,
    labels: Literal["mix", "union"] = "mix",
    alone: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Each item with `probability` mixed with another of the batch: l * x + (1 - l) * other.

    inputs: (batch, ...) waves or spectrograms; targets: (batch, classes), -1 unknown.
    alone: (batch,) bool, items that nothing is added to.
    l is drawn from Beta(alpha, alpha). "mix" weighs the targets as the inputs (Zhang et al. 2018);
    "union" says that what is in either is in the mixture. A class unknown in one of the two is
    unknown in the mixture, unless (union) it is present in the other.
    """
    batch = len(inputs)
    other = torch.randperm(batch, device=inputs.device)
    weight = torch.distributions.Beta(alpha, alpha).sample((batch,)).to(inputs)
    chosen = torch.rand(batch, device=inputs.device) < probability
    if alone is not None:
        chosen &= ~alone
    weight = torch.where(chosen, weight, torch.ones_like(weight))
    share = weight.view(batch, *[1] * (inputs.ndim - 1))
    mixed = share * inputs + (1 - share) * inputs[other]
    row = weight.view(batch, 1).to(targets)
    if labels == "union":
        new = union(targets, targets[other])
    else:
        new = row * targets + (1 - row) * targets[other]
        unknown = (targets < 0) | (targets[other] < 0)
        new = torch.where(unknown, torch.full_like(new, -1), new)
    return mixed, torch.where(row < 1, new, targets)


def mix_at_snr(
    waves: Tensor,
    targets: Tensor | None,
    probability: float,
    snr_db: tuple[float, float],
    most: int = 1,
    alone: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Each wave with `probability` gets 1 to `most` others of the batch added: (waves, targets).

    waves: (batch, samples); targets: (batch, classes), 1, 0 or -1 unknown, or None: what is in
    either is in the mixture. alone: (batch,) bool, waves that nothing is added to.
    An item draws one signal-to-noise ratio, uniform in dB, between what there is so far and each
    that is added; these are rolled by any amount. After `MultilabelMix` of BirdSet (Rauch et al.
    2024), which draws the number once a batch and adds the same wave that many times.
    """
    batch, samples = waves.shape
    if batch < 2:
        return waves, targets
    device = waves.device
    chosen = torch.rand(batch, device=device) < probability
    count = torch.randint(1, most + 1, (batch,), device=device)
    snr = snr_db[0] + (snr_db[1] - snr_db[0]) * torch.rand(batch, 1, device=device)
    mixed, labels = waves, targets
    for turn in range(most):
        step = torch.randint(1, batch, (batch,), device=device)  # never a wave itself
        other = (torch.arange(batch, device=device) + step) % batch
        offset = torch.randint(0, samples, (batch,), device=device)
        adds = (chosen & (turn < count))[:, None]
        if alone is not None:
            adds = adds & ~alone[:, None]
        pairs = zip(waves[other], offset.tolist(), strict=True)
        rolled = torch.stack([wave.roll(places) for wave, places in pairs])
        level = rms(mixed) / rms(rolled).clamp(min=SILENT) * 10 ** (-snr / 20)
        mixed = torch.where(adds, mixed + level * rolled, mixed)
        if labels is not None and targets is not None:
            labels = torch.where(adds, union(labels, targets[other]), labels)
    return mixed, labels


def union(one: Tensor, other: Tensor) -> Tensor:
    """What is in either: 1; what is in neither: 0; unknown (-1) in one and not in the other: -1."""
    both = torch.maximum(one, other)
    unknown = (one < 0) | (other < 0)
    return torch.where(unknown & (both < 1), torch.full_like(both, -1), both)


class SpecAugment(nn.Module):
    """Masks random bands of mels and frames, in training only (Park et al. 2019, no time warp).

    spec (batch, mel, frames) -> the same shape. Each of `freq_masks` bands has a width drawn from
    0..`freq_width` mels, each of `time_masks` one from 0..`time_width` frames, for each item apart;
    an item has its bands of mels with `freq_probability`, those of frames with `time_probability`.
    Masked values become the item's mean, so that a mask is neither loud nor silent.
    """

    def __init__(
        self,
        freq_masks: int = 0,
        freq_width: int = 0,
        time_masks: int = 0,
        time_width: int = 0,
        freq_probability: float = 1.0,
        time_probability: float = 1.0,
    ) -> None:
        super().__init__()
        self.freq_masks, self.freq_width = freq_masks, freq_width
        self.time_masks, self.time_width = time_masks, time_width
        self.freq_probability, self.time_probability = freq_probability, time_probability

    def forward(self, spec: Tensor) -> Tensor:
        if not self.training:
            return spec
        batch, mel, frames = spec.shape
        mels = torch.zeros(batch, mel, dtype=torch.bool, device=spec.device)
        times = torch.zeros(batch, frames, dtype=torch.bool, device=spec.device)
        for _ in range(self.freq_masks):
            mels |= _band(batch, mel, self.freq_width, spec.device)
        for _ in range(self.time_masks):
            times |= _band(batch, frames, self.time_width, spec.device)
        mels &= _some(batch, self.freq_probability, spec.device)
        times &= _some(batch, self.time_probability, spec.device)
        mask = mels[:, :, None] | times[:, None, :]
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


def _some(batch: int, probability: float, device: torch.device) -> Tensor:
    """(batch, 1) bool; certainty takes no draw."""
    if probability >= 1:
        return torch.ones(batch, 1, dtype=torch.bool, device=device)
    return torch.rand(batch, 1, device=device) < probability


def _band(batch: int, size: int, width: int, device: torch.device) -> Tensor:
    """(batch, size) bool: one band an item, its width uniform in 0..width, wholly inside."""
    span = (torch.rand(batch, device=device) * (min(width, size) + 1)).long()
    start = (torch.rand(batch, device=device) * (size - span + 1)).long()
    places = torch.arange(size, device=device)
    return (places >= start[:, None]) & (places < (start + span)[:, None])
