"""Embedder against plain torch by hand: read all, cut, frontend, encoder, one window at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import soundfile
import torch
from test_tagging import collect, silence

import audiossl
from audiossl.audio import reading as audio
from audiossl.errors import InputError, UsageError
from audiossl.frontend import build
from audiossl.hub.config import ModelConfig
from audiossl.inference.embedding import Embedder, EmbedOptions
from audiossl.inference.sliding import Span
from audiossl.model import Model
from audiossl.models.dscnn import DSCNN
from audiossl.models.vit import ViT
from audiossl.output.records import EmbedRecord

RATE = 16000
VIT = {"dim": 16, "depth": 2, "heads": 2, "mel": 32, "frames": 200, "patch": [8, 10]}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "dscnn": {"name": "dscnn", "widths": [8, 16], "strides": [2, 2], "stem": 4},
    "vit": {"name": "vit", **VIT, "stride": [6, 7], "class_tokens": 2, "pooling": "cls_dist"},
    "vit in time order": {
        "name": "vit",
        **VIT,
        "order": "time",
        "positions": "sincos_swapped",
        "pooling": "fc_norm",
    },
    "passt": {"name": "passt", "dim": 16, "depth": 1, "heads": 2, "mel": 32, "stride": [8, 12]},
}
FRONTENDS: dict[str, dict[str, Any]] = {
    "dscnn": {"preset": "yamnet"},
    "vit": {"name": "fbank", "mels": 32},
    "vit in time order": {"name": "logmel", "mels": 32, "n_fft": 512, "hop": 160},
    "passt": {"name": "logmel", "mels": 32, "n_fft": 512, "hop": 160},
}


def made(kind: str, frontend: dict[str, Any] | None = None) -> Model:
    """Random weights, drawn wide so that windows differ."""
    torch.manual_seed(3)
    config = ModelConfig(
        name="tiny",
        architecture=ARCHITECTURES[kind],
        frontend=frontend or FRONTENDS[kind],
        window_seconds=2.0,
    )
    model = Model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    return model


@pytest.fixture(scope="module", params=list(ARCHITECTURES))
def model(request: pytest.FixtureRequest) -> Model:
    return made(request.param)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """7.3 s at 22.05 kHz whose content changes all the time."""
    random = np.random.default_rng(0)
    time = np.arange(int(7.3 * 22050)) / 22050
    wave = 0.3 * np.sin(2 * np.pi * (200 + 300 * time) * time)
    wave += 0.2 * random.standard_normal(len(time)) * (np.sin(time) > 0)
    path = tmp_path_factory.mktemp("sound") / "recording.wav"
    soundfile.write(path, wave, 22050, subtype="FLOAT")
    return path


@pytest.fixture(scope="module")
def tagger() -> Embedder:
    return Embedder.load("tagger")


def cuts(path: Path, window: float, hop: float) -> list[tuple[int, np.ndarray]]:
    """(first sample, samples) of each window; the last one ends with the file."""
    wave, rate = audio.read(path, RATE)
    size, step = round(window * rate), round(hop * rate)
    starts = [0]
    while starts[-1] + size < len(wave):
        starts.append(starts[-1] + step)
    starts[-1] = max(0, min(starts[-1], len(wave) - size))
    return [(start, wave[start : start + size]) for start in starts]


def spectrogram(model: Model, wave: np.ndarray) -> torch.Tensor:
    return model.frontend(torch.from_numpy(wave)[None])


def by_hand(model: Model, wave: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return model.encoder.embed(spectrogram(model, wave))[0].numpy()  # type: ignore[operator]


def moments(model: Model, wave: np.ndarray) -> np.ndarray:
    """(moments, dim): tokens of one instant, averaged one by one by their number in the grid."""
    encoder: Any = model.encoder
    spec = spectrogram(model, wave)
    with torch.inference_mode():
        tokens = encoder(spec)[0].numpy()
    if isinstance(encoder, DSCNN):
        return tokens
    patch = VIT["patch"] if isinstance(encoder, ViT) else (16, 16)
    stride = model.config.architecture.get("stride", patch)
    order = getattr(encoder, "order", "frequency")
    bands = (spec.shape[1] - patch[0]) // stride[0] + 1
    times = (spec.shape[2] - patch[1]) // stride[1] + 1
    patches = tokens[len(tokens) - bands * times :]  # class tokens stand in front
    found = []
    for t in range(times):
        at = [f * times + t if order == "frequency" else t * bands + f for f in range(bands)]
        found.append(np.mean([patches[k] for k in at], axis=0))
    return np.array(found)


# Windows and pooling


@pytest.mark.parametrize(("window", "hop"), [(2.0, 2.0), (2.0, 0.7), (20.0, 20.0)])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_windows_are_the_encoder_on_each_window(
    model: Model, recording: Path, window: float, hop: float, batch_size: int
) -> None:
    expected = cuts(recording, window, hop)
    got = list(Embedder(model, batch_size).windows(recording, window, hop))
    assert len(got) == len(expected)
    for place, (start, wave) in zip(got, expected, strict=True):
        assert place.start == pytest.approx(start / RATE, abs=1e-9)
        assert place.end == pytest.approx((start + len(wave)) / RATE, abs=1e-9)
        np.testing.assert_allclose(place.values, by_hand(model, wave), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tokens", [False, True])
def test_a_file_is_pooled_over_its_windows_or_tokens(
    model: Model, recording: Path, tokens: bool
) -> None:
    embedder = Embedder(model)
    rows = [
        record.embedding
        for record in embedder.embed(recording, options=EmbedOptions(hop=2.0, tokens=tokens))
    ]
    rows = np.stack(rows).astype(np.float64)
    deviation = np.sqrt(((rows - rows.mean(0)) ** 2).sum(0) / len(rows))
    expected = {
        "mean": rows.mean(0),
        "max": rows.max(0),
        "statistics": np.concatenate([rows.mean(0), deviation]),
    }
    for pool, vector in expected.items():
        options = EmbedOptions(pool=pool, tokens=tokens)
        (record,) = embedder.embed(recording, options=options)
        assert (record.start, round(record.end, 4)) == (0.0, 7.3)
        assert len(record.embedding) == embedder.size(options)
        np.testing.assert_allclose(record.embedding, vector, rtol=1e-5, atol=1e-6)


def test_one_file_is_one_record_unless_a_timeline_is_asked_for(recording: Path) -> None:
    embedder = Embedder(made("dscnn"))

    def count(**options: Any) -> int:
        return len(list(embedder.embed(recording, options=EmbedOptions(**options))))

    assert count() == count(window=1.0) == count(hop=0.5, pool="max") == 1
    assert count(hop=2.0) == 4
    assert count(tokens=True) > 40
    assert count(tokens=True, pool="mean") == 1


# Tokens and their times


def test_tokens_are_the_encoders_own_averaged_over_frequency(model: Model, recording: Path) -> None:
    (_, wave), *_ = cuts(recording, 2.0, 2.0)
    expected = moments(model, wave)
    got = [place for place in Embedder(model).tokens(recording, 2.0) if place.end <= 2.0]
    assert len(expected) - 1 <= len(got) <= len(expected)
    for place, vector in zip(got, expected, strict=False):
        np.testing.assert_allclose(place.values, vector, rtol=1e-4, atol=1e-5)


TIMES = {
    # yamnet's frames: 25 ms every 10 ms; a token is centred on every 8th, from the 7th on
    "dscnn": (0.0125 + 0.07 - 0.04, 0.08, 0.08),
    # 25 ms every 10 ms; patches of 10 frames every 7
    "vit": (0.0125 - 0.005, 0.07, 0.10),
    # frames centred on multiples of 10 ms; patches of 10 frames side by side
    "vit in time order": (-0.005, 0.10, 0.10),
    # patches of 16 frames every 12
    "passt": (-0.005, 0.12, 0.16),
}


@pytest.mark.parametrize("kind", TIMES)
@pytest.mark.parametrize("hop", [None, 0.9])
def test_token_times_are_exact(kind: str, recording: Path, hop: float | None) -> None:
    """Every token of every window: if its middle is new, cut at the window's ends."""
    model = made(kind)
    first, step, width = TIMES[kind]
    expected, covered = [], 0.0
    for start, wave in cuts(recording, 2.0, hop or 2.0):
        begin, end = start / RATE, (start + len(wave)) / RATE
        for k in range(len(moments(model, wave))):
            left = begin + first + k * step
            if covered <= round(left + width / 2, 9) < end:
                expected.append((max(left, begin), min(left + width, end)))
        covered = round(expected[-1][1], 9)
    got = [(place.start, place.end) for place in Embedder(model).tokens(recording, 2.0, hop)]
    np.testing.assert_allclose(got, expected, atol=1e-9)
    assert np.all(np.diff(np.mean(got, axis=1)) > 0), "each moment once"


@pytest.mark.parametrize("hop", [None, 1.0, 0.9, 0.31, 0.1])
@pytest.mark.parametrize("kind", ["tagger", "dscnn", "vit", "passt"])
def test_a_timeline_of_tokens_has_no_holes(
    kind: str, hop: float | None, recording: Path, tagger: Embedder
) -> None:
    """Between two tokens there is at most what one window leaves at its ends, or half a token where
    the next window's grid lies otherwise."""
    embedder = tagger if kind == "tagger" else Embedder(made(kind))
    timing, frontend = embedder.model.encoder.timing, embedder.model.frontend
    _, alone = next(embedder._by_token(recording, 2.0, 2.0))
    left = alone[0].start + 2.0 - alone[-1].end
    seam = (timing.hop - timing.width / 2) * frontend.hop / frontend.rate
    got = list(embedder.tokens(recording, 2.0, hop))
    gaps = [after.start - before.end for before, after in pairwise(got)]
    assert max(gaps) <= max(left, seam) + 1e-6
    half = timing.width / 2 * frontend.hop / frontend.rate
    assert got[-1].end > 7.3 - left - half, "to the end"
    # A DSCNN's tokens may be cut at their window's end, a ViT's only at its start.
    late = timing.first >= 0
    middles = [p.start + half if late else (p.start + p.end) / 2 for p in got]
    assert all(b >= a.end - 1e-4 for a, b in zip(got, middles[1:], strict=False)), "once"


@pytest.mark.parametrize("strides", [[2, 2], [1, 2], [1, 1, 2, 1]])
def test_a_dscnn_token_is_centred_on_its_frame(strides: list[int]) -> None:
    """The frames that reach a token, by its gradient, lie evenly about the middle of its time."""
    encoder = DSCNN(widths=[4] * len(strides), strides=strides, stem=4).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.fill_(0.1)  # so that no ReLU is silent
    for k in (12, 13):
        spec = torch.rand(1, 16, 300, requires_grad=True)
        encoder.timeline(spec)[0, k].sum().backward()
        assert spec.grad is not None
        reached = spec.grad.abs().sum((0, 1)).nonzero().squeeze(1)
        timing = encoder.timing
        middle = timing.first + k * timing.hop + timing.width / 2
        assert (int(reached[0]) + int(reached[-1]) + 1) / 2 == middle


FRONTS = [
    {"name": "fbank"},
    {"name": "fbank", "snip_edges": False, "window": 401, "hop": 161},
    {"name": "logmel", "edges": "reflect", "window": 400, "n_fft": 512, "hop": 100},
    {"name": "logmel", "edges": "none", "window": 400, "n_fft": 512, "hop": 100},
    {"name": "logmel", "edges": "end", "n_fft": 512, "hop": 300},
    {"name": "fbank", "samples": 20000, "fill": "center"},
]


@pytest.mark.parametrize("config", FRONTS, ids=str)
def test_a_frontend_knows_the_middle_of_its_frames(config: dict[str, Any]) -> None:
    """By the gradient of a frame, to a sample (a periodic window's first weight is 0)."""
    frontend = build(config)
    wave = torch.randn(1, 16000, requires_grad=True)
    frame = 40
    frontend(wave)[0, :, frame].sum().backward()
    assert wave.grad is not None
    reached = wave.grad[0].nonzero().squeeze(1)
    middle = (int(reached[0]) + int(reached[-1]) + 1) / 2
    expected = frontend.centre + frame * frontend.hop - frontend.clip.offset(16000)
    assert abs(middle - expected) <= 1


def test_tokens_of_padding_are_left_out(tmp_path: Path) -> None:
    """AST's frontend fills every clip to its frames: tokens behind its end stand for nothing."""
    model = made("vit", {"name": "fbank", "mels": 32, "frames": 200})
    for seconds in (0.05, 0.5):
        path = tmp_path / f"{seconds}.wav"
        soundfile.write(
            path, np.random.default_rng(0).standard_normal(int(seconds * RATE)) / 9, RATE
        )
        got = list(Embedder(model).tokens(path))
        assert len(got) == max(sum(0.0575 + 0.07 * k < seconds for k in range(20)), 1)
        assert got[0].start >= 0
        assert got[-1].end <= seconds


# Independence


def test_an_embedding_depends_on_its_own_file_alone(
    model: Model, recording: Path, clips: Path
) -> None:
    files = [recording, clips / "speech.flac", clips / "crow.wav", clips / "burp.opus"]

    def run(order: list[Path], batch_size: int, jobs: int, **options: Any) -> dict[Path, list]:
        with ThreadPoolExecutor(jobs) as executor:
            embedder = Embedder(model, batch_size, executor)
            return {
                path: list(embedder.embed(path, options=EmbedOptions(**options))) for path in order
            }

    random = np.random.default_rng(5)
    for options in ({}, {"hop": 0.8, "window": 1.5}, {"tokens": True}):
        plain = run(files, 1, 1, **options)
        shuffled = [files[k] for k in random.permutation(len(files))]
        same = run(shuffled, 1, 3, **options)
        batched = run(shuffled[::-1], 7, 2, **options)
        for path in files:
            for one, two, three in zip(plain[path], same[path], batched[path], strict=True):
                np.testing.assert_array_equal(one.embedding, two.embedding)
                np.testing.assert_allclose(one.embedding, three.embedding, rtol=1e-5, atol=1e-5)
                assert (one.start, one.end) == (two.start, two.end) == (three.start, three.end)


# What can go wrong


def test_what_was_read_before_the_damage_is_given_first(recording: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.wav"
    data = recording.read_bytes()
    damaged.write_bytes(data[: len(data) * 6 // 10])
    embedder = Embedder(made("dscnn"))
    for options, count in ((EmbedOptions(window=1.0, hop=1.0), 5), (EmbedOptions(), 1)):
        got, error = collect(lambda take: take(embedder.embed(damaged, options=options)))  # noqa: B023
        assert error is not None
        assert error.code == "truncated"
        assert len(got) == count
        assert got[-1].end == pytest.approx(0.6 * 7.3, abs=0.01)


def test_a_file_too_short_for_the_model_is_that_files_fault(tmp_path: Path) -> None:
    path = tmp_path / "blip.wav"
    soundfile.write(path, np.full(800, 0.1), RATE)
    with pytest.raises(InputError, match="too short for tiny") as caught:
        list(Embedder(made("vit")).windows(path))
    assert caught.value.code == "short"


def test_a_window_that_the_model_cannot_take_is_the_callers_fault(recording: Path) -> None:
    with pytest.raises(UsageError, match=r"window of 0\.05 s is too short for tiny"):
        list(Embedder(made("vit")).windows(recording, 0.05))
    model = made("vit", {"name": "fbank", "mels": 32, "frames": 200})
    with pytest.raises(UsageError, match=r"window of 3 s: tiny hears the first 2\.025 s"):
        Embedder(model).check(EmbedOptions(window=3.0))
    assert len(list(Embedder(model).windows(recording, 2.0))) == 4
    model.config.window_seconds = 3.0  # a default goes as far as the model hears
    assert next(Embedder(model).windows(recording)).end == 2.025


def test_numbers_that_are_none_are_refused(recording: Path) -> None:
    model = made("vit")
    embedder = Embedder(model)
    with torch.no_grad():
        model.encoder.norm.bias.fill_(1e5)  # type: ignore[union-attr]
    with pytest.raises(InputError, match="beyond float16: --dtype float32"):
        list(embedder.embed(recording, options=EmbedOptions(dtype="float16")))
    assert next(embedder.embed(recording)).embedding.dtype == np.float32
    with torch.no_grad():
        model.encoder.norm.bias.fill_(torch.inf)  # type: ignore[union-attr]
    with pytest.raises(InputError, match="NaN or Inf") as caught:
        list(embedder.embed(recording))
    assert caught.value.code == "not-finite"


def test_unknown_options_and_encoders_without_times_say_so(recording: Path) -> None:
    with pytest.raises(UsageError, match="'median' is not one of mean, max, statistics"):
        EmbedOptions(pool="median")
    with pytest.raises(UsageError, match="float64"):
        EmbedOptions(dtype="float64")
    for name in ("window", "hop"):
        for seconds in (0.0, -1.0, float("nan"), float("inf")):
            with pytest.raises(UsageError, match=f"{name}: .* is no length of time"):
                EmbedOptions(**{name: seconds})
    model = made("dscnn")
    del model.encoder.timing  # type: ignore[operator]
    with pytest.raises(UsageError, match="'dscnn' have no times"):
        list(Embedder(model).tokens(recording))
    with pytest.raises(UsageError, match="'dscnn' have no times"):
        Embedder(model).check(EmbedOptions(tokens=True))


# The Python API and its records


def test_python_api(clips: Path) -> None:
    path = clips / "crow.wav"
    (record,) = audiossl.embed(path)
    assert isinstance(record, EmbedRecord)
    assert (record.file, record.start, record.end, record.model) == (str(path), 0, 2.6, "tagger")
    model = audiossl.load("tagger")
    np.testing.assert_allclose(
        record.embedding, by_hand(model, audio.read(path, RATE)[0]), atol=1e-5
    )
    embedder = audiossl.Embedder(model)
    assert embedder.dim == len(record.embedding)
    assert all(isinstance(place, Span) for place in embedder.tokens(path))
    (half,) = audiossl.embed(path, model, dtype="float16", pool="statistics")
    assert half.embedding.dtype == np.float16
    assert len(half.embedding) == 2 * embedder.dim
    with pytest.raises(InputError):
        next(audiossl.embed(clips / "none.wav", model))
    with pytest.raises(UsageError):
        audiossl.embed(path, pool="none")


def test_records_are_json_by_the_schema_and_to_the_bit() -> None:
    schema = json.loads((resources.files("audiossl") / "schema.json").read_text())
    random = np.random.default_rng(0)
    for dtype in ("float32", "float16"):
        vector = (random.standard_normal(500) * 10.0 ** random.integers(-6, 4, 500)).astype(dtype)
        record = EmbedRecord("caf\udce9.wav", 0.0, 1.23456789, vector, "m")
        found = json.loads(json.dumps(record.to_dict()))
        jsonschema.validate(found, schema)
        assert found["end"] == 1.234568
        assert found["file_b64"]
        np.testing.assert_array_equal(np.array(found["embedding"], dtype=dtype), vector)


# Hours


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--hop", "5"], ["--tokens", "--out", "x.npz"]], ids=str)
def test_memory_stays_flat_over_eight_hours(tmp_path: Path, options: list[str]) -> None:
    """`audiossl embed` on 8 h of sparse silence holds no more than on 10 minutes (within 5 %)."""
    peaks = [
        peak_memory(silence(tmp_path / f"{minutes}.wav", minutes), options) for minutes in (10, 480)
    ]
    assert peaks[1] < 1.05 * peaks[0]


def peak_memory(path: Path, options: list[str]) -> int:
    """Peak resident memory of `audiossl embed`, in kB."""
    command = [Path(sys.executable).parent / "audiossl", "embed", path, "--on-exists", "overwrite"]
    with subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL, cwd=path.parent) as run:
        _pid, status, usage = os.wait4(run.pid, 0)
        run.returncode = os.waitstatus_to_exitcode(status)
    assert run.returncode == 0
    return usage.ru_maxrss
