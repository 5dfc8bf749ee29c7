"""Metrics against scikit-learn and torchmetrics, and against words."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torchmetrics.functional.classification import (
    binary_calibration_error,
    multiclass_calibration_error,
)

from audiossl.evaluate import metrics


def table(
    seed: int, ties: bool, clips: int = 60, classes: int = 7
) -> tuple[np.ndarray, np.ndarray]:
    """Random scores and multi-hot targets; with ties, scores of only four values."""
    rng = np.random.default_rng(seed)
    scores = rng.random((clips, classes))
    targets = (rng.random((clips, classes)) < 0.3).astype(np.float64)
    return (np.round(scores * 3) / 3 if ties else scores), targets


CASES = [(seed, ties) for seed in range(5) for ties in (False, True)]


@pytest.mark.parametrize(("seed", "ties"), CASES)
def test_average_precision_and_auroc_equal_scikit_learn(seed: int, ties: bool) -> None:
    scores, targets = table(seed, ties)
    precision = sk.average_precision_score(targets, scores, average=None)
    np.testing.assert_allclose(metrics.average_precision(scores, targets), precision, atol=1e-12)
    area = sk.roc_auc_score(targets, scores, average=None)
    np.testing.assert_allclose(metrics.auroc(scores, targets), area, atol=1e-12)
    for average in ("macro", "micro"):
        expected = sk.average_precision_score(targets, scores, average=average)
        got = metrics.mean_average_precision(scores, targets, average)
        assert got == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_mean_over_samples_leaves_clips_without_label_out(seed: int) -> None:
    scores, targets = table(seed, ties=True)
    targets[:5] = 0
    labelled = targets.any(1)
    expected = sk.average_precision_score(targets[labelled], scores[labelled], average="samples")
    assert metrics.mean_average_precision(scores, targets, "samples") == pytest.approx(expected)


@pytest.mark.parametrize(("seed", "ties"), CASES)
def test_unknown_pairs_take_no_part(seed: int, ties: bool) -> None:
    scores, targets = table(seed, ties)
    hidden = np.random.default_rng(seed + 100).random(targets.shape) < 0.4
    masked = np.where(hidden, -1.0, targets)
    precision, area = metrics.average_precision(scores, masked), metrics.auroc(scores, masked)
    for i in range(targets.shape[1]):
        seen = ~hidden[:, i]
        expected = sk.average_precision_score(targets[seen, i], scores[seen, i])
        assert precision[i] == pytest.approx(expected, abs=1e-12)
        assert area[i] == pytest.approx(sk.roc_auc_score(targets[seen, i], scores[seen, i]))


def test_classes_without_positives_or_negatives_have_no_value_and_no_weight() -> None:
    scores, targets = table(0, ties=False)
    targets[:, 0], targets[:, 1], targets[:, 2] = 0, 1, -1
    precision, area = metrics.average_precision(scores, targets), metrics.auroc(scores, targets)
    assert math.isnan(precision[0])
    assert precision[1] == 1
    assert math.isnan(precision[2])
    assert np.isnan(area[:3]).all()
    expected = sk.average_precision_score(targets[:, 3:], scores[:, 3:], average=None)
    mean = metrics.mean_average_precision(scores, targets)
    assert mean == pytest.approx(np.mean([1, *expected]))


def test_average_precision_is_what_the_words_say() -> None:
    """Slow version: for each present clip from the top, precision where its tie group ends."""
    scores, targets = table(3, ties=True)
    for i, got in enumerate(metrics.average_precision(scores, targets)):
        total = 0.0
        for clip in np.flatnonzero(targets[:, i]):
            above = scores[:, i] >= scores[clip, i]
            total += targets[above, i].sum() / above.sum()
        assert got == pytest.approx(total / targets[:, i].sum())


def test_accuracy() -> None:
    scores = np.array([[0.9, 0.1, 0.0], [0.2, 0.3, 0.5], [0.4, 0.4, 0.2], [0.1, 0.2, 0.3]])
    targets = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0]])
    assert metrics.accuracy(scores, targets) == pytest.approx(2 / 3)
    assert metrics.accuracy(scores, targets, top=2) == 1
    assert math.isnan(metrics.accuracy(scores[3:], targets[3:]))


@pytest.mark.parametrize("seed", range(3))
def test_accuracy_equals_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, classes = rng.random((50, 6)), rng.integers(0, 6, 50)
    expected = sk.top_k_accuracy_score(classes, scores, k=3, labels=range(6))
    assert metrics.accuracy(scores, np.eye(6)[classes], top=3) == pytest.approx(expected)


def test_d_prime() -> None:
    # Two unit Gaussians one apart: area = Phi(1 / sqrt(2)), d' = 1.
    area = 0.5 * (1 + math.erf(0.5))
    np.testing.assert_allclose(metrics.d_prime([area, 0.5]), [1, 0], atol=1e-12)
    assert metrics.d_prime(1.0)[0] == math.inf
    assert metrics.d_prime(0.0)[0] == -math.inf
    assert math.isnan(metrics.d_prime(math.nan)[0])


@pytest.mark.parametrize("seed", range(3))
def test_calibration_error_equals_torchmetrics(seed: int) -> None:
    scores, targets = table(seed, ties=False, clips=200)
    expected = binary_calibration_error(
        torch.from_numpy(scores).ravel(), torch.from_numpy(targets).ravel().long(), n_bins=15
    )
    got = metrics.calibration_error(scores, targets)
    assert got == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_top_calibration_error_equals_torchmetrics(seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits, classes = rng.standard_normal((200, 5)), rng.integers(0, 5, 200)
    scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = multiclass_calibration_error(
        torch.from_numpy(scores), torch.from_numpy(classes), num_classes=5, n_bins=15
    )
    got = metrics.top_calibration_error(scores, np.eye(5)[classes])
    assert got == pytest.approx(float(expected), abs=1e-6)


def test_calibration_of_one_and_of_unknown() -> None:
    scores = np.array([[1.0, 0.0], [1.0, 0.5]])
    assert metrics.calibration_error(scores, [[1, 0], [1, -1]]) == 0
    assert math.isnan(metrics.calibration_error(scores, [[-1, -1], [-1, -1]]))


def test_summary_leaves_out_what_has_no_meaning() -> None:
    scores, targets = table(0, ties=False)
    assert set(metrics.summary(scores, targets)) == {"map", "auroc", "dprime", "ece"}
    single = np.eye(7)[np.arange(60) % 7]
    assert "accuracy" in metrics.summary(scores, single)
    assert metrics.summary(scores, np.full_like(targets, -1)) == {}


def test_tables_of_different_shapes_or_with_nan_are_refused() -> None:
    with pytest.raises(ValueError, match="one shape"):
        metrics.auroc(np.zeros((2, 3)), np.zeros((3, 2)))
    with pytest.raises(ValueError, match="one shape"):
        metrics.auroc(np.zeros((0, 3)), np.zeros((0, 3)))
    with pytest.raises(ValueError, match="finite"):
        metrics.auroc(np.full((2, 3), np.nan), np.zeros((2, 3)))
    with pytest.raises(ValueError, match="macro, micro or samples"):
        metrics.mean_average_precision(np.zeros((2, 3)), np.zeros((2, 3)), "weighted")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ties", [False, True])
def test_weights_count_a_clip_as_often_as_it_is_drawn(seed: int, ties: bool) -> None:
    scores, targets = table(seed, ties)
    targets[np.random.default_rng(seed).random(targets.shape) < 0.1] = -1
    weights = np.random.default_rng(seed + 50).integers(0, 4, (5, len(scores)))
    precision = metrics.average_precision(scores, targets, weights)
    area = metrics.auroc(scores, targets, weights)
    for i, counts in enumerate(weights):
        drawn = np.repeat(np.arange(len(scores)), counts)
        expected = metrics.average_precision(scores[drawn], targets[drawn])
        np.testing.assert_allclose(precision[i], expected, atol=1e-12)
        expected = metrics.auroc(scores[drawn], targets[drawn])
        np.testing.assert_allclose(area[i], expected, atol=1e-12)


def test_weights_that_leave_no_positive_leave_no_value() -> None:
    scores, targets = np.array([[0.1], [0.9], [0.4]]), np.array([[1], [0], [0]])
    weights = np.array([[0, 1, 1], [1, 0, 0], [1, 1, 1]])
    precision = metrics.average_precision(scores, targets, weights)
    area = metrics.auroc(scores, targets, weights)
    np.testing.assert_array_equal(np.isnan(precision[:, 0]), [True, False, False])
    np.testing.assert_array_equal(np.isnan(area[:, 0]), [True, True, False])
    with pytest.raises(ValueError, match="weights"):
        metrics.auroc(scores, targets, weights[:, :2])


def test_many_weights_are_worked_through_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, targets = table(1, ties=True)
    weights = np.random.default_rng(0).integers(0, 3, (11, len(scores)))
    whole = metrics.average_precision(scores, targets, weights)
    monkeypatch.setattr(metrics, "CHUNK", 150)
    parts = metrics.average_precision(scores, targets, weights)
    np.testing.assert_allclose(parts, whole, atol=1e-14)


def test_hits_say_which_clips_were_right() -> None:
    scores = np.array([[0.9, 0.1], [0.6, 0.4], [0.5, 0.5]])
    found = metrics.hits(scores, [[1, 0], [0, 1], [0, 0]])
    np.testing.assert_array_equal(found, [1, 0, np.nan])
