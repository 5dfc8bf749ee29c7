"""Make a folder of damaged and odd audio files, with the good ones that must not suffer from them.

`python tests/malformed.py FOLDER` writes 140 bad files and 20 good ones and prints which are
which; tests call `make(folder)`. The same seed gives the same bytes. Ten containers x twelve
mutations, and twenty specials: what lies in folders of recordings without being a recording.
"""

from __future__ import annotations

import json
import os
import random
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soundfile

RATE = 16000
SPARSE_BYTES = 4 * 2**30
FLIPPED_BYTES = 40
FLIPS = 5

CONTAINERS: dict[str, tuple[str, str]] = {
    "wav": ("WAV", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "aiff": ("AIFF", "PCM_16"),
    "au": ("AU", "PCM_16"),
    "w64": ("W64", "PCM_16"),
    "rf64": ("RF64", "PCM_16"),
    "caf": ("CAF", "PCM_16"),
}

# What stands just before the first sample, and how many bytes behind it the samples begin.
_DATA_MARKS = {
    "wav": (b"data", 8),
    "rf64": (b"data", 8),
    "w64": (b"data\xf3\xac\xd3\x11", 24),
    "aiff": (b"SSND", 16),
    "caf": (b"data", 16),
}
_HEADER_BYTES = {"au": 24, "flac": 42, "ogg": 58, "opus": 47, "mp3": 4}

# Where the rate stands, in which form; what has none there (Opus, by its standard) stays as it is.
_RATES = {
    "wav": (b"fmt ", 12, "<I"),
    "rf64": (b"fmt ", 12, "<I"),
    "w64": (b"fmt \xf3\xac\xd3\x11", 28, "<I"),
    "aiff": (b"COMM", 16, ">HQ"),
    "au": (b".snd", 16, ">I"),
    "caf": (b"desc", 12, ">d"),
    "opus": (b"OpusHead", 12, "<I"),
}


@dataclass(frozen=True)
class Case:
    """`verdict`: "good", "must_fail", or "may_pass" where a decoder may rightly find sound."""

    name: str
    verdict: str
    what: str


def make(folder: str | os.PathLike[str], seed: int = 0) -> list[Case]:
    """Fill `folder` (made if missing); 20 good and 140 bad, in order of their names."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    cases = [*_good(folder, seed), *_mutated(folder, seed), *_specials(folder)]
    return sorted(cases, key=lambda case: os.fsencode(case.name))


def sound(seed: int, rate: int = RATE, seconds: float = 1.0) -> np.ndarray:
    """(samples,) float32: a tone of its own in noise."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(rate * seconds)) / rate
    tone = np.sin(2 * np.pi * (200 + 50 * seed % 2000) * time)
    return (0.3 * tone + 0.05 * rng.standard_normal(len(time))).astype(np.float32)


def encoded(path: Path, container: str, wave: np.ndarray, rate: int = RATE) -> bytes:
    """`wave` in a container, by libsndfile; also left at `path`."""
    kind, subtype = CONTAINERS[container]
    soundfile.write(path, wave, rate, format=kind, subtype=subtype)
    return path.read_bytes()


def _good(folder: Path, seed: int) -> Iterator[Case]:
    """Ten files under their own suffix, ten under another's: content counts."""
    suffixes = list(CONTAINERS)
    for number, container in enumerate(CONTAINERS):
        for kind, suffix in (("own", container), ("wrong", suffixes[number - 1])):
            name = f"good-{container}-{kind}-suffix.{suffix}"
            encoded(folder / name, container, sound(seed + number))
            yield Case(name, "good", f"{container} called .{suffix}")


def _mutated(folder: Path, seed: int) -> Iterator[Case]:
    for number, container in enumerate(CONTAINERS):
        scratch = folder / f"scratch.{container}"
        whole = encoded(scratch, container, sound(seed + number, seconds=2.0))
        scratch.unlink()
        for mutation, verdict, data in _mutations(container, whole, seed):
            name = f"bad-{container}-{mutation}.{container}"
            (folder / name).write_bytes(data)
            yield Case(name, verdict, f"{container}: {mutation}")


def _mutations(container: str, whole: bytes, seed: int) -> Iterator[tuple[str, str, bytes]]:
    """Twelve of one file: name, verdict, bytes."""
    yield "empty", "must_fail", b""
    yield "header-only", "must_fail", whole[: _header_bytes(container, whole)]
    for percent in (25, 50, 90):
        yield f"cut-{percent}", "must_fail", whole[: len(whole) * percent // 100]
    for number in range(FLIPS):
        # Plain samples have no checksum, and a decoder of MP3 goes on with the next frame.
        yield f"flip-{number}", "may_pass", _flipped(whole, random.Random(f"{seed}{number}"))
    junk = random.Random(seed).randbytes(4000)
    yield "junk-tail", "may_pass", whole + junk
    zero_rate = "may_pass" if container in ("opus", "mp3") else "must_fail"
    yield "zero-rate", zero_rate, _without_rate(container, whole)


def _header_bytes(container: str, data: bytes) -> int:
    if container in _HEADER_BYTES:
        return _HEADER_BYTES[container]
    mark, behind = _DATA_MARKS[container]
    return data.index(mark) + behind


def _flipped(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data) - FLIPPED_BYTES)
    return data[:start] + rng.randbytes(FLIPPED_BYTES) + data[start + FLIPPED_BYTES :]


def _without_rate(container: str, data: bytes) -> bytes:
    if container == "flac":  # 20 bits of STREAMINFO
        return data[:18] + bytes([0, 0, data[20] & 0x0F]) + data[21:]
    if container == "mp3":  # the reserved rate, in the first frame
        return data[:2] + bytes([data[2] | 0x0C]) + data[3:]
    if container == "ogg":
        page = bytearray(data[:58])
        page[40:44] = bytes(4)
        return _with_checksum(page) + data[58:]
    mark, behind, form = _RATES[container]
    at = data.index(mark) + behind
    empty = bytes(struct.calcsize(form))
    changed = data[:at] + empty + data[at + len(empty) :]
    return _with_checksum(bytearray(changed[:47])) + data[47:] if container == "opus" else changed


def _with_checksum(page: bytearray) -> bytes:
    """An Ogg page with its CRC-32 (polynomial 0x04C11DB7, bit by bit)."""
    page[22:26] = bytes(4)
    crc = 0
    for byte in page:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ (0x04C11DB7 if crc & 0x80000000 else 0)) & 0xFFFFFFFF
    page[22:26] = crc.to_bytes(4, "little")
    return bytes(page)


def _specials(folder: Path) -> Iterator[Case]:
    for name, (verdict, what, build) in SPECIALS.items():
        build(folder / name)
        yield Case(name, verdict, what)


def _bytes(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


def wav(
    rate: int = RATE, channels: int = 1, samples: bytes = bytes(3200), tag: int = 1, bits: int = 16
) -> bytes:
    block = channels * bits // 8
    form = struct.pack("<HHIIHH", tag, channels, rate, rate * block & 0xFFFFFFFF, block, bits)
    body = b"WAVEfmt " + struct.pack("<I", 16) + form
    body += b"data" + struct.pack("<I", len(samples)) + samples
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _floats(value: float) -> bytes:
    wave = sound(1)
    wave[len(wave) // 2] = value
    return wav(samples=wave.tobytes(), tag=3, bits=32)


def _huge_flac(path: Path) -> None:
    data = bytearray(encoded(path, "flac", sound(3)))
    data[21] |= 0x0F
    data[22:26] = b"\xff\xff\xff\xff"  # 2^36 - 1 frames: 256 GiB of float32
    path.write_bytes(data)


def _sparse(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(SPARSE_BYTES)


def _unreadable(path: Path) -> None:
    path.write_bytes(wav())
    path.chmod(0)


def _is_root() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0


# name -> verdict, what, how to make it
SPECIALS: dict[str, tuple[str, str, Callable[[Path], object]]] = {
    "odd-link-loop.wav": ("must_fail", "a link to itself", lambda path: path.symlink_to(path.name)),
    "odd-link-nowhere.wav": (
        "must_fail",
        "a link to nothing",
        lambda path: path.symlink_to("nothing-here.wav"),
    ),
    "odd-folder.wav": ("must_fail", "a folder called x.wav", Path.mkdir),
    "odd-pipe.wav": ("must_fail", "a named pipe", os.mkfifo),
    "odd-device.wav": ("must_fail", "a device", lambda path: path.symlink_to("/dev/zero")),
    "odd-unreadable.wav": (
        "may_pass" if _is_root() else "must_fail",
        "no permission to read (root may)",
        _unreadable,
    ),
    "odd-text.wav": ("must_fail", "text", _bytes(b"take 3, 14:05, wind from the west\n" * 99)),
    "odd-page.mp3": (
        "must_fail",
        "a web page saved in place of the download",
        _bytes(b"<!DOCTYPE html><html><body>404 Not Found</body></html>\n"),
    ),
    "odd-lfs.flac": (
        "must_fail",
        "a Git LFS pointer",
        _bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n"),
    ),
    "odd-zip.ogg": ("must_fail", "an archive", _bytes(b"PK\x03\x04" + bytes(400))),
    "odd-sparse-4-gb.wav": ("must_fail", "4 GiB of nothing", _sparse),
    "odd-frames-2-36.flac": ("must_fail", "a header that asks for 256 GiB", _huge_flac),
    "odd-rate-2147483647.wav": ("must_fail", "2.1 GHz", _bytes(wav(rate=2**31 - 1))),
    "odd-rate-1.wav": ("must_fail", "1 Hz", _bytes(wav(rate=1))),
    "odd-1024-channels.wav": (
        "must_fail",
        "1,024 channels",
        _bytes(wav(channels=1024, samples=bytes(2048 * 100))),
    ),
    "odd-nan.wav": ("must_fail", "one sample is NaN", _bytes(_floats(float("nan")))),
    "odd-infinite.wav": ("must_fail", "one sample is Inf", _bytes(_floats(float("inf")))),
    "odd-no-samples.wav": ("must_fail", "a data chunk of 0 bytes", _bytes(wav(samples=b""))),
    "odd-tag-only.mp3": (
        "must_fail",
        "an ID3 tag that claims 256 MB",
        _bytes(b"ID3\x04\x00\x00\x7f\x7f\x7f\x7f" + bytes(500)),
    ),
    "odd-no-index.m4a": (
        "must_fail",
        "an MP4 without its index",
        _bytes(
            b"\x00\x00\x00\x18ftypM4A \x00\x00\x00\x00M4A mp42"
            + b"\x00\x00\x03\xe8mdat"
            + bytes(992)
        ),
    ),
}


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python tests/malformed.py FOLDER")
    for case in make(sys.argv[1]):
        sys.stdout.write(json.dumps(asdict(case)) + "\n")


if __name__ == "__main__":
    main()
