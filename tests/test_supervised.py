"""Supervised training: losses against slow loops, what is masked, what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from audiossl.errors import RecipeError
from audiossl.hub import ModelConfig
from audiossl.methods import supervised
from audiossl.methods.supervised import Config, Method
from audiossl.model import Model

LABELS = ["a", "b", "c"]


def model(activation: str = "sigmoid", head: bool = True) -> Model:
    torch.manual_seed(0)
    return Model(
        ModelConfig(
            name="test",
            architecture={"name": "dscnn", "widths": [8], "strides": [2], "stem": 4, "dim": 8},
            frontend={"preset": "yamnet"},
            head={"name": "linear", "labels": LABELS, "activation": activation} if head else None,
        )
    )


def batch(targets: list[list[float]]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    wave = torch.randn(len(targets), 8000, generator=generator) * 0.1
    return {"wave": wave, "target": torch.tensor(targets)}


TARGETS = [[1.0, 0.0, 0.0], [0.0, -1.0, 1.0], [1.0, 1.0, 0.0], [-1.0, -1.0, -1.0]]
EXCLUSIVE = [[1.0, 0.0, 0.0], [0.0, -1.0, 1.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def slow(logits: Tensor, targets: list[list[float]], config: Config) -> tuple[float, int]:
    """(mean loss, number of known) one pair, or for ce one clip, at a time."""
    losses = []
    for row, target in zip(logits.tolist(), targets, strict=True):
        if config.loss == "ce":
            total = sum(t for t in target if t > 0)
            if total > 0 and min(target) >= 0:
                norm = math.log(sum(map(math.exp, row)))
                s = config.label_smoothing
                shares = [(1 - s) * t / total + s / len(row) for t in target]
                losses.append(sum(q * (norm - x) for q, x in zip(shares, row, strict=True)))
            continue
        for x, t in zip(row, target, strict=True):
            p = sigmoid(x)
            if t < 0:
                continue
            if config.loss == "bce":
                t = t * (1 - config.label_smoothing) + config.label_smoothing / 2
                losses.append(-config.pos_weight * t * math.log(p) - (1 - t) * math.log(1 - p))
            elif t == 1:
                losses.append(-((1 - p) ** config.gamma_positive) * math.log(p))
            else:
                q = max(p - config.probability_margin, 0)
                losses.append(-(q**config.gamma_negative) * math.log(1 - q))
    return sum(losses) / len(losses), len(losses)


@pytest.mark.parametrize(
    "config",
    [
        Config(),
        Config(label_smoothing=0.2, pos_weight=3.0),
        Config(loss="ce"),
        Config(loss="ce", label_smoothing=0.1),
        Config(loss="asymmetric"),
        Config(loss="asymmetric", gamma_negative=2, gamma_positive=0, probability_margin=0.2),
    ],
)
def test_losses_equal_slow_loops_over_what_is_known(config: Config) -> None:
    kind = "softmax" if config.loss == "ce" else "sigmoid"
    method = Method(model(kind), config).eval()
    targets = EXCLUSIVE if config.loss == "ce" else TARGETS
    data = batch(targets)
    with torch.no_grad():
        method.model.head.linear.weight.mul_(10)  # type: ignore[union-attr]
        loss, values = method.loss(data)
        logits = method.model(data["wave"])
    expected, known = slow(logits, targets, config)
    assert float(loss) == pytest.approx(expected, rel=1e-4)
    assert float(values["weight"]) == known
    torch.testing.assert_close(values["scores"], method.model.scores(logits))


@pytest.mark.parametrize("loss", ["bce", "ce", "asymmetric"])
def test_unknown_targets_give_no_gradient_and_no_nan(loss: Any) -> None:
    method = Method(model("softmax" if loss == "ce" else "sigmoid"), Config(loss=loss)).train()
    value, values = method.loss(batch([[-1.0, -1.0, -1.0]] * 2))
    value.backward()
    assert value.item() == values["weight"].item() == 0
    for parameter in method.parameters():
        assert parameter.grad is None or not parameter.grad.any()
    value, _ = method.loss(batch([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]))
    value.backward()
    first = method.model.encoder.stem.weight.grad  # type: ignore[union-attr]
    assert first is not None
    assert first.any()


@pytest.mark.parametrize("gammas", [(4.0, 1.0), (0.5, 0.5), (0.0, 0.0)])
def test_asymmetric_loss_is_finite_with_finite_slopes_everywhere(
    gammas: tuple[float, float],
) -> None:
    logits = torch.tensor([[-200.0, -30.0, -2.9, 0.0, 30.0, 200.0]] * 2, requires_grad=True)
    target = torch.tensor([[0.0] * 6, [1.0] * 6])
    loss = supervised.asymmetric(logits, target, *gammas, margin=0.05)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_gradient_of_two_passes_weighed_is_that_of_one_big_batch() -> None:
    method = Method(model(), Config()).eval()
    data = batch(TARGETS)

    def gradient(pieces: list[slice]) -> Tensor:
        method.zero_grad()
        total = 0.0
        for piece in pieces:
            loss, values = method.loss({name: value[piece] for name, value in data.items()})
            (loss * values["weight"]).backward()
            total += float(values["weight"])
        return torch.cat(
            [p.grad.flatten() / total for p in method.parameters() if p.grad is not None]
        )

    torch.testing.assert_close(gradient([slice(0, 1), slice(1, 4)]), gradient([slice(0, 4)]))


@pytest.mark.parametrize("where", ["wave", "spec"])
def test_mixup_and_masks_are_for_training_alone(where: Any) -> None:
    config = Config(
        mixup=1.0,
        mixup_on=where,
        freq_masks=2,
        freq_width=20,
        time_masks=2,
        time_width=20,
        spec_noise=0.1,
        spec_shift=3,
    )
    method = Method(model(), config)
    data = batch(TARGETS)
    method.eval()
    torch.manual_seed(0)
    first = method.loss(data)[0]
    torch.manual_seed(1)
    assert torch.equal(first, method.loss(data)[0])
    method.train()
    torch.manual_seed(0)
    one, values = method.loss(data)
    torch.manual_seed(0)
    again = method.loss(data)[0]
    torch.manual_seed(1)
    other = method.loss(data)[0]
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert "scores" not in values


def test_a_frozen_encoder_stays_as_it_is() -> None:
    method = Method(model(), Config(freeze_encoder=True)).train()
    before = {name: value.clone() for name, value in method.model.encoder.state_dict().items()}
    loss, _ = method.loss(batch(TARGETS))
    loss.backward()
    trained = {name for name, value in method.named_parameters() if value.grad is not None}
    assert trained == {"model.head.linear.weight", "model.head.linear.bias"}
    for name, value in method.model.encoder.state_dict().items():
        assert torch.equal(value, before[name]), name  # the running means of batch norm, too


def test_loss_and_activation_must_go_together() -> None:
    for loss, activation in (("ce", "sigmoid"), ("bce", "softmax"), ("asymmetric", "softmax")):
        with pytest.raises(RecipeError, match=r"recipe method\.loss"):
            Method(model(activation), Config(loss=loss))  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match=r"recipe model\.head: missing"):
        Method(model(head=False), Config())
