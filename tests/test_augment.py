"""Augmentation: properties, and slow versions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from audiossl.data.augment import (
    SpecAugment,
    add_noise,
    augment_wave,
    coloured_noise,
    jitter,
    mixup,
)
from audiossl.sections import Augment

WAVE = np.sin(np.arange(4000) * 0.3).astype(np.float32)


def one(config: Augment, seed: int = 0, wave: np.ndarray = WAVE) -> np.ndarray:
    return augment_wave(wave, config, np.random.default_rng(seed))


def test_nothing_asked_for_nothing_changed() -> None:
    np.testing.assert_array_equal(one(Augment()), WAVE)


def test_same_seed_same_wave_other_seed_other_wave() -> None:
    config = Augment(gain_db=(-6, 6), roll=0.9, noise=0.9, invert=0.5)
    np.testing.assert_array_equal(one(config, 1), one(config, 1))
    assert not np.array_equal(one(config, 1), one(config, 2))


def test_roll_keeps_the_samples_and_gain_stays_in_its_range() -> None:
    rolled = one(Augment(roll=1.0))
    assert not np.array_equal(rolled, WAVE)
    np.testing.assert_array_equal(np.sort(rolled), np.sort(WAVE))
    offset = next(k for k in range(len(WAVE)) if np.array_equal(np.roll(WAVE, k), rolled))
    assert 0 < offset < len(WAVE)
    for seed in range(50):
        gain = 20 * np.log10(np.abs(one(Augment(gain_db=(-12, 3)), seed)).max() / WAVE.max())
        assert -12.01 <= gain <= 3.01
    np.testing.assert_array_equal(one(Augment(invert=1.0)), -WAVE)


def test_switching_one_off_leaves_the_other_draws_as_they_were() -> None:
    both = one(Augment(roll=1.0, gain_db=(-12, 3)), 5)
    gain_alone = one(Augment(gain_db=(-12, 3)), 5)
    roll_alone = one(Augment(roll=1.0), 5)
    ratio = np.abs(gain_alone).max() / np.abs(WAVE).max()
    np.testing.assert_allclose(both, roll_alone * ratio, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("snr", [-5.0, 0.0, 20.0])
def test_noise_has_the_power_that_was_asked_for(snr: float) -> None:
    noise = coloured_noise(len(WAVE), 1.0, np.random.default_rng(0))
    assert np.mean(noise**2) == pytest.approx(1, rel=1e-4)
    added = add_noise(WAVE, noise, snr) - WAVE
    measured = 10 * np.log10(np.mean(WAVE**2) / np.mean(added**2))
    assert measured == pytest.approx(snr, abs=0.01)


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_noise_falls_as_its_exponent_says(exponent: float) -> None:
    powers = np.zeros(8193)
    for seed in range(20):
        noise = coloured_noise(16384, exponent, np.random.default_rng(seed))
        powers += np.abs(np.fft.rfft(noise)) ** 2
    frequency = np.arange(10, 8000)
    slope = np.polyfit(np.log(frequency), np.log(powers[frequency]), 1)[0]
    assert slope == pytest.approx(-exponent, abs=0.05)


@pytest.mark.parametrize("samples", [1, 2, 3])
def test_hardly_any_samples(samples: int) -> None:
    config = Augment(gain_db=(-6, 6), roll=1.0, noise=1.0, invert=1.0)
    got = one(config, wave=np.zeros(samples, np.float32))
    assert got.shape == (samples,)
    assert np.isfinite(got).all()
    assert (got == 0).all()


def test_mixup_mixes_waves_and_targets_by_the_same_share() -> None:
    torch.manual_seed(0)
    inputs, targets = torch.eye(6), torch.eye(6)
    mixed, new = mixup(inputs, targets, probability=1.0, alpha=1.0)
    torch.testing.assert_close(mixed, new)
    torch.testing.assert_close(mixed.sum(1), torch.ones(6))
    assert ((mixed > 0).sum(1) <= 2).all()
    unchanged, same = mixup(inputs, targets, probability=0.0)
    torch.testing.assert_close(unchanged, inputs)
    torch.testing.assert_close(same, targets)


def test_mixup_equals_a_slow_loop() -> None:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(8, 5, 4, generator=generator)
    targets = torch.randint(-1, 2, (8, 3), generator=generator).float()
    torch.manual_seed(7)
    mixed, new = mixup(inputs, targets, 0.7, 0.5, "mix")
    union = _again(inputs, targets, "union")
    torch.manual_seed(7)
    other = torch.randperm(8)
    weight = torch.distributions.Beta(0.5, 0.5).sample((8,))
    chosen = torch.rand(8) < 0.7
    assert chosen.any()
    for i in range(8):
        share = float(weight[i]) if chosen[i] else 1.0
        expected = share * inputs[i] + (1 - share) * inputs[other[i]]
        torch.testing.assert_close(mixed[i], expected)
        for k in range(3):
            a, b = float(targets[i, k]), float(targets[other[i], k])
            if share == 1:
                assert float(new[i, k]) == float(union[i, k]) == a
                continue
            mean = share * a + (1 - share) * b
            assert float(new[i, k]) == pytest.approx(-1 if min(a, b) < 0 else mean)
            either = 1 if max(a, b) == 1 else (-1 if min(a, b) < 0 else 0)
            assert float(union[i, k]) == either


def _again(inputs: torch.Tensor, targets: torch.Tensor, labels: str) -> torch.Tensor:
    torch.manual_seed(7)
    return mixup(inputs, targets, 0.7, 0.5, labels)[1]  # type: ignore[arg-type]


def test_spec_augment_masks_bands_and_only_in_training() -> None:
    torch.manual_seed(0)
    layer = SpecAugment(freq_masks=2, freq_width=5, time_masks=1, time_width=9)
    spec = torch.randn(16, 20, 50) + 3
    masked = layer(spec)
    means = spec.mean((1, 2))
    changed = masked != spec
    assert changed.any()
    for item, mask, mean in zip(masked, changed, means, strict=True):
        rows, columns = mask.all(1), mask.all(0)
        torch.testing.assert_close(mask, rows[:, None] | columns[None, :])
        assert rows.sum() <= 10
        assert columns.sum() <= 9
        assert columns.nonzero().numel() == 0 or _one_span(columns)
        if mask.any():
            torch.testing.assert_close(item[mask], mean.expand(int(mask.sum())))
    layer.eval()
    assert layer(spec) is spec


def test_spec_augment_draws_every_width_and_place() -> None:
    torch.manual_seed(0)
    layer = SpecAugment(freq_masks=1, freq_width=3)
    spec = torch.arange(8.0).view(1, 8, 1).expand(4000, 8, 2) + 0.5
    hidden = (layer(spec) != spec)[:, :, 0]
    counts = torch.bincount(hidden.sum(1), minlength=4) / 4000
    torch.testing.assert_close(counts, torch.full((4,), 0.25), atol=0.03, rtol=0)
    assert hidden.any(0).all()


def test_masks_wider_than_the_spectrogram_are_cut() -> None:
    layer = SpecAugment(freq_masks=1, freq_width=100, time_masks=1, time_width=100)
    assert layer(torch.randn(3, 4, 5)).shape == (3, 4, 5)


def test_jitter_rolls_each_item_and_adds_noise_of_its_own_level() -> None:
    spec = torch.randn(64, 3, 20, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    shifted = jitter(spec, 0.0, 4)
    offsets = set()
    for item, moved in zip(spec, shifted, strict=True):
        found = [k for k in range(-10, 10) if torch.equal(item.roll(k, dims=1), moved)]
        assert len(found) == 1
        offsets.add(found[0])
    assert offsets == set(range(-4, 4))
    noise = jitter(spec, 0.5, 0) - spec
    assert noise.min() > -1e-6
    level = noise.amax((1, 2))
    assert 0.4 < level.max() < 0.5
    assert level.min() < 0.1
    torch.testing.assert_close(noise.mean((1, 2)), level / 2, atol=0.08, rtol=0)
    torch.testing.assert_close(jitter(spec, 0.0, 0), spec)


def _one_span(mask: torch.Tensor) -> bool:
    places = mask.nonzero().flatten()
    return int(places[-1] - places[0]) + 1 == len(places)
