"""The journal of a long run: what is done is never done again, and nothing half-done is believed.

One JSON line an input, behind a first line that fingerprints the run (model, options). A killed
run leaves at worst a torn last line, which is dropped. `--resume` reads it; the output is written
from it.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from audiossl.errors import OutputError, UsageError


def fingerprint(settings: dict[str, Any]) -> str:
    """A digest of everything that shapes the results."""
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def key(path: str) -> str:
    """Identity of an input: absolute path, size, time of change. Stdin has none: always redone."""
    try:
        status = os.stat(path)
    except OSError:
        return ""
    return f"{os.path.abspath(path)}\0{status.st_size}\0{status.st_mtime_ns}"


class Journal:
    """Append-only list of finished inputs beside the output.

    A context manager: `with Journal(path, settings, resume) as journal`.
    """

    def __init__(self, path: Path, settings: dict[str, Any], resume: bool) -> None:
        self.path = path
        self._offsets: dict[str, int] = {}  # key -> where its line starts; lines stay on disk
        head = json.dumps({"journal": 1, "fingerprint": fingerprint(settings)})
        if resume and path.exists():
            self._recover(head)
        else:
            self._create(head)
        self._file = path.open("r+b")
        self._file.seek(0, os.SEEK_END)

    def _create(self, head: str) -> None:
        try:
            self.path.write_bytes(head.encode() + b"\n")
        except OSError as error:
            raise OutputError(f"{self.path}: {error.strerror}") from error

    def _recover(self, head: str) -> None:
        """Index whole lines, cut off a torn one; refuse the journal of other settings."""
        with self.path.open("r+b") as file:
            if file.readline() != head.encode() + b"\n":
                raise UsageError(
                    f"{self.path}: this run had another model or other options:"
                    " repeat them, or start again without --resume"
                )
            offset = file.tell()
            for line in file:
                entry = _parse(line)
                if entry is None:
                    break
                if entry["key"] and entry["ok"]:
                    self._offsets[entry["key"]] = offset
                offset += len(line)
            file.truncate(offset)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def find(self, input_key: str) -> int | None:
        """Where the entry of a finished input stands, or None."""
        return self._offsets.get(input_key)

    def add(self, input_key: str, records: list[dict[str, Any]], ok: bool) -> int:
        """Note an input as finished, and where; failed ones (`ok` false) are redone on resume."""
        line = json.dumps({"key": input_key, "ok": ok, "records": records}, ensure_ascii=True)
        offset = self._file.tell()
        try:
            self._file.write(line.encode("ascii") + b"\n")
            self._file.flush()
        except OSError as error:
            raise OutputError(f"{self.path}: {error.strerror}") from error
        if input_key and ok:
            self._offsets[input_key] = offset
        return offset

    def records(self, offset: int) -> list[dict[str, Any]]:
        """Records of the entry at `offset`."""
        end = self._file.tell()
        self._file.seek(offset)
        entry = _parse(self._file.readline())
        self._file.seek(end)
        if entry is None:
            raise OutputError(f"{self.path}: changed while it was in use")
        return entry["records"]

    def remove(self) -> None:
        """The run is whole and its output stands: the journal has done its work."""
        self.path.unlink(missing_ok=True)


def _parse(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and {"key", "ok", "records"} <= set(entry) else None
