"""Frames of a wave, and the power or magnitude of their spectra.

Twice, for two machines: torch has views and a fast FFT; an exported graph has neither (its `DFT`
and its gathering of frames take longer than the network behind them), but multiplies matrices at
full speed. `for_graph` swaps one for the other; the numbers agree to float32's rounding.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def framed(wave: Tensor, size: int, hop: int) -> Tensor:
    """wave: (batch, samples) -> (batch, frames, size), a frame every `hop` samples."""
    if not torch.compiler.is_exporting():
        return wave.unfold(-1, size, hop)
    # Rows of one hop: a frame is a row and the beginning of the next ones, so columns of whole rows
    # are copied instead of single samples.
    count = (wave.shape[-1] - size) // hop + 1
    rows = count + -(-size // hop) - 1
    wave = nn.functional.pad(wave, (0, rows * hop - wave.shape[-1]))
    by_hop = wave.reshape(-1, rows, hop)
    starts = range(-(-size // hop))
    return torch.cat([by_hop[:, k : k + count, : size - k * hop] for k in starts], dim=-1)


class Spectrum(nn.Module):
    """Power (`power` 2) or magnitude (1) of the `n_fft`-point spectrum, by FFT."""

    def __init__(self, n_fft: int, power: float = 2.0) -> None:
        super().__init__()
        self.n_fft, self.power = n_fft, power

    def forward(self, frames: Tensor) -> Tensor:
        """frames: (..., samples), windowed -> (..., n_fft // 2 + 1)."""
        spectrum = torch.fft.rfft(frames, n=self.n_fft)
        if self.power == 2:
            return spectrum.real.square().add_(spectrum.imag.square())
        return spectrum.abs()  # not the power's root: its gradient is not a number in silence


class MatrixSpectrum(nn.Module):
    """The same by two matrices, for frames of `size` samples.

    A shift in time changes only the phase: with the frame's middle as time 0 the real part sees
    what is even about the middle and the imaginary part what is odd, half the products each.
    """

    cosines: Tensor
    sines: Tensor

    def __init__(self, size: int, n_fft: int, power: float) -> None:
        super().__init__()
        half = (size + 1) // 2
        self.power = power
        moments = torch.arange(half, dtype=torch.float64) - (size - 1) / 2
        angles = moments[:, None] * torch.arange(n_fft // 2 + 1) * (2 * math.pi / n_fft)
        cosines = angles.cos()
        if size % 2:
            cosines[-1] /= 2  # the middle sample meets itself
        self.register_buffer("cosines", cosines.float(), persistent=False)
        self.register_buffer("sines", angles.sin().float(), persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        """frames: (..., size), windowed -> (..., n_fft // 2 + 1)."""
        half = len(self.cosines)
        first, last = frames[..., :half], frames[..., -half:].flip(-1)
        real, imaginary = (first + last) @ self.cosines, (first - last) @ self.sines
        power = real * real + imaginary * imaginary
        return power if self.power == 2 else power.sqrt()


def for_graph(spectrum: Spectrum, size: int) -> MatrixSpectrum:
    """What computes the spectra of frames of `size` samples in an exported graph."""
    return MatrixSpectrum(size, spectrum.n_fft, spectrum.power)
