"""Log-mel spectrograms by STFT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from audiossl.frontend.clip import Clip, check_choice, check_positive
from audiossl.frontend.mel import NORMS, SCALES, MelProduct, analysis_window, filterbank
from audiossl.frontend.spectrogram import check_spectrum, config_of, in_blocks, own_arguments, run
from audiossl.frontend.spectrum import Spectrum, framed

EDGES = ("reflect", "zero", "end", "none")
LOGS = ("clamp", "add", "db")


class LogMel(nn.Module):
    """Log-mel spectrogram by STFT, as torchaudio.MelSpectrogram, librosa and torchlibrosa do it.

    rate: Hz. mels: filters. n_fft: points. hop: samples. window: samples (None: n_fft).
    window_type: one of mel.WINDOWS; periodic, or symmetric.
    edges: "reflect" or "zero": frames are centred on multiples of the hop and the wave continues so
        beyond its ends; "none": only frames that lie inside the wave; "end": zeros after the wave,
        so that a frame begins at each hop.
    preemphasis: y[n] = x[n + 1] - preemphasis x[n] over the whole wave, one sample shorter.
    power: 2.0 (power) or 1.0 (magnitude) goes into the filters.
    fmin, fmax: Hz (fmax None: half the rate). mel_scale: one of mel.SCALES. norm: of mel.NORMS.
    filter_rate: Hz the filters were laid out for, where that is not the wave's own rate.
    log: natural logarithm, "clamp": of at least floor, "add": of the value plus floor;
        "db": decibel of at least floor, and of no less than top_db below the clip's loudest.
    clip: the stages around it.

    A wave too short for one frame ("reflect": for the mirror, n_fft // 2 + 1 samples) is filled
    with zeros to that length. Raises InputError ("empty") on a wave without samples.
    Attributes: .rate (Hz), .hop_seconds, .mels (rows of the output), .longest (samples it can hear
    of a wave, None: all), .centre (samples from the wave's start to the middle of frame 0),
    .span (samples of a frame).
    """

    analysis: Tensor

    def __init__(
        self,
        *,
        rate: int = 16000,
        mels: int = 64,
        n_fft: int = 1024,
        hop: int = 160,
        window: int | None = None,
        window_type: str = "hanning",
        periodic: bool = True,
        edges: str = "reflect",
        preemphasis: float = 0.0,
        power: float = 2.0,
        fmin: float = 0.0,
        fmax: float | None = None,
        mel_scale: str = "htk",
        norm: str = "none",
        filter_rate: int | None = None,
        log: str = "clamp",
        floor: float = 1e-10,
        top_db: float | None = None,
        clip: Clip | None = None,
    ) -> None:
        super().__init__()
        window = n_fft if window is None else window
        filter_rate = rate if filter_rate is None else filter_rate
        fmax = filter_rate / 2 if fmax is None else fmax
        self.arguments = own_arguments(locals())
        nyquist = filter_rate / 2
        check_spectrum(rate, mels, window, hop, n_fft, window_type, fmin, fmax, nyquist)
        check_positive(filter_rate=filter_rate, floor=floor, top_db=top_db)
        check_choice("edges", edges, EDGES)
        check_choice("mel_scale", mel_scale, SCALES)
        check_choice("norm", norm, NORMS)
        check_choice("log", log, LOGS)
        check_choice("power", power, (1.0, 2.0))
        self.clip = clip or Clip()
        self.preset: str | None = None
        self.rate, self.mels = rate, mels
        self.window, self.hop, self.n_fft = window, hop, n_fft
        self.hop_seconds, self.longest = hop / rate, self.clip.longest(hop, window)
        self.edges, self.preemphasis, self.power = edges, preemphasis, power
        self.log, self.floor, self.top_db = log, floor, top_db
        self.centre = window / 2
        self.span = window + (preemphasis != 0)
        analysis = analysis_window(window_type, window, periodic)
        if self.edges in ("reflect", "zero"):  # centred: the window in the middle of n_fft points
            before = (n_fft - window) // 2
            self.centre += before - n_fft // 2
            analysis = nn.functional.pad(analysis, (before, n_fft - window - before))
        self.register_buffer("analysis", analysis, False)
        self.spectrum: nn.Module = Spectrum(n_fft, power)
        filters = filterbank(mels, n_fft, filter_rate, fmin, fmax, mel_scale, norm)
        self.product = MelProduct(filters)

    def forward(self, wave: Tensor, lengths: Sequence[int] | Tensor | None = None) -> Tensor:
        """As `Fbank.forward`: wave (batch, samples) -> spec (batch, mel, frames), normalised."""
        return run(self, wave, lengths)

    def config(self) -> dict[str, Any]:
        """Everything `build` needs to make this frontend again."""
        return config_of("logmel", self)

    @property
    def cut_dependent(self) -> str | None:
        """As `Fbank.cut_dependent`."""
        if self.edges != "none":
            return "edges"
        if self.top_db is not None:
            return "top_db"
        return "remove_mean" if self.clip.remove_mean else None

    def log_mel(self, wave: Tensor) -> Tensor:
        """wave: (batch, samples) -> (batch, mel, frames), before padding and normalisation."""
        if self.preemphasis:
            wave = nn.functional.pad(wave, (0, max(2 - wave.shape[-1], 0)))
            wave = wave[:, 1:] - self.preemphasis * wave[:, :-1]
        spec = in_blocks(self._block, framed(self._edged(wave), len(self.analysis), self.hop))
        if self.top_db is None:
            return spec
        return torch.maximum(spec, spec.amax((-2, -1), keepdim=True) - self.top_db)

    def _edged(self, wave: Tensor) -> Tensor:
        count, length, half = wave.shape[-1], len(self.analysis), self.n_fft // 2
        if self.edges == "reflect":
            wave = nn.functional.pad(wave, (0, max(half + 1 - count, 0)))
            return nn.functional.pad(wave, (half, half), mode="reflect")
        if self.edges == "zero":
            return nn.functional.pad(wave, (half, half))
        if self.edges == "end":
            length += ((count + self.hop - 1) // self.hop - 1) * self.hop
        return nn.functional.pad(wave, (0, max(length - count, 0)))

    def _block(self, frames: Tensor) -> Tensor:
        mel = self.product(self.spectrum(frames * self.analysis.to(frames.dtype)))
        if self.log == "add":
            return mel.add_(self.floor).log_()
        mel.clamp_min_(self.floor)
        return mel.log_() if self.log == "clamp" else mel.log10_().mul_(20 / self.power)
