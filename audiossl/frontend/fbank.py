"""Kaldi's log-mel filterbank features."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from audiossl.frontend.clip import Clip, check_positive
from audiossl.frontend.mel import MelProduct, analysis_window, filterbank
from audiossl.frontend.spectrogram import check_spectrum, config_of, in_blocks, own_arguments, run
from audiossl.frontend.spectrum import Spectrum, framed

EPSILON = 2.0**-23  # float32's machine epsilon: Kaldi's floor under the logarithm


class Fbank(nn.Module):
    """Kaldi's log-mel filterbank features, as torchaudio.compliance.kaldi.fbank computes them.

    rate: Hz. mels: filters. window, hop: samples (None: 25 ms and 10 ms, rounded down).
    n_fft: points (None: the next power of two). window_type: one of mel.WINDOWS, symmetric.
    fmin, fmax: Hz (fmax None: half the rate). preemphasis: inside each frame; 0 is none.
    remove_dc: subtract each frame's mean. floor: least power before the logarithm.
    snip_edges: only frames that lie inside the wave; False mirrors the wave at its ends and gives
        one frame a hop.
    use_energy: one more row, the frame's log energy (at least log(energy_floor)): the last with
        htk_compat, else the first. raw_energy: taken before pre-emphasis and window.
    There is no dither: noise is an augmentation, not a feature. clip: the stages around it.

    A wave shorter than a window is filled with zeros to one window and gives one frame (without
    snip_edges it is mirrored instead). Raises InputError ("empty") on a wave without samples.
    Attributes: .rate (Hz), .hop_seconds, .mels (rows of the output), .longest (samples it can hear
    of a wave, None: all), .centre (samples from the wave's start to the middle of frame 0),
    .span (samples of a frame).
    """

    analysis: Tensor

    def __init__(
        self,
        *,
        rate: int = 16000,
        mels: int = 128,
        window: int | None = None,
        hop: int | None = None,
        n_fft: int | None = None,
        window_type: str = "povey",
        fmin: float = 20.0,
        fmax: float | None = None,
        preemphasis: float = 0.97,
        remove_dc: bool = True,
        snip_edges: bool = True,
        floor: float = EPSILON,
        use_energy: bool = False,
        htk_compat: bool = False,
        raw_energy: bool = True,
        energy_floor: float = 1.0,
        clip: Clip | None = None,
    ) -> None:
        super().__init__()
        window = rate * 25 // 1000 if window is None else window
        hop = rate * 10 // 1000 if hop is None else hop
        n_fft = 1 << max(window - 1, 0).bit_length() if n_fft is None else n_fft
        fmax = rate / 2 if fmax is None else fmax
        self.arguments = own_arguments(locals())
        check_positive(floor=floor, energy_floor=energy_floor)
        check_spectrum(rate, mels, window, hop, n_fft, window_type, fmin, fmax, nyquist=rate / 2)
        self.clip = clip or Clip()
        self.preset: str | None = None
        self.rate, self.window, self.hop, self.n_fft = rate, window, hop, n_fft
        self.hop_seconds, self.longest = hop / rate, self.clip.longest(hop, window)
        self.centre = window / 2 - (0 if snip_edges else window // 2 - hop // 2)
        self.mels = mels + use_energy
        self.preemphasis, self.remove_dc, self.snip_edges = preemphasis, remove_dc, snip_edges
        self.span = window
        self.floor, self.energy_floor = floor, energy_floor
        self.use_energy, self.htk_compat, self.raw_energy = use_energy, htk_compat, raw_energy
        self.register_buffer("analysis", analysis_window(window_type, window, False), False)
        self.spectrum: nn.Module = Spectrum(n_fft)
        self.product = MelProduct(filterbank(mels, n_fft, rate, fmin, fmax, "kaldi"))

    def forward(self, wave: Tensor, lengths: Sequence[int] | Tensor | None = None) -> Tensor:
        """wave: (batch, samples), float32 in [-1, 1] -> spec (batch, mel, frames), normalised.

        lengths: samples of each clip, where they differ; what lies beyond is not heard, and frames
        that a clip does not fill hold `pad`.
        """
        return run(self, wave, lengths)

    def config(self) -> dict[str, Any]:
        """Everything `build` needs to make this frontend again."""
        return config_of("fbank", self)

    @property
    def cut_dependent(self) -> str | None:
        """The argument that ties a frame to more of the wave than its own samples, so that frames
        of a part are not part of the frames. None: frame k is what samples k * hop to k * hop +
        span give, to float32's rounding."""
        if not self.snip_edges:
            return "snip_edges"
        return "remove_mean" if self.clip.remove_mean and not self.remove_dc else None

    def log_mel(self, wave: Tensor) -> Tensor:
        """wave: (batch, samples) -> (batch, mel, frames), before padding and normalisation."""
        return in_blocks(self._block, framed(self._edged(wave), self.window, self.hop))

    def _edged(self, wave: Tensor) -> Tensor:
        count = wave.shape[-1]
        if self.snip_edges:
            return nn.functional.pad(wave, (0, max(self.window - count, 0)))
        frames = max((count + self.hop // 2) // self.hop, 1)
        before = self.window // 2 - self.hop // 2  # so that frame k is centred on (k + 1/2) hops
        after = (frames - 1) * self.hop + self.window - before
        if torch.compiler.is_exporting():  # a slice that may end beyond the wave is not for all
            return _mirror(wave, -before, after)
        left, right = _mirror(wave, -before, 0), _mirror(wave, count, after)
        return torch.cat((left, wave[:, max(-before, 0) : after], right), dim=-1)

    def _block(self, frames: Tensor) -> Tensor:
        # Kaldi's order of operations: rounding in it decides the near-empty bins. In place, because
        # fresh memory for each step costs as much as the step.
        frames = frames - frames.mean(-1, keepdim=True) if self.remove_dc else frames.clone()
        raw = frames.clone() if self.use_energy and self.raw_energy else frames
        if self.preemphasis:
            previous = torch.cat((frames[..., :1], frames[..., :-1]), dim=-1)
            frames.sub_(previous.mul_(self.preemphasis))
        frames.mul_(self.analysis.to(frames.dtype))
        spec = self.product(self.spectrum(frames)).clamp_min_(self.floor).log_()
        if not self.use_energy:
            return spec
        energy = raw.square().sum(-1).clamp_min(EPSILON).log()
        energy = energy.clamp_min(math.log(self.energy_floor)).unsqueeze(-2)
        return torch.cat((spec, energy) if self.htk_compat else (energy, spec), dim=-2)


def _mirror(wave: Tensor, start: int, stop: int) -> Tensor:
    """Samples start..stop of the wave continued by mirrors at both ends, the ends doubled
    (... 1 0 | 0 1 ... n-1 | n-1 n-2 ...), as far as it takes, as Kaldi does."""
    count = wave.shape[-1]
    index = torch.arange(start, max(start, stop), device=wave.device)
    index = index.remainder(torch.full_like(index, 2 * count))
    return wave[:, torch.minimum(index, 2 * count - 1 - index)]
