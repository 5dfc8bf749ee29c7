"""Tagger against a slow hand-written version: read all, cut windows, run one by one, pool."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import audiossl
from audiossl.audio import reading as audio
from audiossl.errors import InputError, UsageError
from audiossl.hub.config import ModelConfig
from audiossl.inference.tagging import Tagger, TagOptions
from audiossl.model import Model

LABELS = ["Speech", "Dog", "Rain", "Guitar", "Siren"]


@pytest.fixture(scope="module")
def model() -> Model:
    """Random weights, drawn wide so that scores differ between windows."""
    torch.manual_seed(3)
    config = ModelConfig(
        name="tiny",
        task="tag",
        architecture={"name": "dscnn", "widths": [8, 16], "strides": [2, 2], "stem": 4},
        frontend={"preset": "yamnet"},
        head={"name": "linear", "labels": LABELS, "activation": "sigmoid"},
        window_seconds=2.0,
    )
    model = Model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5)
    return model


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """7.3 s at 22.05 kHz whose content changes all the time."""
    random = np.random.default_rng(0)
    time = np.arange(int(7.3 * 22050)) / 22050
    wave = 0.3 * np.sin(2 * np.pi * (200 + 300 * time) * time)
    wave += 0.2 * random.standard_normal(len(time)) * (np.sin(time) > 0)
    path = tmp_path / "recording.wav"
    soundfile.write(path, wave, 22050, subtype="FLOAT")
    return path


def slow_scores(model: Model, path: Path, window: float, hop: float) -> dict[float, np.ndarray]:
    """start -> scores, one window at a time; the last one ends with the file."""
    wave, rate = audio.read(path, model.rate)
    size, step = round(window * rate), round(hop * rate)
    starts = [0]
    while starts[-1] + size < len(wave):
        starts.append(starts[-1] + step)
    starts[-1] = max(0, min(starts[-1], len(wave) - size))
    found = {}
    for start in starts:
        piece = torch.from_numpy(wave[start : start + size])[None]
        with torch.inference_mode():
            found[start / rate] = model(piece).sigmoid()[0].numpy()
    return found


@pytest.mark.parametrize(("window", "hop"), [(2.0, 2.0), (2.0, 0.7), (1.5, 0.5), (20.0, 20.0)])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_spans_are_the_model_on_each_window(
    model: Model, recording: Path, window: float, hop: float, batch_size: int
) -> None:
    expected = slow_scores(model, recording, window, hop)
    got = list(Tagger(model, batch_size).spans(recording, window, hop))
    assert [span.start for span in got] == pytest.approx(list(expected), abs=1 / model.rate)
    for span, scores in zip(got, expected.values(), strict=True):
        np.testing.assert_allclose(span.values, scores, atol=1e-5)
    assert got[-1].end == pytest.approx(7.3, abs=1e-4)


@pytest.mark.parametrize("pool", ["max", "mean"])
def test_a_file_is_pooled_over_its_windows(model: Model, recording: Path, pool: str) -> None:
    scores = np.stack(list(slow_scores(model, recording, 2.0, 2.0).values()))
    expected = scores.max(0) if pool == "max" else scores.mean(0)
    options = TagOptions(pool=pool, threshold=0, top_k=len(LABELS))
    (record,) = Tagger(model).tag(recording, options=options)
    assert (record.start, round(record.end, 4)) == (0.0, 7.3)
    for label in record.labels:
        assert label.score == pytest.approx(expected[LABELS.index(label.label)], abs=1e-5)
    order = [LABELS.index(label.label) for label in record.labels]
    assert order == np.argsort(-expected, kind="stable").tolist()


def test_threads_change_nothing(model: Model, recording: Path) -> None:
    alone = list(Tagger(model, 2).spans(recording, 1.0, 0.3))
    with ThreadPoolExecutor(3) as executor:
        together = list(Tagger(model, 2, executor).spans(recording, 1.0, 0.3))
    assert len(alone) == len(together)
    for one, other in zip(alone, together, strict=True):
        assert (one.start, one.end) == (other.start, other.end)
        np.testing.assert_array_equal(one.values, other.values)


def test_options_shape_the_record(model: Model, recording: Path) -> None:
    tagger = Tagger(model)
    (full,) = tagger.tag(recording, options=TagOptions(threshold=0, top_k=5))
    best = full.labels[0]
    (top,) = tagger.tag(recording, options=TagOptions(threshold=0, top_k=2))
    assert top.labels == full.labels[:2]
    (strict,) = tagger.tag(recording, options=TagOptions(threshold=1.0))
    assert strict.labels == ()
    assert strict.best == best
    chosen = tagger.find_labels(["rain", "Animal"])
    assert [LABELS[index] for index in chosen] == ["Dog", "Rain"]
    (some,) = tagger.tag(recording, options=TagOptions(threshold=0, labels=chosen))
    assert {label.label for label in some.labels} == {"Dog", "Rain"}
    with pytest.raises(UsageError, match="Guitar"):
        tagger.find_labels(["Gutar"])


def test_what_was_read_before_the_damage_is_given_first(
    model: Model, recording: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged.wav"
    data = recording.read_bytes()
    damaged.write_bytes(data[: len(data) * 6 // 10])
    spans, error = collect(lambda take: take(Tagger(model).spans(damaged, 1.0)))
    whole = list(Tagger(model).spans(recording, 1.0))
    assert error is not None
    assert error.code == "truncated"
    assert len(spans) == 5
    for span, expected in zip(spans[:4], whole, strict=False):
        np.testing.assert_allclose(span.values, expected.values, atol=1e-6)
    records, error = collect(lambda take: take(Tagger(model).tag(damaged)))
    assert error is not None
    assert len(records) == 1
    assert records[0].end == pytest.approx(0.6 * 7.3, abs=0.01)


def collect(run: Callable) -> tuple[list, InputError | None]:
    """What an iterator gave before it failed, and the failure."""
    taken: list = []

    def take(items: object) -> None:
        for item in items:  # type: ignore[attr-defined]
            taken.append(item)

    try:
        run(take)
    except InputError as error:
        return taken, error
    return taken, None


def test_the_tap_hears_every_sample_once(model: Model, recording: Path) -> None:
    heard: list[np.ndarray] = []
    list(Tagger(model).spans(recording, 1.0, 0.25, tap=heard.append))
    wave, _rate = audio.read(recording, model.rate)
    np.testing.assert_array_equal(np.concatenate(heard), wave)


def test_a_model_without_labels_says_so(model: Model) -> None:
    config = ModelConfig(
        name="encoder", architecture=model.config.architecture, frontend=model.config.frontend
    )
    with pytest.raises(UsageError, match="no labels"):
        Tagger(Model(config))


def test_python_api(recording: Path) -> None:
    records = audiossl.tag(recording, hop=2.0, window=2.0, top_k=3, threshold=0.0)
    assert [record.start for record in records][:3] == [0.0, 2.0, 4.0]
    assert all(len(record.labels) == 3 for record in records)
    assert records[0].file == str(recording)
    dogs = audiossl.tag(recording, labels=["Dog"], threshold=0.0)
    assert [label.label for label in dogs[0].labels] == ["Dog"]
    with pytest.raises(InputError):
        audiossl.tag(recording.parent / "none.wav")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"pool": "median"}, "pool: 'median' is not one of max, mean"),
        ({"top_k": 0}, "top_k: 0 labels"),
        ({"top_k": -1}, "top_k: -1 labels"),
        ({"threshold": 1.5}, "threshold: 1.5 is not between 0 and 1"),
        ({"threshold": -0.1}, "threshold: -0.1"),
        ({"threshold": float("nan")}, "threshold: nan"),
        ({"window": 0.0}, r"window: 0\.0 s is no length"),
        ({"hop": -1.0}, r"hop: -1\.0 s is no length"),
        ({"hop": float("inf")}, "hop: inf s is no length"),
        ({"batch_size": 0}, "batch_size: 0 windows"),
        ({"labels": "Dgo"}, "unknown label 'Dgo'.*Dog"),
        ({"nan": "skip"}, "nan='skip': error or zero"),
    ],
)
def test_values_that_make_no_sense_are_refused(
    model: Model, recording: Path, options: dict, says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        audiossl.tag(recording, model, **options)


def test_an_option_that_is_none_is_told_by_the_name_of_the_function(recording: Path) -> None:
    with pytest.raises(TypeError, match=r"^tag\(\) got an unexpected .* 'treshold'"):
        audiossl.tag(recording, treshold=0.5)  # type: ignore[call-arg]


def test_a_label_may_be_given_alone(model: Model, recording: Path) -> None:
    (alone,) = audiossl.tag(recording, model, labels="Dog", threshold=0)
    (listed,) = audiossl.tag(recording, model, labels=["Dog"], threshold=0)
    assert alone == listed
    assert [label.label for label in alone.labels] == ["Dog"]


def test_python_reads_sounds_as_the_command_does(model: Model, tmp_path: Path) -> None:
    """Not-a-number samples, no header, a length to refuse."""
    wave = np.sin(np.arange(2 * model.rate, dtype=np.float32))
    holed = np.where(np.arange(len(wave)) == 100, np.nan, wave).astype(np.float32)
    path, raw = tmp_path / "holed.wav", tmp_path / "sound.raw"
    soundfile.write(path, holed, model.rate, subtype="FLOAT")
    raw.write_bytes(np.nan_to_num(holed).tobytes())
    with pytest.raises(InputError, match="not a finite number"):
        audiossl.tag(path, model)
    zeroed = audiossl.tag(path, model, nan="zero", threshold=0)
    layout = audiossl.RawFormat(model.rate, encoding="f32le")
    headless = audiossl.tag(raw, model, raw=layout, threshold=0, batch_size=1)
    assert headless[0].labels == zeroed[0].labels
    with pytest.raises(InputError, match="longer than the 1 s"):
        audiossl.tag(path, model, nan="zero", limits=audiossl.Limits(max_seconds=1))


def test_python_chooses_what_computes(recording: Path) -> None:
    with pytest.raises(UsageError, match="backend: 'jax' is not one of auto, torch, onnx"):
        audiossl.tag(recording, backend="jax")


@pytest.mark.slow
def test_memory_stays_flat_over_eight_hours(tmp_path: Path) -> None:
    """`audiossl tag` on 8 h of sparse silence holds no more than on 10 minutes (within 5 %)."""
    peaks = [peak_memory(silence(tmp_path / f"{minutes}.wav", minutes)) for minutes in (10, 480)]
    assert peaks[1] < 1.05 * peaks[0]


def silence(path: Path, minutes: int) -> Path:
    """A wav of zeros that takes no room on the disk: 8 kHz, 8 bits."""
    size = minutes * 60 * 8000
    header = b"RIFF" + (36 + size).to_bytes(4, "little") + b"WAVEfmt " + bytes([16, 0, 0, 0, 1, 0])
    header += bytes([1, 0]) + (8000).to_bytes(4, "little") * 2 + bytes([1, 0, 8, 0])
    with path.open("wb") as file:
        file.write(header + b"data" + size.to_bytes(4, "little"))
        file.truncate(44 + size)
    return path


def peak_memory(path: Path) -> int:
    """Peak resident memory of `audiossl tag --hop`, in kB."""
    command = Path(sys.executable).parent / "audiossl"
    with subprocess.Popen([command, "tag", path, "--hop", "5"], stdout=subprocess.DEVNULL) as run:
        _pid, status, usage = os.wait4(run.pid, 0)
        run.returncode = os.waitstatus_to_exitcode(status)
    assert run.returncode == 0
    return usage.ru_maxrss
