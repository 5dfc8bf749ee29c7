"""Everything that libsndfile decodes: FLAC, Ogg, MP3, compressed WAV and the rest."""

from __future__ import annotations

import contextlib
import errno
from typing import Any

import numpy as np
import soundfile

from audiossl.audio import mpeg, ogg
from audiossl.audio.formats import AudioInfo, truncated, unsupported
from audiossl.audio.mpeg import mp3_frames
from audiossl.audio.mpg123 import mpg123
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
        self._quiet = mpg123.silenced if container == "MP3" else contextlib.nullcontext
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
