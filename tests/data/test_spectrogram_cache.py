"""Kept spectrograms: those of the waves to float16's rounding, made once, never trusted blindly."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from audiossl import frontend as frontends
from audiossl.audio import reading as audio
from audiossl.data.clip import fill, read_clip
from audiossl.data.clips import Clips, Windows
from audiossl.data.draws import SKIPPED, Draw, Stream
from audiossl.data.loader import train_loader
from audiossl.data.rows import Member, Row
from audiossl.data.spectrogram_cache import SpectrogramCache
from audiossl.errors import InputError, OutputError, RecipeError

RATE, CROP = 8000, 4000  # Hz, samples
LENGTHS = (1500, 4000, 4050, 9000, 20011, 100_003)  # samples; the last is read in two blocks

# One of each family; what stands apart from them is tied to the ends of the wave.
FREE: dict[str, dict[str, Any]] = {
    "kaldi": {"name": "fbank", "mels": 24, "mean": -5.0, "scale": 4.0},
    "ast": {"name": "fbank", "mels": 24, "remove_mean": True, "frames": 64, "mean": -4.0},
    "beats": {"name": "fbank", "mels": 24, "gain": 32768.0, "use_energy": True},
    "bird_mae": {"name": "fbank", "mels": 24, "samples": 3900, "frames": 60, "pad": "min"},
    "yamnet": {"name": "logmel", "mels": 24, "n_fft": 256, "hop": 80, "edges": "none",
               "window": 200, "power": 1.0, "log": "add", "floor": 1e-3},
    "emphasis": {"name": "logmel", "mels": 24, "n_fft": 256, "hop": 100, "edges": "none",
                 "preemphasis": 0.97, "log": "db", "clip_mean": True, "int16": True},
}  # fmt: skip
TIED: dict[str, dict[str, Any]] = {
    "edges": {"name": "logmel", "mels": 24, "n_fft": 256, "hop": 80, "edges": "reflect"},
    "snip_edges": {"name": "fbank", "mels": 24, "snip_edges": False},
    "top_db": {"name": "logmel", "mels": 24, "n_fft": 256, "hop": 80, "edges": "none",
               "log": "db", "top_db": 30.0},
    "remove_mean": {"name": "fbank", "mels": 24, "remove_dc": False, "remove_mean": True},
    "samples": {"name": "fbank", "mels": 24, "samples": 6000, "fill": "repeat"},
    "window": {"name": "fbank", "mels": 24, "window": 4001},
}  # fmt: skip


def frontend(kind: dict[str, Any]) -> Any:
    return frontends.build({"rate": RATE, **kind})


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    folder, rng = tmp_path_factory.mktemp("sounds"), np.random.default_rng(0)
    for number, length in enumerate(LENGTHS):
        wave = (
            0.05 + 0.3 * np.sin(np.arange(length) ** 1.3 / 50) + 0.05 * rng.standard_normal(length)
        )
        soundfile.write(folder / f"{number}.wav", wave, RATE)
    rows = [Row(folder / f"{number}.wav", number=number) for number in range(len(LENGTHS))]
    return [*rows, replace(rows[4], start=0.5, end=1.75, number=len(rows))]


@pytest.fixture
def kept(tmp_path: Path) -> Any:
    """kept(kind, ...): features of crops of CROP samples in the test's folder."""

    def made(kind: dict[str, Any], short: str = "repeat", samples: int = CROP) -> SpectrogramCache:
        return SpectrogramCache(frontend(kind).config(), samples, short, str(tmp_path / "kept"))

    return made


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was decoded."""
    calls: list[Any] = []
    real = audio.stream

    def spy(source: Any, *args: Any, **options: Any) -> Any:
        if args:  # the rate; without one only the header is looked at
            calls.append(source)
        return real(source, *args, **options)

    monkeypatch.setattr(audio, "stream", spy)
    return calls


def assert_rounded(spec: np.ndarray, wave: np.ndarray, front: Any) -> None:
    """spec: what was kept of `wave`, before normalisation to 11 bits of what float32 gives."""
    expected = front(torch.from_numpy(wave)[None])[0].numpy()
    largest = float(front.log_mel(front.clip.prepared(torch.from_numpy(wave)[None])).abs().max())
    step = 2.0 ** np.floor(np.log2(largest)) * 2**-10  # of float16 there
    assert spec.dtype == np.float32
    assert spec.shape == expected.shape
    np.testing.assert_allclose(spec, expected, rtol=0, atol=1.1 * step / front.clip.scale)


def clips(rows: list[Row], kept: SpectrogramCache | None, **options: Any) -> Clips:
    options = {"short": kept.short if kept else "repeat", **options}
    return Clips(rows, [], RATE, CROP / RATE, features=kept, **options)


@pytest.mark.parametrize("short", ["repeat", "zero"])
@pytest.mark.parametrize("kind", FREE.values(), ids=FREE)
def test_a_crop_is_the_wave_s_that_begins_at_its_frame(
    sounds: list[Row], kept: Any, kind: dict[str, Any], short: str
) -> None:
    """Twice: as it is made, and as it is read by another process."""
    front = frontend(kind)
    hop = front.hop
    waves = [read_clip(row, RATE) for row in sounds]
    plain = clips(sounds, None, short=short)
    plain.cache = dict(enumerate(waves))
    for items in (clips(sounds, kept(kind, short)) for _ in range(2)):
        starts = set()
        for position, index in enumerate([*range(7), 3, 4, 5, 6]):
            draw, wave = Draw(0, position, index), waves[index]
            share = draw.generator(items.seed).random()
            start = int(share * (len(wave) - CROP + 1)) if len(wave) > CROP else 0
            drawn = fill(wave[start : start + CROP], CROP, short)
            np.testing.assert_array_equal(plain[draw]["wave"].numpy(), drawn)
            start -= start % hop
            crop = fill(wave[start : start + CROP], CROP, short)
            assert_rounded(items[draw]["spec"].numpy(), crop, front)
            assert items[draw]["index"] == plain[draw]["index"] == index
            starts.add(start)
        assert len(starts) > 5


@pytest.mark.parametrize("kind", TIED.values(), ids=TIED)
def test_of_a_frontend_tied_to_the_ends_a_clip_has_one_crop(
    sounds: list[Row], kept: Any, kind: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    key, made = request.node.callspec.id, kept(kind)
    for row in sounds[:3]:
        wave = fill(read_clip(row, RATE)[:CROP], CROP, "repeat")
        assert_rounded(made.crop(row, 0.9), wave, made.frontend)
    made.check(sounds[:3])
    match = rf"recipe data\.cache: features, but with model\.frontend\.{key} .*3\.wav.*0\.5 now"
    with pytest.raises(RecipeError, match=match):
        made.check(sounds)
    with pytest.raises(RecipeError, match=match):
        made.crop(sounds[3], 0.0)


def test_frames_of_a_tied_frontend_are_indeed_not_those_of_the_clip() -> None:
    """And of the others they are: what `tied` says, measured."""
    wave = 0.3 + torch.randn(1, 6000, generator=torch.Generator().manual_seed(0)) * torch.linspace(
        0.01, 1, 6000
    )
    for key, kind in (*FREE.items(), *TIED.items()):
        if key in ("samples", "window"):
            continue  # what `Features` asks besides
        front = frontend({**kind, "samples": None})
        assert front.cut_dependent == (key if key in TIED else None)
        part = wave[:, 2 * front.hop : 2 * front.hop + CROP]
        own, whole = (front.log_mel(front.clip.prepared(piece)) for piece in (part, wave))
        whole = whole[..., 2 : 2 + own.shape[-1]]
        assert torch.allclose(own, whole, atol=2e-3) == (key not in TIED), key


@pytest.mark.parametrize("kind", [*FREE.values(), *TIED.values()], ids=[*FREE, *TIED])
def test_windows_are_those_of_the_waves(
    sounds: list[Row], kept: Any, kind: dict[str, Any], tmp_path: Path
) -> None:
    broken = Row(tmp_path / "broken.wav", number=9)
    broken.path.write_bytes(sounds[4].path.read_bytes()[:9000])
    rows, front = [*sounds[:5], broken, sounds[6]], frontend(kind)
    for short in ("repeat", "zero"):
        made = Windows(rows, [], RATE, CROP / RATE, short, kept(kind, short))
        waves = Windows(rows, [], RATE, CROP / RATE, short)
        assert len(made) == len(waves) > 12
        for number in range(len(made)):
            spec, wave = made[number], waves[number]
            assert_rounded(spec.pop("spec").numpy(), wave.pop("wave").numpy(), front)
            assert spec.pop(SKIPPED) == wave.pop(SKIPPED)
            assert spec.pop("index") == wave.pop("index")
            assert torch.equal(spec.pop("target"), wave.pop("target"))
            assert spec == wave == {}


def test_nothing_is_decoded_twice(sounds: list[Row], kept: Any, decoded: list[Any]) -> None:
    made = kept(FREE["ast"])
    items, windows = clips(sounds, made), Windows(sounds, [], RATE, CROP / RATE, "repeat", made)
    first = [items[Draw(0, i, i)]["spec"] for i in range(7)]
    assert len(decoded) == 7
    for epoch in (0, 1):
        assert torch.equal(items[Draw(0, 4, 4)]["spec"], first[4])
        assert [len(items[Draw(epoch, i, i)]["spec"]) for i in range(7)] == [24] * 7
    assert len(decoded) == 7
    seen = [windows[i]["spec"] for i in range(len(windows))]
    assert len(decoded) == 14
    # Another process, another run: all is there. A file needs only to be there.
    made = kept(FREE["ast"])
    again = clips(sounds, made)
    assert torch.equal(again[Draw(0, 4, 4)]["spec"], first[4])
    windows = Windows(sounds, [], RATE, CROP / RATE, "repeat", made)
    assert all(torch.equal(windows[i]["spec"], spec) for i, spec in enumerate(seen))
    assert len(decoded) == 14
    assert not [name for name in open_files() if name.endswith(".features")]


def open_files() -> Iterator[str]:
    """By name, where the system tells (Linux)."""
    with contextlib.suppress(FileNotFoundError):
        for number in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):  # the listing's own is closed
                yield os.readlink(f"/proc/self/fd/{number}")


def files(made: SpectrogramCache) -> list[Path]:
    return sorted(made.folder.glob("*/*.features"))


def test_a_sound_that_has_changed_is_made_anew(
    sounds: list[Row], kept: Any, decoded: list[Any], tmp_path: Path
) -> None:
    made, path = kept(FREE["ast"]), tmp_path / "x.wav"
    path.write_bytes(sounds[3].path.read_bytes())
    first = made.crop(Row(path), 0.5)
    path.write_bytes(sounds[4].path.read_bytes())
    other = made.crop(Row(path), 0.5)
    assert not np.array_equal(first, other)
    np.testing.assert_array_equal(other, made.crop(sounds[4], 0.5))
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    count = len(decoded)
    np.testing.assert_array_equal(made.crop(Row(path), 0.5), other)
    assert len(decoded) == count + 1
    # A part of the file, or a file within it, is another clip.
    made.crop(Row(path, start=0.25), 0.5)
    made.crop(Row(path, end=2.0), 0.5)
    size = path.stat().st_size
    tar = Row(path, member=Member("a.wav", 0, size))
    np.testing.assert_array_equal(made.crop(tar, 0.5), other)
    assert len(decoded) == count + 4
    made.crop(replace(tar, labels=("a",), number=4), 0.1)
    assert len(decoded) == count + 4
    path.unlink()
    with pytest.raises(InputError, match="cannot be read: No such file"):
        made.crop(tar, 0.1)


@pytest.mark.parametrize("damage", ["cut", "empty", "grown", "a frame", "the footer", "noise"])
def test_what_is_damaged_is_made_anew(
    sounds: list[Row], kept: Any, decoded: list[Any], damage: str
) -> None:
    for row in (sounds[0], sounds[4]):
        made = kept(FREE["kaldi"])
        expected = made.crop(row, 0.7)
        (path,) = files(made)
        content = path.read_bytes()
        changed = bytearray(content)
        changed[-3 if damage == "the footer" else 100] ^= 1
        worse = {"cut": content[:-7], "empty": b"", "grown": content + b"x" * 48}
        path.write_bytes(
            worse.get(damage, b"\xff" * len(content) if damage == "noise" else changed)
        )
        again = made if damage in worse else kept(FREE["kaldi"])
        count = len(decoded)
        np.testing.assert_array_equal(again.crop(row, 0.7), expected)
        assert len(decoded) == count + 1
        assert path.read_bytes() == content
        path.unlink()


def test_each_frontend_rate_and_filling_has_its_own(
    sounds: list[Row], kept: Any, decoded: list[Any]
) -> None:
    one = FREE["kaldi"]
    for number, kind in enumerate(({}, {"fmin": 30.0}, {"mean": 1.0}, {"rate": 16000}), 1):
        made = kept({**one, **kind})
        made.crop(sounds[4], 0.5)
        assert len(decoded) == len(files(made)) == number
    # All frames of a long clip serve crops of any length, those of a short one hang on the crop.
    kept(one, "zero", 3000).crop(sounds[4], 0.5)
    assert len(decoded) == 4
    for number, (short, samples) in enumerate([("repeat", CROP), ("zero", CROP), ("zero", 3000)]):
        kept(one, short, samples).crop(sounds[0], 0.5)
        assert len(decoded) == 5 + number
    # A longer crop may be the clip's only one, although all its frames are there.
    kept(one, "zero", 30_000).crop(sounds[4], 0.5)
    assert len(decoded) == 8
    preset = frontends.build({"preset": "ast"})
    named = SpectrogramCache({"preset": "ast"}, 16000, "zero", str(made.folder))
    plain = SpectrogramCache({**preset.config(), "preset": None}, 16000, "zero", str(made.folder))
    assert named.facts == plain.facts


def test_a_file_that_cannot_be_read_is_replaced_as_ever(
    sounds: list[Row], kept: Any, tmp_path: Path
) -> None:
    broken, gone = Row(tmp_path / "broken.wav", number=1), Row(tmp_path / "gone.wav", number=2)
    broken.path.write_bytes(sounds[4].path.read_bytes()[:9000])
    made = kept(FREE["ast"])
    items = clips([broken, gone, sounds[3]], made)
    item = items[Draw(0, 0, 0)]
    assert item["index"] == sounds[3].number
    assert [path for path, _ in item[SKIPPED]] == [broken.name, gone.name]
    assert len(files(made)) == 1
    assert not list(made.folder.rglob(".audiossl-*"))


def test_a_folder_that_cannot_be_written_is_told(sounds: list[Row], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    made = SpectrogramCache(frontend(FREE["ast"]).config(), CROP, "zero", str(tmp_path / "file"))
    with pytest.raises(OutputError, match=r"cannot keep features in .*file/..: Not a directory"):
        made.crop(sounds[0], 0.0)


def test_the_default_folder_is_in_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AUDIOSSL_CACHE", str(tmp_path))
    made = SpectrogramCache(frontend(FREE["ast"]).config(), CROP, "zero")
    assert made.folder == tmp_path / "features"


def test_two_workers_give_the_batches_of_one(sounds: list[Row], kept: Any) -> None:
    """And fill the folder together."""

    def take(workers: int) -> list[dict[str, Any]]:
        items = clips(sounds, kept(FREE["ast"]))
        return list(islice(train_loader(items, Stream(7, 3, 0), workers), 6))

    shared = take(2)
    assert len(files(kept(FREE["ast"]))) == 7
    for one, other in zip(shared, take(0), strict=True):
        assert torch.equal(one["spec"], other["spec"])
        assert torch.equal(one["index"], other["index"])
