"""Parameter groups, learning-rate schedules and the weights' moving average."""

from __future__ import annotations

import contextlib
import copy
import math
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from audiossl.config.sections import TrainSection

BLOCK = re.compile(r"(?:^|\.)(?:blocks|layers)\.(\d+)\.")
STEM = ("patch_embed", "pos_embed", "_token", "mask_embed", "stem")  # parts of names before block 0
NO_DECAY = ("pos_embed", "_token", "mask_embed", "A_log")  # ends of names
EMA_RAMP = 10  # updates: the average follows fast at first


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]], weight_decay: float, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Trainable parameters in groups {"params", "weight_decay", "lr_scale"}, in a fixed order.

    Vectors (biases, norms), tokens and position tables get no weight decay. With `layer_decay` d
    and n blocks, block i (`blocks.i.` in the name) learns at d^(n-i) of the rate, what stands
    before the blocks at d^(n+1), everything after them at the whole rate (Clark et al. 2020, BEiT).
    """
    trainable = [(name, value) for name, value in named if value.requires_grad]
    depth = max((_block(name) for name, _ in trainable), default=-1) + 1
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, value in trainable:
        scale = layer_decay ** (depth + 1 - _layer(name, depth)) if depth else 1.0
        plain = value.ndim <= 1 or name.endswith(NO_DECAY)
        groups.setdefault((scale, 0.0 if plain else weight_decay), []).append(value)
    return [
        {"params": values, "weight_decay": decay, "lr_scale": scale}
        for (scale, decay), values in sorted(groups.items(), key=lambda pair: pair[0])
    ]


def build_optimizer(
    named: Iterable[tuple[str, nn.Parameter]], config: TrainSection
) -> torch.optim.Optimizer:
    """The optimiser of a recipe over these parameters."""
    groups = parameter_groups(named, config.weight_decay, config.layer_decay)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.betas[0])
    adam = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return adam(groups, lr=config.lr, betas=config.betas, eps=config.eps)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """`rate` times each group's own scale."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


def schedule(config: TrainSection, steps: int) -> Callable[[int], float]:
    """step (0 .. steps-1) -> learning rate.

    Warm-up rises linearly and ends at the peak: update i of w uses lr * (i + 1) / w. Then cosine or
    linear fall towards min_lr, which the update after the last would have, or cuts by step_factor
    every step_every updates, the first one at update step_start.
    """
    warmup = warmup_steps(config.warmup, steps)

    def rate(step: int) -> float:
        if step < warmup:
            return config.lr * (step + 1) / warmup
        done = (step - warmup) / max(1, steps - warmup)
        span = config.lr - config.min_lr
        if config.schedule == "cosine":
            return config.min_lr + span * 0.5 * (1 + math.cos(math.pi * min(done, 1)))
        if config.schedule == "linear":
            return config.min_lr + span * (1 - min(done, 1))
        if config.schedule == "step" and config.step_every:
            first = config.step_start or warmup + config.step_every
            cuts = max(0, 1 + (step - first) // config.step_every)
            return config.lr * config.step_factor**cuts
        return config.lr

    return rate


def warmup_steps(warmup: float, steps: int) -> int:
    """Updates if 1 or more, a fraction of all below 1."""
    return min(steps, round(warmup if warmup >= 1 else warmup * steps))


class Ema(nn.Module):
    """A moving average of `model`: its floating tensors averaged, the others copied.

    The decay is min(decay, (1 + n) / (10 + n)) at update n, so that random first weights are soon
    forgotten.
    """

    updates: Tensor

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.decay = decay
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        count = int(self.updates)
        decay = min(self.decay, (1 + count) / (EMA_RAMP + count))
        mine = self.model.state_dict()
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                mine[name].lerp_(value.to(mine[name].dtype), 1 - decay)
            else:
                mine[name].copy_(value)
        self.updates += 1

    @contextlib.contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """`model` has the average's values inside, and its own again after."""
        own = {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict(self.model.state_dict())
        try:
            yield
        finally:
            model.load_state_dict(own)


def _block(name: str) -> int:
    match = BLOCK.search(name)
    return int(match[1]) if match else -1


def _layer(name: str, depth: int) -> int:
    """0 before the blocks, i + 1 in block i, depth + 1 after them."""
    if (block := _block(name)) >= 0:
        return block + 1
    return 0 if any(part in name for part in STEM) else depth + 1
