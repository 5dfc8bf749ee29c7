"""What is in a file, told by its content and never by its name."""

from __future__ import annotations

from audiossl.audio.formats import FFMPEG_PIPE
from audiossl.audio.sources import Readable
from audiossl.errors import InputError

HEAD_BYTES = 4096
_W64_RIFF = bytes.fromhex("72696666 2e91 cf11 a5d6 28db04c10000")

_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"fLaC", "FLAC"),
    (28, b"\x7fFLAC", "OGG-FLAC"),
    (28, b"Speex   ", "OGG-SPEEX"),
    (28, b"\x80theora", "OGG-VIDEO"),
    (28, b"fishead\0", "OGG-VIDEO"),
    (0, b"OggS", "OGG"),
    (0, b"caff", "CAF"),
    (0, b".snd", "AU"),
    (0, b"dns.", "AU"),
    (0, _W64_RIFF, "W64"),
    (0, b"NIST_1A\n", "NIST"),
    (0, b"Creative Voice File", "VOC"),
    (0, b"PVF1", "PVF"),
    (4, b"ftyp", "MP4"),
    (4, b"moov", "MP4"),
    (0, b"\x1aE\xdf\xa3", "MATROSKA"),
    (0, b"0&\xb2u\x8ef\xcf\x11", "ASF"),
    (0, b"FLV\x01", "FLV"),
    (0, b"\x00\x00\x01\xba", "MPEG-PS"),
    (0, b"#!AMR", "AMR"),
    (0, b"\x0bw", "AC3"),
    (0, b"wvpk", "WAVPACK"),
    (0, b"MAC ", "APE"),
    (0, b"TTA1", "TTA"),
)

_NOT_AUDIO: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself: `git lfs pull` gets it"),
    (b"\x89PNG", "a PNG image, not audio"),
    (b"\xff\xd8\xff", "a JPEG image, not audio"),
    (b"GIF8", "a GIF image, not audio"),
    (b"%PDF", "a PDF document, not audio"),
    (b"PK\x03\x04", "a zip archive, not audio"),
    (b"\x1f\x8b", "a gzip archive, not audio"),
    (b"\x7fELF", "a program, not audio"),
    (b"\x93NUMPY", "a NumPy array, not audio"),
)


def sniff(file: Readable) -> str:
    """The container that `file` holds, by libsndfile's or FFmpeg's name; `file` is then rewound.

    Raises InputError "empty", or "unsupported" where the content is no audio known here.
    """
    head = file.read(HEAD_BYTES)
    if not head:
        raise InputError("no data", code="empty")
    tagged = head[:3] == b"ID3" and len(head) >= 10
    if tagged and not (head := behind_id3(file, head)):
        raise InputError("an ID3 tag and nothing behind it", code="corrupt")
    file.seek(0)
    if kind := _riff(head) or _magic(head) or _mpeg(head):
        return kind
    if tagged:  # whatever is in between, the decoder may find the first frame
        return "MP3"
    raise InputError(_what_instead(head), code="unsupported")


def _riff(head: bytes) -> str | None:
    form = head[8:12]
    if head[:4] in (b"RIFF", b"RIFX"):
        return {b"WAVE": "WAV", b"AVI ": "AVI"}.get(form)
    if head[:4] in (b"RF64", b"BW64"):
        return "RF64" if form == b"WAVE" else None
    if head[:4] == b"FORM":
        return {b"AIFF": "AIFF", b"AIFC": "AIFF", b"8SVX": "SVX", b"16SV": "SVX"}.get(form)
    return None


def _magic(head: bytes) -> str | None:
    for offset, magic, kind in _MAGIC:
        if head.startswith(magic, offset) and (offset != 28 or head.startswith(b"OggS")):
            return kind
    transport = len(head) > 376 and head[0] == head[188] == head[376] == 0x47
    return "MPEG-TS" if transport else None


def _mpeg(head: bytes) -> str | None:
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    if head[1] & 0xF6 == 0xF0:  # layer 0 stands for AAC in ADTS frames
        return "ADTS"
    version, layer = head[1] >> 3 & 3, head[1] >> 1 & 3
    bitrate, rate = head[2] >> 4, head[2] >> 2 & 3
    return "MP3" if version != 1 and layer != 0 and bitrate != 15 and rate != 3 else None


def behind_id3(file: Readable, head: bytes) -> bytes:
    """The first bytes behind an ID3v2 tag; its length is 4 x 7 bits, without its own 10 bytes."""
    size = 10 + sum((head[6 + index] & 0x7F) << 7 * (3 - index) for index in range(4))
    file.seek(size)
    return file.read(HEAD_BYTES)


def _what_instead(head: bytes) -> str:
    for magic, what in _NOT_AUDIO:
        if head.startswith(magic):
            return what
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:256].lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml", b"<svg")):
        return "a web page or XML, not audio"
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head):
        return "text, not audio"
    if not any(head):
        return "only zeros where a header should be: not audio, or a download that never came"
    return f"not an audio format known here; {FFMPEG_PIPE} may read it"
