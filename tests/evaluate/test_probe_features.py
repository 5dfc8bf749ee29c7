"""Features of clips against a slow version; what is kept, and what is refused."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from probe_clips import RATE, convolutional, transformer

import audiossl
from audiossl import models
from audiossl.audio import reading as audio
from audiossl.audio.sources import unreadable
from audiossl.data import clip
from audiossl.data.rows import Row
from audiossl.errors import InputError, OutputError
from audiossl.evaluate import features
from audiossl.evaluate.features import Extractor, Features, extract
from audiossl.model import Model

pytest_plugins = ("probe_clips",)

KINDS = ("pooled", "tokens")


def slow_windows(row: Row, window: float) -> list[np.ndarray]:
    """All of a row's samples, cut by hand."""
    wave, _ = audio.read(row.path, RATE)
    wave = wave[round((row.start or 0) * RATE) : None if row.end is None else round(row.end * RATE)]
    size = round(window * RATE)
    cuts = [wave[i : i + size] for i in range(0, len(wave), size)]
    return [cut for i, cut in enumerate(cuts) if i == 0 or len(cut) >= size / 2]


def slow_pooled(model: Model, row: Row, window: float) -> np.ndarray:
    with torch.inference_mode():
        parts = [model.embed(torch.from_numpy(w)[None])[0] for w in slow_windows(row, window)]
    return torch.stack(parts).mean(0).numpy()


@pytest.fixture(scope="module")
def model() -> Model:
    return convolutional()


def assert_same(kind: str, found: Features, good: Features, clips: int) -> None:
    """The features of so many clips, to rounding (tokens are kept as float16)."""
    if kind == "pooled":
        np.testing.assert_allclose(found.pooled, good.pooled, atol=1e-5)
    else:
        assert found.tokens is not None
        assert good.tokens is not None
        for place in range(clips):
            ours, theirs = found.tokens.patches(place), good.tokens.patches(place)
            assert torch.allclose(ours, theirs, atol=4e-3)


def test_pooled_features_are_means_over_windows_of_whatever_length(
    model: Model, rows: list[Row], tmp_path: Path
) -> None:
    long = tmp_path / "long.wav"
    soundfile.write(long, np.random.default_rng(1).normal(0, 0.1, round(2.37 * 22050)), 22050)
    cuts = [*rows[:5], Row(long), Row(long, start=0.3, end=1.62), Row(rows[0].path, end=0.2)]
    found = extract(Extractor(model), cuts, "", tmp_path / "kept")
    assert found.errors == {}
    assert found.pooled is not None
    for row, vector in zip(cuts, found.pooled, strict=True):
        np.testing.assert_allclose(vector, slow_pooled(model, row, 0.5), atol=1e-4)
    wide = extract(Extractor(model, window=1.0), cuts, "", tmp_path / "kept")
    assert wide.pooled is not None
    np.testing.assert_allclose(wide.pooled[5], slow_pooled(model, Row(long), 1.0), atol=1e-4)


@pytest.mark.parametrize("suffix", ["flac", "mp3"])
def test_rows_of_a_long_file_do_not_decode_what_is_before_them(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    seconds, path = 90, tmp_path / f"long.{suffix}"
    soundfile.write(path, np.random.default_rng(1).normal(0, 0.1, seconds * RATE), RATE)
    cuts = [Row(path, start, start + 0.5) for start in range(0, seconds, 2)]
    frames, read = [], audio.AudioStream._read

    def counted(stream: audio.AudioStream) -> np.ndarray:
        frames.append(len(block := read(stream)))
        return block

    with monkeypatch.context() as patch:
        patch.setattr(audio.AudioStream, "_read", counted)
        found = extract(Extractor(model, jobs=2), cuts, "", tmp_path / "kept")
    assert sum(frames) < 2 * seconds * RATE
    assert found.pooled is not None
    for place in (0, 7, -1):
        slow = slow_pooled(model, cuts[place], 0.5)
        np.testing.assert_allclose(found.pooled[place], slow, atol=1e-4)


def test_order_jobs_and_batch_mates_change_nothing(
    model: Model, rows: list[Row], tmp_path: Path
) -> None:
    one = extract(Extractor(model), rows[:12], "", tmp_path / "1").pooled
    four = extract(Extractor(model, jobs=4), rows[:12], "", tmp_path / "4").pooled
    order = np.random.default_rng(0).permutation(12)
    mixed = extract(Extractor(model, batch_size=5), [rows[i] for i in order], "", tmp_path / "5")
    assert one is not None
    assert four is not None
    assert mixed.pooled is not None
    np.testing.assert_array_equal(one, four)
    np.testing.assert_allclose(mixed.pooled, one[order], atol=1e-5)


@pytest.mark.parametrize("class_tokens", [0, 1, 2])
def test_tokens_are_the_encoders_in_its_grid(
    rows: list[Row], tmp_path: Path, class_tokens: int
) -> None:
    model = transformer(class_tokens)
    found = extract(Extractor(model, "tokens"), rows[:6], "", tmp_path).tokens
    assert found is not None
    assert (found.class_tokens, found.dim) == (class_tokens, 24)
    for place, row in enumerate(rows[:6]):
        (number,) = found.clips[place]
        assert found.grids[number].tolist() == [2, 6]
        wave, _ = audio.read(row.path, RATE)
        with torch.inference_mode():
            expected = model.encoder(model.frontend(torch.from_numpy(wave)[None]))[0]
        assert torch.allclose(found.window(int(number)), expected, atol=4e-3)  # float16


TINY = {
    "ast": {"frames": 64},
    "audio_mae": {"frames": 64},
    "bird_mae": {"frames": 64},
    "dscnn": {"widths": [8], "strides": [2], "stem": 4},
    "passt": {"frames": 64, "stride": [16, 10]},
    "ssamba": {"frames": 64},
    "ssast": {"frames": 64},
    "vit": {"frames": 64, "class_tokens": 0},
}


@pytest.mark.parametrize("name", models.names())
def test_every_architecture_says_where_its_tokens_lie(name: str) -> None:
    """All tokens that are no class tokens are in the grid; it is as deep as the bands allow."""
    sizes = {} if name == "dscnn" else {"mel": 32, "depth": 2, "dim": 16}
    heads = {} if name in ("dscnn", "ssamba") else {"heads": 2}
    encoder = models.build(name, **sizes, **heads, **TINY[name]).eval()
    with torch.inference_mode():
        count = encoder(torch.randn(1, 32, 64)).shape[1]
    rows, columns = features.token_grid(encoder, 64, count)
    assert features.class_tokens(encoder) + rows * columns == count
    if name != "dscnn":
        assert min(rows, columns) >= 2
        assert (rows, columns) == encoder.grid(64)  # type: ignore[operator]


def test_an_encoder_without_a_grid_has_its_tokens_over_time(
    model: Model, rows: list[Row], tmp_path: Path
) -> None:
    found = extract(Extractor(model, "tokens"), rows[:2], "", tmp_path).tokens
    assert found is not None
    assert found.grids.tolist() == [[1, 12], [1, 12]]
    assert found.class_tokens == 0


def test_bad_files_are_named_and_cost_the_others_nothing(
    model: Model, rows: list[Row], tmp_path: Path
) -> None:
    whole = rows[0].path.read_bytes()
    (tmp_path / "cut.wav").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.wav").write_text("no sound")
    bad = [Row(tmp_path / "cut.wav"), Row(tmp_path / "text.wav"), Row(tmp_path / "none.wav")]
    mixed = [rows[0], *bad, rows[1], replace(rows[2], start=9.0), rows[3]]
    for kind in KINDS:
        found = extract(Extractor(model, kind, jobs=2), mixed, "", tmp_path / "kept")
        good = extract(Extractor(model, kind), [rows[i] for i in (0, 1, 3)], "", tmp_path / "kept")
        codes = {place: error.code for place, error in found.errors.items()}
        assert sorted(codes) == [1, 2, 3, 5]
        assert (codes[1], codes[3], codes[5]) == ("truncated", "missing", "empty")
        assert found.places.tolist() == [0, 4, 6]
        assert_same(kind, found, good, clips=3)


def test_a_clip_too_short_for_the_encoder_is_an_error_of_its_own(
    rows: list[Row], tmp_path: Path
) -> None:
    mixed = [rows[0], replace(rows[1], end=0.05), rows[2]]
    found = extract(Extractor(transformer(), "tokens"), mixed, "", tmp_path)
    assert {place: error.code for place, error in found.errors.items()} == {1: "short"}
    assert "vit" in found.errors[1].message
    assert found.places.tolist() == [0, 2]


def test_features_that_are_no_numbers_are_refused(rows: list[Row], tmp_path: Path) -> None:
    model = convolutional()
    with torch.no_grad():
        last = model.encoder.stages[-1][-1]  # type: ignore[union-attr, index]
        last.pointwise.norm.bias[0] = float("nan")
    found = extract(Extractor(model), rows[:2], "", tmp_path)
    assert [error.code for error in found.errors.values()] == ["not-finite", "not-finite"]


class Counting(Extractor):
    """Counts the windows that go through the model."""

    seen = 0

    def _encode(self, group):
        type(self).seen += len(group)
        return super()._encode(group)


def test_kept_features_are_taken_again_until_something_changes(
    model: Model, rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = []
    for row in rows[:4]:
        shutil.copy(row.path, tmp_path)
        copies.append(Row(tmp_path / row.path.name))
    cache = tmp_path / "deep" / "cache"

    def windows(**changes) -> int:
        Counting.seen = 0
        arguments = {"rows": copies, "digest": "a", "kind": "pooled", "window": None, **changes}
        extractor = Counting(model, arguments["kind"], arguments["window"])
        extract(extractor, arguments["rows"], arguments["digest"], cache)
        return Counting.seen

    first = windows()
    assert first == 4
    assert windows() == 0
    assert windows(digest="b") == 4
    with monkeypatch.context() as patch:
        patch.setattr(audiossl, "__version__", "99.0")
        assert windows() == 4
    assert windows() == 0
    assert windows(window=0.25) == 8
    assert windows(kind="tokens") == 4
    assert windows(rows=copies[:3]) == 3
    assert windows(rows=[*copies[:3], replace(copies[3], end=0.2)]) == 4
    os.utime(copies[0].path, (1, 1))
    assert windows() == 4
    assert windows() == 0
    assert not [path for path in cache.iterdir() if path.name.startswith(".")]


def test_errors_of_content_are_kept_with_the_features(
    model: Model, rows: list[Row], tmp_path: Path
) -> None:
    whole = rows[1].path.read_bytes()
    (tmp_path / "bad.wav").write_bytes(whole[: len(whole) // 2])
    mixed = [rows[0], Row(tmp_path / "bad.wav")]
    first = extract(Extractor(model), mixed, "a", tmp_path)
    Counting.seen = 0
    again = extract(Counting(model), mixed, "a", tmp_path)
    assert Counting.seen == 0
    assert isinstance(again.errors[1], InputError)
    assert (again.errors[1].code, again.errors[1].message) == (
        first.errors[1].code,
        first.errors[1].message,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_that_may_pass_is_not_kept(
    model: Model, rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Nothing about the file changes when it may be read again, the disk is back, ..."""
    copy = Path(shutil.copy(rows[1].path, tmp_path))
    mixed, cache = [rows[0], Row(copy), rows[2]], tmp_path / "cache"
    opened = clip.open_clip

    def refused(row: Row):
        if row.path == copy:
            raise unreadable(PermissionError(13, "Permission denied"))
        return opened(row)

    for _ in range(2):
        monkeypatch.setattr(clip, "open_clip", refused)
        found = extract(Extractor(model, kind), mixed, "a", cache)
        assert {place: error.code for place, error in found.errors.items()} == {1: "unreadable"}
        assert not list(cache.iterdir())
    good = extract(Extractor(model, kind), [rows[0], rows[2]], "", tmp_path / "other")
    assert_same(kind, found, good, clips=2)
    monkeypatch.setattr(clip, "open_clip", opened)
    assert extract(Extractor(model, kind), mixed, "a", cache).errors == {}
    assert len(list(cache.iterdir())) == 1


def test_a_file_that_comes_or_goes_is_read_again(
    model: Model, rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, cache = tmp_path / "copy.wav", tmp_path / "cache"
    mixed = [rows[0], Row(copy)]
    assert extract(Extractor(model), mixed, "a", cache).errors[1].code == "missing"
    assert len(list(cache.iterdir())) == 1  # it is known that it was not there
    shutil.copy(rows[1].path, copy)
    opened = clip.open_clip

    def unplugged(row: Row):
        if row.path == copy:
            copy.rename(tmp_path / "away.wav")
        return opened(row)

    monkeypatch.setattr(clip, "open_clip", unplugged)
    assert extract(Extractor(model), mixed, "a", cache).errors[1].code == "missing"
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(clip, "open_clip", opened)
    (tmp_path / "away.wav").rename(copy)
    assert extract(Extractor(model), mixed, "a", cache).errors == {}


def test_a_decoder_that_is_installed_is_asked(
    model: Model, rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = set()
    for version in ("15.0", "16.0"):
        monkeypatch.setattr(features.metadata, "version", lambda _name, found=version: found)
        keys.add(features._key(Extractor(model), rows, "a"))

    def missing(name: str) -> str:
        raise features.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(features.metadata, "version", missing)
    keys.add(features._key(Extractor(model), rows, "a"))
    assert len(keys) == 3


def test_damaged_features_and_places_that_cannot_be_written_say_so(
    model: Model, rows: list[Row], tmp_path: Path
) -> None:
    extract(Extractor(model), rows[:2], "a", tmp_path)
    (place,) = tmp_path.iterdir()
    (place / features.POOLED).write_bytes(b"\x93NUMPY rubbish")
    with pytest.raises(OutputError, match="remove this folder"):
        extract(Extractor(model), rows[:2], "a", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot keep features"):
        extract(Extractor(model), rows[:2], "a", tmp_path / "file" / "cache")
