"""Filterbanks, windows and the grouped product, against librosa, torchaudio and plain formulas."""

from __future__ import annotations

import math

import librosa
import numpy as np
import pytest
import torch

from audiossl._torchaudio import torchaudio
from audiossl.frontend import mel

SHAPES = [(64, 1024, 48000, 50, 14000), (128, 2048, 32000, 0, 16000), (40, 400, 8000, 60, 3800)]


@pytest.mark.parametrize("shape", SHAPES)
def test_slaney_is_librosa(shape: tuple[int, int, int, float, float]) -> None:
    mels, n_fft, rate, fmin, fmax = shape
    expected = librosa.filters.mel(sr=rate, n_fft=n_fft, n_mels=mels, fmin=fmin, fmax=fmax)
    ours = mel.filterbank(*shape, "slaney", "slaney").numpy()
    np.testing.assert_allclose(ours, expected, atol=1e-7 * expected.max())


@pytest.mark.parametrize("shape", SHAPES)
def test_htk_is_torchaudio_and_librosa(shape: tuple[int, int, int, float, float]) -> None:
    mels, n_fft, rate, fmin, fmax = shape
    ours = mel.filterbank(*shape, "htk").numpy()
    theirs = torchaudio.functional.melscale_fbanks(n_fft // 2 + 1, fmin, fmax, mels, rate)
    np.testing.assert_allclose(ours, theirs.T.numpy(), atol=1e-4)  # theirs is laid out in float32
    exact = librosa.filters.mel(
        sr=rate, n_fft=n_fft, n_mels=mels, fmin=fmin, fmax=fmax, htk=True, norm=None
    )
    np.testing.assert_allclose(ours, exact, atol=1e-6)


@pytest.mark.parametrize("shape", [*SHAPES, (128, 512, 16000, 20, 8000)])
def test_kaldi_is_torchaudio_and_the_formula(shape: tuple[int, int, int, float, float]) -> None:
    mels, n_fft, rate, fmin, fmax = shape
    ours = mel.filterbank(*shape, "kaldi").numpy()
    theirs, _ = torchaudio.compliance.kaldi.get_mel_banks(
        mels, n_fft, rate, fmin, fmax, 100.0, -500.0, 1.0
    )
    np.testing.assert_array_equal(ours[:, :-1], theirs.numpy())
    assert (ours[:, -1] == 0).all()

    def to_mel(hertz: float) -> float:
        return 1127 * math.log(1 + hertz / 700)

    step = (to_mel(fmax) - to_mel(fmin)) / (mels + 1)
    for row in range(mels):
        for column in range(n_fft // 2):
            centre = to_mel(fmin) + (row + 1) * step
            weight = max(0.0, 1 - abs(to_mel(column * rate / n_fft) - centre) / step)
            assert ours[row, column] == pytest.approx(weight, abs=1e-4)


def test_ast_has_exactly_one_empty_filter() -> None:
    filters = mel.filterbank(128, 512, 16000, 20, 8000, "kaldi")
    assert (filters.sum(1) == 0).sum() == 1


@pytest.mark.parametrize("periodic", [True, False])
@pytest.mark.parametrize("length", [1, 2, 400, 551])
def test_windows(length: int, periodic: bool) -> None:
    phase = 2 * np.pi * np.arange(length) / (length if periodic else max(length - 1, 1))
    hann = 0.5 - 0.5 * np.cos(phase) if length > 1 else np.ones(1)
    expected = {
        "hanning": hann,
        "povey": hann**0.85,
        "hamming": 0.54 - 0.46 * np.cos(phase) if length > 1 else np.ones(1),
        "blackman": 0.42 - 0.5 * np.cos(phase) + 0.08 * np.cos(2 * phase) if length > 1 else [1],
        "rectangular": np.ones(length),
    }
    assert set(expected) == set(mel.WINDOWS)
    for kind, values in expected.items():
        window = mel.analysis_window(kind, length, periodic)
        assert window.dtype == torch.float32
        np.testing.assert_allclose(window.numpy(), values, atol=1e-6, err_msg=kind)


@pytest.mark.parametrize("mels", [1, 31, 32, 33, 128])
def test_the_grouped_product_is_the_product(mels: int) -> None:
    filters = mel.filterbank(mels, 512, 16000, 20, 8000, "kaldi")
    product = mel.MelProduct(filters)
    spectrum = torch.rand(3, 7, 257)
    expected = (spectrum.double() @ filters.double().T).transpose(1, 2)
    torch.testing.assert_close(product(spectrum).double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(product(spectrum[0]), product(spectrum)[0])
    assert product.state_dict() == {}


def test_filters_that_are_all_empty_give_zeros() -> None:
    product = mel.MelProduct(torch.zeros(40, 9))
    assert torch.equal(product(torch.rand(5, 9)), torch.zeros(40, 5))
