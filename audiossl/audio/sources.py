"""Open what audio is read from: files, standard input, pipes, file objects.

Nothing that could block or never end is opened by name: a named pipe or a device in a folder of
recordings is an error of its own. What comes through a pipe can be read again from its start until
the decoder says that it goes forward only.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import stat
import sys
import tempfile
from typing import Any, BinaryIO, Protocol

from audiossl.errors import InputError, OutputError, UsageError

STDIN = "-"
KEPT_IN_MEMORY = 64 * 2**20  # bytes of a pipe; what is more goes to a temporary file
STEP = 1 << 16  # bytes taken from a pipe at a time
# A length for what has none. Decoders look behind the end for tags: there they find zeros.
ENDLESS = 1 << 62

_DESCRIPTOR = re.compile(r"/dev/fd/(\d+)|/proc/self/fd/(\d+)")

_KINDS = (
    (stat.S_ISDIR, "a folder, not a file"),
    (stat.S_ISFIFO, "a named pipe: read it with `audiossl tag - < PIPE`"),
    (stat.S_ISCHR, "a device, not a file"),
    (stat.S_ISBLK, "a device, not a file"),
    (stat.S_ISSOCK, "a socket, not a file"),
)


class Readable(Protocol):
    """What a decoder reads from; `size` in bytes, None for a pipe."""

    size: int | None

    def read(self, count: int, /) -> bytes: ...
    def readinto(self, buffer: Any, /) -> int: ...
    def seek(self, offset: int, whence: int = 0, /) -> int: ...
    def tell(self) -> int: ...
    def close(self) -> None: ...


class File(io.FileIO):
    """A regular file, unbuffered. `fileno` can be handed to a library."""

    def __init__(self, descriptor: int, size: int) -> None:
        super().__init__(descriptor, "rb")
        self.size = size or None  # files of /proc have content and size 0


class Buffer:
    """A seekable file object of the caller's, who also closes it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size: int | None = file.seek(0, os.SEEK_END)
        file.seek(0)

    def read(self, count: int) -> bytes:
        return self._file.read(count)

    def readinto(self, buffer: Any) -> int:
        return _fill(self._file, memoryview(buffer).cast("B"))

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        pass


class Pipe:
    """A stream that can be read again from its start, until `forget`.

    Then it goes forward only, in flat memory, and gives what is there without waiting for all of a
    buffer. `endless`: seeking to the end does not read the stream to know where that is.
    """

    size: int | None = None

    def __init__(self, file: BinaryIO, owned: bool = False) -> None:
        self._file = file
        self._owned = owned
        self._kept = tempfile.SpooledTemporaryFile(KEPT_IN_MEMORY)  # noqa: SIM115
        self._taken = 0  # bytes of the stream that were read from it
        self._position = 0
        self._keeping = True
        self.endless = False

    def forget(self) -> None:
        """Give up going back: what was kept is read once more, the rest passes through."""
        self._keeping = False

    def read(self, count: int) -> bytes:
        buffer = bytearray(count)
        return bytes(buffer[: self.readinto(buffer)])

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        if self._position >= ENDLESS // 2:
            count = max(0, min(len(view), ENDLESS - self._position))
            view[:count] = bytes(count)
        elif self._position < self._taken:
            self._kept.seek(self._position)
            count = self._kept.readinto(view)
        elif self._keeping:
            self._keep(self._position + len(view))
            self._kept.seek(self._position)
            count = self._kept.readinto(view)
        else:
            count = _read_some(self._file, view)
            self._taken += count
        self._position += count
        return count

    def seek(self, offset: int, whence: int = 0) -> int:
        if whence == os.SEEK_END:
            offset += ENDLESS if self.endless else self._drained()
        elif whence == os.SEEK_CUR:
            offset += self._position
        if not self._keeping and offset != self._position:
            raise OSError(errno.ESPIPE, os.strerror(errno.ESPIPE))
        self._position = max(0, offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def drain(self) -> None:
        """Take in all of the stream, so that it can be used like a file: `size` is then known."""
        self.size = self._drained()

    def _drained(self) -> int:
        self._keep(None)
        return self._taken

    def _keep(self, end: int | None) -> None:
        """Take in the stream up to byte `end`, None for all of it."""
        self._kept.seek(0, os.SEEK_END)
        while end is None or self._taken < end:
            block = bytearray(STEP if end is None else min(STEP, end - self._taken))
            if not (count := _read_some(self._file, memoryview(block))):
                return
            self._store(block[:count])

    def _store(self, block: bytearray) -> None:
        try:
            self._kept.write(block)
        except OSError as error:
            raise OutputError(
                f"cannot keep what comes through the pipe in {tempfile.gettempdir()}:"
                f" {error.strerror} (TMPDIR names another folder)"
            ) from error
        self._taken += len(block)

    def close(self) -> None:
        self._kept.close()
        if self._owned:
            self._file.close()


def open_source(source: str | os.PathLike[str] | BinaryIO) -> File | Buffer | Pipe:
    """Open a path, "-" for standard input, or a binary file object.

    Raises InputError: "missing", "unreadable" or "not-a-file".
    """
    if not isinstance(source, str | os.PathLike):
        return _open_object(source)
    path = os.fspath(source)
    if path in (STDIN, "/dev/stdin"):
        return _open_stdin()
    if match := _DESCRIPTOR.fullmatch(path):
        return _open_descriptor(int(match[1] or match[2]))
    return _open_path(path)


def _open_path(path: str) -> File:
    try:
        _refuse_special(os.stat(path).st_mode)
        # Between the two calls a pipe may have taken the file's place: opening must not wait.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        descriptor = os.open(path, flags | getattr(os, "O_CLOEXEC", 0))
    except FileNotFoundError as error:
        raise InputError("no such file", code="missing") from error
    except OSError as error:
        raise unreadable(error) from error
    except ValueError as error:  # a NUL in the name
        raise InputError("no such file: its name holds a NUL", code="missing") from error
    status = os.fstat(descriptor)
    try:
        _refuse_special(status.st_mode)
    except InputError:
        os.close(descriptor)
        raise
    return File(descriptor, status.st_size)


def _open_stdin() -> File | Buffer | Pipe:
    if sys.stdin is None:
        raise InputError("standard input is closed", code="missing")
    if sys.stdin.isatty():
        raise InputError("standard input is a terminal: pipe audio into it", code="not-a-file")
    return _open_object(sys.stdin.buffer)


def _open_descriptor(number: int) -> File | Buffer | Pipe:
    """/dev/fd/N: a process substitution's pipe, or a file that the shell has opened."""
    if number == 0:
        return _open_stdin()
    try:
        descriptor = os.dup(number)
    except OSError as error:
        raise unreadable(error) from error
    return _file_at_start(descriptor) or Pipe(io.FileIO(descriptor, "rb"), owned=True)


def _open_object(file: BinaryIO) -> File | Buffer | Pipe:
    if isinstance(file, io.TextIOBase):
        raise UsageError("audio is read from binary files: open it with mode 'rb'")
    seekable = getattr(file, "seekable", None)
    if seekable is None or not seekable() or file.tell() != 0:
        return Pipe(file)
    return _reopened(file) or Buffer(file)


def _reopened(file: Any) -> File | None:
    """A regular file that stands at its start, through a descriptor of its own."""
    with contextlib.suppress(OSError, AttributeError):  # BytesIO has no descriptor
        descriptor = os.dup(file.fileno())
        if opened := _file_at_start(descriptor):
            return opened
        os.close(descriptor)
    return None


def _file_at_start(descriptor: int) -> File | None:
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and os.lseek(descriptor, 0, os.SEEK_CUR) == 0:
        return File(descriptor, status.st_size)
    return None


def _refuse_special(mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    for is_kind, what in _KINDS:
        if is_kind(mode):
            raise InputError(what, code="not-a-file")


def unreadable(error: OSError) -> InputError:
    """An input that the system does not let us read, in its own words."""
    return InputError(f"cannot be read: {error.strerror or error}", code="unreadable")


def _read_some(file: Any, view: memoryview) -> int:
    """Fill `view` with what one read gives; 0 at the end."""
    read = getattr(file, "read1", None) or file.read
    data = read(len(view))
    if isinstance(data, str):
        raise UsageError("audio is read from binary files: open it with mode 'rb'")
    view[: len(data or b"")] = data or b""
    return len(data or b"")


def _fill(file: Any, view: memoryview) -> int:
    """Fill all of `view`, less at the end of the file."""
    filled = 0
    while filled < len(view) and (count := _read_some(file, view[filled:])):
        filled += count
    return filled
