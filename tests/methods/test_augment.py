"""Augmentation: properties, and slow versions."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from audiossl.config.sections import Augment
from audiossl.data import reading
from audiossl.data.augment import add_noise, augment_wave, coloured_noise, unit_power
from audiossl.data.clips import Clips
from audiossl.data.draws import Draw
from audiossl.errors import InputError, UsageError
from audiossl.methods.parts.augment import SpecAugment, jitter, mix_at_snr, mixup, union

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


# What the draws of seed 5 were before there were volumes and backgrounds: they stay as they are.
BEFORE = [-0.573052, -0.675757, -0.622294]


def test_older_draws_keep_their_values_beside_newer_ones() -> None:
    config = Augment(gain_db=(-6, 6), roll=0.9, noise=0.9, invert=0.5)
    np.testing.assert_allclose(one(config, 5)[:3], BEFORE, rtol=1e-4)
    newer = replace(config, volume=1.0, background_noise=1.0)
    silent = augment_wave(WAVE, newer, np.random.default_rng(5), lambda *_: np.zeros(4000))
    share = silent / one(config, 5)
    np.testing.assert_allclose(share, share[0], rtol=1e-3)


def test_gain_with_its_probability() -> None:
    config = Augment(gain_db=(-18, -6), gain=0.2)
    changed = [not np.array_equal(one(config, seed), WAVE) for seed in range(1000)]
    assert np.mean(changed) == pytest.approx(0.2, abs=0.04)


def test_volumes_are_of_their_distribution() -> None:
    """0.5 + Beta(10, 10): mean 1, variance 1 / 84."""
    loudness = [one(Augment(volume=1.0), seed).max() / WAVE.max() for seed in range(2000)]
    assert np.mean(loudness) == pytest.approx(1, abs=0.01)
    assert np.var(loudness) == pytest.approx(1 / 84, rel=0.1)
    assert min(loudness) > 0.5
    assert max(loudness) < 1.5


@pytest.mark.parametrize("bounds", [(3.0, 3.0), (3.0, 30.0)])
def test_a_background_is_added_at_the_level_asked_for(bounds: tuple[float, float]) -> None:
    hum = np.cos(np.arange(4000) * 0.01) * 7
    config = Augment(background_noise=0.5, background_snr_db=bounds)
    levels, asked = [], []

    def background(which: float, where: float) -> np.ndarray:
        asked.append((which, where))
        return hum

    for seed in range(400):
        added = augment_wave(WAVE, config, np.random.default_rng(seed), background) - WAVE
        if added.any():
            np.testing.assert_allclose(unit_power(added), unit_power(hum), atol=1e-4)
            levels.append(10 * np.log10(np.mean(WAVE**2) / np.mean(added**2)))
    assert len(levels) == len(asked) == pytest.approx(200, abs=40)
    assert bounds[0] - 0.01 <= min(levels) <= max(levels) <= bounds[1] + 0.01
    assert np.mean(levels) == pytest.approx(np.mean(bounds), abs=2)
    assert np.mean(asked, axis=0) == pytest.approx([0.5, 0.5], abs=0.1)


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


def test_what_is_alone_is_not_mixed_but_may_be_added() -> None:
    torch.manual_seed(0)
    inputs, targets = torch.eye(6) + 1, torch.eye(6)
    alone = torch.tensor([True, False, False, True, False, False])
    mixed, new = mixup(inputs, targets, 1.0, alone=alone)
    assert torch.equal(mixed[alone], inputs[alone])
    assert torch.equal(new[alone], targets[alone])
    mixed, labels = mix_at_snr(inputs, targets, 1.0, (0.0, 0.0), 3, alone)
    assert labels is not None
    assert torch.equal(mixed[alone], inputs[alone])
    assert torch.equal(labels[alone], targets[alone])
    assert (mixed != inputs)[~alone].all()
    assert labels[~alone][:, alone].any()


def test_union_of_what_is_known() -> None:
    pairs = {(1, 1): 1, (1, 0): 1, (1, -1): 1, (0, 0): 0, (0, -1): -1, (-1, -1): -1}
    for (a, b), expected in pairs.items():
        for one_, other in ((a, b), (b, a)):
            assert float(union(torch.tensor(float(one_)), torch.tensor(float(other)))) == expected


def test_mixing_at_a_level_equals_a_slow_loop() -> None:
    generator = torch.Generator().manual_seed(3)
    waves = torch.randn(7, 50, generator=generator)
    waves[4] = 0  # silence stays silence, and adds nothing
    targets = torch.randint(-1, 2, (7, 3), generator=generator).float()
    torch.manual_seed(7)
    mixed, labels = mix_at_snr(waves, targets, 0.7, (2.0, 30.0), 3)
    assert labels is not None
    torch.manual_seed(7)
    chosen, count = torch.rand(7) < 0.7, torch.randint(1, 4, (7,))
    snr = 2 + 28 * torch.rand(7, 1)
    expected = [wave.tolist() for wave in waves]
    known = [row.tolist() for row in targets]
    partners = set()
    for turn in range(3):
        other = (torch.arange(7) + torch.randint(1, 7, (7,))) % 7
        offset = torch.randint(0, 50, (7,))
        for i in range(7):
            if not chosen[i] or turn >= count[i]:
                continue
            added = [float(waves[other[i], (t - offset[i]) % 50]) for t in range(50)]
            rms = math.sqrt(sum(x * x for x in expected[i]) / 50)
            theirs = math.sqrt(sum(x * x for x in added) / 50)
            level = rms / max(theirs, 1e-8) * 10 ** (-float(snr[i]) / 20)
            expected[i] = [x + level * y for x, y in zip(expected[i], added, strict=True)]
            for k in range(3):
                a, b = known[i][k], float(targets[other[i], k])
                known[i][k] = 1.0 if max(a, b) == 1 else (-1.0 if min(a, b) < 0 else 0.0)
            partners.add((i, int(other[i])))
    assert len(partners) > 5
    torch.testing.assert_close(mixed, torch.tensor(expected), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(labels, torch.tensor(known))
    assert torch.equal(mixed[4], waves[4])


def test_mixing_at_a_level_by_its_statistics() -> None:
    """Of many mixtures: how many, of how many others, never with themselves, at which levels."""
    torch.manual_seed(0)
    waves = torch.eye(40, 4000)  # an impulse each, at another place
    mixed, _ = mix_at_snr(waves, None, 0.3, (5.0, 25.0), 3)
    parts = (mixed > 0).sum(1) - 1
    counts = [int((parts == n).sum()) for n in range(4)]
    assert counts[0] == pytest.approx(28, abs=9)
    assert sum(counts[1:]) == 40 - counts[0]
    assert mixed.diagonal().eq(1).all()
    first = [mixed[i].topk(2).values[1] for i in range(40) if parts[i] == 1]
    assert all(5 - 0.01 <= -20 * math.log10(level) <= 25.01 for level in first)
    alone, _ = mix_at_snr(waves[:1], None, 1.0, (0.0, 0.0))
    assert torch.equal(alone, waves[:1])


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


def test_spec_augment_with_a_probability_each() -> None:
    torch.manual_seed(0)
    layer = SpecAugment(1, 4, 1, 4, freq_probability=0.3, time_probability=0.5)
    spec = torch.arange(24.0).view(1, 4, 6).expand(4000, 4, 6) + 0.5
    hidden = layer(spec) != spec
    bands, spans = hidden.all(2).any(1), hidden.all(1).any(1)
    assert float(bands.double().mean()) == pytest.approx(0.3 * 4 / 5, abs=0.03)
    assert float(spans.double().mean()) == pytest.approx(0.5 * 4 / 5, abs=0.06)


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


# --- backgrounds, in the loader -------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two clips of a second at 0.5, labelled; three backgrounds, one long, one that is no audio."""
    clips, quiet = tmp_path_factory.mktemp("clips"), tmp_path_factory.mktemp("quiet")
    for label in ("a", "b"):
        (clips / label).mkdir()
        soundfile.write(clips / label / "x.wav", np.full(8000, 0.5), 8000)
    soundfile.write(quiet / "long.wav", np.linspace(0.1, 0.2, 80000), 8000)
    soundfile.write(quiet / "short.wav", np.full(1000, -0.25), 8000)
    (quiet / "broken.wav").write_bytes(b"RIFF not a wave")
    return clips, quiet


def clips_with(folders: tuple[Path, Path], **augment: Any) -> Clips:
    rows = reading.read(folders[0])
    config = Augment(background=str(folders[1]), **augment)
    return Clips(rows, ["a", "b"], 8000, 1.0, seed=3, augment=config)


def test_a_clip_without_a_call_has_no_label(folders: tuple[Path, Path]) -> None:
    items = [clips_with(folders, no_call=0.4)[Draw(0, i, i % 2)] for i in range(60)]
    replaced = [item for item in items if item["no_call"]]
    assert len(replaced) == pytest.approx(24, abs=10)
    for item in items:
        own = bool((item["wave"] == 0.5).all())
        assert own != item["no_call"]
        assert item["wave"].shape == (8000,)
        assert float(item["target"].sum()) == own
    levels = [float(item["wave"].mean()) for item in replaced]
    assert {round(level, 2) for level in levels} >= {-0.25}  # the short one, repeated
    assert (
        len({round(level, 4) for level in levels if level > 0}) > 3
    )  # many places of the long one
    named = {Path(path).name for item in items for path, _ in item["skipped"]}
    assert named == {"broken.wav"}


def test_an_item_is_decided_by_its_draw_alone(folders: tuple[Path, Path]) -> None:
    one_, other = (clips_with(folders, no_call=0.4, background_noise=0.5) for _ in range(2))
    draws = [Draw(1, i, i % 2) for i in range(12)]
    first = {draw: one_[draw]["wave"] for draw in draws}
    again = {draw: other[draw]["wave"] for draw in reversed(draws)}
    assert all(torch.equal(first[draw], again[draw]) for draw in draws)


def test_without_no_call_there_is_no_such_key(folders: tuple[Path, Path]) -> None:
    item = clips_with(folders, background_noise=1.0)[Draw(0, 0, 0)]
    assert "no_call" not in item
    assert float(item["target"][0]) == 1
    assert not torch.equal(item["wave"], torch.full((8000,), 0.5))


def test_backgrounds_that_cannot_be_had(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    with pytest.raises(UsageError, match="no audio file"):
        clips_with((folders[0], tmp_path), no_call=0.5)
    (tmp_path / "broken.wav").write_bytes(b"RIFF not a wave")
    with pytest.raises(InputError, match="none of the 1 files can be read"):
        clips_with((folders[0], tmp_path), no_call=1.0)[Draw(0, 0, 0)]
