"""Spectra and frames in a graph's form against FFT and views, for every published frontend."""

from __future__ import annotations

import pytest
import torch

from audiossl import frontend
from audiossl.frontend.presets import PRESETS
from audiossl.frontend.spectrum import MatrixSpectrum, Spectrum, for_graph, framed

DISTINCT = {str(sorted(preset.items())): name for name, preset in PRESETS.items()}.values()


@pytest.fixture
def exporting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules take the way that they take while a graph is made of them."""
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)


@pytest.mark.parametrize("power", [1.0, 2.0])
@pytest.mark.parametrize(("size", "n_fft"), [(400, 512), (401, 512), (1, 4), (2, 3), (7, 7)])
def test_two_matrices_give_what_the_fft_gives(size: int, n_fft: int, power: float) -> None:
    frames = torch.randn(2, 5, size, generator=torch.Generator().manual_seed(0))
    expected = Spectrum(n_fft, power)(frames.double())
    got = for_graph(Spectrum(n_fft, power), size)(frames)
    assert isinstance(for_graph(Spectrum(n_fft, power), size), MatrixSpectrum)
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("exporting")
@pytest.mark.parametrize(
    ("count", "size", "hop"),
    [(1000, 400, 160), (400, 400, 160), (401, 400, 400), (999, 10, 25), (35, 10, 25), (9, 4, 1)],
)
def test_frames_of_whole_rows_are_those_of_single_samples(count: int, size: int, hop: int) -> None:
    wave = torch.arange(2.0 * count).reshape(2, count)
    assert torch.equal(framed(wave, size, hop), wave.unfold(-1, size, hop))


@pytest.mark.parametrize("preset", DISTINCT)
def test_every_frontend_in_graph_form(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mel = frontend.build({"preset": preset})
    random = torch.Generator().manual_seed(0)
    counts = [37, 500, mel.rate // 3, mel.rate + 7]
    waves = [0.1 * torch.randn(2, count, generator=random) for count in counts]
    expected = [mel(wave) for wave in waves]
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    mel.spectrum = for_graph(mel.spectrum, len(mel.analysis))  # type: ignore[assignment]
    # Of 37 samples over again only every so manieth bin is not empty, and what an empty bin holds
    # is rounding; so is a part of the lowest bins after Kaldi's pre-emphasis.
    tolerances = [0.5 if mel.clip.fill in ("repeat", "tile") else 2e-3, 2e-3, 1e-3, 1e-3]
    for wave, spec, tolerance in zip(waves, expected, tolerances, strict=True):
        torch.testing.assert_close(mel(wave), spec, rtol=0, atol=tolerance)
