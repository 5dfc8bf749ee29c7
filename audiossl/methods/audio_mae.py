"""Audio-MAE: learn to fill in the patches of a spectrogram that are hidden.

    spec -> patches -> a few kept (20 %) -> encoder -> decoder -> pixels of all patches
                                                                    | compared where hidden

Paper: Huang et al., "Masked Autoencoders that Listen", NeurIPS 2022 (arXiv 2207.06405), after MAE
(He et al. 2022); details from its public code. Parts:
- mask: unstructured, 80 % of the patches of each clip (data/masking.py); the encoder's blocks see
  the kept ones alone
- decoder: 16 blocks of attention within shifted windows (models/decoders.py), or a plain one
- fixed sin-cos positions for encoder and decoder, both built for the transposed grid, a slip that
  the released weights rely on (`sincos_swapped` of the encoder)
- loss (section 3.1): L = sum_i m_i mean_j (pred_ij - t_ij)^2 / sum_i m_i over hidden patches i, the
  target t_i being patch i without its mean and divided by its deviation

A batch may bring its own `kept` (batch, n) int64, the patches that are not hidden, in order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from torch import Tensor, nn

from audiossl.config.sections import Count
from audiossl.config.typed_yaml import Range
from audiossl.errors import RecipeError
from audiossl.methods.parts.masking import as_bool, random_mask
from audiossl.model import Model
from audiossl.models.parts.decoders import Decoder

EPS = 1e-6  # added to a patch's variance


@dataclass
class Config:
    """The keys of a recipe's `method` section."""

    mask_ratio: Annotated[float, Range(above=0, high=0.99)] = 0.8
    """Share of a clip's patches that is hidden."""
    decoder: Literal["swin", "standard"] = "swin"
    """swin: attention within shifted windows of 4x4 patches; standard: over all of them."""
    decoder_dim: Count = 512
    """Width of the decoder, a multiple of 4."""
    decoder_depth: Count = 16
    """Blocks of the decoder."""
    decoder_heads: Count = 16
    """Attention heads of each block."""
    normalise: bool = True
    """Targets are patches without their mean, divided by their deviation; false: as they are."""


class Method(nn.Module):
    """`loss(batch)` with a batch that has a spectrogram and perhaps {"kept": (batch, n)}."""

    def __init__(self, model: Model, config: Config) -> None:
        super().__init__()
        self.model, self.config = model, config
        self.decoder = build_decoder(model, config)

    def loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss over the hidden patches, and {"weight": how many those were}."""
        spec = self.model.spectrogram(batch)
        return reconstruct(self.model.encoder, self.decoder, spec, self.config, batch.get("kept"))


def build_decoder(model: Model, config: Any) -> Decoder:
    """The decoder of an Audio-MAE's or a Bird-MAE's Config for the model's encoder.

    Raises RecipeError when they do not go together.
    """
    encoder: Any = model.encoder
    if not hasattr(encoder, "patch_pixels"):
        name = model.config.architecture["name"]
        raise RecipeError(f"recipe model.architecture: {name} has no patches that could be hidden")
    kernel = encoder.patch_embed.kernel_size
    try:
        return Decoder(
            encoder.dim,
            encoder.class_tokens,
            encoder.grid(encoder.frames),
            encoder.table_width(encoder.frames),
            kernel[0] * kernel[1],
            kind=config.decoder,
            dim=config.decoder_dim,
            depth=config.decoder_depth,
            heads=config.decoder_heads,
        )
    except ValueError as error:
        raise RecipeError(f"recipe method.decoder: {error}") from error


def reconstruct(
    encoder: Any, decoder: Decoder, spec: Tensor, config: Any, kept: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """spec: (batch, mel, frames) -> the loss of its hidden patches, {"weight": how many}.

    Raises RecipeError when the spectrogram is of another length than the encoder is made for.
    """
    patches = decoder.patches
    if encoder.grid(spec.shape[-1]) != encoder.grid(encoder.frames):
        message = f"gives {spec.shape[-1]} frames, the encoder is made for {encoder.frames}"
        raise RecipeError(f"recipe model.frontend: {message}: set frames")
    if kept is None:
        mask, kept = random_mask(len(spec), patches, config.mask_ratio, spec.device)
    else:
        mask = ~as_bool(kept, patches)
    predicted = decoder(encoder(spec, kept), kept)
    target = encoder.patch_pixels(spec)
    if config.normalise:
        target = normalised(target)
    errors = (predicted.float() - target).square().mean(dim=-1)  # (batch, patches)
    return (errors * mask).sum() / mask.sum(), {"weight": mask.sum()}


def normalised(pixels: Tensor) -> Tensor:
    """pixels: (batch, patches, pixels) -> each patch without its mean, divided by its deviation."""
    centred = pixels - pixels.mean(dim=-1, keepdim=True)
    variance = centred.square().sum(dim=-1, keepdim=True) / (pixels.shape[-1] - 1)
    return centred / (variance + EPS).sqrt()
