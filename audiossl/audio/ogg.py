"""Whether the pages of an Ogg file are all there (RFC 3533).

libsndfile passes over a page that is cut or whose checksum is wrong, and decodes the rest: what
follows is then heard too early, without a word.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from audiossl.audio.sources import Readable
from audiossl.errors import InputError

HEADER_BYTES = 27
MAX_PAGE_BYTES = HEADER_BYTES + 255 + 255 * 255
STEP = 1 << 20

_FIRST, _LAST = 2, 4  # flags of a page: its stream begins, ends
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def damage(file: Readable) -> InputError | None:
    """What is wrong with the pages of `file`, which is read from its start to its end."""
    file.seek(0)
    streams = ended = 0
    for page in _pages(file):
        if page is None:  # bytes that are no page: allowed behind the end
            return None if streams and ended == streams else _broken()
        if len(page) < HEADER_BYTES or len(page) < _length(page):
            return InputError("the last Ogg page is cut", code="truncated")
        if not _intact(page):
            return _broken()
        if page[5] & _FIRST and streams and ended == streams:
            return InputError(
                "chained Ogg: only the first of its recordings was decoded", code="unsupported"
            )
        streams += bool(page[5] & _FIRST)
        ended += bool(page[5] & _LAST)
    return None


def _broken() -> InputError:
    return InputError("an Ogg page is damaged, what follows it is out of time", code="corrupt")


def _pages(file: Readable) -> Iterator[bytes | None]:
    """Page by page, the last one perhaps cut; None where something else follows."""
    data, at = b"", 0
    while True:
        if len(data) - at < MAX_PAGE_BYTES:
            data, at = data[at:] + file.read(STEP), 0
        if at == len(data):
            return
        if not data.startswith(b"OggS", at):
            yield None
            return
        page = data[at : at + _length(data[at : at + HEADER_BYTES + 255])]
        yield page
        at += len(page)


def _length(page: bytes) -> int:
    """Bytes of the page that begins so; of a cut header, those of a whole one."""
    if len(page) < HEADER_BYTES:
        return HEADER_BYTES
    table = page[HEADER_BYTES : HEADER_BYTES + page[26]]
    return HEADER_BYTES + page[26] + sum(table)


def _intact(page: bytes) -> bool:
    """Compare the checksum: CRC-32 by the usual polynomial, bits in order, from 0, not inverted.

    zlib has the reversed one, so bits are reversed before and after.
    """
    bare = page[:22] + bytes(4) + page[26:]
    crc = zlib.crc32(bare.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return page[22:26].translate(_REVERSED) == crc.to_bytes(4, "big")
