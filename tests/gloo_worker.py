"""One of several processes of the tests: trains each of the recipes that stdin names in turn.

stdin: JSON lines, the arguments of `run`. stdout: what came of each, a JSON line.
"""

from __future__ import annotations

import faulthandler
import json
import sys
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from audiossl import methods
from audiossl.engine import train
from audiossl.engine.log import Lines
from audiossl.errors import AudiosslError
from audiossl.methods import supervised
from audiossl.recipe import loading as recipe


class Numbers:
    """Spectrograms by number; all that is random comes from the draw."""

    def __len__(self) -> int:
        return 11

    def __getitem__(self, draw: Any) -> dict[str, Any]:
        number = draw.index if hasattr(draw, "index") else draw
        values = torch.arange(64 * 20, dtype=torch.float32) * 0.01 + number
        return {"spec": values.sin().view(64, 20), "index": number}


class Uneven(nn.Module):
    """What pulls processes apart: parts that only some batches use, batches without weight, a
    buffer that the loss changes, randomness after the update."""

    seen: Tensor
    drawn: Tensor

    def __init__(self, model: Any, config: Any) -> None:
        super().__init__()
        self.model = model
        dim = model.encoder.dim
        self.odd, self.never = nn.Linear(dim, 2), nn.Linear(dim, 2)
        self.temperature = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("drawn", torch.zeros(()))

    def loss(self, batch: dict[str, Tensor]) -> Any:
        token = self.model.encoder.embed(batch["spec"])
        value = (token * self.temperature).square().mean()
        odd = int(batch["index"].sum()) % 2 == 1
        if odd:
            value = value + self.odd(token).square().mean()
        self.seen += 1
        weight = 0.0 if int(batch["index"][0]) % 4 == 3 else float(len(token))
        return value, {"weight": torch.tensor(weight), "odd": torch.tensor(float(odd))}

    def after_step(self, step: int) -> None:
        self.drawn.copy_(torch.rand(()))


class Broken(Uneven):
    """The loss is no number in one pass of one process."""

    def loss(self, batch: dict[str, Tensor]) -> Any:
        value, values = super().loss(batch)
        bad = self.training and int(batch["index"][0]) == 5
        return value * (float("nan") if bad else 1.0), {**values, "weight": torch.tensor(1.0)}


METHODS = {"uneven": Uneven, "broken": Broken}


def run(
    overrides: list[str],
    options: dict[str, Any],
    method: str | None = None,
    name: str = "tiny/supervised",
) -> dict[str, Any]:
    """Train once by recipe `name`, or with one of the methods above; what came of it."""
    torch.set_num_threads(1)
    load = methods.load
    if method is not None:
        module = SimpleNamespace(
            Config=supervised.Config,
            Method=METHODS[method],
            datasets=lambda *_: (Numbers(), Numbers()),
        )
        methods.load = lambda name: module
    try:
        watch = Lines(sys.stderr)
        result = train.fit(recipe.load(name, overrides), watch=watch, **options)
        return {"steps": result.steps, "metrics": result.metrics, "stopped": result.stopped}
    except (AudiosslError, SystemExit) as error:
        return {"error": str(error), "exit": getattr(error, "exit_code", error.args[0])}
    finally:
        methods.load = load


if __name__ == "__main__":
    for line in sys.stdin:
        faulthandler.dump_traceback_later(300, exit=True)
        print(json.dumps(run(**json.loads(line))), flush=True)
