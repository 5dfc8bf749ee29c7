"""The journal of a long run: what is done is never done again, and nothing half-done is believed.

JSON lines behind a first one that fingerprints the run (model, options): an input's records, then a
line that closes them. A killed run leaves at worst records that nothing closes, which are dropped.
Records go to the disk as they come and are read back one by one, so that neither a long file nor
many files fill the memory. `--resume` reads the journal; the output is written from it. Whoever has
it open holds a lock on it, which ends with the process, whatever ends that: no two runs write one.
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
    """Identity of an input: its name in the records, absolute path, size, time of change.

    Stdin has none: always redone.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return ""
    return f"{name}\0{os.path.abspath(path)}\0{status.st_size}\0{status.st_mtime_ns}"


@dataclass(frozen=True)
class Entry:
    """The records of one input: where they start in the journal, and whether all went well."""

    offset: int
    ok: bool


class Journal:
    """Append-only list of finished inputs beside the output.

    A context manager: `with Journal(path, settings, resume) as journal`. Raises OutputError while
    another run has the same one open.
    """

    def __init__(self, path: Path, settings: dict[str, Any], resume: bool) -> None:
        self.path = path
        self._done: dict[str, Entry] = {}  # by key; records stay on disk
        head = json.dumps({"journal": VERSION, "fingerprint": fingerprint(settings)})
        with self._told():
            self._file = _locked(path)
        try:
            self._begin(head.encode() + b"\n", resume)
        except BaseException:
            self.close()
            raise

    def _begin(self, head: bytes, resume: bool) -> None:
        """Index what is closed, cut off what is not; refuse the journal of other settings."""
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
        with self._told():
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
        with self._told():
            self._file.truncate(start)

    def _note(self, input_key: str, entry: Entry) -> None:
        if input_key and entry.ok:
            self._done[input_key] = entry

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let others have it."""
        with contextlib.suppress(OSError):  # a full disk was told by `add`; nothing else is left
            self._file.close()

    @property
    def known(self) -> int:
        """Inputs that need not be done again."""
        return len(self._done)

    def find(self, input_key: str) -> Entry | None:
        """The entry of a finished input, or None: failed ones are redone on resume."""
        return self._done.get(input_key)

    def add(self, input_key: str, records: Iterable[Record]) -> Entry:
        """Take all records of an input, and note it as finished.

        What comes of an input that raises is dropped.
        """
        offset, ok = self._file.seek(0, os.SEEK_END), True
        try:
            for record in records:
                ok = ok and "error" not in record
                self._append({"record": record})
            self._append({"done": input_key, "ok": ok})
            with self._told():
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
        with self._told():
            self._file.write(text.encode("ascii") + b"\n")

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
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


class Marks:
    """What settings the files of a folder were made with, and which inputs failed: a hidden file.

    A line each: a fingerprint, or an input's name and whether all went well, of which the latest
    counts. Several runs may add to it at once. `kind`: of the files; those of another have marks of
    their own.
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
        """Raise UsageError where files may be of other settings, and so do not go with ours."""
        if self._settings - {self._own}:
            raise UsageError(
                f"{self.path.parent}: some of what is here had another model or other options:"
                " repeat them, or start again without --resume"
            )

    def result(self, name: str, ok: bool) -> None:
        """Whether an input failed, for the next `add` or `finish` to write down."""
        if ok == (name in self.failed):
            self.failed ^= {name}
            self._new.append(json.dumps([name, ok]))

    def add(self) -> None:
        """Note our settings and the results: before a file is written, lest half of one count."""
        self._write([] if self._own in self._settings else [self._own])
        self._settings.add(self._own)

    def finish(self) -> None:
        """Note the last results, where anything was ever written."""
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
    """The name and the outcome in a line of marks, or None for any other."""
    with contextlib.suppress(ValueError):  # a line torn by a full disk
        if line.startswith("["):
            return json.loads(line)
    return None


def _locked(path: Path) -> BinaryIO:
    """The file at `path`, made if need be, that no other run has open. Raises OutputError."""
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
