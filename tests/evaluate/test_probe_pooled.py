"""Probes on pooled features against scikit-learn, closed forms and words."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier

from audiossl.evaluate import probes
from audiossl.evaluate.probes import Goal, Settings, gradient, knn, linear, mlp, ridge

CLIPS, DIM, CLASSES = 60, 12, 4


def blobs(
    clips: int = CLIPS, dim: int = DIM, seed: int = 0, spread: float = 1.5
) -> tuple[np.ndarray, Goal]:
    """Classes that overlap a little; every clip stands alone."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(CLASSES, dim))
    classes = np.arange(clips) % CLASSES
    features = centres[classes] + spread * rng.normal(size=(clips, dim))
    targets = np.eye(CLASSES, dtype=np.float32)[classes]
    return features.astype(np.float32), Goal(targets, np.arange(clips), single=True)


def several(goal: Goal, seed: int = 0, unknown: float = 0.0) -> Goal:
    """The same clips with further labels, and pairs that nobody judged."""
    rng = np.random.default_rng(seed)
    targets = np.maximum(goal.targets, rng.random(goal.targets.shape) < 0.2).astype(np.float32)
    targets[rng.random(targets.shape) < unknown] = -1
    return Goal(targets, goal.groups, single=False)


def test_every_file_is_a_probe_and_every_probe_a_file() -> None:
    from pathlib import Path

    files = {path.stem for path in Path(probes.__file__).parent.glob("*.py")}
    assert files - {"__init__", "gradient"} == set(probes.NAMES)
    assert {probes.load(name).NEEDS for name in probes.NAMES} == {"pooled", "tokens"}


def test_knn_is_scikit_learns() -> None:
    features, goal = blobs()
    asked, _ = blobs(seed=1)
    for k, temperature in ((5, 0.07), (10, 0.2), (100, 0.07)):
        reference = KNeighborsClassifier(
            min(k, CLIPS), metric="cosine", algorithm="brute",
            weights=lambda d, t=temperature: np.exp((1 - d - 1) / t),
        )  # fmt: skip
        reference.fit(features, goal.targets.argmax(1))
        predict = knn.fit(features, goal, Settings(k=k, temperature=temperature), seed=0)
        np.testing.assert_allclose(predict(asked), reference.predict_proba(asked), atol=1e-5)


def test_knn_of_several_labels_by_words(monkeypatch: pytest.MonkeyPatch) -> None:
    features, goal = blobs()
    goal = several(goal, unknown=0.3)
    asked, _ = blobs(7, seed=1)
    monkeypatch.setattr(knn, "BLOCK", 3 * CLIPS)  # 3 clips at a time
    scores = knn.fit(features, goal, Settings(k=6, temperature=0.1), seed=0)(asked)
    for clip, row in zip(asked, scores, strict=True):
        cosine = features @ clip / np.linalg.norm(features, axis=1) / np.linalg.norm(clip)
        nearest = sorted(range(CLIPS), key=lambda i: -cosine[i])[:6]
        for label in range(CLASSES):
            known = [i for i in nearest if goal.targets[i, label] >= 0]
            weights = [np.exp(cosine[i] / 0.1) for i in known]
            share = sum(w * goal.targets[i, label] for w, i in zip(weights, known, strict=True))
            assert row[label] == pytest.approx(share / sum(weights) if known else 0, abs=1e-4)


def test_knn_takes_silence_and_cold_temperatures() -> None:
    features, goal = blobs()
    features[0] = 0
    scores = knn.fit(features, goal, Settings(temperature=1e-4), seed=0)(features)
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("dim", [DIM, 200])  # more and fewer clips than dimensions
@pytest.mark.parametrize("l2", [1.0, 0.02])
def test_softmax_regression_is_scikit_learns(dim: int, l2: float) -> None:
    features, goal = blobs(dim=dim)
    asked, _ = blobs(dim=dim, seed=1)
    reference = LogisticRegression(C=1 / (CLIPS * l2), tol=1e-8, max_iter=2000)
    reference.fit(features, goal.targets.argmax(1))
    scores = linear.fit(features, goal, Settings(l2=l2), seed=0)(asked)
    np.testing.assert_allclose(scores, reference.predict_proba(asked), atol=1e-3)


@pytest.mark.parametrize("dim", [DIM, 200])
def test_one_against_the_rest_is_scikit_learns_class_by_class(dim: int) -> None:
    features, goal = blobs(dim=dim)
    goal = several(goal, unknown=0.2)
    asked, _ = blobs(dim=dim, seed=1)
    scores = linear.fit(features, goal, Settings(l2=0.1), seed=0)(asked)
    for label in range(CLASSES):
        known = goal.targets[:, label] >= 0
        reference = LogisticRegression(C=1 / (CLIPS * 0.1), tol=1e-8, max_iter=2000)
        reference.fit(features[known], goal.targets[known, label])
        expected = reference.predict_proba(asked)[:, 1]
        np.testing.assert_allclose(scores[:, label], expected, atol=1e-3)


def test_the_slope_of_the_loss_is_autograds() -> None:
    _, goal = blobs()
    for own in (goal, several(goal, unknown=0.3)):
        target = torch.from_numpy(own.targets).double()
        logits = torch.randn(target.shape, dtype=torch.float64, requires_grad=True)
        value, slope = linear.loss(logits, target, own.single)
        value.backward()
        assert logits.grad is not None
        assert torch.allclose(logits.grad, slope, atol=1e-12)


def test_the_strength_is_the_best_on_held_out_groups() -> None:
    """Random labels want a strong penalty, clear ones a weak one; `valid` is used when given."""
    features, goal = blobs(spread=0.3)
    rng = np.random.default_rng(0)
    noise = Goal(rng.permutation(goal.targets), goal.groups, single=True)
    weak, strong = (linear.choose(features, own, 0, None) for own in (goal, noise))
    assert weak < 0.02 < 1 <= strong
    turned = Goal(np.roll(goal.targets, 1, axis=1), goal.groups, single=True)
    assert linear.choose(features, goal, 0, (features, turned)) == max(linear.GRID)
    alone = np.arange(CLASSES)
    assert linear.choose(features[alone], goal.take(alone), 0, None) == 1 / CLASSES


def slow_ridge(features: np.ndarray, targets: np.ndarray, asked: np.ndarray, l2: float):
    reference = Ridge(alpha=len(features) * l2).fit(features.astype(np.float64), targets)
    return reference.predict(asked.astype(np.float64))


@pytest.mark.parametrize("dim", [DIM, 200])
def test_least_squares_is_scikit_learns_ridge(dim: int) -> None:
    features, goal = blobs(dim=dim)
    asked, _ = blobs(9, dim=dim, seed=1)
    found = ridge.least_squares(features, goal, (0.01, 1.0, 30.0), asked)
    for l2, scores in zip((0.01, 1.0, 30.0), found, strict=True):
        expected = slow_ridge(features, goal.targets, asked, l2)
        np.testing.assert_allclose(scores, expected, atol=1e-6)


def test_ridge_takes_the_strength_of_least_error_and_scales_into_probabilities() -> None:
    features, goal = blobs()
    asked, wanted = blobs(200, seed=1)
    scores = ridge.fit(features, goal, Settings(), seed=0)(asked)
    np.testing.assert_allclose(scores.sum(1), 1, atol=1e-5)
    own = np.log(np.maximum((scores * wanted.targets).sum(1), 1e-9))
    fixed = ridge.least_squares(features, goal, (1.0,), asked)[0]
    for scale in (1, 100):  # worse than what was fitted
        shares = torch.from_numpy(scale * fixed).log_softmax(1).numpy()
        assert own.mean() > (shares * wanted.targets).sum(1).mean()
    few = ridge.fit(features[:CLASSES], goal.take(np.arange(CLASSES)), Settings(), seed=0)(asked)
    assert np.isfinite(few).all()


def test_ridge_of_several_labels_lets_the_unknown_pull_nowhere() -> None:
    features, goal = blobs(2000, spread=1.0)
    full, partly = several(goal), several(goal, unknown=0.3)
    asked, _ = blobs(50, seed=1)
    expected = ridge.fit(features, full, Settings(l2=0.1), seed=0)(asked)
    found = ridge.fit(features, partly, Settings(l2=0.1), seed=0)(asked)
    assert np.corrcoef(expected.ravel(), found.ravel())[0, 1] > 0.97
    assert (found >= 0).all()
    assert (found <= 1).all()


@pytest.mark.parametrize("name", ["knn", "linear", "ridge", "mlp"])
@pytest.mark.parametrize("single", [True, False])
def test_pooled_probes_learn_and_repeat_themselves(name: str, single: bool) -> None:
    features, goal = blobs(spread=0.6)
    asked, wanted = blobs(80, seed=1, spread=0.6)
    goal = goal if single else Goal(goal.targets, goal.groups, single=False)
    fit = probes.load(name).fit
    scores = fit(features, goal, Settings(epochs=40), 3)(asked)
    assert scores.shape == (80, CLASSES)
    assert (scores.argmax(1) == wanted.targets.argmax(1)).mean() > 0.9
    torch.manual_seed(77)
    np.random.seed(77)
    np.testing.assert_array_equal(fit(features, goal, Settings(epochs=40), 3)(asked), scores)


def test_the_mlp_has_512_hidden_units_and_other_seeds_are_other_probes() -> None:
    features, goal = blobs()
    one, two = (mlp.fit(features, goal, Settings(epochs=3), seed)(features) for seed in (0, 1))
    assert not np.allclose(one, two)
    assert mlp.HIDDEN == 512


def test_the_loop_warms_up_falls_to_nothing_and_sees_every_clip_in_each_pass() -> None:
    shares = [gradient.share(step, 200) for step in range(200)]
    assert shares[12] == 1 == max(shares)
    assert shares[0] == pytest.approx(1 / 13)
    assert shares[-1] < 1e-3
    value = torch.zeros(1, requires_grad=True)
    seen: list[np.ndarray] = []

    def loss(places: np.ndarray) -> torch.Tensor:
        seen.append(places)
        return (value - 1).square().sum()

    group = {"params": [value], "lr": 0.05, "weight_decay": 0.0}
    gradient.train(loss, [group], 10, Settings(epochs=30, batch_size=4), seed=0)
    assert len(seen) == 90
    for start in range(0, 90, 3):
        assert sorted(np.concatenate(seen[start : start + 3])) == list(range(10))
    assert value.item() == pytest.approx(1, abs=0.1)
    seen.clear()
    gradient.train(loss, [group], 10, Settings(batch_size=64), seed=0)
    assert len(seen) == gradient.LEAST


def test_probes_fitted_in_threads_are_those_fitted_alone() -> None:
    features, goal = blobs()
    alone = [mlp.fit(features, goal, Settings(epochs=5), seed)(features) for seed in range(4)]
    found: dict[int, np.ndarray] = {}

    def work(seed: int) -> None:
        found[seed] = mlp.fit(features, goal, Settings(epochs=5), seed)(features)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(4):
        np.testing.assert_array_equal(found[seed], alone[seed])
