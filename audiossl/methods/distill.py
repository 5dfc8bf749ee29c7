"""Distillation: a small encoder learns to give the tokens of a large one, on any sounds.

    wave -> spectrogram -> teacher, frozen -> maps M_1 ... M_S, tokens t
                        \\-> student        -> maps m_1 ... m_S, tokens e

Needs no labels. An encoder with `image`, `stages` and `tokens`, like DSCNN, gives a map after each
stage; the student's must be of the same shapes as the teacher's, with as many blocks between as it
likes. In the first `forced` updates each stage reads what the teacher's stage before gave, M_s-1,
in place of its own m_s-1, so that all learn at once, each from the input it will have in the end:

    L = sum_s d(m_s, M_s)        d(m, M) = mean over channels c of mean((m_c - M_c)^2) / (v_c + f)

with v_c the variance of the teacher's channel in the batch: rare channels count like frequent ones.
Then the student is on its own:

    L = d(e, t) + cosine (1 - cos(e, t)) + d(m_S, M_S) + stages sum_s<S d(m_s, M_s)

Where an encoder has no stages only the tokens are compared. After Hinton et al. 2015
(arXiv:1503.02531) and Romero et al. 2015 (FitNets, arXiv:1412.6550, equation 3: match hidden
features); stages that read the teacher's maps, d and the weights are choices of this project.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiossl.config.typed_yaml import Range
from audiossl.errors import RecipeError
from audiossl.model import Model, load

FLOOR = 0.01  # f: least variance, lest a channel that is nearly always 0 rules the loss
FEWEST = 2  # clips that a stage reads at least


@dataclass
class Config:
    teacher: str
    """Model that is imitated: a name or a folder. Its frontend must be the student's."""
    forced: Annotated[int, Range(low=0)] = 0
    """First updates in which each stage reads the teacher's map before it. A stage has half the
    clips of the next: the first are dear, and have few weights to learn."""
    norm_steps: Annotated[int, Range(low=1)] | None = None
    """Updates after which batch norms keep their statistics: what differs from batch to batch is
    noise that keeps a student from its teacher. None: never."""
    cosine: Annotated[float, Range(low=0)] = 2.0
    """Weight of the tokens' cosine distance."""
    stages: Annotated[float, Range(low=0)] = 0.3
    """Weight of the maps before the last, once the student is on its own."""


class Method(nn.Module):
    """The student's encoder is trained; the teacher is no part of what is saved.

    Raises RecipeError when teacher and student differ in frontend or width, or when stages are to
    be forced that are not there, and, at the first batch, when maps or tokens differ in shape.
    """

    updates: Tensor  # (), how many were made: a resumed run must know

    def __init__(self, model: Model, config: Config) -> None:
        super().__init__()
        self.model = model
        self.config = config
        teacher = load(config.teacher)
        self._teacher = [teacher.requires_grad_(False)]  # in a list: not to be trained or saved
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        own, other = model.config.frontend, teacher.config.frontend
        if own != other:
            raise RecipeError(f"method.teacher: its frontend is {other}, the student's {own}")
        mine, width = _stages(model.encoder), teacher.encoder.dim
        if width != model.encoder.dim:
            raise RecipeError(
                f"method.teacher: {width} dimensions, but the encoder gives {model.encoder.dim}"
            )
        self.paired = bool(mine) and len(mine) == len(_stages(teacher.encoder))
        if config.forced and not self.paired:
            raise RecipeError("method.forced: teacher and student have not the same stages: 0")

    def loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """batch: a spectrogram."""
        self._settle()
        spec = self.model.spectrogram(batch)
        teacher = self._teacher[0].to(spec.device).eval()
        if not self.paired:
            with torch.no_grad():
                wanted = teacher.encoder(spec)
            return self._tokens(self.model.encoder(spec), wanted)
        with torch.no_grad():
            maps = _maps(teacher.encoder, spec)
        if int(self.updates) < self.config.forced:
            return self._forced(maps)
        own = _maps(self.model.encoder, spec)
        pool: Any = self.model.encoder.tokens
        loss, parts = self._tokens(pool(own[-1]), pool(maps[-1]))
        errors = [_distance(m, wanted) for m, wanted in zip(own[1:], maps[1:], strict=True)]
        parts["stages"] = torch.stack(errors).mean().detach()
        return loss + errors[-1] + self.config.stages * sum(errors[:-1]), parts

    def after_step(self, step: int) -> None:
        self.updates += 1

    def _settle(self) -> None:
        steps = self.config.norm_steps
        if steps is not None and int(self.updates) >= steps:
            for module in self.model.encoder.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()

    def _forced(self, maps: list[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        stages = _stages(self.model.encoder)
        errors = []
        for number, stage in enumerate(stages):
            clips = max(FEWEST, len(maps[0]) >> (len(stages) - 1 - number))
            errors.append(_distance(stage(maps[number][:clips]), maps[number + 1][:clips]))
        values = {f"stage{i}": error.detach() for i, error in enumerate(errors, 1)}
        return torch.stack(errors).sum(), values

    def _tokens(self, tokens: Tensor, wanted: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        regress = _distance(tokens.transpose(1, 2), wanted.transpose(1, 2))
        angle = 1 - F.cosine_similarity(tokens, wanted, dim=-1).mean()
        parts = {"regress": regress.detach(), "angle": angle.detach()}
        return regress + self.config.cosine * angle, parts


def _stages(encoder: Any) -> list[nn.Module]:
    return list(getattr(encoder, "stages", ()))


def _maps(encoder: Any, spec: Tensor) -> list[Tensor]:
    """What the first stage reads and what each gives: (batch, channels, bands, frames)."""
    maps = [encoder.image(spec)]
    for stage in encoder.stages:
        maps.append(stage(maps[-1]))
    return maps


def _distance(given: Tensor, wanted: Tensor) -> Tensor:
    """d of this file's head; both (batch, channels, ...)."""
    if given.shape != wanted.shape:
        theirs, own = list(wanted.shape[1:]), list(given.shape[1:])
        raise RecipeError(f"method.teacher: gives {theirs} where the student gives {own}")
    others = [d for d in range(wanted.ndim) if d != 1]
    variance = wanted.var(others, correction=0, keepdim=True)
    return ((given - wanted).square() / (variance + FLOOR)).mean()
