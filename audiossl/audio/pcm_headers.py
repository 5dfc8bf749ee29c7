"""The headers of plain PCM: WAV, RF64, W64, AIFF, AU and CAF.

A header is read only as far as the first sample, so it may come through a pipe. What it says about
lengths is handed on as a claim; nothing is allocated by it.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from fractions import Fraction

from audiossl.audio import behind
from audiossl.audio.behind import Chunks
from audiossl.audio.formats import RawFormat
from audiossl.audio.sources import Readable
from audiossl.errors import InputError

MAX_CHUNKS = 10_000  # before the samples: a file of zeros would be a chain of empty chunks
MAX_HEADER_BYTES = 4096  # of a chunk that is read rather than passed over

# Lengths that programs write when they cannot know one: 0, and about 2 GiB or 4 GiB.
_UNKNOWN_32 = (range(1), range(0x7FFF0000, 0x80000001), range(0xFFFF0000, 0x100000000))
_UNKNOWN_64 = 1 << 62
_WRAP = 1 << 32

PCM_CONTAINERS = ("WAV", "RF64", "W64", "AIFF", "AU", "CAF")

_W64_TAIL = bytes.fromhex("f3acd3118cd100c04f8edb8a")
_WAVE_GUID_TAILS = (
    bytes.fromhex("0000 0000 1000 8000 00aa00389b71"),
    bytes.fromhex("0000 2107 d311 8644 c8c1ca000000"),  # ambisonic B-format
)


@dataclass(frozen=True)
class PcmHeader:
    """What a header says of the samples.

    raw: how they lie, None where they are compressed
    data_bytes: how many bytes are claimed, None if none are
    chunks: how chunks behind the samples look, None in a format without any
    """

    raw: RawFormat | None
    data_bytes: int | None
    chunks: Chunks | None = None


def read_header(container: str, file: Readable) -> PcmHeader:
    """Read the header; `file` then stands at the first sample. Raises InputError "corrupt"."""
    parse = {
        "WAV": _wav,
        "RF64": _wav,
        "W64": _w64,
        "AIFF": _aiff,
        "AU": _au,
        "CAF": _caf,
    }[container]
    try:
        return parse(file)
    except (struct.error, OverflowError) as error:
        raise InputError(f"the {container} header is damaged", code="corrupt") from error


def _take(file: Readable, count: int) -> bytes:
    data = file.read(count)
    if len(data) < count:
        raise InputError("the file ends within its header", code="corrupt")
    return data


def _pass(file: Readable, start: int, count: int) -> None:
    """Go to `count` bytes behind `start`, which a damaged header may put behind the end."""
    if count < 0 or (file.size is not None and start + count > file.size):
        raise InputError("the header points behind the end of the file", code="corrupt")
    file.seek(start + count)


def _no_data(container: str) -> InputError:
    return InputError(f"the {container} file has no samples' chunk", code="corrupt")


def _wav(file: Readable) -> PcmHeader:
    order = ">" if _take(file, 12)[:4] == b"RIFX" else "<"
    chunks = behind.RIFX if order == ">" else behind.WAV
    layout: RawFormat | None = None
    known, long_size = False, None
    for _ in range(MAX_CHUNKS):
        name, size = struct.unpack(f"{order}4sI", _take(file, 8))
        start = file.tell()
        if name == b"data":
            if not known:
                raise InputError("the WAV header has no format", code="corrupt")
            if long_size is not None and size == 0xFFFFFFFF:
                size = long_size if long_size < _UNKNOWN_64 else 0
            return PcmHeader(layout, _claimed(file, size, chunks), chunks)
        if name == b"fmt ":
            layout, known = _wave_format(_take(file, min(size, MAX_HEADER_BYTES)), order), True
        elif name == b"ds64":
            (long_size,) = struct.unpack("<8xQ", _take(file, 16))
        _pass(file, start, size + size % 2)
    raise _no_data("WAV")


def _claimed(file: Readable, size: int, chunks: Chunks | None) -> int | None:
    """A length as claimed; None where it says that the writer did not know.

    A file beyond 4 GiB that holds so many times 2^32 bytes more has lost the upper bits.
    """
    unknown = any(size in lengths for lengths in _UNKNOWN_32)
    if file.size is None:
        return None if unknown else size
    start = file.tell()
    wrapped = range(size + _WRAP, file.size - start + 1, _WRAP)
    for length in (*reversed(wrapped), *((size,) if unknown else ())):
        # It may be true: of a file that ends there or goes on with another chunk.
        if _ends(file, start + length, chunks):
            file.seek(start)
            return length
    file.seek(start)
    return None if unknown else size


def _ends(file: Readable, end: int, chunks: Chunks | None) -> bool:
    """Whether the samples may end here: the file does, or a chunk (rather than samples) stands."""
    assert file.size is not None
    if end == file.size:
        return True
    file.seek(end)
    head = file.read(chunks.head) if chunks else b""
    return chunks is not None and chunks.body(head, file.size - end) is not None


def _wave_format(chunk: bytes, order: str) -> RawFormat | None:
    tag, channels, rate, _, block, bits = struct.unpack(f"{order}HHIIHH", chunk[:16])
    if tag == 0xFFFE and len(chunk) >= 40:
        guid = chunk[24:40]
        (tag,) = struct.unpack(f"{order}H", guid[:2])
        if order == ">" or guid[2:] not in _WAVE_GUID_TAILS:
            return None
    kind = {1: "s", 3: "f", 6: "alaw", 7: "mulaw"}.get(tag)
    _refuse_zero(rate, channels)
    if kind is None or block % channels:
        return None
    return _layout(kind, block // channels, bits, order, rate, channels)


def _refuse_zero(rate: int, channels: int) -> None:
    if rate < 1 or channels < 1:
        raise InputError(
            f"the header says {rate} Hz and {channels} channels: damaged", code="corrupt"
        )


def _layout(
    kind: str, size: int, bits: int, order: str, rate: int, channels: int, unsigned: bool = True
) -> RawFormat | None:
    """The encoding of `bits` in `size` bytes a sample, None for what is not plain PCM."""
    suffix = "le" if order == "<" else "be"
    if kind in ("alaw", "mulaw"):
        encoding = kind if size == 1 else None
    elif kind == "f":
        encoding = f"f{8 * size}{suffix}" if size in (4, 8) and bits == 8 * size else None
    elif not 8 * size - 8 < bits <= 8 * size or size not in (1, 2, 3, 4):
        encoding = None
    else:
        one_byte = "u8" if unsigned else "s8"
        encoding = one_byte if size == 1 else f"s{8 * size}{suffix}"
    return RawFormat(rate, channels, encoding) if encoding else None


def _w64(file: Readable) -> PcmHeader:
    _take(file, 40)
    layout: RawFormat | None = None
    known = False
    for _ in range(MAX_CHUNKS):
        guid, size = struct.unpack("<16sQ", _take(file, 24))
        start = file.tell()
        body = size - 24  # the length counts its own 24 bytes
        if guid == b"data" + _W64_TAIL:
            if not known:
                raise InputError("the W64 header has no format", code="corrupt")
            unknown = body <= 0 or size >= _UNKNOWN_64
            data_bytes = _rest_or_none(file, start) if unknown else body
            return PcmHeader(layout, data_bytes, behind.W64)
        if body < 0:
            break
        if guid == b"fmt " + _W64_TAIL:
            layout, known = _wave_format(_take(file, min(body, MAX_HEADER_BYTES)), "<"), True
        _pass(file, start, body + -body % 8)
    raise _no_data("W64")


def _rest_or_none(file: Readable, start: int) -> int | None:
    """0 where a file ends at its first sample, else None: as long as it lasts."""
    return 0 if file.size == start else None


def _aiff(file: Readable) -> PcmHeader:
    compressed = _take(file, 12)[8:] == b"AIFC"
    layout: RawFormat | None = None
    frames: int | None = None
    for _ in range(MAX_CHUNKS):
        name, size = struct.unpack(">4sI", _take(file, 8))
        start = file.tell()
        if name == b"COMM":
            body = _take(file, min(size, MAX_HEADER_BYTES))
            frames, layout = _aiff_format(body, compressed)
        elif name == b"SSND":
            if frames is None:  # the format may follow the samples: libsndfile goes and looks
                return PcmHeader(None, None)
            (offset,) = struct.unpack(">I4x", _take(file, 8))
            _pass(file, file.tell(), offset)
            data_bytes = _aiff_bytes(file, layout, frames, size - 8 - offset)
            return PcmHeader(layout, data_bytes, behind.AIFF)
        _pass(file, start, size + size % 2)
    raise _no_data("AIFF")


def _aiff_bytes(file: Readable, layout: RawFormat | None, frames: int, size: int) -> int | None:
    """The chunk's length, or where it is unknown that of the frames which the format counts."""
    size = max(0, size)
    if layout is None:
        return _claimed(file, size, behind.AIFF)
    if found := _claimed(file, size, behind.AIFF):
        return found
    counted = frames * layout.frame_bytes
    return _claimed(file, counted, behind.AIFF) or _rest_or_none(file, file.tell())


def _aiff_format(chunk: bytes, compressed: bool) -> tuple[int, RawFormat | None]:
    channels, frames, bits, exponent, mantissa = struct.unpack(">HIHHQ", chunk[:18])
    rate = _extended(exponent, mantissa)
    name = chunk[18:22].lower() if compressed else b"none"
    kind, order, fixed = {
        b"none": ("s", ">", 0),
        b"twos": ("s", ">", 0),
        b"sowt": ("s", "<", 0),
        b"in24": ("s", ">", 24),
        b"in32": ("s", ">", 32),
        b"fl32": ("f", ">", 32),
        b"fl64": ("f", ">", 64),
        b"ulaw": ("mulaw", ">", 8),
        b"alaw": ("alaw", ">", 8),
    }.get(name, ("", "", 0))
    _refuse_zero(rate, channels)
    if not kind:
        return frames, None
    bits = fixed or bits
    size = -(-bits // 8)
    return frames, _layout(kind, size, bits, order, rate, channels, unsigned=False)


def _extended(exponent: int, mantissa: int) -> int:
    """An 80-bit float as a whole number of Hz."""
    power = (exponent & 0x7FFF) - 16383 - 63
    if exponent & 0x8000 or power > 0:
        return 0
    return round(mantissa * Fraction(2) ** max(power, -128))


def _au(file: Readable) -> PcmHeader:
    order = ">" if _take(file, 4) == b".snd" else "<"
    offset, size, code, rate, channels = struct.unpack(f"{order}5I", _take(file, 20))
    _refuse_zero(rate, channels)
    kind, width = {
        1: ("mulaw", 1),
        2: ("s", 1),
        3: ("s", 2),
        4: ("s", 3),
        5: ("s", 4),
        6: ("f", 4),
        7: ("f", 8),
        27: ("alaw", 1),
    }.get(code, ("", 0))
    if not kind:
        return PcmHeader(None, None)
    _pass(file, 0, max(24, offset))
    layout = _layout(kind, width, 8 * width, order, rate, channels, unsigned=False)
    return PcmHeader(layout, _claimed(file, size, None))


def _caf(file: Readable) -> PcmHeader:
    _take(file, 8)
    layout: RawFormat | None = None
    known = False
    for _ in range(MAX_CHUNKS):
        name, size = struct.unpack(">4sq", _take(file, 12))
        start = file.tell()
        if name == b"desc":
            layout, known = _caf_format(_take(file, 32)), True
        elif name == b"data":
            if not known:
                raise InputError("the CAF header has no format", code="corrupt")
            _take(file, 4)  # a count of edits
            unknown = size < 0 or size >= _UNKNOWN_64
            data_bytes = _rest_or_none(file, start + 4) if unknown else max(0, size - 4)
            return PcmHeader(layout, data_bytes, behind.CAF)
        _pass(file, start, size)
    raise _no_data("CAF")


def _caf_format(chunk: bytes) -> RawFormat | None:
    hertz, name, flags, packet, frames, channels, bits = struct.unpack(">d4sIIIII", chunk)
    if not math.isfinite(hertz) or abs(hertz) > 2**31:
        raise InputError("the CAF header's rate is damaged", code="corrupt")
    _refuse_zero(round(hertz), channels)
    kind = {b"lpcm": "f" if flags & 1 else "s", b"ulaw": "mulaw", b"alaw": "alaw"}.get(name)
    if kind is None or frames != 1 or packet % channels:
        return None
    order = "<" if flags & 2 else ">"
    return _layout(kind, packet // channels, bits, order, round(hertz), channels, unsigned=False)
