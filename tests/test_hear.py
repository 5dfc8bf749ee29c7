"""HEAR's interface: its validator's rules, PaSST's own package, times, lengths, bounded memory."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import soxr
import torch
from test_ast import assert_as_stored, fixture, waves
from torch import Tensor, nn
from torch.nn.functional import pad, unfold

from audiossl import hear
from audiossl import model as model_folders
from audiossl.audio.reading import QUALITY
from audiossl.errors import InputError, ModelError, UsageError
from audiossl.hub import convert
from audiossl.hub.config import ModelConfig
from audiossl.model import Model
from audiossl.models.parts.published import Checkpoint

DSCNN = {"name": "dscnn", "widths": [6, 8], "strides": [2, 2], "stem": 4}
PASST = {"name": "passt", "dim": 16, "depth": 1, "heads": 2, "stride": [16, 16]}
AST = {"name": "ast", "dim": 16, "depth": 1, "heads": 2, "frames": 128, "stride": [16, 16]}
HEAD = {"name": "linear", "labels": ["rain", "wind", "sea"], "activation": "sigmoid"}


def made(
    architecture: dict[str, Any],
    frontend: dict[str, Any],
    head: dict[str, Any] | None = HEAD,
    seconds: float | None = 2.0,
    mode: str | None = None,
) -> hear.HearModel:
    torch.manual_seed(0)
    config = ModelConfig("test", architecture, frontend, head, window_seconds=seconds)
    return hear.HearModel(Model(config), mode).eval()


def dscnn(rate: int = 16000, **options: Any) -> hear.HearModel:
    return made(DSCNN, {"preset": "yamnet", "rate": rate, "fmax": min(7500, rate / 2)}, **options)


def passt(mode: str | None = None, **options: Any) -> hear.HearModel:
    return made(PASST, {"preset": "passt"}, mode=mode, **options)


def ast() -> hear.HearModel:
    return made(AST, {"preset": "ast_speechcommands"}, None, 1.28)


def sounds(count: int, seconds: float, rate: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, int(seconds * rate), generator=generator) * 2 - 1


# --- the rules of the validator (hearbenchmark/hear-validator) ------------------------------------

ACCEPTED_RATES = {16000, 22050, 32000, 44100, 48000}
MODELS = {
    "dscnn": dscnn,
    "dscnn 22.05 kHz": lambda: dscnn(22050),
    "resampled from 16 kHz": lambda: dscnn(8000),
    "ast": ast,
    "passt embed": lambda: passt("embed"),
    "passt base": lambda: passt("base"),
    "passt base2level": lambda: passt("base2level"),
    "passt 2lvlmel": lambda: passt("2lvlmel"),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return MODELS[request.param]()


def test_attributes(model):
    assert isinstance(model, nn.Module)
    assert model.sample_rate in ACCEPTED_RATES
    for name in ("sample_rate", "scene_embedding_size", "timestamp_embedding_size"):
        assert type(getattr(model, name)) is int


@pytest.mark.parametrize("seconds", [1.07, 1.98, 4.0])
def test_timestamps_of_the_validator(model, seconds):
    embeddings, times = hear.get_timestamp_embeddings(sounds(2, seconds, model.sample_rate), model)
    assert embeddings.dtype == times.dtype == torch.float32
    assert embeddings.shape == (*times.shape, model.timestamp_embedding_size)
    assert len(embeddings) == 2
    assert not embeddings.requires_grad
    steps = np.diff(times.numpy())
    assert np.abs(steps - steps.mean()).max() <= 1  # regular
    assert 0 < steps.min() <= steps.max() <= 50  # increasing, no wider than an onset's tolerance
    assert times.min() <= steps.mean()  # begins at the beginning
    assert 1000 * seconds - 50 <= times.max() <= 1000 * seconds  # and reaches the end, no further


def test_scenes_of_the_validator(model):
    embeddings = hear.get_scene_embeddings(sounds(4, 2.74, model.sample_rate), model)
    assert embeddings.dtype == torch.float32
    assert embeddings.shape == (4, model.scene_embedding_size)
    assert embeddings.isfinite().all()


def test_the_functions_have_the_names_that_heareval_calls():
    assert str(inspect.signature(hear.load_model)).startswith("(model_file_path: 'str' = '',")
    for function in (hear.get_scene_embeddings, hear.get_timestamp_embeddings):
        assert list(inspect.signature(function).parameters) == ["audio", "model"]


# --- PaSST's own package (kkoutini/passt_hear21) --------------------------------------------------


@pytest.fixture(scope="module")
def reference():
    facts, stored, tensors = fixture("passt__depth3_d192_s10")
    done = convert.convert(Checkpoint(tensors))
    model = Model(done.config)
    model.load_state_dict(done.tensors, strict=False)
    longest = max(map(len, waves(facts)))
    audio = torch.stack([pad(wave, (0, longest - len(wave))) for wave in waves(facts)])
    return model, audio, stored, facts


def test_the_stored_embeddings(reference):
    model, audio, stored, facts = reference
    wrapped = hear.HearModel(model)
    assert wrapped.scene_embedding_size == wrapped.timestamp_embedding_size == 50 + 192
    scenes = hear.get_scene_embeddings(audio, wrapped)
    assert_as_stored("hear/scene_all", scenes, stored, facts)
    start = audio[:, : facts["spec"]["hear"]]
    embeddings, times = hear.get_timestamp_embeddings(start, wrapped)
    assert list(embeddings.shape) == stored["hear/timestamp_shape"].tolist()
    assert_as_stored("hear/timestamp_first3", embeddings[:, :3], stored, facts)
    assert_as_stored("hear/timestamps_ms", times, stored, facts)


def slow(model: Any, audio: Tensor, size: int, hop: int, mel: bool = False) -> Tensor:
    """Windows by torch's own mirror and unfold, one at a time: (sounds, windows, values)."""
    mirrored = pad(audio[:, None], (size // 2, size // 2), mode="reflect")
    windows = unfold(mirrored[:, None], (1, size), stride=(1, hop)).transpose(1, 2)
    rows = []
    for window in windows.flatten(0, 1):
        if mel:
            rows.append(model.model.frontend(window[None]).reshape(-1))
            continue
        spec = model.model.frontend(window[None])
        features = model.model.encoder(spec)[:, :2].mean(1)
        rows.append(torch.cat([model.model.head(features), features], dim=1)[0])
    return torch.stack(rows).unflatten(0, windows.shape[:2])


@pytest.mark.parametrize(
    ("mode", "sizes"), [("base", [5120]), ("base2level", [5120, 25600]), ("2lvlmel", [5120, 20480])]
)
def test_the_modes_against_slow_ones(mode, sizes):
    model, audio = passt(mode, seconds=10.0), sounds(2, 0.83, 32000)
    found, _ = hear.get_timestamp_embeddings(audio, model)
    with torch.no_grad():
        parts = [slow(model, audio, size, 1600) for size in sizes]
        if mode == "2lvlmel":
            parts.append(slow(model, audio, 6 * 320, 1600, mel=True))
            assert parts[-1].shape[-1] == 128 * 6
    torch.testing.assert_close(found, torch.cat(parts, dim=-1))


def test_a_long_scene_is_the_mean_of_windows_a_quarter_apart():
    model, audio = passt(seconds=1.0), sounds(2, 2.3, 32000)
    with torch.no_grad():
        expected = slow(model, audio, 32000, 8000).mean(1)
    torch.testing.assert_close(hear.get_scene_embeddings(audio, model), expected)


def test_sizes_of_the_released_models():
    """527 labels and 768 dimensions, as PaSST's package states them."""
    head = {"name": "linear", "labels": [str(i) for i in range(527)], "activation": "sigmoid"}
    model = made({**PASST, "dim": 768}, {"preset": "passt"}, head).model
    sizes = {None: (1295, 1295), "base": (1295, 1295), "embed": (768, 768)}
    sizes |= {"base2level": (1295, 2590), "2lvlmel": (1295, 3358)}
    for mode, expected in sizes.items():
        wrapped = hear.HearModel(model, mode)
        assert (wrapped.scene_embedding_size, wrapped.timestamp_embedding_size) == expected
    assert passt(head=None).mode == hear.MODES["embed"]


# --- times and lengths ----------------------------------------------------------------------------


class Loudness(nn.Module):
    """An encoder whose embedding is the spectrogram's largest value; it counts its windows."""

    dim = 8

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.batches: list[int] = []

    def embed(self, spec: Tensor) -> Tensor:
        self.batches.append(len(spec))
        return spec.amax((1, 2))[:, None].expand(-1, 8)


def loudness(model: hear.HearModel) -> Loudness:
    encoder = Loudness()
    model.model.encoder = encoder
    return encoder


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100])
def test_a_timestamp_is_the_middle_of_its_window(rate):
    """A click is heard by the windows that hold it, as many before it as after it."""
    model = dscnn(rate)
    loudness(model)
    at = 2.1
    audio = torch.zeros(1, 4 * model.sample_rate)
    audio[0, int(at * model.sample_rate)] = 1
    embeddings, times = hear.get_timestamp_embeddings(audio, model)
    heard = times[0][embeddings[0, :, 0] > embeddings.min() + 1] / 1000
    assert float(heard.mean()) == pytest.approx(at, abs=0.026)
    assert float(heard.max() - heard.min()) == pytest.approx(0.95, abs=0.1)


@pytest.mark.parametrize("rate", hear.RATES)
def test_nothing_drifts(rate):
    """After 37 minutes a window's middle is still within half a sample of its timestamp."""
    count = 37 * 60 * 20
    found = hear._places(0, hear.HOP * rate, count)
    exact = np.arange(count, dtype=np.float64) * rate / 20
    assert np.abs(found.numpy() - exact).max() <= 0.5


def test_any_length_has_embeddings(model):
    for samples in (1, 2, 3, 100, 801):
        audio = sounds(2, 1, model.sample_rate)[:, :samples]
        embeddings, times = hear.get_timestamp_embeddings(audio, model)
        assert embeddings.shape[1] == 1 + samples * 20 // model.sample_rate
        assert times[0, 0] == 0
        assert embeddings.isfinite().all()
        assert hear.get_scene_embeddings(audio, model).isfinite().all()


@pytest.mark.parametrize("length", [1, 2, 3, 7])
def test_the_mirror_is_numpys(length):
    sound = np.arange(length)
    index = torch.arange(-20, length + 20)
    found = sound[hear._mirrored(index, length).numpy()]
    assert found.tolist() == np.pad(sound, 20, mode="reflect").tolist()


def test_a_sound_shorter_than_a_window_goes_on_as_its_mirror():
    model, audio = dscnn(), sounds(1, 0.3, 16000)
    longer = torch.from_numpy(np.pad(audio.numpy(), [(0, 0), (0, 16000 - 4800)], mode="reflect"))
    found = hear.get_scene_embeddings(audio, model)
    assert torch.equal(found, hear.get_scene_embeddings(longer, model))


def test_an_unusual_rate_is_resampled_inside():
    model = dscnn(8000)
    assert model.sample_rate == 16000
    audio = sounds(2, 1.5, 16000)
    halved = [soxr.resample(sound.numpy(), 16000, 8000, quality=QUALITY) for sound in audio]
    with torch.no_grad():
        expected = model(torch.from_numpy(np.stack(halved)))
    torch.testing.assert_close(hear.get_scene_embeddings(audio, model), expected)
    assert hear._resampled(torch.ones(2, 3), 16000, 1000).shape == (2, 1)
    assert dscnn(11025).sample_rate == 16000
    assert dscnn(24000).sample_rate == 32000
    assert dscnn(96000).sample_rate == 48000


def test_memory_is_bounded_by_windows_not_by_length():
    model = dscnn()
    encoder = loudness(model)
    embeddings, _ = hear.get_timestamp_embeddings(sounds(1, 20, 16000), model)
    assert embeddings.shape == (1, 401, 8)
    assert sum(encoder.batches) == 401
    encoder.batches.clear()
    hear.get_scene_embeddings(sounds(3, 30, 16000), model)
    hear.get_scene_embeddings(sounds(40, 0.1, 16000), model)
    assert max(encoder.batches) <= hear.BATCH


def test_embeddings_do_not_depend_on_their_neighbours(model):
    audio = sounds(2, 1.1, model.sample_rate)
    for function in (
        hear.get_scene_embeddings,
        lambda audio, model: hear.get_timestamp_embeddings(audio, model)[0],
    ):
        together, alone = function(audio, model), function(audio[1:], model)
        torch.testing.assert_close(together[1:], alone, rtol=1e-5, atol=1e-5)


def test_sounds_of_different_lengths_as_a_list():
    model = passt()
    audio = [sounds(1, seconds, 32000)[0] for seconds in (0.1, 0.5, 3.1)]
    found = hear.get_scene_embeddings(audio, model)
    for sound, row in zip(audio, found, strict=True):
        torch.testing.assert_close(hear.get_scene_embeddings(sound[None], model)[0], row)


def test_a_model_left_in_training_is_put_right():
    model = made({**PASST, "patchout_time": 30}, {"preset": "passt"}, seconds=10.0)
    audio = sounds(1, 10, 32000)
    expected = hear.get_scene_embeddings(audio, model)
    assert torch.equal(hear.get_scene_embeddings(audio, model.train()), expected)


def test_other_floats_are_taken_and_float32_comes_back():
    model, audio = dscnn(), sounds(2, 1.2, 16000)
    found = hear.get_scene_embeddings(audio.double(), model)
    assert torch.equal(found, hear.get_scene_embeddings(audio, model))
    assert found.dtype == torch.float32


# --- loading --------------------------------------------------------------------------------------


def test_the_embedded_default_and_a_folder(tmp_path):
    model = hear.load_model(device="cpu")
    assert (model.sample_rate, model.scene_embedding_size) == (16000, 1024)
    again = hear.load_model("tagger", device="cpu", mode="base2level")
    assert again.timestamp_embedding_size == 2 * (1024 + len(again.model.labels))
    model_folders.save_model(passt().model, tmp_path)
    for path in (tmp_path, str(tmp_path), str(tmp_path / "model.safetensors")):
        loaded = hear.load_model(path, device="cpu")
        assert (loaded.sample_rate, loaded.scene_embedding_size) == (32000, 3 + 16)
        assert not loaded.training


def test_what_cannot_be_is_said(tmp_path):
    with pytest.raises(ModelError, match="nowhere"):
        hear.load_model(str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="mode: expected one of embed, base, base2level, 2lvlmel"):
        passt("scene")
    with pytest.raises(UsageError, match="mode 'base' needs logits, and test has no labels"):
        passt("base", head=None)
    with pytest.raises(UsageError, match="mode '2lvlmel' needs PaSST's frontend"):
        dscnn(mode="2lvlmel")


@pytest.mark.parametrize(
    ("audio", "error", "words"),
    [
        (torch.zeros(100), UsageError, r"expected floats \(sounds, samples\), got .*\(100,\)"),
        (torch.zeros(0, 100), UsageError, r"\(0, 100\)"),
        (torch.zeros(1, 100, dtype=torch.int16), UsageError, "got torch.int16"),
        (torch.zeros(2, 0), InputError, "no samples"),
        (torch.tensor([[0.0, float("nan")]]), InputError, "not a finite number"),
    ],
)
def test_audio_that_is_none(audio, error, words):
    for function in (hear.get_scene_embeddings, hear.get_timestamp_embeddings):
        with pytest.raises(error, match=words):
            function(audio, dscnn())
