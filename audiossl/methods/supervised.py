"""Supervised fine-tuning: labelled clips, one head, one of three losses.

Parts: mixup -> frontend -> SpecAugment -> noise and shift -> encoder -> head -> loss over the known
targets.
`bce`         independent labels (sigmoid)
`ce`          one label a clip (softmax); a clip with several has them in equal parts
`asymmetric`  independent labels where absences outnumber presences by far (Ridnik et al. 2021,
              arXiv 2009.14119, eq. 7), with the constants of Bird-MAE (arXiv 2504.12880)

A target of -1 is unknown: it adds nothing to the loss. The mean is over the known targets (`bce`,
`asymmetric`) or the labelled clips (`ce`), and `weight` says how many those were, so that the loop
weighs accumulated batches as one big batch would.
Deviation: Ridnik's loss is a sum over classes; here it is a mean, so a learning rate does not
depend on the number of classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiossl.config.sections import Count, Fraction, Natural
from audiossl.config.typed_yaml import Range
from audiossl.errors import RecipeError
from audiossl.methods.parts.augment import SpecAugment, jitter, mix_at_snr, mixup
from audiossl.methods.parts.masking import grid_mask
from audiossl.model import Model

EPS = 1e-8  # under a logarithm


@dataclass
class Config:
    """The keys of a recipe's `method` section."""

    loss: Literal["bce", "ce", "asymmetric"] = "bce"
    """bce and asymmetric need a head with activation sigmoid, ce one with softmax."""
    label_smoothing: Annotated[float, Range(low=0, high=0.5)] = 0.0
    """Targets become t * (1 - s) + s / 2 (bce) or + s / classes (ce)."""
    pos_weight: Annotated[float, Range(above=0, high=1e4)] = 1.0
    """bce: weight of a present label against an absent one."""
    gamma_negative: Annotated[float, Range(low=0, high=20)] = 4.0
    """asymmetric: focus on absences taken for presences."""
    gamma_positive: Annotated[float, Range(low=0, high=20)] = 1.0
    """asymmetric: focus on presences that were missed."""
    probability_margin: Annotated[float, Range(low=0, high=0.5)] = 0.05
    """asymmetric: an absence scored below this costs nothing."""
    mixup: Fraction = 0.0
    """Probability that a clip is mixed with another of its batch."""
    mixup_by: Literal["share", "snr"] = "share"
    """share: shares that add up to 1; snr: others added at a signal-to-noise ratio (Bird-MAE),
    which takes mixup_on wave and mixup_labels union."""
    mixup_alpha: Annotated[float, Range(above=0, high=100)] = 1.0
    """share: drawn from Beta(alpha, alpha)."""
    mixup_snr_db: tuple[float, float] = (2.0, 30.0)
    """snr: range, dB."""
    mixup_most: Count = 3
    """snr: at most so many others are added."""
    mixup_on: Literal["wave", "spec"] = "wave"
    """What is mixed."""
    mixup_labels: Literal["mix", "union"] = "mix"
    """mix: targets weighed as the inputs; union: a label of either is present."""
    freq_masks: Natural = 0
    """SpecAugment: number of bands of mels that are masked."""
    freq_width: Natural = 0
    """SpecAugment: largest width of a band, mels."""
    freq_probability: Fraction = 1.0
    """SpecAugment: probability that a clip has these bands."""
    time_masks: Natural = 0
    """SpecAugment: number of spans of frames that are masked."""
    time_width: Natural = 0
    """SpecAugment: largest width of a span, frames."""
    time_probability: Fraction = 1.0
    """SpecAugment: probability that a clip has these spans."""
    spec_noise: Annotated[float, Range(low=0, high=10)] = 0.0
    """Largest level of uniform noise added to the normalised spectrogram (AST: 0.1)."""
    spec_shift: Natural = 0
    """Largest cyclic shift of the spectrogram in time, frames (AST: 10)."""
    hidden_freq: Annotated[float, Range(low=0, high=0.9)] = 0.0
    """Share of the patch grid's frequencies that the encoder does not see in training, drawn anew
    for each clip (Audio-MAE's 2-D masking)."""
    hidden_time: Annotated[float, Range(low=0, high=0.9)] = 0.0
    """Share of its moments."""
    freeze_encoder: bool = False
    """Train the head alone on the encoder as it is (linear probing)."""

    @property
    def on_waves(self) -> str | None:
        """The key that asks for something done to waves."""
        return "mixup_on" if self.mixup and self.mixup_on == "wave" else None


class Method(nn.Module):
    """`loss(batch)` with batch {"wave": (batch, samples), "target": (batch, classes)} and perhaps
    {"no_call": (batch,) bool}, clips that nothing is added to. Where nothing is done to waves,
    {"spec": (batch, mel, frames)} may stand for them."""

    def __init__(self, model: Model, config: Config) -> None:
        super().__init__()
        if model.head is None:
            raise RecipeError("recipe model.head: missing: supervised training needs a head")
        activation = (model.config.head or {}).get("activation", "sigmoid")
        if (config.loss == "ce") != (activation == "softmax"):
            raise RecipeError(
                f"recipe method.loss: {config.loss!r} does not go with"
                f" model.head.activation {activation!r} (ce: softmax; bce, asymmetric: sigmoid)"
            )
        by_snr = config.mixup and config.mixup_by == "snr"
        if by_snr and (config.mixup_on, config.mixup_labels) != ("wave", "union"):
            raise RecipeError(
                "recipe method.mixup_by: snr takes mixup_on wave and mixup_labels union, got"
                f" {config.mixup_on} and {config.mixup_labels}"
            )
        self.hides = bool(config.hidden_freq or config.hidden_time)
        if self.hides and not hasattr(model.encoder, "patch_pixels"):
            name = model.config.architecture["name"]
            raise RecipeError(f"recipe method.hidden_time: {name} has no patches to hide")
        self.model, self.config = model, config
        self.spec_augment = SpecAugment(
            config.freq_masks,
            config.freq_width,
            config.time_masks,
            config.time_width,
            config.freq_probability,
            config.time_probability,
        )
        if config.freeze_encoder:
            model.encoder.requires_grad_(False)

    def train(self, mode: bool = True) -> Method:
        super().train(mode)
        if self.config.freeze_encoder:
            self.model.encoder.eval()
        return self

    def loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss over what is known, and {"weight": how many that was}.

        In evaluation also {"scores": (batch, classes) in [0, 1]}.
        """
        target = batch["target"]
        if self.training and self.config.on_waves:
            wave, target = self._mixup(batch["wave"], target, batch.get("no_call"))
            batch = {**batch, "wave": wave}
        spec = self.model.spectrogram(batch)
        if self.training and self.config.mixup and self.config.mixup_on == "spec":
            spec, target = self._mixup(spec, target, batch.get("no_call"))
        spec = self.spec_augment(spec)
        if self.training and (self.config.spec_noise or self.config.spec_shift):
            spec = jitter(spec, self.config.spec_noise, self.config.spec_shift)
        logits = self._classify(spec).float()
        losses, known = self._losses(logits, target)
        weight = known.sum()
        values = {"weight": weight}
        if not self.training:
            values["scores"] = self.model.scores(logits)
        return (losses * known).sum() / weight.clamp(min=1), values

    def _losses(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Losses and, of the same shape, which of them count."""
        config = self.config
        if config.loss == "ce":
            return cross_entropy(logits, target, config.label_smoothing)
        known = (target >= 0).to(logits)
        if config.loss == "bce":
            return binary(logits, target, config.label_smoothing, config.pos_weight), known
        gammas = (config.gamma_negative, config.gamma_positive)
        return asymmetric(logits, target, *gammas, config.probability_margin), known

    def _mixup(self, inputs: Tensor, target: Tensor, alone: Tensor | None) -> tuple[Tensor, Tensor]:
        config = self.config
        if config.mixup_by == "share":
            alpha, labels = config.mixup_alpha, config.mixup_labels
            return mixup(inputs, target, config.mixup, alpha, labels, alone)
        snr, most = config.mixup_snr_db, config.mixup_most
        mixed, union = mix_at_snr(inputs, target, config.mixup, snr, most, alone)
        return mixed, target if union is None else union

    def _classify(self, spec: Tensor) -> Tensor:
        """Logits; in training from some of the patches, if some are hidden."""
        if not (self.training and self.hides):
            return self.model.classify(spec)
        encoder: Any = self.model.encoder
        along = {"frequency": self.config.hidden_freq, "time": self.config.hidden_time}
        columns = {"frequency": "time", "time": "frequency"}[encoder.order]
        grid = encoder.grid(spec.shape[-1])
        _, kept = grid_mask(len(spec), grid, along[encoder.order], along[columns], spec.device)
        return self.model.head(encoder.embed(spec, kept))  # type: ignore[misc]


def binary(
    logits: Tensor, target: Tensor, smoothing: float = 0.0, pos_weight: float = 1.0
) -> Tensor:
    """(batch, classes) binary cross-entropies; what stands where the target is -1 means nothing."""
    target = target.clamp(min=0) * (1 - smoothing) + smoothing / 2
    weight = torch.full_like(logits[:1], pos_weight)
    return F.binary_cross_entropy_with_logits(logits, target, pos_weight=weight, reduction="none")


def asymmetric(
    logits: Tensor,
    target: Tensor,
    gamma_negative: float = 4.0,
    gamma_positive: float = 1.0,
    margin: float = 0.05,
) -> Tensor:
    """(batch, classes): t (1-p)^g+ -log p + (1-t) q^g- -log(1-q), with q = max(p - margin, 0)."""
    target = target.clamp(min=0)
    present = logits.sigmoid()
    absent = (1 - present + margin).clamp(max=1)
    # The slope of x^g at 0 is infinite for g < 1: the focus is kept off 0.
    focus_positive = (1 - present).clamp(min=EPS).pow(gamma_positive)
    focus_negative = (1 - absent).clamp(min=EPS).pow(gamma_negative)
    loss = -target * present.clamp(min=EPS).log() * focus_positive
    return loss - (1 - target) * absent.clamp(min=EPS).log() * focus_negative


def cross_entropy(logits: Tensor, target: Tensor, smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """(batch,) cross-entropies and (batch,) 1 for clips with a label and nothing unknown.

    Several labels of a clip share its probability.
    """
    total = target.clamp(min=0).sum(1, keepdim=True)
    usable = (total > 0).squeeze(1) & (target >= 0).all(1)
    share = target.clamp(min=0) / total.clamp(min=EPS)
    share = share * (1 - smoothing) + smoothing / logits.shape[1]
    return -(share * logits.log_softmax(1)).sum(1), usable.to(logits)
