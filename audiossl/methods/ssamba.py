"""SSAMBA's pretraining: SSAST's joint objective on Vision Mamba, with fewer patches hidden.

Paper: Shams, Dindar, Jiang, Mesgarani, "SSAMBA: Self-Supervised Audio Representation Learning with
Mamba State Space Model", SLT 2024 (arXiv:2405.11831); code SiavashShams/ssamba. Loss, heads and
masks are those of methods/ssast.py; the encoder is models/ssamba.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from audiossl.config.sections import Count
from audiossl.config.typed_yaml import Range
from audiossl.methods.ssast import Method

__all__ = ["Config", "Method"]


@dataclass
class Config:
    """The keys of a recipe's `method` section."""

    hidden: Count = 300
    """Patches hidden in each clip, of 512 in ten seconds; released are 250, 300 and 400 too."""
    generative: Annotated[float, Range(low=0, high=1e4)] = 10.0
    """Weight of the generative loss, against the discriminative one."""
    contrast: Literal["predictions", "patches"] = "predictions"
    """What a pair is compared with: see SSAST."""
