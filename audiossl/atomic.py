"""Files that appear under their name only when they are complete.

Everything that audiossl writes goes through here: after a full disk, a kill or a bug the file that
was there before is still there, never half of a new one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from audiossl.errors import AudiosslError, OutputError

# No space, over quota, over the limit on a file's size (ulimit -f).
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PROBE_BYTES = 1 << 20


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], needed: int | None = None) -> Iterator[BinaryIO]:
    """A binary file that replaces `path` when the block ends without an exception.

    path: the file to write; a link is followed, and what is not a regular file (/dev/stdout, a
        named pipe) is written to directly.
    needed: number of bytes, if known, for the message about a full disk.

    The file has a real descriptor, for libraries that write to one. Raises OutputError if it cannot
    be written, also where a library reports a full disk by an exception of its own.
    """
    if special(path):  # by the name given: what /dev/stdout leads to may have none
        with _reported(Path(path), Path(path), needed), open(path, "wb") as file:
            yield file
        return
    with _replacing(path, needed) as temporary, open(temporary, "w+b") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def special(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is neither a regular file nor a folder, so that it cannot be replaced."""
    mode = _mode(Path(path))
    return bool(mode) and not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


@contextlib.contextmanager
def _replacing(path: str | os.PathLike[str], needed: int | None) -> Iterator[Path]:
    target = Path(os.path.realpath(path))
    mode = _mode(target)
    if mode and stat.S_ISDIR(mode):
        raise OutputError(f"cannot write {target}: it is a folder")
    # Short, since the target's own name may already be as long as names can be.
    temporary = target.parent / f".audiossl-{secrets.token_hex(6)}{target.suffix[:16]}"
    try:
        with _reported(target, temporary, needed):
            _create(temporary, mode)
            yield temporary
            os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    with contextlib.suppress(OSError):  # some file systems cannot sync a folder
        sync(target.parent)


@contextlib.contextmanager
def _reported(target: Path, written: Path, needed: int | None) -> Iterator[None]:
    """Turn an error of writing to `written` into an OutputError about `target`.

    A full disk comes as an OSError with or without errno (NumPy), a SafetensorError, a RuntimeError
    (torch) or a LibsndfileError that gives no reason. Therefore the disk is tried once more while
    the partial file is still there.
    """
    try:
        yield
    except (AudiosslError, BrokenPipeError):
        raise
    except Exception as error:
        number = _number(error) or _refusal(written)
        if number in FULL:
            raise OutputError(_full_message(target, written, number, needed)) from error
        if not isinstance(error, OSError) or error.errno is None:
            raise
        if error.filename not in (None, str(written), str(target)):
            raise
        raise OutputError(f"cannot write {target}: {error.strerror}") from error


def _number(error: Exception) -> int | None:
    """The errno of an error; libraries written in Rust give it only in their message."""
    if isinstance(error, OSError):
        return error.errno
    told = re.search(r"\(os error (\d+)\)", str(error))
    return int(told[1]) if told else None


def _refusal(written: Path) -> int | None:
    """The errno with which the disk refuses more bytes; None if it takes them."""
    try:
        with open(written, "ab") as file:
            file.write(bytes(PROBE_BYTES))
    except OSError as error:
        return error.errno
    return None


def _full_message(target: Path, written: Path, number: int | None, needed: int | None) -> str:
    size = written.stat().st_size if written.is_file() else 0
    wanted = f"{needed} bytes needed" if needed else f"more than {size} bytes needed"
    if number == errno.EFBIG:
        return f"cannot write {target}: {wanted}, beyond the limit on a file's size (ulimit -f)"
    message = f"cannot write {target}: the disk is full: {wanted}"
    with contextlib.suppress(OSError):
        space = os.statvfs(target.parent)
        message += f", {space.f_bavail * space.f_frsize + size} free"  # the partial file goes away
    return message


def _create(temporary: Path, mode: int | None) -> None:
    """Create an empty file with the permissions of the file that it will replace, if any."""
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    if mode is not None:
        os.chmod(temporary, stat.S_IMODE(mode))


def _mode(target: Path) -> int | None:
    """Kind and permissions; None if there is no file (or can be none)."""
    with contextlib.suppress(OSError):
        return target.stat().st_mode
    return None


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
