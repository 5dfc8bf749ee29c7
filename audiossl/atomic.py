"""Files that appear under their name only when they are whole.

Everything that audiossl writes goes through here, so that a full disk, a kill or a bug leaves the
file that was there before, and never half of a new one.
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
    """A binary file that takes the place of `path` when the block ends, and not if it fails.

    It has a real descriptor, for libraries that write to one. A link is followed; what is no
    regular file (/dev/stdout, a named pipe) is written to directly. `needed`: bytes, where known,
    for the message. Raises OutputError, for a full disk in whatever words a library says it.
    """
    if special(path):  # by the name given: what /dev/stdout leads to may have none
        with _told(Path(path), Path(path), needed), open(path, "wb") as file:
            yield file
        return
    with _replacing(path, needed) as temporary, open(temporary, "w+b") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str], needed: int | None = None) -> Iterator[Path]:
    """Like `atomic_write`, for libraries that want a name: an empty file with `path`'s suffix.

    What is no regular file is refused.
    """
    if special(path):
        raise OutputError(f"cannot write {path}: this needs a regular file")
    with _replacing(path, needed) as temporary:
        yield temporary
        sync(temporary)


def special(path: str | os.PathLike[str]) -> bool:
    """Whether there is something that is no regular file and no folder: it cannot be replaced."""
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
        with _told(target, temporary, needed):
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
def _told(target: Path, written: Path, needed: int | None) -> Iterator[None]:
    """Turn what goes wrong with writing to `written` into an OutputError about `target`.

    Full disks come as OSError with and without errno (NumPy), SafetensorError, RuntimeError (torch)
    and LibsndfileError, which says no more than that: so the disk is asked, while the partial file
    is still there.
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
    """The system's number of an error; Rust's libraries have it only in their words."""
    if isinstance(error, OSError):
        return error.errno
    told = re.search(r"\(os error (\d+)\)", str(error))
    return int(told[1]) if told else None


def _refusal(written: Path) -> int | None:
    """Why the disk takes no more, as an errno; None when it does."""
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
    """An empty file with the permissions of the one that it will replace, if any."""
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    if mode is not None:
        os.chmod(temporary, stat.S_IMODE(mode))


def _mode(target: Path) -> int | None:
    """Kind and permissions, None where nothing is yet (or nothing can be)."""
    with contextlib.suppress(OSError):
        return target.stat().st_mode
    return None


def sync(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
