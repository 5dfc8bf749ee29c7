"""Intervals: their parts against SciPy and by words, and how often they hold on made-up probes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from scipy import stats

from audiossl.evaluate import metrics
from audiossl.evaluate.estimates import estimates, measure
from audiossl.evaluate.intervals import bootstrap_weights, interval, t_quantile, wilson


@dataclass(frozen=True)
class Unit:
    seed: int
    test: np.ndarray
    scores: np.ndarray


@pytest.mark.parametrize("freedom", [1, 1.5, 2, 4, 9.3, 40, 317, 5000])
@pytest.mark.parametrize("probability", [0.8, 0.975, 0.995])
def test_students_quantile_is_scipys(freedom: float, probability: float) -> None:
    expected = stats.t.ppf(probability, freedom)
    assert t_quantile(probability, freedom) == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize(("hits", "trials"), [(0, 12), (7, 12), (12, 12), (80, 81), (300, 400)])
def test_wilson_is_scipys(hits: int, trials: int) -> None:
    expected = stats.binomtest(hits, trials).proportion_ci(method="wilson")
    low, high = wilson(hits / trials, trials, stats.norm.ppf(0.975))
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_whole_groups_are_drawn_within_their_stratum() -> None:
    groups = np.array([0, 0, 1, 2, 2, 2, 3, 4])
    strata = np.array([0, 0, 0, 1, 1, 1, 1, 1])
    weights = bootstrap_weights(groups, strata, replicates=200, seed=1)
    for group in range(5):
        own = weights[:, groups == group]
        assert (own == own[:, :1]).all()
    firsts = [0, 2, 3, 6, 7]
    assert (weights[:, firsts[:2]].sum(1) == 2).all()
    assert (weights[:, firsts[2:]].sum(1) == 3).all()
    assert abs(weights.mean() - 1) < 0.1


def test_the_bootstrap_gives_the_variance_of_a_share() -> None:
    """Of clips that stand alone: p (1 - p) / n; of clips in pairs that agree: twice as much."""
    hits = np.zeros(200)
    hits[:150] = 1
    for size in (1, 2):
        groups = np.arange(200) // size
        weights = bootstrap_weights(groups, np.zeros(200), replicates=4000)
        found = np.var(weights @ hits / weights.sum(1))
        assert found == pytest.approx(size * 0.75 * 0.25 / 200, rel=0.1)


def test_one_seed_counts_the_clips_and_several_their_spread_as_well() -> None:
    low, high = interval(0.8, 0.8 * 0.2 / 100, [0.8], trials=100)
    expected = wilson(0.8, 100, stats.t.ppf(0.975, 99))
    assert (low, high) == pytest.approx(expected, abs=1e-4)
    alike = interval(0.8, 0.8 * 0.2 / 100, [0.8, 0.8, 0.8], trials=100)
    assert alike == pytest.approx((low, high), abs=1e-3)
    apart = interval(0.8, 0.8 * 0.2 / 100, [0.7, 0.8, 0.9], trials=100)
    assert apart[1] - apart[0] > 2 * (high - low)


@pytest.mark.parametrize("mean", [0.0, 1.0])
def test_all_right_or_all_wrong_is_no_certainty(mean: float) -> None:
    low, high = interval(mean, 0.0, [mean], trials=40)
    assert high - low == pytest.approx(stats.t.ppf(0.975, 39) ** 2 / (40 + 2.0227**2), abs=1e-3)
    assert low <= mean <= high


def made_up(rng: np.random.Generator, truth: float, spread: float, seeds: int) -> list[Unit]:
    """Probes that are right with a chance of about `truth`, which differs by seed; 4 folds."""
    units = []
    hard = rng.normal(0, 1, 160)  # the same clips are hard for all seeds
    for seed in range(seeds):
        level = stats.norm.ppf(truth) * np.sqrt(2 + spread**2) + spread * rng.normal()
        right = hard + rng.normal(0, 1, 160) < level
        scores = np.where(right, 0.9, 0.1)
        for fold in range(4):
            test = np.arange(fold * 40, fold * 40 + 40)
            units.append(Unit(seed, test, np.stack([scores, 1 - scores], 1)[test]))
    return units


@pytest.mark.parametrize(("truth", "spread", "seeds"), [(0.7, 0, 1), (0.95, 0, 1), (0.85, 0.4, 5)])
def test_intervals_hold_about_as_often_as_they_say(truth: float, spread: float, seeds: int) -> None:
    rng = np.random.default_rng(7)
    targets = np.tile(np.array([1.0, 0.0], np.float32), (160, 1))
    strata = np.repeat(np.arange(4), 40)
    held, rounds = 0, 250
    for trial in range(rounds):
        weights = bootstrap_weights(np.arange(160), strata, replicates=120, seed=trial)
        units = made_up(rng, truth, spread, seeds)
        hits = [metrics.hits(unit.scores, targets[unit.test]) for unit in units]
        of_seeds = [np.mean(hits[4 * i : 4 * i + 4]) for i in range(seeds)]
        own = [weights[:, unit.test] for unit in units]
        drawn = np.mean([w @ h / w.sum(1) for w, h in zip(own, hits, strict=True)], axis=0)
        low, high = interval(float(np.mean(of_seeds)), float(drawn.var(ddof=1)), of_seeds, 160, 4)
        held += low <= truth <= high
    assert 0.91 <= held / rounds <= 0.99


def test_estimates_are_means_over_folds_and_seeds_of_the_metrics() -> None:
    rng = np.random.default_rng(0)
    targets = np.eye(3, dtype=np.float32)[rng.integers(0, 3, 60)]
    units = [
        Unit(seed, np.arange(fold * 20, fold * 20 + 20), rng.random((20, 3)).astype(np.float32))
        for seed in (1, 2)
        for fold in range(3)
    ]
    weights = bootstrap_weights(np.arange(60), np.repeat([0, 1, 2], 20))
    found = estimates(units, targets, np.arange(60), weights, single=True)
    assert list(found) == ["accuracy", "cmap", "auroc", "map_samples"]
    expected = [
        np.mean(
            [
                metrics.mean_average_precision(unit.scores, targets[unit.test])
                for unit in units
                if unit.seed == seed
            ]
        )
        for seed in (1, 2)
    ]
    assert found["cmap"][2] == pytest.approx(expected)
    assert found["cmap"][0] == pytest.approx(np.mean(expected))
    assert found["accuracy"][0] == pytest.approx(
        np.mean([metrics.accuracy(unit.scores, targets[unit.test]) for unit in units])
    )
    assert found["map_samples"][0] == pytest.approx(
        np.mean(
            [
                metrics.mean_average_precision(unit.scores, targets[unit.test], "samples")
                for unit in units
            ]
        )
    )


def test_several_labels_have_top1_and_what_nobody_judged_has_no_value() -> None:
    scores = np.array([[0.9, 0.8, 0.1], [0.2, 0.7, 0.3], [0.1, 0.2, 0.3]], np.float32)
    targets = np.array([[0, 1, 0], [1, 1, 0], [0, 0, 0]], np.float32)
    found = measure(scores, targets, np.ones((1, 3), np.uint16), single=False)
    assert found["top1"][0] == pytest.approx(1 / 2)
    assert found["top1"][1] == pytest.approx([1 / 2])
    assert found["cmap"][0] == pytest.approx((1 / 2 + 1) / 2)
    for value, drawn in found.values():
        assert drawn == pytest.approx([value])
