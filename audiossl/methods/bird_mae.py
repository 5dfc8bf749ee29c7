"""Bird-MAE: Audio-MAE's objective, made for the sounds of birds.

Paper: Rauch et al., "Can Masked Autoencoders Also Listen to Birds?", 2025 (arXiv 2504.12880);
details from its public code. The loss is Audio-MAE's (audio_mae.py); what differs:
- 5 s at 32 kHz, 32 x 8 patches, padded with the least value of the clip (frontend `bird_mae`)
- decoder: 8 plain transformer blocks; the windowed one can be chosen
- mask of 75 % (the configuration of the Base model says 80 %)
- waves are mixed with up to three others at 5-25 dB (data/augment.py, `mix_at_snr`)

A batch may bring its own `kept` (batch, n) int64, the patches that are not hidden, in order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from torch import Tensor, nn

from audiossl.config.sections import Count, Fraction
from audiossl.config.typed_yaml import Range
from audiossl.methods.audio_mae import build_decoder, reconstruct
from audiossl.methods.parts.augment import mix_at_snr
from audiossl.model import Model


@dataclass
class Config:
    """The keys of a recipe's `method` section."""

    mask_ratio: Annotated[float, Range(above=0, high=0.99)] = 0.75
    """Share of a clip's patches that is hidden."""
    decoder: Literal["standard", "swin"] = "standard"
    """standard: attention over all patches; swin: within shifted windows of 4x4 patches."""
    decoder_dim: Count = 512
    """Width of the decoder, a multiple of 4."""
    decoder_depth: Count = 8
    """Blocks of the decoder."""
    decoder_heads: Count = 16
    """Attention heads of each block."""
    normalise: bool = True
    """Targets are patches without their mean, divided by their deviation; false: as they are."""
    mixup: Fraction = 0.3
    """Probability that other clips of the batch are added to a clip."""
    mixup_snr_db: tuple[float, float] = (5.0, 25.0)
    """Range of the clip's level above each of them, dB."""
    mixup_most: Count = 3
    """At most so many are added."""

    @property
    def on_waves(self) -> str | None:
        """The key that asks for something done to waves."""
        return "mixup" if self.mixup else None


class Method(nn.Module):
    """`loss(batch)` with batch {"wave": (batch, samples)}, or without mixup {"spec": (batch, mel,
    frames)}, and perhaps {"kept": (batch, n)}."""

    def __init__(self, model: Model, config: Config) -> None:
        super().__init__()
        self.model, self.config = model, config
        self.decoder = build_decoder(model, config)

    def loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss over the hidden patches, and {"weight": how many those were}."""
        config = self.config
        if self.training and config.mixup:
            wave, snr, most = batch["wave"], config.mixup_snr_db, config.mixup_most
            batch = {**batch, "wave": mix_at_snr(wave, None, config.mixup, snr, most)[0]}
        spec = self.model.spectrogram(batch)
        return reconstruct(self.model.encoder, self.decoder, spec, config, batch.get("kept"))
