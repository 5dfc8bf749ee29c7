"""Parameter groups, schedules and the moving average against words and slow loops."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from audiossl.config.sections import TrainSection
from audiossl.engine.optim import (
    Ema,
    build_optimizer,
    parameter_groups,
    schedule,
    set_learning_rate,
    warmup_steps,
)

CONFIG = TrainSection(steps=100, lr=1.0)


class Tower(nn.Module):
    """Named as a ViT is."""

    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
        self.pos_embed = nn.Parameter(torch.zeros(1, 9, 4))
        self.patch_embed = nn.Linear(6, 4)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4)) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 2)


def scales(depth: int, decay: float) -> dict[str, tuple[float, float]]:
    """(scale, weight decay) of each parameter by name."""
    tower = Tower(depth)
    names = {id(value): name for name, value in tower.named_parameters()}
    groups = parameter_groups(tower.named_parameters(), 0.1, decay)
    found = {
        names[id(value)]: (group["lr_scale"], group["weight_decay"])
        for group in groups
        for value in group["params"]
    }
    assert len(found) == len(names)
    return found


def test_layer_decay_by_depth_of_the_block() -> None:
    found = scales(depth=3, decay=0.5)
    for name, power in {
        "cls_token": 4, "pos_embed": 4, "patch_embed.weight": 4, "blocks.0.1.weight": 3,
        "blocks.1.1.weight": 2, "blocks.2.1.weight": 1, "norm.weight": 0, "head.weight": 0,
    }.items():  # fmt: skip
        assert found[name][0] == 0.5**power, name


def test_no_weight_decay_on_vectors_tokens_and_position_tables() -> None:
    found = scales(depth=1, decay=1.0)
    decayed = {name for name, (_, decay) in found.items() if decay}
    assert decayed == {"patch_embed.weight", "blocks.0.1.weight", "head.weight"}
    assert {scale for scale, _ in found.values()} == {1.0}


def test_frozen_parameters_are_left_out_and_no_blocks_is_fine() -> None:
    layer = nn.Linear(3, 3)
    layer.bias.requires_grad_(False)
    groups = parameter_groups(layer.named_parameters(), 0.1, 0.5)
    assert [len(group["params"]) for group in groups] == [1]
    assert groups[0]["lr_scale"] == 1.0


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_an_update_goes_by_each_group_s_rate(name: str) -> None:
    tower = Tower(1)
    config = replace(CONFIG, optimizer=name, layer_decay=0.5, betas=(0.9, 0.99), weight_decay=0.0)
    optimizer = build_optimizer(tower.named_parameters(), config)
    before = {name: value.clone() for name, value in tower.named_parameters()}
    for value in tower.parameters():
        value.grad = torch.ones_like(value)
    set_learning_rate(optimizer, 0.1)
    optimizer.step()
    moved = {n: (before[n] - v).mean().item() for n, v in tower.named_parameters()}
    # The first update of all three is the rate times the gradient's sign, here 1.
    assert moved["head.weight"] == pytest.approx(0.1, rel=1e-4)
    assert moved["blocks.0.1.weight"] == pytest.approx(0.05, rel=1e-4)
    assert moved["cls_token"] == pytest.approx(0.025, rel=1e-4)


def test_cosine_with_warm_up() -> None:
    rate = schedule(replace(CONFIG, lr=2.0, min_lr=0.5, warmup=10), 110)
    assert rate(0) == pytest.approx(0.2)
    assert rate(9) == pytest.approx(2.0)
    assert rate(10) == pytest.approx(2.0)
    assert rate(60) == pytest.approx(1.25)
    assert 0.5 < rate(109) < 0.501
    for step in range(10, 110):
        expected = 0.5 + 1.5 * (1 + math.cos(math.pi * (step - 10) / 100)) / 2
        assert rate(step) == pytest.approx(expected)


def test_the_other_schedules() -> None:
    linear = schedule(replace(CONFIG, schedule="linear", lr=1.0, min_lr=0.2), 8)
    assert [linear(i) for i in range(9)] == pytest.approx(
        [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2]
    )
    constant = schedule(replace(CONFIG, schedule="constant", warmup=0.5), 4)
    assert [constant(i) for i in range(4)] == [0.5, 1, 1, 1]
    cuts = schedule(replace(CONFIG, schedule="step", step_every=2, step_factor=0.1), 7)
    assert [cuts(i) for i in range(6)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    late = replace(CONFIG, schedule="step", step_every=2, step_factor=0.1, step_start=5, warmup=2)
    rates = [schedule(late, 9)(i) for i in range(9)]
    assert rates == pytest.approx([0.5, 1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize(
    ("warmup", "steps", "expected"), [(0, 9, 0), (0.1, 200, 20), (1, 200, 1), (500, 200, 200)]
)
def test_warm_up_in_updates_or_as_a_fraction(warmup: float, steps: int, expected: int) -> None:
    assert warmup_steps(warmup, steps) == expected
    rate = schedule(replace(CONFIG, warmup=warmup), steps)
    assert all(0 < rate(step) <= 1 for step in range(steps))


def test_moving_average_equals_a_slow_loop() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    ema = Ema(model, 0.9)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    for update in range(30):
        with torch.no_grad():
            for value in model.parameters():
                value.add_(torch.randn_like(value))
        model(torch.randn(8, 3))
        ema.update(model)
        decay = min(0.9, (1 + update) / (10 + update))
        for name, value in model.state_dict().items():
            floating = value.is_floating_point()
            expected[name] = decay * expected[name] + (1 - decay) * value if floating else value
    for name, value in ema.model.state_dict().items():
        torch.testing.assert_close(value, expected[name])
    assert int(ema.updates) == 30


def test_the_average_stands_in_for_the_weights_and_gives_them_back() -> None:
    torch.manual_seed(0)
    model = nn.Linear(2, 2)
    ema = Ema(model, 0.5)
    with torch.no_grad():
        model.weight.add_(1)
    own = model.weight.clone()
    with ema.applied_to(model):
        torch.testing.assert_close(model.weight, ema.model.weight)
    assert torch.equal(model.weight, own)
    with pytest.raises(RuntimeError, match="inside"), ema.applied_to(model):
        raise RuntimeError("inside")
    assert torch.equal(model.weight, own)
