"""Every preset against its reference: as its own code writes it, and as its stored outputs are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import pytest
import torch
from parity_fill import wave as parity_wave
from torch import Tensor

from audiossl._torchaudio import torchaudio
from audiossl.errors import InputError
from audiossl.frontend import build
from audiossl.frontend.fbank import Fbank
from audiossl.frontend.logmel import LogMel
from audiossl.frontend.presets import PRESETS

PARITY = Path(__file__).parents[1] / "data" / "parity"
FIXTURES = json.loads((PARITY / "frontends.json").read_text(encoding="utf-8"))["fixtures"]


DISTINCT = sorted({json.dumps(value): name for name, value in PRESETS.items()}.values())


def sound(seconds: float, rate: int, seed: int = 7) -> Tensor:
    return torch.from_numpy(parity_wave(seed, seconds, rate))


def quick(preset: str) -> Fbank | LogMel:
    """The preset, on half a second where it fills every clip to many."""
    samples = PRESETS[preset].get("samples")
    shorter = {"samples": PRESETS[preset]["rate"] // 2} if samples else {}
    return build({"preset": preset, **shorter})


# The references, each as its own loader writes it: wave (samples,) -> (mel, frames).


def padded(spec: Tensor, frames: int, value: float = 0.0) -> Tensor:
    return torch.nn.functional.pad(spec, (0, max(frames - spec.shape[1], 0)), value=value)[
        :, :frames
    ]


def ast(rate: int, frames: int, mean: float, scale: float) -> Callable[[Tensor], Tensor]:
    def reference(wave: Tensor) -> Tensor:
        spec = torchaudio.compliance.kaldi.fbank(
            (wave - wave.mean())[None],
            htk_compat=True,
            sample_frequency=rate,
            use_energy=False,
            window_type="hanning",
            num_mel_bins=128,
            dither=0.0,
            frame_shift=10,
        )
        return (padded(spec.T, frames) - mean) / scale

    return reference


def ast_transformers(wave: Tensor) -> Tensor:
    from transformers import ASTFeatureExtractor  # imports torchaudio: the guard has to come first

    extract = ASTFeatureExtractor()
    values = extract(wave.numpy(), sampling_rate=16000, return_tensors="pt")["input_values"]
    return values[0].T


def bird_mae(wave: Tensor) -> Tensor:
    wave = padded(wave[None], 160000)[0]
    spec = torchaudio.compliance.kaldi.fbank(
        (wave - wave.mean())[None],
        htk_compat=True,
        sample_frequency=32000,
        window_type="hanning",
        num_mel_bins=128,
    ).T
    return (padded(spec, 512, float(spec.min())) + 7.2) / (2 * 4.43)


def beats(wave: Tensor) -> Tensor:
    spec = torchaudio.compliance.kaldi.fbank(
        wave[None] * 2**15,
        num_mel_bins=128,
        sample_frequency=16000,
        frame_length=25,
        frame_shift=10,
    )
    return (spec.T - 15.41663) / (2 * 6.55582)


def spear(wave: Tensor) -> Tensor:
    return torchaudio.compliance.kaldi.fbank(
        wave[None], num_mel_bins=128, snip_edges=False, high_freq=-400.0
    ).T


def passt(wave: Tensor) -> Tensor:
    kernel = torch.tensor([[[-0.97, 1.0]]])
    wave = torch.nn.functional.conv1d(wave[None, None], kernel)[0]
    window = torch.hann_window(800, periodic=False)
    spectrum = torch.stft(wave, 1024, 320, 800, window=window, return_complex=True)[0]
    filters, _ = torchaudio.compliance.kaldi.get_mel_banks(
        128, 1024, 32000.0, 0.0, 15000.0, 100.0, -500.0, 1.0
    )
    mel = torch.nn.functional.pad(filters, (0, 1)) @ spectrum.abs().square()
    return ((mel + 0.00001).log() + 4.5) / 5.0


def unfused(wave: Tensor) -> Tensor:
    missing = max(15200 - len(wave), 0)
    values = np.pad(wave.numpy(), (missing // 2, missing - missing // 2))[:15200]
    spectrum = np.abs(librosa.stft(values, n_fft=1024, hop_length=160, pad_mode="reflect")) ** 2
    filters = librosa.filters.mel(sr=16000, n_fft=1024, n_mels=64, fmin=60, fmax=7800)
    mel = filters @ (spectrum + np.finfo(float).eps) + np.finfo(np.float32).eps
    return torch.from_numpy(np.log(mel))


def torchaudio_mel(rate: int, **options: Any) -> Callable[[Tensor], Tensor]:
    mel = torchaudio.transforms.MelSpectrogram(rate, **options)
    decibel = torchaudio.transforms.AmplitudeToDB()
    return lambda wave: decibel(mel(wave))


def sslh(rate: int, samples: int = 0) -> Callable[[Tensor], Tensor]:
    reference = torchaudio_mel(rate, n_fft=2048, hop_length=512, n_mels=64)
    return lambda wave: reference(padded(wave[None], samples or len(wave))[0])


def fsd50k(wave: Tensor) -> Tensor:
    mel = torchaudio.transforms.MelSpectrogram(
        22050, n_fft=96 * 20, win_length=int(22050 * 0.03), hop_length=220, n_mels=96
    )
    decibel = torch.from_numpy(librosa.power_to_db(mel(wave).numpy()))
    return decibel - decibel.mean()


def clap(truncation: str) -> Callable[[Tensor], Tensor]:
    def reference(wave: Tensor) -> Tensor:
        from transformers import ClapFeatureExtractor

        extract = ClapFeatureExtractor(frequency_min=50, truncation=truncation)
        features = extract(wave.numpy(), sampling_rate=48000, return_tensors="pt")
        return features["input_features"][0, 0].T

    return reference


def laion(reference: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def rounded(wave: Tensor) -> Tensor:
        whole = (np.clip(wave.numpy(), -1, 1) * 32767.0).astype(np.int16)
        return reference(torch.from_numpy((whole / 32767.0).astype(np.float32)))

    return rounded


def torchlibrosa(
    rate: int, hop: int, seconds: int = 0, filter_rate: int = 0
) -> Callable[[Tensor], Tensor]:
    def reference(wave: Tensor) -> Tensor:
        values = np.resize(wave.numpy(), seconds * rate) if seconds else wave.numpy()
        spectrum = librosa.stft(values, n_fft=1024, hop_length=hop, pad_mode="reflect")
        filters = librosa.filters.mel(
            sr=filter_rate or rate, n_fft=1024, n_mels=64, fmin=50, fmax=14000
        )
        mel = filters @ np.abs(spectrum) ** 2
        return torch.from_numpy(librosa.power_to_db(mel, amin=1e-10, top_db=None))

    return reference


def tensorflow_mel(
    wave: Tensor, rate: int, window: int, hop: int, n_fft: int, mels: int, fmin: float, fmax: float
) -> np.ndarray:
    """tf.signal: periodic Hann, magnitude, triangles on the mel axis without the first bin."""
    values = wave.numpy().astype(np.float64)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    starts = range(0, len(values) - window + 1, hop)
    frames = np.stack([values[start : start + window] * hann for start in starts])
    to_mel = lambda hertz: 1127 * np.log(1 + np.asarray(hertz) / 700)  # noqa: E731
    bins = to_mel(np.linspace(0, rate / 2, n_fft // 2 + 1))[:, None]
    edges = np.linspace(to_mel(fmin), to_mel(fmax), mels + 2)
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    filters = np.maximum(0, np.minimum(rising, falling))
    filters[0] = 0
    return (np.abs(np.fft.rfft(frames, n_fft)) @ filters).T


def yamnet(wave: Tensor) -> Tensor:
    mel = tensorflow_mel(wave, 16000, 400, 160, 512, 64, 125.0, 7500.0)
    return torch.from_numpy(np.log(mel + 0.001))


def vatt(wave: Tensor) -> Tensor:
    frames = -(-len(wave) // 768)
    wave = torch.nn.functional.pad(wave, (0, (frames - 1) * 768 + 1536 - len(wave)))
    mel = tensorflow_mel(wave, 48000, 1536, 768, 1536, 80, 80.0, 7600.0)
    return torch.from_numpy(np.log(1 + 10000 * mel))


def htcl(wave: Tensor) -> Tensor:
    mel = torchaudio.transforms.MelSpectrogram(16000, n_fft=2048, hop_length=1536, n_mels=128)
    return (mel(wave) + 1e-6).log()


AUDIOSET = (-4.2677393, 2 * 4.5689974)
AST, AST_ESC50 = ast(16000, 1024, *AUDIOSET), ast(16000, 512, -6.6268077, 2 * 5.358466)
AST_COMMANDS = ast(16000, 128, -6.845978, 2 * 5.5654526)
LAION_FUSION = laion(clap("fusion"))
REFERENCES: dict[str, Callable[[Tensor], Tensor]] = {
    "ast": AST,
    "ast_esc50": AST_ESC50,
    "ast_speechcommands": AST_COMMANDS,
    "ssast": AST,
    "ssamba": AST,
    "audiomae": AST,
    "audiomae_esc50": AST_ESC50,
    "audiomae_speechcommands": AST_COMMANDS,
    "asit": ast(32000, 592, *AUDIOSET),
    "bird_mae": bird_mae,
    "beats": beats,
    "openbeats": beats,
    "passt": passt,
    "spear": spear,
    "unfused": unfused,
    "sslh_esc10": sslh(44100),
    "sslh_ubs8k": sslh(22050),
    "sslh_gsc": sslh(16000, samples=16000),
    "fsd50k": fsd50k,
    "clap": clap("rand_trunc"),
    "clap_fusion": clap("fusion"),
    "laion_clap": laion(clap("rand_trunc")),
    "laion_clap_fusion": LAION_FUSION,
    "reclap": LAION_FUSION,
    "msclap_2022": torchlibrosa(44100, 320, seconds=5),
    "msclap_2023": torchlibrosa(44100, 320, seconds=7, filter_rate=32000),
    "slap": torchlibrosa(44100, 480),
    "panns": torchlibrosa(32000, 320),
    "vipant": ast(44100, 1000, -4.93839311, 5.75751113),
    "vatt": vatt,
    "htcl": htcl,
    "yamnet": yamnet,
}


def test_every_preset_has_a_reference() -> None:
    assert set(REFERENCES) == set(PRESETS)


@pytest.mark.parametrize("preset", sorted(REFERENCES))
def test_preset_is_its_reference(preset: str) -> None:
    frontend = build({"preset": preset})
    # TensorFlow's filters are laid out here in float64
    tolerance = 2e-4 if preset in ("yamnet", "vatt") else 1e-4
    for seconds in (0.9, 1.37):
        wave = sound(seconds, frontend.rate)
        expected = REFERENCES[preset](wave).float()
        spec = frontend(wave[None])[0]
        assert spec.shape == expected.shape
        if PRESETS[preset].get("log") == "db":
            assert_decibels(spec, expected)
        else:
            torch.testing.assert_close(spec, expected, atol=tolerance, rtol=0)


def assert_decibels(spec: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal to 2e-3 dB; a bin far below its frame's peak to 1e-6 of that peak, which is what two
    float32 transforms part by (it differs from processor to processor)."""
    peak = expected.amax(1, keepdim=True)
    amplitude, reference = (10 ** ((values - peak) / 20) for values in (spec, expected))
    torch.testing.assert_close(amplitude, reference, atol=1e-6, rtol=2.3e-4)


def test_ast_is_transformers() -> None:
    frontend = build({"preset": "ast", "remove_mean": False})  # which transformers leaves out
    for seconds in (0.5, 11.0):
        wave = sound(seconds, 16000)
        expected = ast_transformers(wave)
        torch.testing.assert_close(frontend(wave[None])[0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("fixture", FIXTURES, ids=[fixture["name"] for fixture in FIXTURES])
def test_stored_outputs_of_the_references(fixture: dict[str, Any]) -> None:
    frontend = build({"preset": fixture["preset"], **fixture["overrides"]})
    waves = [torch.from_numpy(parity_wave(*wave)) for wave in fixture["waves"]]
    for wave, probe in zip(waves, fixture["probe"], strict=True):
        assert wave[:3].tolist() == pytest.approx(probe["first"])
    batch = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
    # BEATs and PaSST pad the waves of a batch, the others each clip's spectrogram
    whole = fixture["preset"] in ("beats", "passt")
    spec = frontend(batch, None if whole else [len(wave) for wave in waves])
    ours = spec.transpose(1, 2).numpy()
    assert list(ours.shape) == fixture["shape"]
    middle = ours.shape[1] // 2
    values = ours.astype(np.float64)
    slices = {
        "head": ours[:, :6],
        "middle": ours[:, middle : middle + 6],
        "stats": [values.mean(), values.std(), values.min(), values.max()],
    }
    stored = np.load(PARITY / "frontends.npz")
    for name, part in slices.items():
        expected = stored[f"{fixture['name']}/{name}"]
        np.testing.assert_allclose(part, expected, rtol=0, atol=fixture["tol"][name], err_msg=name)


# What holds for all of them.


@pytest.mark.parametrize("preset", DISTINCT)
def test_edge_lengths_of_every_preset(preset: str) -> None:
    frontend = quick(preset)
    wave = sound(0.2, frontend.rate)
    for count in (1, 2, frontend.window - 1, frontend.window, frontend.window + 1):
        spec = frontend(wave[None, :count])
        assert spec.shape[:2] == (1, frontend.mels)
        assert spec.shape[2] >= 1
        assert torch.isfinite(spec).all()
    with pytest.raises(InputError, match="no samples") as caught:
        frontend(wave[None, :0])
    assert caught.value.code == "empty"


@pytest.mark.parametrize("preset", DISTINCT)
def test_a_clip_does_not_depend_on_its_batch(preset: str) -> None:
    frontend = quick(preset)
    loud, soft = sound(0.7, frontend.rate), 1e-3 * sound(0.7, frontend.rate, seed=8)
    waves = torch.stack([loud, torch.zeros_like(loud), soft])
    batch = frontend(waves)
    for wave, spec in zip(waves, batch, strict=True):
        assert torch.equal(frontend(wave[None])[0], spec)
    whole = frontend.log_mel(waves)  # the path of other devices: no loop over clips
    alone = torch.cat([frontend.log_mel(wave[None]) for wave in waves])
    torch.testing.assert_close(whole, alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize("preset", DISTINCT)
def test_it_runs_where_the_wave_is(preset: str) -> None:
    """On the meta device nothing is computed, but a tensor left on the CPU would raise."""
    frontend = quick(preset)
    wave = torch.zeros(3, frontend.rate)
    assert quick(preset).to("meta")(wave.to("meta")).shape == frontend(wave).shape


@pytest.mark.parametrize("preset", DISTINCT)
def test_silence_has_a_finite_gradient_and_the_input_stays(preset: str) -> None:
    frontend = quick(preset)
    wave = torch.zeros(1, frontend.rate // 5, requires_grad=True)
    frontend(wave).sum().backward()
    assert wave.grad is not None
    assert torch.isfinite(wave.grad).all()
    given = sound(0.2, frontend.rate)[None]
    kept = given.clone()
    frontend(given)
    assert torch.equal(given, kept)


@pytest.mark.parametrize("preset", DISTINCT)
def test_config_round_trip(preset: str) -> None:
    first = quick(preset)
    config = json.loads(json.dumps(first.config()))
    second = build(config)
    assert config["preset"] == preset
    assert second.config() == first.config() == config
    wave = sound(0.3, first.rate)[None]
    assert torch.equal(first(wave), second(wave))
    del config["preset"]  # the arguments alone say everything
    assert torch.equal(first(wave), build(config)(wave))
    assert first.state_dict() == {}
    assert first.rate == config["rate"]
    assert first.hop_seconds == config["hop"] / config["rate"]
