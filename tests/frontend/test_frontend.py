"""Fbank and LogMel against slow versions and independent implementations, at every edge."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import pytest
import soundfile
import torch
from parity_fill import wave as parity_wave
from torch import Tensor

from audiossl._torchaudio import torchaudio
from audiossl.errors import InputError
from audiossl.frontend import build
from audiossl.frontend.clip import Clip, FrontendError
from audiossl.frontend.fbank import Fbank
from audiossl.frontend.logmel import LogMel

kaldi = torchaudio.compliance.kaldi


def voice(seconds: float, rate: int) -> np.ndarray:
    """Speech-like: a gliding harmonic series, four syllables a second, breath noise."""
    time = np.arange(int(seconds * rate)) / rate
    pitch = 2 * np.pi * (110 * time + 12 * np.sin(2 * np.pi * 1.3 * time))
    sound = sum(np.sin(k * pitch) / k for k in range(1, int(0.4 * rate / 140)))
    sound = sound * np.clip(np.sin(2 * np.pi * 4 * time), 0, 1) ** 2
    noise = np.random.RandomState(5).standard_normal(len(time))
    return (0.2 * sound + 0.003 * noise).astype(np.float32)


def clip(name: str, seconds: float, rate: int) -> Tensor:
    time = np.arange(int(seconds * rate)) / rate
    sounds = {
        "parity": lambda: parity_wave(7, seconds, rate),
        "voice": lambda: voice(seconds, rate),
        "chirp": lambda: 0.5 * np.sin(2 * np.pi * (100 * time + 0.02 * rate * time**2)),
        "silence": lambda: np.zeros(len(time)),
        "offset": lambda: 0.3 + 0.1 * parity_wave(8, seconds, rate),
    }
    return torch.from_numpy(np.asarray(sounds[name](), dtype=np.float32))


def reference(wave: Tensor, rate: int, **options: Any) -> Tensor:
    options = {"window_type": "povey", "num_mel_bins": 128, **options}
    return kaldi.fbank(wave[None], sample_frequency=rate, **options).T


@pytest.mark.parametrize("name", ["parity", "voice", "chirp", "silence", "offset"])
@pytest.mark.parametrize("snip_edges", [True, False])
@pytest.mark.parametrize("rate", [8000, 16000, 22050, 32000, 44100])
def test_fbank_is_torchaudio_kaldi(rate: int, snip_edges: bool, name: str) -> None:
    wave = clip(name, 1.3, rate)
    fbank = Fbank(rate=rate, snip_edges=snip_edges)
    expected = reference(wave, rate, snip_edges=snip_edges)
    torch.testing.assert_close(fbank(wave[None])[0], expected, atol=1e-5, rtol=0)


OPTIONS = [
    ({"window_type": "hanning", "fmin": 0.0}, {"window_type": "hanning", "low_freq": 0.0}),
    ({"window_type": "hamming", "fmax": 7600.0}, {"window_type": "hamming", "high_freq": -400.0}),
    ({"window_type": "blackman"}, {"window_type": "blackman"}),
    ({"window_type": "rectangular"}, {"window_type": "rectangular"}),
    ({"preemphasis": 0.0}, {"preemphasis_coefficient": 0.0}),
    ({"remove_dc": False}, {"remove_dc_offset": False}),
    ({"n_fft": 400}, {"round_to_power_of_two": False}),
    ({"window": 640, "hop": 800}, {"frame_length": 40.0, "frame_shift": 50.0}),
    ({"use_energy": True}, {"use_energy": True}),
    ({"use_energy": True, "htk_compat": True}, {"use_energy": True, "htk_compat": True}),
    ({"use_energy": True, "raw_energy": False}, {"use_energy": True, "raw_energy": False}),
    ({"use_energy": True, "energy_floor": 1e-3}, {"use_energy": True, "energy_floor": 1e-3}),
]


@pytest.mark.parametrize("snip_edges", [True, False])
@pytest.mark.parametrize(("ours", "theirs"), OPTIONS)
def test_every_option_is_torchaudio_kaldi(
    ours: dict[str, Any], theirs: dict[str, Any], snip_edges: bool
) -> None:
    wave = clip("offset", 0.9, 16000)
    fbank = Fbank(mels=40, snip_edges=snip_edges, **ours)
    expected = reference(wave, 16000, num_mel_bins=40, snip_edges=snip_edges, **theirs)
    assert fbank.mels == len(expected)
    blackman = "blackman" in ours.values()  # torchaudio computes that window more coarsely
    tolerance = 1e-4 if blackman else 1e-5
    torch.testing.assert_close(fbank(wave[None])[0], expected, atol=tolerance, rtol=0)


def slow_fbank(wave: np.ndarray, rate: int, mels: int, snip_edges: bool) -> np.ndarray:
    """Kaldi's recipe in float64, sample by sample and filter by filter."""
    window, hop, count = rate // 40, rate // 100, len(wave)
    frames = 1 + (count - window) // hop if snip_edges else (count + hop // 2) // hop
    n_fft = 2 ** math.ceil(math.log2(window))
    bins = np.arange(n_fft // 2 + 1)
    dft = np.exp(-2j * np.pi * np.outer(bins, np.arange(window)) / n_fft)
    centres = np.linspace(1127 * np.log(1 + 20 / 700), 1127 * np.log(1 + rate / 1400), mels + 2)
    bin_mel = 1127 * np.log(1 + bins * rate / n_fft / 700)
    spec = np.zeros((mels, frames))
    for frame in range(frames):
        start = frame * hop if snip_edges else frame * hop + hop // 2 - window // 2
        values = []
        for index in range(start, start + window):
            while not 0 <= index < count:
                index = -index - 1 if index < 0 else 2 * count - 1 - index
            values.append(float(wave[index]))
        frame_values = np.array(values) - np.mean(values)
        previous = np.concatenate((frame_values[:1], frame_values[:-1]))
        povey = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / (window - 1))) ** 0.85
        power = np.abs(dft @ ((frame_values - 0.97 * previous) * povey)) ** 2
        for row in range(mels):
            left, centre, right = centres[row : row + 3]
            up, down = (bin_mel - left) / (centre - left), (right - bin_mel) / (right - centre)
            energy = np.sum(np.maximum(np.minimum(up, down), 0)[:-1] * power[:-1])
            spec[row, frame] = np.log(max(energy, 2.0**-23))
    return spec


@pytest.mark.parametrize("name", ["parity", "voice"])
@pytest.mark.parametrize("snip_edges", [True, False])
def test_fbank_is_the_slow_float64_version(name: str, snip_edges: bool) -> None:
    wave = clip(name, 0.4, 16000)
    ours = Fbank(mels=40, snip_edges=snip_edges)(wave[None])[0]
    expected = slow_fbank(wave.numpy().astype(np.float64), 16000, 40, snip_edges)
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("count", [1, 3, 79, 80, 81, 159, 161, 399])
def test_without_snip_edges_a_short_wave_is_mirrored(count: int) -> None:
    wave = clip("offset", 1, 16000)[:count]
    spec = Fbank(mels=23, snip_edges=False)(wave[None])[0]
    assert spec.shape == (23, max((count + 80) // 160, 1))
    if count >= 80:  # below that Kaldi gives no frame at all
        expected = slow_fbank(wave.numpy().astype(np.float64), 16000, 23, False)
        np.testing.assert_allclose(spec.numpy(), expected, atol=1e-3)


def test_a_wave_shorter_than_a_window_gives_one_padded_frame() -> None:
    fbank, wave = Fbank(), clip("voice", 1, 16000)
    for count in (1, 2, 160, 399, 400):
        padded = torch.nn.functional.pad(wave[:count], (0, 400 - count))
        spec = fbank(wave[None, :count])
        assert spec.shape == (1, 128, 1)
        torch.testing.assert_close(spec[0], reference(padded, 16000), atol=1e-5, rtol=0)
    assert fbank(wave[None, :559]).shape[-1] == 1
    assert fbank(wave[None, :560]).shape[-1] == 2


@pytest.mark.parametrize("edges", ["reflect", "zero", "none", "end"])
def test_logmel_edges(edges: str) -> None:
    """512-point frames of 400 samples, 160 apart; the ends as each convention has them."""
    logmel = LogMel(n_fft=512, window=400, edges=edges)
    wave = clip("voice", 1, 16000)
    frames = {"reflect": 1 + 4000 // 160, "zero": 1 + 4000 // 160, "none": 23, "end": 25}[edges]
    assert logmel(wave[None, :4000]).shape == (1, 64, frames)
    for count in (1, 160, 161, 256, 257, 399, 400, 401, 512):
        spec = logmel(wave[None, :count])
        assert torch.isfinite(spec).all()
        assert (
            spec.shape[-1]
            == {
                "reflect": 1 + max(count, 257) // 160,
                "zero": 1 + count // 160,
                "none": 1 + max(count - 400, 0) // 160,
                "end": -(-count // 160),
            }[edges]
        )
    if edges in ("reflect", "zero"):
        mode: Any = {"reflect": "reflect", "zero": "constant"}[edges]
        mel = librosa.feature.melspectrogram(
            y=wave[:4000].numpy(), sr=16000, n_fft=512, win_length=400, hop_length=160,
            pad_mode=mode, n_mels=64, htk=True, norm=None,
        )  # fmt: skip
        expected = np.log(np.maximum(mel, 1e-10))
        np.testing.assert_allclose(logmel(wave[None, :4000])[0].numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("preset", ["ast", "bird_mae", "spear", "clap", "fsd50k", "yamnet"])
def test_lengths_hide_what_lies_beyond(preset: str) -> None:
    frontend = build({"preset": preset})
    rate, lengths = frontend.rate, [frontend.rate, frontend.rate // 2, 100]
    waves = torch.stack([clip("parity", 1, rate)] * 3)
    spec = frontend(waves, torch.tensor(lengths))
    pad = frontend.clip.pad
    for row, length in zip(spec, lengths, strict=True):
        alone = frontend(waves[:1, :length])[0]
        count = alone.shape[-1]
        assert torch.equal(row[:, :count], alone)
        if frontend.clip.frames is None and count < spec.shape[-1]:
            expected = (float(pad) - frontend.clip.mean) / frontend.clip.scale
            assert torch.allclose(row[:, count:], torch.tensor(expected))


def test_bird_mae_pads_with_the_least_of_the_clip() -> None:
    # from 300 Hz up this sound never sinks to the floor that silence lies on
    frontend = build({"preset": "bird_mae", "mels": 64, "fmin": 300.0})
    waves = torch.stack([clip("parity", 5, 32000), clip("silence", 5, 32000)])
    spec = frontend(waves)
    assert spec.shape == (2, 64, 512)
    for row in spec:
        assert (row[:, 498:] == row[:, :498].min()).all()
    assert spec[0].min() > spec[1].min()


def test_ast_pads_with_zeros_before_normalisation() -> None:
    spec = build({"preset": "ast"})(clip("voice", 5, 16000)[None])
    assert spec.shape == (1, 128, 1024)
    torch.testing.assert_close(spec[0, :, 498:], torch.full((128, 526), 4.2677393 / 9.1379948))
    cut = build({"preset": "ast", "frames": 100})(clip("voice", 5, 16000)[None])
    assert torch.equal(cut, spec[..., :100])


@pytest.mark.parametrize(
    ("fill", "expected"),
    [
        ("zero", [1, 2, 3, 0, 0, 0, 0, 0]),
        ("center", [0, 0, 1, 2, 3, 0, 0, 0]),
        ("tile", [1, 2, 3, 1, 2, 3, 1, 2]),
        ("repeat", [1, 2, 3, 1, 2, 3, 0, 0]),
    ],
)
def test_fill(fill: str, expected: list[float]) -> None:
    seen = []

    def log_mel(wave: Tensor) -> Tensor:
        seen.append(wave)
        return wave[:, None]

    stages = Clip(samples=8, fill=fill)
    stages.spectrograms(log_mel, torch.tensor([[1.0, 2.0, 3.0]]), None)
    stages.spectrograms(log_mel, torch.arange(1.0, 11.0)[None], None)
    assert seen[0].tolist() == [expected]
    assert seen[1].tolist() == [[1, 2, 3, 4, 5, 6, 7, 8]]


def test_int16_rounds_as_the_file_format_does_and_lets_the_gradient_pass() -> None:
    wave = clip("parity", 0.5, 16000) * 2.5
    rounded = (wave.clamp(-1, 1) * 32767).numpy().astype(np.int16).astype(np.float32) / 32767
    coarse = Fbank(clip=Clip(int16=True))
    assert torch.equal(coarse(wave[None]), Fbank()(torch.from_numpy(rounded)[None]))
    wave.requires_grad_()
    coarse(wave[None]).sum().backward()
    assert wave.grad is not None
    assert wave.grad.abs().max() > 0


def test_half_precision_and_autocast_do_not_coarsen_the_spectrum() -> None:
    frontend, wave = build({"preset": "ast"}), clip("voice", 0.5, 16000)[None]
    expected = frontend(wave)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(frontend(wave), expected)
    assert frontend(wave.bfloat16()).dtype == torch.float32
    assert frontend(wave.double()).dtype == torch.float64


SMALL: dict[str, Any] = {"rate": 800, "mels": 7, "fmin": 0.0}
GRADIENTS = [
    {"name": "fbank"},
    {"name": "fbank", "snip_edges": False, "remove_dc": False},
    {"name": "fbank", "use_energy": True, "energy_floor": 1e-9, "remove_mean": True, "gain": 3.0},
    {"name": "fbank", "use_energy": True, "raw_energy": False, "frames": 12, "pad": "min"},
    {"name": "logmel", "n_fft": 32, "hop": 8, "log": "add", "preemphasis": 0.97},
    {"name": "logmel", "n_fft": 32, "hop": 8, "log": "db", "power": 1.0, "edges": "none"},
    {"name": "logmel", "n_fft": 32, "hop": 8, "log": "db", "top_db": 20.0, "clip_mean": True},
    {"name": "logmel", "n_fft": 32, "window": 20, "hop": 8, "edges": "end", "mel_scale": "slaney"},
    {"name": "logmel", "n_fft": 32, "hop": 8, "edges": "zero", "samples": 90, "fill": "tile"},
]


@pytest.mark.parametrize("config", GRADIENTS)
def test_gradients(config: dict[str, Any]) -> None:
    frontend = build({**SMALL, **config})
    generator = torch.Generator().manual_seed(3)
    wave = torch.randn(2, 61, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(frontend, (wave,), atol=1e-4, fast_mode=True)


def test_an_argument_beside_the_preset_wins_and_is_recorded() -> None:
    frontend = build({"preset": "ast", "frames": 256, "mels": 64})
    assert frontend.config() == {**frontend.config(), "preset": "ast", "frames": 256, "mels": 64}
    assert frontend(clip("voice", 1, 16000)[None]).shape == (1, 64, 256)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"preset": "bird-mae"}, r"frontend preset: 'bird-mae' is not known \(did you mean 'bird_"),
        ({}, r"frontend name: None is not known \(one of: fbank, logmel\)"),
        ({"name": "fbanks"}, "did you mean 'fbank'"),
        (
            {"name": "fbank", "mel": 64},
            "frontend argument: 'mel' is not known .did you mean 'mels'",
        ),
        ({"name": "fbank", "clip": None}, "frontend argument: 'clip'"),
        ({"name": "fbank", "rate": "16000"}, r"frontend rate: expected int, got '16000'"),
        ({"name": "fbank", "rate": True}, "frontend rate: expected int, got True"),
        ({"name": "fbank", "frames": 9.5}, r"frontend frames: expected int \| None, got 9.5"),
        ({"name": "fbank", "rate": 0}, "frontend rate: must be above 0, got 0"),
        ({"name": "fbank", "rate": 50}, "frontend hop: must be above 0"),
        ({"name": "fbank", "floor": float("nan")}, "frontend floor: must be above 0, got nan"),
        ({"name": "fbank", "scale": 0.0}, "frontend scale: must be above 0"),
        ({"name": "fbank", "pad": "max"}, "frontend pad: 'max' is not known .one of: min"),
        (
            {"name": "fbank", "fmax": 9000.0},
            r"fmin < fmax <= 8000 Hz .half the rate., got 20 and 9",
        ),
        (
            {"name": "fbank", "window": 600, "n_fft": 512},
            r"n_fft: at least the window .600., got 512",
        ),
        ({"name": "logmel", "power": 3.0}, "frontend power: 3.0 is not known"),
        ({"name": "logmel", "edges": "centre"}, "frontend edges: 'centre' is not known"),
        ({"name": "logmel", "fill": "loop"}, "frontend fill: 'loop' is not known"),
    ],
)
def test_errors_name_the_key_the_value_and_the_way_out(
    config: dict[str, Any], message: str
) -> None:
    with pytest.raises(FrontendError, match=message):
        build(config)


def test_a_wave_of_the_wrong_form_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected floats \(batch, samples\), got .* \(400,\)"):
        Fbank()(torch.zeros(400))
    with pytest.raises(ValueError, match="expected floats"):
        Fbank()(torch.zeros(1, 400, dtype=torch.int16))
    with pytest.raises(ValueError, match="expected floats"):
        Fbank()(torch.zeros(0, 400))
    with pytest.raises(ValueError, match="lengths"):
        Fbank()(torch.zeros(2, 400), [400])
    with pytest.raises(ValueError, match="lengths"):
        Fbank()(torch.zeros(1, 400), [401])
    with pytest.raises(InputError):
        Fbank()(torch.zeros(2, 400), [400, 0])


DATA = Path(os.environ.get("AUDIOSSL_DATA", ""))


@pytest.mark.skipif("AUDIOSSL_DATA" not in os.environ, reason="AUDIOSSL_DATA is not set")
def test_recordings() -> None:
    paths = sorted((DATA / "esc10" / "audio").glob("*.ogg"))[::40]
    assert paths
    for path in paths:
        sound, rate = soundfile.read(path, dtype="float32", always_2d=True)
        wave = torch.from_numpy(sound.mean(1))
        spec = Fbank(rate=rate)(wave[None])[0]
        torch.testing.assert_close(spec, reference(wave, rate), atol=1e-5, rtol=0)
        mel = librosa.feature.melspectrogram(
            y=wave.numpy(), sr=rate, n_fft=1024, hop_length=480, n_mels=64, pad_mode="reflect"
        )
        logmel = LogMel(
            rate=rate, hop=480, mel_scale="slaney", norm="slaney", log="add", floor=1e-5
        )
        expected = np.log(mel + 1e-5)
        np.testing.assert_allclose(logmel(wave[None])[0].numpy(), expected, atol=1e-4)
