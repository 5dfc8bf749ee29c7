"""audio.py: every format in and out, from files and pipes; resampling; threads and memory."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
from malformed import CONTAINERS, sound, wav
from sources import every_container, piped

from audiossl.audio import reading as audio
from audiossl.audio import writing
from audiossl.errors import InputError, UsageError

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return every_container(tmp_path_factory.mktemp("files"))


def reference(path: Path) -> np.ndarray:
    """What soundfile's own one-shot read gives, as mono."""
    return soundfile.read(path, dtype="float32", always_2d=True)[0].mean(axis=1)


def run(code: str, *args: object, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        input=stdin,
        capture_output=True,
        timeout=120,
        check=False,
    )


# --- formats


@pytest.mark.parametrize("name", CONTAINERS)
def test_reads_what_soundfile_reads(files: dict[str, Path], name: str) -> None:
    wave, rate = audio.read(files[name])
    assert (rate, wave.dtype, wave.ndim) == (16000, np.float32, 1)
    np.testing.assert_allclose(wave, reference(files[name]), atol=1e-6)


@pytest.mark.parametrize("name", CONTAINERS)
def test_info_says_what_the_header_says(files: dict[str, Path], name: str) -> None:
    info = audio.info(files[name])
    assert (info.format, info.subtype) == CONTAINERS[name]
    assert (info.rate, info.channels, info.frames, info.seconds) == (16000, 2, 48000, 3.0)


@pytest.mark.parametrize("name", CONTAINERS)
def test_content_tells_the_format_not_the_name(
    files: dict[str, Path], name: str, tmp_path: Path
) -> None:
    other = tmp_path / "clip.wav" if name != "wav" else tmp_path / "clip.mp3"
    shutil.copy(files[name], other)
    np.testing.assert_array_equal(audio.read(other)[0], audio.read(files[name])[0])


@pytest.mark.parametrize("name", CONTAINERS)
def test_pipes_and_objects_give_the_same_samples(files: dict[str, Path], name: str) -> None:
    expected, _ = audio.read(files[name], 22050)
    data = files[name].read_bytes()
    with piped(data) as path:
        np.testing.assert_array_equal(audio.read(path, 22050)[0], expected)
    np.testing.assert_array_equal(audio.read(io.BytesIO(data), 22050)[0], expected)
    behind = io.BytesIO(b"something else" + data)
    behind.seek(14)
    np.testing.assert_array_equal(audio.read(behind, 22050)[0], expected)
    with open(files[name], "rb") as file:
        np.testing.assert_array_equal(audio.read(file, 22050)[0], expected)
        assert not file.closed


@pytest.mark.parametrize("name", ["wav", "flac", "ogg", "mp3", "aiff"])
def test_standard_input(files: dict[str, Path], name: str) -> None:
    code = (
        "import sys; from audiossl.audio import reading as audio;"
        "wave, rate = audio.read(sys.argv[1], 8000);"
        "sys.stdout.buffer.write(wave.tobytes())"
    )
    expected = audio.read(files[name], 8000)[0].tobytes()
    for source in ("-", "/dev/stdin"):
        result = run(code, source, stdin=files[name].read_bytes())
        assert (result.stderr, result.stdout) == (b"", expected)
    with open(files[name], "rb") as file:  # audiossl tag - < clip.wav
        result = subprocess.run([sys.executable, "-c", code, "-"], stdin=file, capture_output=True)
    assert result.stdout == expected


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_process_substitution(files: dict[str, Path]) -> None:
    code = (
        "import sys; from audiossl.audio import reading as audio;"
        "print(len(audio.read(sys.argv[1])[0]))"
    )
    script = 'exec "$0" -c "$1" <(cat "$2")'
    result = subprocess.run(
        ["bash", "-c", script, sys.executable, code, files["flac"]], capture_output=True, text=True
    )
    assert (result.stdout, result.stderr) == ("48000\n", "")


@pytest.mark.parametrize(
    ("suffix", "subtype", "tolerance"),
    [
        (".wav", None, 2e-7),
        (".wav", "FLOAT", 0.0),
        (".wav", "PCM_16", 2e-5),
        (".flac", None, 2e-7),
        (".aiff", None, 2e-7),
        (".au", None, 2e-7),
        (".caf", None, 2e-7),
        (".w64", None, 2e-7),
        (".rf64", None, 2e-7),
        (".ogg", None, 0.2),
        (".opus", None, 0.2),
        (".mp3", None, 0.2),
    ],
)
def test_written_and_read_again(
    tmp_path: Path, suffix: str, subtype: str | None, tolerance: float
) -> None:
    wave = sound(3, rate=48000)
    writing.write(tmp_path / f"x{suffix}", wave, 48000, subtype)
    back, rate = audio.read(tmp_path / f"x{suffix}")
    assert (rate, back.shape) == (48000, wave.shape)
    assert np.sqrt(np.mean((back - wave) ** 2)) <= tolerance
    assert [path.name for path in tmp_path.iterdir()] == [f"x{suffix}"]


def test_write_stereo_and_to_standard_output() -> None:
    code = (
        "import numpy as np; from audiossl.audio import reading as audio;"
        "audio.write('-', np.array([[0.5, -0.5], [0.25, 0.75]], np.float32), 8000)"
    )
    result = run(code)
    samples, rate = soundfile.read(io.BytesIO(result.stdout))
    assert rate == 8000
    np.testing.assert_allclose(samples, [[0.5, -0.5], [0.25, 0.75]], atol=1e-6)


def test_write_says_what_it_cannot(tmp_path: Path) -> None:
    wave = sound(1)
    with pytest.raises(UsageError, match=r"cannot write \.m4a: one of \.wav"):
        writing.write(tmp_path / "x.m4a", wave, 16000)
    with pytest.raises(UsageError, match="no encoding PCM_99"):
        writing.write(tmp_path / "x.wav", wave, 16000, "PCM_99")
    with pytest.raises(UsageError, match="OPUS cannot hold 44100 Hz"):
        writing.write(tmp_path / "x.opus", wave, 44100)
    assert not list(tmp_path.iterdir())


# --- what ffmpeg sends through a pipe, where it cannot go back to write a length


@needs_ffmpeg
@pytest.mark.parametrize(
    "arguments",
    [
        ["-f", "wav"],
        ["-f", "wav", "-rf64", "always"],
        ["-f", "wav", "-c:a", "pcm_f32le"],
        ["-f", "w64"],
        ["-f", "aiff"],
        ["-f", "au"],
        ["-f", "caf"],
        ["-f", "flac"],
        ["-f", "ogg", "-c:a", "flac"],
        ["-f", "wav", "-c:a", "adpcm_ms"],
    ],
    ids=" ".join,
)
def test_streams_of_unknown_length(
    files: dict[str, Path], arguments: list[str], tmp_path: Path
) -> None:
    command = ["ffmpeg", "-v", "error", "-i", files["wav"], *arguments, "-"]
    data = subprocess.run(command, capture_output=True, check=True).stdout
    expected = reference(files["wav"])
    tolerance = 0.2 if "adpcm_ms" in arguments else 1e-6
    (tmp_path / "captured").write_bytes(data)
    with piped(data) as path:
        for source in (path, tmp_path / "captured"):
            wave, _ = audio.read(source)
            assert abs(len(wave) - len(expected)) < (2000 if "adpcm_ms" in arguments else 1)
            np.testing.assert_allclose(wave[: len(expected)], expected, atol=tolerance)


@needs_ffmpeg
def test_mp3_without_a_length_is_read_to_its_end(files: dict[str, Path], tmp_path: Path) -> None:
    """libsndfile takes its first frames for typical and would stop at about half of it."""
    path = tmp_path / "vbr.mp3"
    wave = np.concatenate([np.tile(sound(1), 1), np.zeros(5 * 16000, np.float32)])
    soundfile.write(tmp_path / "x.wav", wave, 16000)
    command = ["ffmpeg", "-v", "error", "-i", tmp_path / "x.wav", "-q:a", "2", "-write_xing", "0"]
    subprocess.run([*command, path], check=True)
    assert len(wave) <= len(audio.read(path)[0]) <= len(wave) + 3 * 1152
    assert audio.info(path).frames is None


def test_growing_pipe_is_followed_live() -> None:
    """Samples are given as they come, before the writer has finished."""
    reader, writer = os.pipe()
    header = wav(samples=b"")[:40] + b"\xff\xff\xff\xff"
    os.write(writer, header + b"\x00\x20" * 4000)
    with audio.stream(f"/dev/fd/{reader}") as stream:
        blocks = iter(stream)
        seen = 0
        for total, value in ((4000, 0.25), (5600, 0.5)):
            while seen < total:
                block = next(blocks)
                seen += len(block)
                assert set(block) == {value}
            os.write(writer, b"\x00\x40" * 1600)
        os.close(writer)
        assert (sum(len(block) for block in blocks), seen) == (1600, 5600)
        assert stream.seconds == 0.45
    os.close(reader)


# --- mono, resampling, blocks


def test_mono_is_the_mean_of_the_channels(tmp_path: Path) -> None:
    for channels in (1, 2, 3, 8):
        wave = np.random.default_rng(0).uniform(-1, 1, (500, channels)).astype(np.float32)
        soundfile.write(tmp_path / "x.wav", wave, 16000, subtype="FLOAT")
        mono, _ = audio.read(tmp_path / "x.wav")
        np.testing.assert_allclose(mono, [sum(frame) / channels for frame in wave], atol=1e-6)


@pytest.mark.parametrize("source_rate", [8000, 11025, 16000, 44100, 48000, 96000])
@pytest.mark.parametrize("rate", [16000, 22050, 32000])
def test_streamed_resampling_is_one_shot_resampling(
    tmp_path: Path, source_rate: int, rate: int
) -> None:
    wave = sound(5, rate=source_rate, seconds=2.3)
    soundfile.write(tmp_path / "x.wav", wave, source_rate, subtype="FLOAT")
    expected = wave if rate == source_rate else soxr.resample(wave, source_rate, rate, "HQ")
    for block_seconds in (0.01, 0.37, 10.0):
        with audio.stream(tmp_path / "x.wav", rate, block_seconds=block_seconds) as stream:
            blocks = list(stream)
        assert stream.rate == rate
        joined = np.concatenate(blocks)
        assert len(joined) == int(len(wave) * rate / source_rate + 0.5)
        np.testing.assert_allclose(joined, expected, atol=1e-6)


@pytest.mark.parametrize("frames", [1, 2, 3, 40, 441, 44099, 44100, 44101])
def test_length_is_exact(tmp_path: Path, frames: int) -> None:
    soundfile.write(tmp_path / "x.wav", sound(2, 44100)[:1].repeat(frames), 44100)
    for rate in (16000, 44100, 48000):
        exact = int(frames * rate / 44100 + 0.5)
        if exact:
            assert len(audio.read(tmp_path / "x.wav", rate)[0]) == exact
        else:
            with pytest.raises(InputError, match="shorter than a sample at 16000 Hz"):
                audio.read(tmp_path / "x.wav", rate)


def test_blocks_hold_no_more_than_asked(files: dict[str, Path]) -> None:
    for name in CONTAINERS:
        with audio.stream(files[name], block_seconds=0.5) as stream:
            lengths = [len(block) for block in stream]
        assert max(lengths) == 8000
        assert sum(lengths) == 48000
        assert stream.seconds == 3.0


def test_bad_arguments(files: dict[str, Path]) -> None:
    for options in ({"rate": 0}, {"block_seconds": 0}, {"nan": "ignore"}):
        arguments: dict[str, Any] = options
        with pytest.raises(UsageError):
            audio.stream(files["wav"], **arguments)
    with pytest.raises(UsageError, match="mode 'rb'"):
        audio.read(io.StringIO("text"))  # type: ignore[arg-type]


# --- threads, silence, memory


def test_threads_decode_the_same(files: dict[str, Path]) -> None:
    expected = {name: audio.read(path, 22050)[0] for name, path in files.items()}
    with ThreadPoolExecutor(8) as pool:
        jobs = [(name, pool.submit(audio.read, files[name], 22050)) for name in list(files) * 8]
        for name, job in jobs:
            np.testing.assert_array_equal(job.result()[0], expected[name])


SILENT = """
import sys, threading
from audiossl.audio import reading as audio
def decode():
    for _ in range(20):
        audio.read(sys.argv[1])
threads = [threading.Thread(target=decode) for _ in range(3)]
for thread in threads: thread.start()
for number in range(3000): print(number, file=sys.stderr)
for thread in threads: thread.join()
"""


def test_libmpg123_is_silent_and_nobody_else(files: dict[str, Path]) -> None:
    lines = run(SILENT, files["mp3"]).stderr.splitlines()
    assert lines == [str(number).encode() for number in range(3000)]


MEMORY = """
import resource, sys
from audiossl.audio import reading as audio
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
early = 0
with audio.stream(sys.argv[1], 16000) as stream:
    for window in audio.windows(stream, stream.rate, 5.0, 2.5):
        if not early and window.end > 120: early = peak()
        last = window.end
print(early, peak(), last)
"""


def grows(source: str, stdin: int | None = None) -> tuple[float, float]:
    """Peak memory at the end by that after two minutes; seconds decoded."""
    result = subprocess.run(
        [sys.executable, "-c", MEMORY, source], stdin=stdin, capture_output=True, check=True
    )
    early, end, seconds = map(float, result.stdout.split())
    return end / early, seconds


def sparse_wav(path: Path, rate: int, channels: int, seconds: int) -> None:
    """A WAV whose samples take no room on the disk; of unknown length beyond 4 GiB."""
    size = rate * channels * 2 * seconds
    header = bytearray(wav(rate=rate, channels=channels, samples=b""))
    header[40:44] = min(size, 0xFFFFFFFF).to_bytes(4, "little")
    path.write_bytes(header)
    with open(path, "r+b") as file:
        file.truncate(44 + size)


def test_memory_is_flat_over_a_file_and_a_pipe(tmp_path: Path) -> None:
    sparse_wav(tmp_path / "long.wav", 48000, 2, 900)
    growth, seconds = grows(str(tmp_path / "long.wav"))
    assert (growth < 1.05, seconds) == (True, 900.0)
    with subprocess.Popen(["cat", tmp_path / "long.wav"], stdout=subprocess.PIPE) as cat:
        assert cat.stdout is not None
        growth, seconds = grows("-", stdin=cat.stdout.fileno())
        cat.stdout.close()
    assert (growth < 1.05, seconds) == (True, 900.0)


def test_memory_is_flat_over_a_compressed_pipe(tmp_path: Path) -> None:
    """Fifteen minutes of silence in 8 channels: 160 kB that stand for 460 MB."""
    with soundfile.SoundFile(tmp_path / "x.flac", "w", 16000, 8) as file:
        for _ in range(15):
            file.write(np.zeros((60 * 16000, 8), np.int16))
    with subprocess.Popen(["cat", tmp_path / "x.flac"], stdout=subprocess.PIPE) as cat:
        assert cat.stdout is not None
        growth, seconds = grows("-", stdin=cat.stdout.fileno())
        cat.stdout.close()
    assert (growth < 1.05, seconds) == (True, 900.0)


@pytest.mark.slow
def test_eight_hours_in_flat_memory(tmp_path: Path) -> None:
    """5.5 GB: more than the length in a WAV header can say."""
    sparse_wav(tmp_path / "night.wav", 48000, 2, 8 * 3600)
    growth, seconds = grows(str(tmp_path / "night.wav"))
    assert (growth < 1.05, seconds) == (True, 8 * 3600.0)


def test_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'librosa', 'torchaudio'}"
    code = f"import sys, audiossl.audio.reading; print({heavy} & {{*sys.modules}})"
    assert run(code).stdout == b"set()\n"
