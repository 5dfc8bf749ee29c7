"""What the frontends share: checks, blocks of frames, and the way from a wave to a batch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from audiossl.errors import InputError
from audiossl.frontend.clip import Clip, FrontendError, check_choice, check_positive, one_by_one
from audiossl.frontend.mel import WINDOWS

BLOCK = 200_000  # values of frames worked on at once (CPU): each step's 0.8 MB fit a core's cache


class Frontend(Protocol):
    """What every frontend is, beside an nn.Module.

    rate: Hz. hop_seconds: from frame to frame. mels: rows of the output.
    longest: samples it can hear of a wave, None: all.
    centre: samples from the wave's start to the middle of frame 0. span: samples of a frame.
    analysis: the window, (samples,). spectrum: the module that gives a frame's spectrum.
    arguments: all of its constructor's, defaults resolved. preset: the name it was built by.
    """

    rate: int
    mels: int
    hop: int
    hop_seconds: float
    longest: int | None
    centre: float
    span: int
    clip: Clip
    preset: str | None
    arguments: dict[str, Any]
    analysis: Tensor
    spectrum: nn.Module

    def __call__(self, wave: Tensor, lengths: Sequence[int] | Tensor | None = None) -> Tensor:
        """wave: (batch, samples), float32 in [-1, 1] -> spec (batch, mel, frames), normalised."""
        ...

    def log_mel(self, wave: Tensor) -> Tensor:
        """wave: (batch, samples) -> (batch, mel, frames), before padding and normalisation."""
        ...

    def config(self) -> dict[str, Any]:
        """Everything `build` needs to make this frontend again."""
        ...

    @property
    def cut_dependent(self) -> str | None:
        """The setting that makes a frame depend on samples outside its window (None: none); a
        crop's frames then differ from the whole clip's."""
        ...


def config_of(name: str, frontend: Frontend) -> dict[str, Any]:
    preset = {"preset": frontend.preset} if frontend.preset else {}
    return {**preset, "name": name, **frontend.arguments, **asdict(frontend.clip)}


def own_arguments(names: dict[str, Any]) -> dict[str, Any]:
    """Out of a constructor's `locals()`: its own arguments, defaults resolved."""
    return {key: value for key, value in names.items() if key not in ("self", "clip", "__class__")}


def run(frontend: Frontend, wave: Tensor, lengths: Sequence[int] | Tensor | None) -> Tensor:
    if wave.dim() != 2 or wave.shape[0] == 0 or not wave.is_floating_point():
        shape = tuple(wave.shape)
        raise ValueError(f"wave: expected floats (batch, samples), got {wave.dtype} {shape}")
    if lengths is not None:
        lengths = [int(length) for length in lengths]
        if len(lengths) != len(wave) or max(lengths, default=0) > wave.shape[-1]:
            raise ValueError(f"lengths: {lengths} do not fit a wave {tuple(wave.shape)}")
    if min(lengths or [wave.shape[-1]]) < 1:
        raise InputError("no samples: nothing to compute a spectrogram of", code="empty")
    if wave.dtype not in (torch.float32, torch.float64):
        wave = wave.float()
    kind = wave.device.type
    autocast = torch.amp.is_autocast_available(kind)  # half precision is too coarse for a spectrum
    with torch.autocast(kind, enabled=False) if autocast else contextlib.nullcontext():
        return frontend.clip.spectrograms(frontend.log_mel, wave, lengths)


def in_blocks(function: Callable[[Tensor], Tensor], frames: Tensor) -> Tensor:
    """frames: (batch, frames, window) -> (batch, mel, frames)."""
    rows = max(BLOCK // frames.shape[-1], 1)
    if not one_by_one(frames) or frames.shape[-2] <= rows:
        return function(frames)
    return torch.cat([function(block) for block in frames.split(rows, dim=-2)], dim=-1)


def check_spectrum(
    rate: int,
    mels: int,
    window: int,
    hop: int,
    n_fft: int,
    window_type: str,
    fmin: float,
    fmax: float,
    nyquist: float,
) -> None:
    check_positive(rate=rate, mels=mels, window=window, hop=hop, n_fft=n_fft)
    check_choice("window_type", window_type, WINDOWS)
    if n_fft < window:
        raise FrontendError(f"frontend n_fft: at least the window ({window}), got {n_fft}")
    if not 0 <= fmin < fmax <= nyquist:
        raise FrontendError(
            f"frontend fmin, fmax: need 0 <= fmin < fmax <= {nyquist:g} Hz (half the rate), "
            f"got {fmin:g} and {fmax:g}"
        )
