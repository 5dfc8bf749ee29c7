"""A command's inputs: names from arguments, folders, globs, lists and stdin, in a stable order.

Names are read one by one, so that a list of a million needs no memory and each line of a slow
producer is worked on as soon as it arrives.
"""

from __future__ import annotations

import codecs
import glob
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from audiossl.audio.names import STDIN, SUFFIXES
from audiossl.errors import InputError, UsageError

MAX_NAME_BYTES = 1 << 20  # longest name in a list; a longer one shows that the file is no list


@dataclass(frozen=True)
class Input:
    """One input.

    name: as it is shown and written into records.
    path: the file to open; "-" is stdin.
    relative: its path below the folder in which it was found.
    error: why the argument led to no file; None: it did.
    """

    name: str
    path: str
    relative: str
    error: InputError | None = None


@dataclass
class Shard:
    """One machine's part of a list: every `count`-th input, beginning with number `index`.

    index: this machine's number, from 1.
    count: number of machines.
    seen: inputs of the whole list that have been read so far.
    """

    index: int
    count: int
    seen: int = 0

    def of(self, items: Iterable[Input]) -> Iterator[Input]:
        """This part of `items`, in order."""
        for item in items:
            self.seen += 1
            if (self.seen - self.index) % self.count == 0:
                yield item


def expand(
    arguments: Iterable[str],
    files_from: BinaryIO | None = None,
    null: bool = False,
    stdin_name: str = STDIN,
) -> Iterator[Input]:
    """Inputs in the order given; a folder gives its audio files sorted by name, recursively.

    arguments: files, folders, glob patterns, "-" for stdin.
    files_from: a list of further names, one a line.
    null: whether the names in the list end with NUL bytes instead.
    stdin_name: the name of stdin in the records.

    Raises UsageError, before anything is read, if two arguments would read stdin.
    """
    arguments = list(arguments)
    if arguments.count(STDIN) > 1:
        raise UsageError("stdin can be read only once: give one -")
    return _expand(arguments, files_from, null, stdin_name)


def _expand(
    arguments: list[str], files_from: BinaryIO | None, null: bool, stdin_name: str
) -> Iterator[Input]:
    for argument in arguments:
        yield from _argument(argument, stdin_name)
    if files_from is not None:
        for name in split_names(files_from, b"\0" if null else b"\n"):
            yield from _argument(name, stdin_name, globs=False)


def _argument(argument: str, stdin_name: str, globs: bool = True) -> Iterator[Input]:
    if argument == STDIN:
        yield Input(stdin_name, STDIN, os.path.basename(stdin_name))
    elif os.path.isdir(argument):
        yield from _folder(argument)
    elif globs and not os.path.lexists(argument) and glob.has_magic(argument):
        yield from _glob(argument, stdin_name)
    else:
        yield Input(argument, argument, os.path.basename(argument), _nowhere(argument))


def _nowhere(argument: str) -> InputError | None:
    """The error of a name that no file can have, so that no result could be named after it."""
    if "\0" in argument:
        return InputError("no such file: its name holds a NUL", code="missing")
    if os.path.basename(argument) in ("", os.curdir, os.pardir):
        return InputError("no such file or folder", code="missing")
    return None


def _glob(pattern: str, stdin_name: str) -> Iterator[Input]:
    matches = sorted(glob.glob(pattern, recursive=True))
    if not matches:
        error = InputError("the pattern matches no file", code="missing")
        yield Input(pattern, pattern, pattern, error)
    for match in matches:
        yield from _argument(match, stdin_name, globs=False)


def _folder(folder: str) -> Iterator[Input]:
    """Audio files below `folder`, known by their suffix; hidden files and folders are left out."""
    found = False
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        # A folder called x.wav is searched like any other: os.walk does not list it as a file.
        for name in sorted(names):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES:
                found = True
                path = os.path.join(root, name)
                yield Input(path, path, os.path.relpath(path, folder))
    if not found:
        error = InputError("no audio file in this folder", code="missing")
        yield Input(folder, folder, os.path.basename(folder), error)


def split_names(file: BinaryIO, separator: bytes) -> Iterator[str]:
    """Names from a list, each as soon as it is complete; bytes that are not UTF-8 are kept.

    In a list of lines, what Windows adds is removed: a carriage return at the end of each line and
    a byte order mark before the first.
    """
    for number, name in enumerate(_pieces(file, separator)):
        if separator == b"\n":
            name = name.removesuffix(b"\r")
            name = name if number else name.removeprefix(codecs.BOM_UTF8)
        if name:
            yield os.fsdecode(name)


def _pieces(file: BinaryIO, separator: bytes) -> Iterator[bytes]:
    rest = b""
    while block := _read_some(file):
        *whole, rest = (rest + block).split(separator)
        yield from whole
        if len(rest) > MAX_NAME_BYTES:
            raise InputError("a name of over 1 MB: is this a list of file names?", code="corrupt")
    yield rest


def _read_some(file: BinaryIO) -> bytes:
    """The next bytes without waiting for a full block (a pipe may be slow)."""
    read = getattr(file, "read1", file.read)
    return read(1 << 16)
