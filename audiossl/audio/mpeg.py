"""Whether the last frame of an MPEG audio file is whole (ISO 11172-3, 2.4.2.3; 13818-3).

A file without a Xing header does not say how long it is: that it was cut shows only in its last
frame, which is shorter than its own header says. A cut between two frames cannot be seen.
"""

from __future__ import annotations

import struct

from audiossl.audio.containers import HEAD_BYTES, behind_id3
from audiossl.audio.sources import Readable
from audiossl.errors import InputError

TAIL_BYTES = 16_384  # of a file's end: a frame has 5,760 bytes at most
SURE = 3  # frames in a row that are no accident of other bytes

_FIRST = {  # kbit/s by layer, from index 1 on: MPEG-1
    1: range(32, 449, 32),
    2: (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    3: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
}
_SECOND = {  # MPEG-2 and 2.5
    1: (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    2: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    3: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}


def cut(file: Readable, size: int) -> InputError | None:
    """The error of a file of `size` bytes whose last frame is cut; None where nothing shows that.

    What follows the frames, such as a tag, is taken for a whole file's end.
    """
    file.seek(max(0, size - TAIL_BYTES))
    tail = bytearray()
    while len(tail) < TAIL_BYTES and (more := file.read(TAIL_BYTES - len(tail))):
        tail += more
    for start in range(len(tail) - 4):
        frames, end = _chain(tail, start)
        if frames >= SURE:
            return (
                InputError("the last frame is cut", code="truncated") if end > len(tail) else None
            )
    return None


def _chain(data: bytearray, place: int) -> tuple[int, int]:
    """How many frames follow each other from `place` on, and where the last of them ends."""
    frames = 0
    while length := frame_bytes(data[place : place + 4]):
        frames, place = frames + 1, place + length
    return frames, place


def frame_bytes(header: bytes | bytearray) -> int:
    """Bytes of the frame with these 4 bytes as its header; 0 where they are none."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return 0
    version, layer = header[1] >> 3 & 3, 4 - (header[1] >> 1 & 3)
    bitrate, rate, padding = header[2] >> 4, header[2] >> 2 & 3, header[2] >> 1 & 1
    if version == 1 or layer == 4 or bitrate in (0, 15) or rate == 3:
        return 0
    bits = 1000 * (_FIRST if version == 3 else _SECOND)[layer][bitrate - 1]
    hertz = _RATES[version][rate]
    if layer == 1:
        return 4 * (12 * bits // hertz + padding)
    samples = 576 if layer == 3 and version != 3 else 1152
    return samples // 8 * bits // hertz + padding


def mp3_frames(file: Readable) -> int | None:
    """Frames of MPEG audio that a Xing or Info header counts; None without one. `file` is rewound.

    libsndfile guesses the length of an MP3 without it from the first frames, and stops there.
    """
    head = file.read(HEAD_BYTES)
    if head[:3] == b"ID3" and len(head) >= 10:
        head = behind_id3(file, head)
    file.seek(0)
    if len(head) < 4:
        return None
    mono, first_version = head[3] >> 6 == 3, head[1] >> 3 & 3 == 3
    side = (17 if mono else 32) if first_version else (9 if mono else 17)
    at = 4 + side + (0 if head[1] & 1 else 2)  # a checksum follows the header of a guarded frame
    if head[at : at + 4] not in (b"Xing", b"Info") or len(head) < at + 12:
        return None
    flags, frames = struct.unpack(">II", head[at + 4 : at + 12])
    return frames if flags & 1 and frames else None
