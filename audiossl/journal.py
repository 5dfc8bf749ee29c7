"""The journal of a long run: what is done is never done again, and nothing half-done is believed.

JSON lines behind a first one that fingerprints the run (model, options): an input's records, then a
line that closes them. A killed run leaves at worst records that nothing closes, which are dropped.
Records go to the disk as they come and are read back one by one, so that neither a long file nor
many files fill the memory. `--resume` reads the journal; the output is written from it.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    except OSError:
        return ""
    return f"{name}\0{os.path.abspath(path)}\0{status.st_size}\0{status.st_mtime_ns}"


@dataclass(frozen=True)
class Entry:
    """The records of one input: where they start in the journal, and whether all went well."""

    offset: int
    ok: bool


class Journal:
    """Append-only list of finished inputs beside the output.

    A context manager: `with Journal(path, settings, resume) as journal`.
    """

    def __init__(self, path: Path, settings: dict[str, Any], resume: bool) -> None:
        self.path = path
        self._done: dict[str, Entry] = {}  # by key; records stay on disk
        head = json.dumps({"journal": VERSION, "fingerprint": fingerprint(settings)})
        if resume and path.exists():
            self._recover(head)
        else:
            self._create(head)
        self._file = path.open("ab")

    def _create(self, head: str) -> None:
        with self._told():
            self.path.write_bytes(head.encode() + b"\n")

    def _recover(self, head: str) -> None:
        """Index what is closed, cut off what is not; refuse the journal of other settings."""
        with self.path.open("r+b") as file:
            if file.readline() != head.encode() + b"\n":
                raise UsageError(
                    f"{self.path}: this run had another model or other options:"
                    " repeat them, or start again without --resume"
                )
            start = offset = file.tell()
            for line in file:
                found = _parse(line)
                if found is None:
                    break
                offset += len(line)
                if "done" in found:
                    self._note(found["done"], Entry(start, found["ok"]))
                    start = offset
            file.truncate(start)

    def _note(self, input_key: str, entry: Entry) -> None:
        if input_key and entry.ok:
            self._done[input_key] = entry

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # a full disk was told by `add`; nothing else is left
            self._file.close()

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
        """The run is whole and its output stands: the journal has done its work."""
        self.path.unlink(missing_ok=True)


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
