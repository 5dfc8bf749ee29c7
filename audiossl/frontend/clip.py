"""The stages before and after a spectrogram: cut and fill, scale, normalise, clip by clip.

They are where published systems differ in silence: AST adds zeros before it normalises, Bird-MAE
the least value of the clip, CLAP repeats the wave, BEATs wants 16-bit units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from audiossl.errors import UsageError, near

FILLS = ("zero", "center", "tile", "repeat")


class FrontendError(UsageError, ValueError):
    """An argument no frontend can be built from: the message names key, value and the way out."""


@dataclass(frozen=True)
class Clip:
    """What happens to a clip before and after its spectrogram; `Fbank` and `LogMel` share it.

    samples: length every wave is cut or filled to first; None keeps its own.
    fill: how: "zero" (zeros after it), "center" (zeros on both sides), "tile" (over again, to the
        last sample), "repeat" (whole copies, then zeros).
    int16: round the wave to 16 bits and back (the gradient passes as if it had not been).
    remove_mean: subtract the wave's mean. gain: then multiply by this.
    clip_mean: subtract the mean of the clip's spectrogram.
    frames: length every spectrogram is cut or filled to; None keeps its own.
    pad: with what: a value as it stands before normalisation, or "min", the clip's least value.
    mean, scale: at last (spec - mean) / scale.
    """

    samples: int | None = None
    fill: str = "zero"
    int16: bool = False
    remove_mean: bool = False
    gain: float = 1.0
    clip_mean: bool = False
    frames: int | None = None
    pad: float | str = 0.0
    mean: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_positive(samples=self.samples, frames=self.frames, scale=self.scale)
        check_choice("fill", self.fill, FILLS)
        if isinstance(self.pad, str):
            check_choice("pad", self.pad, ("min",))

    def longest(self, hop: int, window: int) -> int | None:
        """Samples of a wave that can be heard: what lies beyond is cut off. None: all.

        hop, window: samples; of a spectrogram cut to `frames` a little less than a hop may be lost.
        """
        cut = None if self.frames is None else self.frames * hop + window
        return min((size for size in (self.samples, cut) if size is not None), default=None)

    def offset(self, count: int) -> int:
        """Where a wave of `count` samples begins in the one that is analysed, in samples."""
        missing = max((self.samples or 0) - count, 0)
        return missing // 2 if self.fill == "center" else 0

    def spectrograms(
        self, log_mel: Callable[[Tensor], Tensor], wave: Tensor, lengths: Sequence[int] | None
    ) -> Tensor:
        """wave: (batch, samples) -> (batch, mel, frames) through `log_mel`."""
        if lengths is not None:
            clips = [clip[None, :length] for clip, length in zip(wave, lengths, strict=True)]
        else:
            clips = list(wave.split(1)) if one_by_one(wave) else [wave]
        return self.finished([log_mel(self.prepared(clip)) for clip in clips])

    def finished(self, specs: Sequence[Tensor]) -> Tensor:
        """specs: of each clip (1, mel, frames), or of all, as `log_mel` gives them -> (batch, mel,
        frames): the stages after it."""
        specs = [self._centred(spec) for spec in specs]
        frames = self.frames or max(spec.shape[-1] for spec in specs)
        spec = torch.cat([self._fitted(spec, frames) for spec in specs])
        return (spec - self.mean) / self.scale

    def prepared(self, wave: Tensor) -> Tensor:
        """wave: (batch, samples) -> what `log_mel` hears of it: the stages before it."""
        wave = self._filled(wave)
        if self.int16:
            rounded = (wave.clamp(-1, 1) * 32767).trunc() / 32767
            wave = wave + (rounded - wave).detach()
        if self.remove_mean:
            wave = wave - wave.mean(-1, keepdim=True)
        return wave if self.gain == 1 else wave * self.gain

    def _filled(self, wave: Tensor) -> Tensor:
        if self.samples is None:
            return wave
        # Filled first and cut then, without an `if`: an exported graph is for any length.
        count = wave.shape[-1]
        if self.fill == "tile":
            wave = wave.repeat(1, (self.samples + count - 1) // count)
        if self.fill == "repeat":
            wave = wave.repeat(1, max(self.samples // count, 1))
        missing, before = max(self.samples - wave.shape[-1], 0), self.offset(wave.shape[-1])
        return nn.functional.pad(wave, (before, missing - before))[:, : self.samples]

    def _centred(self, spec: Tensor) -> Tensor:
        return spec - spec.mean((-2, -1), keepdim=True) if self.clip_mean else spec

    def _fitted(self, spec: Tensor, frames: int) -> Tensor:
        shape = (*spec.shape[:-1], max(frames - spec.shape[-1], 0))
        if isinstance(self.pad, str):
            filling = spec.amin((-2, -1), keepdim=True).expand(shape)
        else:
            filling = spec.new_full(shape, self.pad)
        return torch.cat((spec, filling), dim=-1)[..., :frames]


def one_by_one(wave: Tensor) -> bool:
    """Whether to work in pieces that stay in a core's cache: not in a graph made for any batch."""
    return wave.device.type == "cpu" and not torch.compiler.is_exporting()


def check_positive(**values: float | None) -> None:
    for key, value in values.items():
        if value is not None and not 0 < value < math.inf:
            raise FrontendError(f"frontend {key}: must be above 0, got {value!r}")


def check_choice(key: str, value: Any, known: Sequence[Any]) -> None:
    if value not in known:
        hint = near(str(value), map(str, known))
        raise FrontendError(f"frontend {key}: {value!r} is not known{hint}")
