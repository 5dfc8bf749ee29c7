"""The malformed corpus and fuzzed headers through audio.py: sound or an error of ours, no third."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import malformed
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from audiossl.audio import reading as audio
from audiossl.audio.reading import Limits
from audiossl.errors import InputError

CODES = {
    "missing",
    "unreadable",
    "unsupported",
    "corrupt",
    "truncated",
    "empty",
    "not-finite",
    "limits",
    "not-a-file",
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[malformed.Case]]:
    folder = tmp_path_factory.mktemp("malformed")
    return folder, malformed.make(folder)


def outcome(path: audio.Source) -> str:
    """The error's code, or "sound"; samples are finite whatever happens."""
    failure = None
    try:
        with audio.stream(path, 16000, limits=Limits(max_seconds=600)) as stream:
            for block in stream:
                assert np.isfinite(block).all()
    except InputError as error:
        failure = error
    if failure is None:
        return "sound"
    assert str(failure).splitlines() == [str(failure)]
    return failure.code


def test_the_corpus_is_as_large_as_it_says(corpus: tuple[Path, list[malformed.Case]]) -> None:
    folder, cases = corpus
    verdicts = Counter(case.verdict for case in cases)
    assert (verdicts["good"], verdicts["must_fail"] + verdicts["may_pass"]) == (20, 140)
    assert sorted(case.name for case in cases) == sorted(path.name for path in folder.iterdir())


def test_the_same_seed_makes_the_same_files(tmp_path: Path) -> None:
    """Run as a script, which also prints which is which."""
    command = [sys.executable, malformed.__file__, tmp_path / "a"]
    printed = subprocess.run(command, capture_output=True, check=True).stdout.splitlines()
    cases = malformed.make(tmp_path / "b")
    assert [json.loads(line)["name"] for line in printed] == [case.name for case in cases]
    for case in cases:
        one, other = tmp_path / "a" / case.name, tmp_path / "b" / case.name
        # Ogg's serial numbers are drawn by libsndfile; a sparse file is long to compare.
        if case.name.startswith("bad") and "ogg" not in case.name and "opus" not in case.name:
            assert one.read_bytes() == other.read_bytes()


def test_every_case_fails_or_passes_as_it_should(
    corpus: tuple[Path, list[malformed.Case]],
) -> None:
    folder, cases = corpus
    outcomes = {case: outcome(folder / case.name) for case in cases}
    wrong = {
        case.name: found
        for case, found in outcomes.items()
        if (case.verdict == "must_fail" and found == "sound")
        or (case.verdict == "good" and found != "sound")
        or found not in CODES | {"sound"}
    }
    assert not wrong


def test_every_case_through_a_pipe(corpus: tuple[Path, list[malformed.Case]]) -> None:
    """Bytes that come once only are judged as those of a file.

    But for FLAC: a decoder that reads ahead cannot tell damage from a cut near the end.
    """
    folder, cases = corpus
    for case in cases:
        path = folder / case.name
        if not path.is_file() or path.stat().st_size > 2**30:
            continue

        class Once(io.BytesIO):
            def seekable(self) -> bool:
                return False

        found, expected = outcome(Once(path.read_bytes())), outcome(path)
        either = {"corrupt", "truncated"} if "flac" in case.name else set()
        assert found == expected or {found, expected} == either, case


def test_good_files_are_whole(corpus: tuple[Path, list[malformed.Case]]) -> None:
    folder, cases = corpus
    for case in cases:
        if case.verdict == "good":
            assert len(audio.read(folder / case.name)[0]) == 16000


# --- headers of every container with bytes changed, dropped and put in


def _seeds(folder: Path) -> list[bytes]:
    wave = malformed.sound(1, seconds=0.3)
    return [malformed.encoded(folder / f"seed.{name}", name, wave) for name in malformed.CONTAINERS]


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    return _seeds(tmp_path_factory.mktemp("seeds"))


edits = st.lists(
    st.tuples(
        st.integers(0, 200),  # where
        st.integers(0, 8),  # bytes that go
        st.binary(max_size=8)  # bytes that come
        | st.sampled_from([b"\xff" * 4, b"\0" * 4, b"\xff" * 8, b"\x7f\xff\xff\xff", b"data"]),
    ),
    max_size=4,
)
fuzzing = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)


def _survives(seeds: list[bytes], number: int, changes: list[tuple[int, int, bytes]]) -> None:
    data = seeds[number]
    for start, gone, come in changes:
        data = data[:start] + come + data[start + gone :]
    outcome(io.BytesIO(data))


@settings(fuzzing, max_examples=300)
@given(number=st.integers(0, 9), changes=edits)
@example(number=0, changes=[(40, 4, b"\xff\xff\xff\xff")])
def test_fuzzed_headers(
    seeds: list[bytes], number: int, changes: list[tuple[int, int, bytes]]
) -> None:
    _survives(seeds, number, changes)


@pytest.mark.slow
@settings(fuzzing, max_examples=4000)
@given(number=st.integers(0, 9), changes=edits)
def test_fuzzed_headers_at_length(
    seeds: list[bytes], number: int, changes: list[tuple[int, int, bytes]]
) -> None:
    _survives(seeds, number, changes)


MAGICS = [
    b"RIFF\0\0\0\0WAVE",
    b"fLaC",
    b"OggS",
    b"ID3\4\0\0",
    b"FORM\0\0\0\0AIFF",
    b".snd",
    b"caff",
]


@settings(fuzzing, max_examples=150)
@given(magic=st.sampled_from([*MAGICS, b"\xff\xfb\x90", b""]), body=st.binary(max_size=400))
def test_noise_behind_a_magic_number(magic: bytes, body: bytes) -> None:
    outcome(io.BytesIO(magic + body))


@settings(fuzzing, max_examples=50)
@given(st.binary(max_size=600), st.integers(1, 70), st.sampled_from(["s24be", "f64le", "alaw"]))
def test_any_bytes_are_raw_audio(data: bytes, channels: int, encoding: str) -> None:
    raw = audio.RawFormat(8000, channels, encoding)
    frames = len(data) // raw.frame_bytes
    if frames == 0 or channels > 64:
        with pytest.raises(InputError):
            audio.read(io.BytesIO(data), raw=raw, nan="zero")
    else:
        assert len(audio.read(io.BytesIO(data), raw=raw, nan="zero")[0]) == frames
