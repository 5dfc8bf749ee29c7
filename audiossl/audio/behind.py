"""What lies behind the samples that a header claims: nothing, chunks, or more sound.

A recorder that loses power, a writer that sets the length early and a length beyond 32 bits all
leave a claim that is too small. Here the bytes behind it are looked at, also those of a pipe.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from audiossl.audio.sources import Readable
from audiossl.errors import InputError

# A file that lacks or has no more than this is whole: some writers count their header as samples.
MISCOUNT_BYTES = 64
STEP = 1 << 16

_TAGS = (b"TAG", b"ID3", b"APETAGEX", b"LYRICSBEGIN", b"3DI")  # written behind any format
_SOUNDS = (b"RIFF", b"RIFX", b"RF64", b"BW64", b"FORM", b"riff", b"data", b"SSND", b"caff")
# Chunks that are known by their name, even where the file ends within them.
_NAMES = (
    *(b"LIST", b"list", b"bext", b"iXML", b"id3 ", b"ID3 ", b"cue ", b"smpl", b"fact", b"PEAK"),
    *(b"JUNK", b"junk", b"PAD ", b"guan", b"wamd", b"_PMX", b"axml", b"chna", b"levl", b"afsp"),
    *(b"NAME", b"AUTH", b"ANNO", b"COMT", b"MARK", b"INST", b"APPL", b"AESD", b"COMM", b"(c) "),
    *(b"info", b"free", b"strg", b"mark", b"regn", b"pakt", b"uuid", b"peak", b"edct"),
)


@dataclass(frozen=True)
class Chunks:
    """How the chunks of a format look.

    form: the chunk's name and its length, for `struct`
    align: chunks begin at multiples of so many bytes
    own: bytes of the chunk's header that its length counts
    """

    form: str
    align: int
    own: int = 0

    @property
    def head(self) -> int:
        """Bytes of a chunk's header."""
        return struct.calcsize(self.form)

    def body(self, data: bytes, room: int | None) -> int | None:
        """Bytes of the chunk whose header `data` begins with, without that; None if it is none.

        room: bytes from the start of `data` to the end of the file, None for a pipe
        """
        if len(data) < self.head:
            return None
        name, size = struct.unpack(self.form, data[: self.head])
        name, body = name[:4], size - self.own
        if name in (*_NAMES, *_SOUNDS):
            return max(0, body)
        letters = name.isascii() and name.replace(b" ", b"x").isalnum()
        fits = body >= 0 and (room is None or self.head + body <= room)
        return body if letters and fits else None


WAV = Chunks("<4sI", 2)
RIFX = Chunks(">4sI", 2)
AIFF = RIFX
W64 = Chunks("<16sQ", 8, own=24)
CAF = Chunks(">4sq", 1)


@dataclass(frozen=True)
class Behind:
    """zeros, rest: bytes that go on with the samples: so many of 0, then these, then the file's.

    unread: another sound that follows, in words
    """

    zeros: int = 0
    rest: bytes = b""
    unread: InputError | None = None


def after(file: Readable, chunks: Chunks | None, lead: int = 0, pad: int = 0) -> Behind:
    """Look at what `file`, which stands at the end of the claimed samples, goes on with.

    chunks: how the format's chunks look, None in a format without any
    lead: bytes of an incomplete frame that come first
    pad: bytes that may be between the samples and a chunk
    """
    data = _more(file, b"")
    if chunks:
        for start in (lead, lead + pad):
            if chunks.body(data[start:], _room(file, data[start:])) is not None:
                return Behind(unread=_walk(file, chunks, data[start:]))
    if data.startswith(_SOUNDS, lead):
        return Behind(unread=_another())
    if data.startswith(_TAGS):
        return Behind()
    zeros = 0
    while data and not any(data):
        zeros += len(data)
        data = file.read(STEP)
    return Behind(zeros, data) if data and zeros + len(data) > MISCOUNT_BYTES else Behind()


def _walk(file: Readable, chunks: Chunks, data: bytes) -> InputError | None:
    """Pass over chunks; another sound among them is an error."""
    while (body := chunks.body(data, _room(file, data))) is not None:
        if data.startswith(_SOUNDS):
            return _another()
        size = chunks.head + body
        data = _more(file, _passed(file, data, size))
        if chunks.body(data, _room(file, data)) is None:
            data = data[-size % chunks.align :]
    return None


def _another() -> InputError:
    return InputError(
        "another sound follows in the same file: only the first was read", code="unsupported"
    )


def _passed(file: Readable, data: bytes, size: int) -> bytes:
    """What of `data` is left when `size` bytes have been passed over, in `file` too."""
    left = size - len(data)
    if left <= 0:
        return data[size:]
    if file.size is not None:
        file.seek(min(file.tell() + left, file.size))
        return b""
    while left > 0 and (gone := file.read(min(left, STEP))):
        left -= len(gone)
    return b""


def _more(file: Readable, data: bytes) -> bytes:
    """`data` and what follows, enough to judge by; less at the end."""
    while len(data) <= 2 * MISCOUNT_BYTES and (more := file.read(STEP)):
        data += more
    return data


def _room(file: Readable, data: bytes) -> int | None:
    return None if file.size is None else file.size - file.tell() + len(data)
