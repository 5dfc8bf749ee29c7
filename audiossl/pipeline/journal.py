"""The journal of a long run: finished inputs are not done again, half-done ones are not believed.

A journal consists of JSON lines. The first holds a fingerprint of the run (model, options). Then
come, for each input, its records and a line that closes them. A killed run leaves at worst records
that no line closes; they are dropped. Records are written to the disk as they come and are read
back one by one, so that neither a long file nor many files fill the memory. `--resume` reads the
journal, and the output is written from it. An open journal is locked, and the lock ends with its
process: two runs never write one journal.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from audiossl.errors import OutputError, UsageError

Record = dict[str, Any]
VERSION = 2
ARRAY = {"dtype", "base64"}  # keys of a numpy array (1-D) in a line


def fingerprint(settings: dict[str, Any]) -> str:
    """A digest of everything that shapes the results."""
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def key(path: str, name: str) -> str:
    """Identity of an input: its name in the records, absolute path, size and time of change.

    Empty for stdin, which has no identity and is always read again.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return ""
    return f"{name}\0{os.path.abspath(path)}\0{status.st_size}\0{status.st_mtime_ns}"


@dataclass(frozen=True)
class Entry:
    """The records of one input in a journal.

    offset: byte at which they start.
    ok: whether none of them is an error.
    """

    offset: int
    ok: bool


class Journal:
    """Append-only list of finished inputs beside the output; a context manager.

    path: its file.
    settings: everything that shapes the results.
    resume: whether to go on from what is there.

    Raises OutputError if another run has it open, UsageError if it is of other settings.
    """

    def __init__(self, path: Path, settings: dict[str, Any], resume: bool) -> None:
        self.path = path
        self._done: dict[str, Entry] = {}  # by key; records stay on disk
        head = json.dumps({"journal": VERSION, "fingerprint": fingerprint(settings)})
        with self._reported():
            self._file = _locked(path)
        try:
            self._begin(head.encode() + b"\n", resume)
        except BaseException:
            self.close()
            raise

    def _begin(self, head: bytes, resume: bool) -> None:
        """Index the closed entries and cut off what no line closes; refuse other settings."""
        first = self._file.readline() if resume else b""
        if not first.endswith(b"\n"):
            self._create(head)
        elif first != head:
            raise UsageError(
                f"{self.path}: this run had another model or other options:"
                " repeat them, or start again without --resume"
            )
        else:
            self._recover()

    def _create(self, head: bytes) -> None:
        with self._reported():
            if self._file.seek(0, os.SEEK_END):
                self._file.truncate(0)
            self._file.write(head)
            self._file.flush()

    def _recover(self) -> None:
        start = offset = self._file.tell()
        for line in self._file:
            found = _parse(line)
            if found is None:
                break
            offset += len(line)
            if "done" in found:
                self._note(found["done"], Entry(start, found["ok"]))
                start = offset
        with self._reported():
            self._file.truncate(start)

    def _note(self, input_key: str, entry: Entry) -> None:
        if input_key and entry.ok:
            self._done[input_key] = entry

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock."""
        with contextlib.suppress(OSError):  # `add` has reported a full disk already
            self._file.close()

    @property
    def known(self) -> int:
        """Number of inputs that need not be done again."""
        return len(self._done)

    def find(self, input_key: str) -> Entry | None:
        """The entry of a finished input, or None: failed ones are redone on resume."""
        return self._done.get(input_key)

    def add(self, input_key: str, records: Iterable[Record]) -> Entry:
        """Write all records of an input and note it as finished.

        If `records` raises, what it gave before is dropped.
        """
        offset, ok = self._file.seek(0, os.SEEK_END), True
        try:
            for record in records:
                ok = ok and "error" not in record
                self._append({"record": record})
            self._append({"done": input_key, "ok": ok})
            with self._reported():
                self._file.flush()
        except BaseException:
            with contextlib.suppress(OSError):
                self._file.truncate(offset)
            raise
        entry = Entry(offset, ok)
        self._note(input_key, entry)
        return entry

    def _append(self, line: Record) -> None:
        text = json.dumps(line, ensure_ascii=True, default=_packed)
        with self._reported():
            self._file.write(text.encode("ascii") + b"\n")

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(f"{self.path}: {error.strerror}") from error

    def records(self, entry: Entry) -> Iterator[Record]:
        """Records of an entry, read one by one."""
        with self.path.open("rb") as file:
            file.seek(entry.offset)
            for line in file:
                found = _parse(line)
                if found is None:
                    break
                if "done" in found:
                    return
                yield found["record"]
        raise OutputError(f"{self.path}: changed while it was in use")

    def remove(self) -> None:
        """The run is whole and its output stands: the journal has done its work.

        Before it is closed, or it may be another run's.
        """
        self.path.unlink(missing_ok=True)


class FolderState:
    """The settings with which a folder's files were made, and which inputs failed: a hidden file.

    Each line is a fingerprint, or an input's name and whether it went well; the latest line about
    an input counts. Several runs may append to it at once.

    folder: where the files are.
    kind: their suffix; files of another suffix have a state of their own.
    settings: everything that shapes the results of this run.
    """

    def __init__(self, folder: Path, kind: str, settings: dict[str, Any]) -> None:
        self.path = folder / f".audiossl{kind}.settings"
        self._own = fingerprint(settings)
        self._new: list[str] = []  # lines that are not in the file yet
        lines = self._lines()
        self._settings = {line for line in lines if not line.startswith("[")}
        results = dict(filter(None, map(_result, lines)))
        self.failed = {name for name, ok in results.items() if not ok}

    def _lines(self) -> list[str]:
        try:
            return self.path.read_text("utf-8", "replace").splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise OutputError(f"{self.path}: {error.strerror}") from error

    def check(self) -> None:
        """Raise UsageError if files in the folder may have been made with other settings."""
        if self._settings - {self._own}:
            raise UsageError(
                f"{self.path.parent}: some of what is here had another model or other options:"
                " repeat them, or start again without --resume"
            )

    def result(self, name: str, ok: bool) -> None:
        """Note whether an input went well; the next `add` or `finish` writes it."""
        if ok == (name in self.failed):
            self.failed ^= {name}
            self._new.append(json.dumps([name, ok]))

    def add(self) -> None:
        """Write our settings and the noted results. Called before a file is written: if the run
        is killed then, the next one knows with what settings the file was made."""
        self._write([] if self._own in self._settings else [self._own])
        self._settings.add(self._own)

    def finish(self) -> None:
        """Write the last results, if anything was ever written."""
        if self.path.exists():
            self._write([])

    def _write(self, lines: list[str]) -> None:
        text = "".join(f"{line}\n" for line in lines + self._new)
        if not text:
            return
        try:
            with self.path.open("a") as file:
                file.write(text)
        except OSError as error:
            raise OutputError(f"{self.path}: {error.strerror}") from error
        self._new.clear()


def _result(line: str) -> list[Any] | None:
    """The name and outcome in a line of a folder's state; None: the line is another one."""
    with contextlib.suppress(ValueError):  # a line torn by a full disk
        if line.startswith("["):
            return json.loads(line)
    return None


def _locked(path: Path) -> BinaryIO:
    """The file at `path`, created if need be and locked. Raises OutputError if it is in use."""
    while True:
        file = path.open("a+b")
        file.seek(0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise OutputError(f"{path}: another run writes here") from None
        except OSError:
            return file  # a file system without locks
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        file.close()  # the run that had it has just removed it


def _parse(line: bytes) -> Record | None:
    """A whole line: {"record": ...} or {"done": key, "ok": ...}; None for anything else."""
    if not line.endswith(b"\n"):
        return None
    try:
        found = json.loads(line, object_hook=_unpacked)
    except ValueError:
        return None
    known = isinstance(found, dict) and (found.keys() in ({"record"}, {"done", "ok"}))
    return found if known else None


def _packed(vector: Any) -> dict[str, str]:
    """A numpy array as JSON, to the bit and in half the room of decimals."""
    return {
        "dtype": vector.dtype.str,
        "base64": base64.b64encode(vector.tobytes()).decode("ascii"),
    }


def _unpacked(found: dict[str, Any]) -> Any:
    if found.keys() != ARRAY:
        return found
    import numpy as np

    return np.frombuffer(base64.b64decode(found["base64"]), found["dtype"])
