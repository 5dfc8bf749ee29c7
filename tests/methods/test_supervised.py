"""Supervised training: losses against slow loops, what is masked, what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from audiossl.errors import RecipeError
from audiossl.hub.config import ModelConfig
from audiossl.methods import supervised
from audiossl.methods.parts.augment import mix_at_snr
from audiossl.methods.supervised import Config, Method
from audiossl.model import Model

LABELS = ["a", "b", "c"]


def model(activation: str = "sigmoid", head: bool = True) -> Model:
    torch.manual_seed(0)
    return Model(
        ModelConfig(
            name="test",
            architecture={"name": "dscnn", "widths": [8], "strides": [2], "stem": 4},
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
    first = method.model.encoder.stages[0][0].conv.weight.grad  # type: ignore[union-attr]
    assert isinstance(first, Tensor)
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


def test_mixing_at_a_level_has_the_labels_of_all() -> None:
    config = Config(
        mixup=1.0, mixup_by="snr", mixup_labels="union", mixup_snr_db=(3, 9), mixup_most=2
    )
    method = Method(model(), config)
    data = {**batch(TARGETS), "no_call": torch.tensor([False, True, False, False])}
    torch.manual_seed(5)
    loss, values = method.train().loss(data)
    torch.manual_seed(5)
    wave, target = mix_at_snr(data["wave"], data["target"], 1.0, (3, 9), 2, data["no_call"])
    assert target is not None
    assert not torch.equal(target, data["target"])
    plain = Method(method.model, Config()).train()
    expected, known = plain.loss({"wave": wave, "target": target})
    torch.testing.assert_close(loss, expected)
    assert values["weight"] == known["weight"]


@pytest.mark.parametrize("wrong", [{"mixup_on": "spec"}, {"mixup_labels": "mix"}])
def test_mixing_at_a_level_is_of_waves_and_unions(wrong: dict[str, Any]) -> None:
    right = {"mixup": 0.5, "mixup_by": "snr", "mixup_on": "wave", "mixup_labels": "union"}
    Method(model(), Config(**right))
    with pytest.raises(RecipeError, match=r"recipe method\.mixup_by: snr takes"):
        Method(model(), Config(**{**right, **wrong}))


def vit_model(order: str) -> Model:
    torch.manual_seed(0)
    sizes = {"dim": 8, "depth": 1, "heads": 2, "mel": 64, "frames": 160, "pooling": "fc_norm"}
    return Model(
        ModelConfig(
            name="test",
            architecture={"name": "vit", "order": order, **sizes},
            frontend={"preset": "ast", "mels": 64, "frames": 160},
            head={"name": "linear", "labels": LABELS},
        )
    )


@pytest.mark.parametrize("order", ["frequency", "time"])
def test_hidden_rows_and_columns_are_for_training_alone(order: str) -> None:
    """10 moments x 4 frequencies: int(10 * 0.7) x int(4 * 0.5) are looked at."""
    method = Method(vit_model(order), Config(hidden_time=0.3, hidden_freq=0.5)).train()
    encoder: Any = method.model.encoder
    seen, kept = [], []
    encoder.blocks[0].register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[1]))
    placed = encoder._placed
    encoder._placed = lambda spec, which: kept.append(which) or placed(spec, which)
    loss, _ = method.loss(batch(TARGETS))
    loss.backward()
    assert all(value.grad is not None for value in encoder.blocks.parameters())
    numbers = kept[0].numpy()
    time, band = (numbers // 4, numbers % 4) if order == "time" else (numbers % 10, numbers // 10)
    for clip in range(4):
        assert len(set(time[clip])) == 7
        assert len(set(band[clip])) == 2
    method.eval()
    expected = Method(method.model, Config()).eval().loss(batch(TARGETS))[0]
    assert torch.equal(method.loss(batch(TARGETS))[0], expected)
    assert seen == [1 + 14, 1 + 40, 1 + 40]


def test_only_patches_can_be_hidden() -> None:
    with pytest.raises(RecipeError, match="dscnn has no patches to hide"):
        Method(model(), Config(hidden_time=0.2))


def test_spectrogram_masks_with_their_probabilities() -> None:
    config = Config(freq_masks=1, freq_width=5, freq_probability=0.3, time_probability=0.6)
    layer = Method(model(), config).spec_augment
    assert (layer.freq_probability, layer.time_probability) == (0.3, 0.6)
