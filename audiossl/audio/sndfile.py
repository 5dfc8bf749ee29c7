"""Everything that libsndfile decodes: FLAC, Ogg, MP3, compressed WAV and the rest."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import soundfile

from audiossl.audio import mpeg, ogg
from audiossl.audio.containers import mp3_frames
from audiossl.audio.formats import AudioInfo, truncated, unsupported
from audiossl.audio.sources import ENDLESS, File, Pipe, Readable, unreadable
from audiossl.errors import InputError

MPEG1_FRAME = 1152  # samples; of MPEG-2, which has the rates below, half
MPEG1_RATE = 32000
# libsndfile seeks to an Ogg file's end; FLAC and MP3 also go through a pipe as they come.
FORWARD_ONLY = ("FLAC", "MP3")
NOT_IMPLEMENTED = (4, 18)  # libsndfile's codes for an encoding that it does not have


class _Sequential(soundfile.SoundFile):
    """soundfile seeks to where it is after each read: work for nothing, and not free of faults."""

    def seekable(self) -> bool:
        return False


class _Callbacks:
    """What libsndfile reads from through Python.

    An exception in a callback would be printed and forgotten: it is kept, and the file ends there.
    """

    def __init__(self, file: Readable) -> None:
        self._file = file
        self.error: BaseException | None = None

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        filled = 0
        try:
            while filled < len(view) and (count := self._file.readinto(view[filled:])):
                filled += count
        except BaseException as error:
            self.error = error
        return filled

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return self._file.seek(offset, whence)
        except BaseException as error:
            # A pipe has no back; libsndfile goes there only after damage, to tell where it is.
            if getattr(error, "errno", None) != errno.ESPIPE:
                self.error = error
            return -1

    def tell(self) -> int:
        return self._file.tell()

    def write(self, data: object) -> int:
        return 0


class SndfileDecoder:
    """Decode `file` by libsndfile; `container` as sniffed. Whoever opened `file` closes it.

    `missing`: what is known to be wrong with the length, said when all has been decoded.
    """

    def __init__(self, file: Readable, container: str, missing: InputError | None = None) -> None:
        self._missing = missing
        self._container = container
        self._quiet = _mpg123.silenced if container == "MP3" else contextlib.nullcontext
        self._exact = True
        file = self._forward(file)
        self._file = file
        self._failed = False
        self._cut = False
        self._ended = False
        self._decoded = 0
        self._block = np.empty((0, 1), np.float32)  # kept: fresh memory costs page faults
        self._callbacks = None if isinstance(file, File) else _Callbacks(file)
        self._sound = self._open(file)
        if isinstance(file, Pipe) and file.endless:
            file.forget()
        sound = self._sound
        frames = sound.frames if self._exact and sound.frames < ENDLESS // 1024 else None
        self.info = AudioInfo(sound.format, sound.subtype, sound.samplerate, sound.channels, frames)
        self.integer = container == "FLAC"

    def _forward(self, file: Readable) -> Readable:
        """`file` in the way that libsndfile can be trusted with it."""
        if self._container == "MP3":
            self._exact = mp3_frames(file) is not None
            if not self._exact and not isinstance(file, Pipe):
                if file.size is not None:
                    self._missing = self._missing or mpeg.cut(file, file.size)
                    file.seek(0)
                file = Pipe(file)  # type: ignore[arg-type]
        if isinstance(file, Pipe):
            file.endless = self._container in FORWARD_ONLY
            if not file.endless:
                file.drain()
        return file

    def _open(self, file: Readable) -> soundfile.SoundFile:
        file.seek(0)
        try:
            with self._quiet():
                if isinstance(file, File):
                    return _Sequential(file.fileno(), closefd=False)
                return _Sequential(self._callbacks)  # type: ignore[arg-type]
        except soundfile.LibsndfileError as error:
            self._raise_callback_error()
            if error.code in NOT_IMPLEMENTED:
                raise unsupported(f"{self._container} with an encoding not known here") from error
            raise InputError(
                f"the {self._container} data is damaged at its start", code="corrupt"
            ) from error

    def seek(self, frame: int) -> bool:
        """Only in FLAC: libsndfile misses the place in Vorbis near the end of a file, and what MP3
        and Opus decode to hangs a little on what came before."""
        claimed = self.info.frames
        if self._container != "FLAC" or self._file.size is None:
            return False
        if claimed is None or frame >= claimed:
            return False
        try:
            reached = self._sound.seek(frame)
        except soundfile.LibsndfileError:
            reached = -1
        self._raise_callback_error()
        if reached == frame:
            self._decoded = frame
            return True
        self._sound.close()
        self._sound = self._open(self._file)  # cut before there: decode up to the cut
        return False

    def read(self, frames: int) -> np.ndarray:
        """(n, channels) float32, valid until the next call; what came before a damage is given."""
        if len(self._block) < frames:
            self._block = np.empty((frames, self.info.channels), np.float32)
        block = self._block[:frames]
        count = 0
        if not self._ended:
            with self._quiet():
                count = self._read_into(block)
            self._ended = count < frames
            self._decoded += count
            self._raise_callback_error()
        return block[:count]

    def _read_into(self, block: np.ndarray) -> int:
        try:
            return len(self._sound.read(out=block))
        except soundfile.LibsndfileError:
            self._failed = True
            self._cut = self._at_end()
        try:
            return max(0, self._sound.tell() - self._decoded)
        except soundfile.LibsndfileError:
            return 0

    def problem(self, decoded: int) -> InputError | None:
        lost = ogg.damage(self._file) if self._container == "OGG" else None
        return lost or self._shortfall(decoded) or self._missing

    def _shortfall(self, decoded: int) -> InputError | None:
        claimed = self.info.frames
        if claimed is None:
            return (
                InputError(f"damaged after {decoded} frames", "corrupt") if self._failed else None
            )
        if claimed - decoded <= self._tolerance():
            return None
        if self._failed and not self._cut:
            return InputError(
                f"damaged: header says {claimed} frames, {decoded} decoded", code="corrupt"
            )
        return truncated(claimed, decoded)

    def _tolerance(self) -> int:
        """Frames that may lack of what is claimed: encoders of MP3 don't all count alike."""
        if self._container != "MP3":
            return 0
        return MPEG1_FRAME if self.info.rate >= MPEG1_RATE else MPEG1_FRAME // 2

    def _at_end(self) -> bool:
        """Whether the decoder had read all there is when it failed."""
        size = self._file.size
        return not self._file.read(1) if size is None else self._file.tell() >= size

    def _raise_callback_error(self) -> None:
        error = self._callbacks.error if self._callbacks else None
        if isinstance(error, OSError):
            raise unreadable(error) from error
        if error is not None:
            raise error

    def close(self) -> None:
        with self._quiet():
            self._sound.close()


class _Mpg123:
    """Keeps libmpg123's complaints about odd frames off standard error.

    libsndfile leaves no way to set its quiet flag, and it prints several lines about MP3s that
    libsndfile itself wrote. Pointing descriptor 2 elsewhere would swallow what other threads say,
    so C's variable `stderr`, which libmpg123 prints to, is pointed at /dev/null while MP3 is being
    decoded. Python writes to descriptor 2 and C++ streams keep the FILE they began with: neither
    notices. What is lost is fprintf(stderr) of other C code at such a moment. Only glibc promises
    that the variable can be set (with musl it is const); elsewhere the lines stay.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._ready = False
        self._variable: ctypes.c_void_p | None = None
        self._null: int | None = None
        self._before: int | None = None

    def _prepare(self) -> None:
        self._ready = True
        with contextlib.suppress(AttributeError, OSError, ValueError):
            if not (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc"):
                return
            libc = ctypes.CDLL(None)
            libc.fopen.restype = ctypes.c_void_p
            libc.fopen.argtypes = (ctypes.c_char_p, ctypes.c_char_p)
            self._null = libc.fopen(os.devnull.encode(), b"we")
            if self._null:  # stays open: a thread may be printing to it at any time
                self._variable = ctypes.c_void_p.in_dll(libc, "stderr")

    @contextlib.contextmanager
    def silenced(self) -> Iterator[None]:
        with self._lock:
            if not self._ready:
                self._prepare()
            self._users += 1
            if self._users == 1 and self._variable is not None:
                self._before, self._variable.value = self._variable.value, self._null
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0 and self._variable is not None:
                    self._variable.value = self._before


_mpg123 = _Mpg123()
