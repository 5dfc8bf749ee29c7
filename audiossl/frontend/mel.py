"""Mel filterbanks, analysis windows and their product with a spectrum.

Three mel scales are in use, and a checkpoint hears only the one it was trained with:
`kaldi`  triangles drawn on the mel axis, 1127 ln(1 + f/700); as Kaldi, torchaudio.compliance, TF;
`htk`    triangles drawn in Hz between points of that same scale; torchaudio.MelSpectrogram;
`slaney` linear below 1 kHz, logarithmic above (Auditory Toolbox); librosa's default, torchlibrosa.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

SCALES = ("kaldi", "htk", "slaney")
NORMS = ("none", "slaney")
WINDOWS = ("hanning", "povey", "hamming", "blackman", "rectangular")

SLANEY_HZ = 200 / 3  # Hz per mel below the break
SLANEY_BREAK_HZ = 1000.0
SLANEY_BREAK_MEL = SLANEY_BREAK_HZ / SLANEY_HZ  # 15 mel
SLANEY_STEP = math.log(6.4) / 27  # ln(Hz) per mel above the break: 27 mel from 1 kHz to 6.4 kHz

# Filters multiplied together. Neighbouring filters read neighbouring bins, so a group needs only
# the bins from its first to its last: 32 filters a group is the fastest of 16, 32, 64, 128 (CPU).
GROUP = 32


def filterbank(
    mels: int, n_fft: int, rate: float, fmin: float, fmax: float, scale: str, norm: str = "none"
) -> Tensor:
    """Triangular filters (mels, n_fft // 2 + 1), float32, for a spectrum of `n_fft` points.

    rate, fmin, fmax in Hz. scale: one of SCALES. norm: "none" (peak 1) or "slaney" (area 1 in Hz).
    A filter narrower than the bins can be empty (all zero): it then always gives the floor of the
    logarithm, and the networks trained so expect exactly that (AST: 128 mels at 16 kHz).
    """
    if scale == "kaldi":
        filters, edges = _kaldi_filters(mels, n_fft, rate, fmin, fmax)
    else:
        to_mel, to_hz = (_slaney_mel, _slaney_hz) if scale == "slaney" else (_htk_mel, _htk_hz)
        points = torch.linspace(to_mel(fmin), to_mel(fmax), mels + 2, dtype=torch.float64)
        edges = to_hz(points)
        bins = torch.arange(n_fft // 2 + 1, dtype=torch.float64) * (rate / n_fft)
        filters = _triangles(bins, edges)
    if norm == "slaney":
        filters = filters * (2 / (edges[2:] - edges[:-2]))[:, None]
    return filters.float()


def _kaldi_filters(
    mels: int, n_fft: int, rate: float, fmin: float, fmax: float
) -> tuple[Tensor, Tensor]:
    # In float32 on purpose: so did every fbank these checkpoints were trained on, and a filter that
    # touches one bin by its foot has a weight that float32 and float64 place 1e-3 apart.
    low, high = _htk_mel(fmin), _htk_mel(fmax)
    step = (high - low) / (mels + 1)
    edges = low + torch.arange(mels + 2, dtype=torch.float32) * step
    bins = torch.arange(n_fft // 2 + 1, dtype=torch.float32) * (rate / n_fft)
    filters = _triangles(1127 * (1 + bins / 700).log(), edges)
    if n_fft % 2 == 0:
        filters[:, -1] = 0  # Kaldi leaves the Nyquist bin out
    return filters, _htk_hz(edges)


def _triangles(bins: Tensor, edges: Tensor) -> Tensor:
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising = (bins - left) / (centre - left)
    falling = (right - bins) / (right - centre)
    return torch.minimum(rising, falling).clamp_min(0)


def _htk_mel(hertz: float) -> float:
    return 1127 * math.log(1 + hertz / 700)


def _htk_hz(mel: Tensor) -> Tensor:
    return 700 * ((mel / 1127).exp() - 1)


def _slaney_mel(hertz: float) -> float:
    if hertz < SLANEY_BREAK_HZ:
        return hertz / SLANEY_HZ
    return SLANEY_BREAK_MEL + math.log(hertz / SLANEY_BREAK_HZ) / SLANEY_STEP


def _slaney_hz(mel: Tensor) -> Tensor:
    above = SLANEY_BREAK_HZ * ((mel - SLANEY_BREAK_MEL) * SLANEY_STEP).exp()
    return torch.where(mel < SLANEY_BREAK_MEL, mel * SLANEY_HZ, above)


def analysis_window(kind: str, length: int, periodic: bool) -> Tensor:
    """Analysis window (length,), float32. kind: one of WINDOWS; periodic: as the STFT likes it,
    against symmetric as Kaldi has it. "povey" is Kaldi's default: Hann to the power of 0.85."""
    options = {"periodic": periodic, "dtype": torch.float32}
    if kind in ("hanning", "povey"):
        hann = torch.hann_window(length, **options)
        return hann.pow(0.85) if kind == "povey" else hann
    if kind == "hamming":
        return torch.hamming_window(length, **options)
    if kind == "blackman":
        return torch.blackman_window(length, **options)
    return torch.ones(length, dtype=torch.float32)


class MelProduct(nn.Module):
    """filters (mels, bins) @ spectrum without the blocks of zeros: about a quarter of the work."""

    filters: Tensor

    def __init__(self, filters: Tensor) -> None:
        super().__init__()
        self.register_buffer("filters", filters, persistent=False)
        self.groups = [_group(filters, first) for first in range(0, len(filters), GROUP)]

    def forward(self, spectrum: Tensor) -> Tensor:
        """spectrum: (..., frames, bins) power or magnitude -> (..., mels, frames)."""
        filters = self.filters.to(spectrum.dtype)
        bands = [
            filters[rows, bins] @ spectrum[..., bins].transpose(-1, -2)
            for rows, bins in self.groups
        ]
        return torch.cat(bands, dim=-2)


def _group(filters: Tensor, first: int) -> tuple[slice, slice]:
    rows = slice(first, min(first + GROUP, len(filters)))
    used = filters[rows].any(0).nonzero().flatten().tolist() or [0]
    return rows, slice(used[0], used[-1] + 1)
