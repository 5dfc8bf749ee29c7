"""What audio.py does not believe: headers, damaged data, special files, failing sources."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from malformed import CONTAINERS, sound, wav
from sources import every_container, failure, piped

from audiossl.audio import reading as audio
from audiossl.audio.reading import Limits, RawFormat
from audiossl.errors import InputError

LOSSY = ("ogg", "opus", "mp3")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return every_container(tmp_path_factory.mktemp("files"))


# --- what is not believed


def test_limits_name_the_option() -> None:
    fast, wide = wav(rate=2_000_000), wav(channels=100, samples=bytes(2000))
    long = wav(samples=bytes(2 * 16000 * 3))
    assert failure(io.BytesIO(fast)) == (
        "limits",
        "the header says 2000000 Hz; beyond 1536000 Hz needs --max-rate",
    )
    assert "--max-channels" in failure(io.BytesIO(wide))[1]
    assert failure(io.BytesIO(wav(rate=50)))[0] == "limits"
    code, message = failure(io.BytesIO(long), limits=Limits(max_seconds=2))
    assert (code, "--max-duration" in message) == ("limits", True)
    limits = Limits(min_rate=1, max_rate=10**7, max_channels=200, max_seconds=32)
    for data in (fast, wide, long, wav(rate=50)):
        assert len(audio.read(io.BytesIO(data), limits=limits)[0])


def test_duration_is_limited_where_no_header_claims_it() -> None:
    raw = RawFormat(1000, encoding="u8")
    with audio.stream(io.BytesIO(bytes(20000)), limits=Limits(max_seconds=5), raw=raw) as stream:
        blocks = iter(stream)
        with pytest.raises(InputError, match="--max-duration"):
            list(blocks)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_numbers_that_are_no_sound(bad: float, tmp_path: Path) -> None:
    wave = np.stack([sound(1), sound(2)], axis=1)
    wave[9000, 1] = bad
    soundfile.write(tmp_path / "x.wav", wave, 16000, subtype="FLOAT")
    with audio.stream(tmp_path / "x.wav") as stream:
        given = []
        with pytest.raises(InputError, match=r"at 0\.562 s is not a finite number: `--nan zero`"):
            given.extend(stream)
    np.testing.assert_allclose(np.concatenate(given), wave[:9000].mean(axis=1), atol=1e-7)
    wave[9000, 1] = 0
    repaired, _ = audio.read(tmp_path / "x.wav", nan="zero")
    np.testing.assert_allclose(repaired, wave.mean(axis=1), atol=1e-7)


@pytest.mark.parametrize("name", CONTAINERS)
@pytest.mark.parametrize("share", [0.4, 0.75])
def test_cut_files_give_what_is_good_and_then_say_so(
    files: dict[str, Path], name: str, share: float, tmp_path: Path
) -> None:
    data = files[name].read_bytes()
    (tmp_path / "cut").write_bytes(data[: int(len(data) * share)])
    whole, _ = audio.read(files[name])
    with audio.stream(tmp_path / "cut", block_seconds=0.1) as stream:
        given = []
        with pytest.raises(InputError) as caught:
            given.extend(stream)
    assert caught.value.code == "truncated"
    good = np.concatenate(given or [np.zeros(0)])
    assert len(good) < 48000
    if name not in ("ogg", "opus"):  # their last second may all lie in one page
        assert f"header says 48000 frames, {len(good)} decoded" in str(caught.value)
        assert len(good) > share * 48000 - 20000
    if name not in LOSSY:
        np.testing.assert_allclose(good, whole[: len(good)], atol=1e-6)


def test_cut_streams_are_noticed_in_pipes(files: dict[str, Path]) -> None:
    for name in CONTAINERS:
        data = files[name].read_bytes()
        with piped(data[: len(data) * 3 // 4]) as path:
            assert failure(path)[0] == "truncated"


def test_damage_does_not_cost_what_came_before(files: dict[str, Path], tmp_path: Path) -> None:
    data = bytearray(files["flac"].read_bytes())
    middle = len(data) // 2
    data[middle : middle + 40] = bytes(range(40))
    (tmp_path / "x.flac").write_bytes(data)
    pieces = audio.windows(audio.stream(tmp_path / "x.flac"), 16000, 0.5)
    given = []
    with pytest.raises(InputError, match="header says 48000 frames"):
        given.extend(pieces)
    assert given[-1].end > 1.0
    whole, _ = audio.read(files["flac"])
    for window in given:
        start = round(window.start * 16000)
        np.testing.assert_array_equal(window.wave, whole[start : start + len(window.wave)])


def test_chained_ogg_is_not_silently_halved(files: dict[str, Path]) -> None:
    data = files["ogg"].read_bytes()
    assert failure(io.BytesIO(data + data))[1].startswith("chained Ogg")


def test_unclosed_recording_is_read_to_its_end() -> None:
    """A recorder that lost its power leaves lengths of 0."""
    data = bytearray(wav(samples=b"\x00\x20" * 1000))
    data[4:8] = data[40:44] = bytes(4)
    np.testing.assert_array_equal(audio.read(io.BytesIO(data))[0], np.full(1000, 0.25))


def test_chunks_behind_the_samples_are_no_samples() -> None:
    tail = b"LIST" + (26).to_bytes(4, "little") + b"INFOISFT" + bytes(18)
    for container in ("wav", "rf64", "w64", "aiff", "caf"):
        stored = io.BytesIO()
        kind, subtype = CONTAINERS[container]
        soundfile.write(stored, sound(1), 16000, format=kind, subtype=subtype)
        assert len(audio.read(io.BytesIO(stored.getvalue() + tail))[0]) == 16000
        with piped(stored.getvalue() + tail) as path:
            assert len(audio.read(path)[0]) == 16000


# --- sources


def test_missing_and_special_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "loop.wav").symlink_to("loop.wav")
    (tmp_path / "empty.wav").touch()
    codes = {
        tmp_path / "none.wav": "missing",
        "a\0b": "missing",
        tmp_path: "not-a-file",
        tmp_path / "pipe.wav": "not-a-file",
        "/dev/zero": "not-a-file",
        tmp_path / "loop.wav": "unreadable",
        "/dev/fd/999": "unreadable",
        tmp_path / "empty.wav": "empty",
        tmp_path / "empty.wav" / "x": "unreadable",
    }
    assert {path: failure(path)[0] for path in codes} == codes


def test_read_errors_of_the_system_are_input_errors() -> None:
    assert failure("/proc/self/mem")[0] == "unreadable"


def test_names_that_are_not_text(files: dict[str, Path], tmp_path: Path) -> None:
    for name in (b"caf\xe9.wav", b"new\nline.wav", b"-dash.wav", b" .wav"):
        path = tmp_path / os.fsdecode(name)
        shutil.copy(files["wav"], path)
        assert len(audio.read(str(path))[0]) == 48000


def test_objects_that_fail(files: dict[str, Path]) -> None:
    """An error while libsndfile reads through Python is raised, not printed."""

    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 5000:
                raise OSError(5, "Input/output error")
            return super().read(min(size or 0, 4096))

        read1 = read

    for name in ("flac", "ogg", "mp3", "wav"):
        assert failure(Failing(files[name].read_bytes())) == (
            "unreadable",
            "cannot be read: Input/output error",
        )
