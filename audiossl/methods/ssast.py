"""SSAST: hide most patches of a spectrogram; tell which was where, and draw them.

    spec -> patches x_1..x_n, `hidden` of them replaced by one learned vector -> encoder -> o_1..o_n
      discriminative head c_i = c(o_i)   should resemble its own hidden patch r_i, and no other's:
          NCE = - mean_i log ( exp(r_i c_i) / sum_j exp(r_i c_j) )       i, j hidden, in one clip
      generative head     g_i = g(o_i)   should be the patch:
          MSE = mean_i mean_p (g_ip - r_ip)^2
      loss = NCE + 10 MSE

r_i is the patch as the frontend gives it (its 256 values), not normalised by itself. The two tasks
have masks of their own, so the encoder runs twice on each batch. The encoder is kept, both heads
and the learned vector are left behind.

Paper: Gong, Lai, Chung, Glass, "SSAST: Self-Supervised Audio Spectrogram Transformer", AAAI 2022;
code YuanGongND/ssast. This follows the code, which made the published weights. In one point the
code is not the paper, as its authors say in issue 13: equation 1 divides by the sum over patches,
sum_j exp(r_j c_i), the code by the sum over predictions. `contrast` chooses.
`accuracy` is the code's: how often prediction i gives patch i a higher probability than it gives
any other hidden patch of the clip, the probabilities being those of the sum above.

`JointObjective` asks of an encoder: dim, class_tokens, patch_embed (its kernel and stride),
patches(spec), patch_pixels(spec), positions(frames), grid(frames) and forward_tokens(tokens).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiossl.config.sections import Count
from audiossl.config.typed_yaml import Range
from audiossl.errors import RecipeError
from audiossl.methods.parts.masking import as_bool, ssast_masks
from audiossl.model import Model

Contrast = Literal["predictions", "patches"]


@dataclass
class Config:
    """The keys of a recipe's `method` section."""

    hidden: Count = 400
    """Patches hidden in each clip, of 512 in ten seconds; the paper also tried 250 and 100."""
    generative: Annotated[float, Range(low=0, high=1e4)] = 10.0
    """Weight of the generative loss, against the discriminative one."""
    contrast: Literal["predictions", "patches"] = "predictions"
    """What a pair is compared with: all predictions for its patch (the published code), or all
    patches for its prediction (equation 1)."""


class Method(nn.Module):
    """`loss(batch)` with a batch that has a spectrogram."""

    def __init__(self, model: Model, config: Config) -> None:
        super().__init__()
        self.model = model
        self.objective = JointObjective(
            model.encoder, config.hidden, config.generative, config.contrast
        )

    def loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean over the clips, and its parts {"nce", "mse", "accuracy"}."""
        spec = self.model.spectrogram(batch)
        loss, parts = self.objective(self.model.encoder, spec)
        return loss, {**parts, "weight": torch.tensor(float(len(spec)))}


class JointObjective(nn.Module):
    """Both tasks of SSAST for any encoder of patches; SSAMBA has the same.

    encoder: see the module's docstring; it gives the sizes and is not kept. hidden: patches hidden
    in each clip. generative, contrast: see `Config`. Raises RecipeError when the encoder has no
    patches, or patches that overlap.
    """

    def __init__(
        self,
        encoder: Any,
        hidden: int = 400,
        generative: float = 10.0,
        contrast: Contrast = "predictions",
    ) -> None:
        super().__init__()
        if not hasattr(encoder, "patch_pixels"):
            raise RecipeError("recipe model.architecture: this method hides patches: it has none")
        embed = encoder.patch_embed
        if tuple(embed.stride) != tuple(embed.kernel_size):
            message = "patches that overlap would show what is hidden: pretrain side by side"
            raise RecipeError(f"recipe model.architecture.stride: {message}")
        self.hidden, self.weight = hidden, generative
        self.contrast: Contrast = contrast
        pixels = math.prod(embed.kernel_size)
        self.discriminative = _head(encoder.dim, pixels)
        self.generative = _head(encoder.dim, pixels)
        self.mask_embed = nn.Parameter(torch.empty(1, 1, encoder.dim))
        nn.init.xavier_normal_(self.mask_embed)

    def forward(
        self, encoder: Any, spec: Tensor, masks: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """spec: (batch, mel, frames) -> (loss, {"nce", "mse", "accuracy"}).

        masks: of the discriminative and of the generative task, each (batch, hidden) int64; drawn
        in this order when not given. Raises RecipeError when the clip has too few patches.
        """
        if masks is None:
            masks = self._masks(encoder, spec), self._masks(encoder, spec)
        pixels = encoder.patch_pixels(spec)  # (batch, patches, pixels)
        first, second = (self._encode(encoder, spec, ids).to(pixels) for ids in masks)
        with torch.autocast(spec.device.type, enabled=False):  # exp needs all digits
            nce, accuracy = info_nce(
                self.discriminative(first), _take(pixels, masks[0]), self.contrast
            )
            mse = F.mse_loss(self.generative(second), _take(pixels, masks[1]))
        parts = {"nce": nce.detach(), "mse": mse.detach(), "accuracy": accuracy}
        return nce + self.weight * mse, parts

    def _masks(self, encoder: Any, spec: Tensor) -> Tensor:
        grid = encoder.grid(spec.shape[-1])
        try:
            return ssast_masks(len(spec), grid, self.hidden).to(spec.device)
        except ValueError as error:
            raise RecipeError(f"recipe method.hidden: {error}") from error

    def _encode(self, encoder: Any, spec: Tensor, ids: Tensor) -> Tensor:
        """What the encoder makes of the hidden patches: (batch, hidden, dim)."""
        patches = encoder.patches(spec)
        mask = as_bool(ids, patches.shape[1]).unsqueeze(-1)
        tokens = torch.where(mask, self.mask_embed.to(patches.dtype), patches)
        tokens = encoder.forward_tokens(tokens + encoder.positions(spec.shape[-1]))
        return _take(tokens[:, encoder.class_tokens :], ids)


def info_nce(
    predictions: Tensor, patches: Tensor, over: Contrast = "predictions"
) -> tuple[Tensor, Tensor]:
    """InfoNCE inside each clip, and the share of predictions that find their own patch.

    predictions, patches: (batch, hidden, pixels), the i-th belongs to the i-th.
    over: see `Config.contrast`.
    """
    scores = patches @ predictions.transpose(1, 2)  # (batch, patch, prediction)
    axis = 2 if over == "predictions" else 1
    own = scores.log_softmax(axis).diagonal(dim1=1, dim2=2)
    found = scores.detach().softmax(axis).argmax(1)  # the patch most probable for a prediction
    accuracy = (found == torch.arange(found.shape[1], device=found.device)).float().mean()
    return -own.mean(), accuracy


def _head(dim: int, pixels: int) -> nn.Module:
    return nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, pixels))


def _take(values: Tensor, ids: Tensor) -> Tensor:
    """values: (batch, patches, n), ids: (batch, hidden) -> (batch, hidden, n)."""
    return values.gather(1, ids.unsqueeze(-1).expand(-1, -1, values.shape[-1]))
