"""Where results go: stdout, one file, or a folder with one file an input.

stdout carries data only, and each record is flushed. A file appears under its name when it is
complete: until then its records are in a journal beside it, from which `--resume` goes on.
"""

from __future__ import annotations

import errno
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from audiossl import errors
from audiossl.atomic import special
from audiossl.audio.names import STDIN
from audiossl.errors import InputError, OptionError, OutputError
from audiossl.output.writers import ONE_DOCUMENT_A_FILE, Record, TextWriter, Writer
from audiossl.pipeline.inputs import Input
from audiossl.pipeline.journal import Entry, FolderState, Journal, key
from audiossl.pipeline.stdout import write_stdout

Formats = Mapping[str, Callable[[], Writer]]
Tell = Callable[[str, InputError], None]  # says on stderr what is wrong with an input
STDOUT = (None, "-", "/dev/stdout")  # as --out: no file of its own


class Sink(Protocol):
    """Takes the records of one input after another."""

    def skips(self, item: Input) -> bool:
        """Whether this input is done already."""
        ...

    def file(self, item: Input, records: Iterator[Record]) -> bool:
        """Take all records of one input; True if none of them is an error."""
        ...

    def finish(self, code: int) -> None:
        """All inputs are done, with this exit code."""
        ...

    def close(self) -> None:
        """Release what other runs may want; called whatever has happened."""
        ...


@dataclass
class StdoutSink:
    """Text to stdout, flushed record by record."""

    writer: TextWriter

    def __post_init__(self) -> None:
        write_stdout(self.writer.begin())

    def skips(self, item: Input) -> bool:
        return False

    def file(self, item: Input, records: Iterator[Record]) -> bool:
        ok = True
        for record in records:
            ok = ok and "error" not in record
            write_stdout(self.writer.record(record))
        write_stdout(self.writer.end_file())
        return ok

    def finish(self, code: int) -> None:
        write_stdout(self.writer.end())

    def close(self) -> None:
        return None


@dataclass
class Journalled:
    """Records of inputs in a journal, in the form that writers take."""

    journal: Journal
    entries: list[Entry]

    def __iter__(self) -> Iterator[Iterator[Record]]:
        return (self.journal.records(entry) for entry in self.entries)

    @property
    def fruitless(self) -> bool:
        """Whether there are only errors, or no records at all."""
        return not any(
            entry.ok or any("error" not in record for record in self.journal.records(entry))
            for entry in self.entries
        )


class FileSink:
    """One file, written from the journal when all inputs are done."""

    def __init__(self, path: Path, writer: Writer, journal: Journal) -> None:
        self.path, self.writer = path, writer
        self.kept = Journalled(journal, [])

    def skips(self, item: Input) -> bool:
        return self.kept.journal.find(key(item.path, item.name)) is not None

    def file(self, item: Input, records: Iterator[Record]) -> bool:
        journal, input_key = self.kept.journal, key(item.path, item.name)
        entry = journal.find(input_key) or journal.add(input_key, records)
        self.kept.entries.append(entry)
        return entry.ok

    def finish(self, code: int) -> None:
        if code == errors.EXIT_OK or not self.kept.fruitless:
            self.writer.write(self.path, self.kept)
        if code == errors.EXIT_OK or not (self.kept.entries or self.kept.journal.known):
            self.kept.journal.remove()  # else it stays: --resume tries the failed inputs again

    def close(self) -> None:
        self.kept.journal.close()


class PipeSink(FileSink):
    """A pipe or device, written to directly; its journal is temporary and never kept."""

    def __init__(self, path: Path, writer: Writer) -> None:
        descriptor, name = tempfile.mkstemp(".journal", "audiossl-")
        os.close(descriptor)
        super().__init__(path, writer, Journal(Path(name), {}, resume=False))

    def close(self) -> None:
        self.kept.journal.remove()
        super().close()


def journal_of(path: Path) -> Path:
    """Where the journal of an output stands."""
    return path.with_name(f".{path.name}.journal")


class FolderSink:
    """One file an input, named after it, in the folders in which the inputs were found."""

    def __init__(
        self,
        folder: Path,
        writer: Callable[[], Writer],
        on_exists: str,
        resume: bool,
        settings: Record,
        tell: Tell,
    ) -> None:
        self.folder, self.writer, self.tell = folder, writer, tell
        self.resume, self.on_exists = resume, "skip" if resume else on_exists
        make_folder(folder)
        self.state = FolderState(folder, writer().suffix, settings)
        self._used: dict[Path, str] = {}
        if resume:
            self.state.check()

    def target(self, item: Input) -> Path:
        relative = Path(item.relative if item.path != STDIN else "stdin")
        return self.folder / relative.with_suffix(self.writer().suffix)

    def skips(self, item: Input) -> bool:
        if self.on_exists != "skip" or item.error is not None or item.relative in self.state.failed:
            return False
        return os.path.exists(self.target(item))

    def file(self, item: Input, records: Iterator[Record]) -> bool:
        if item.error is not None:
            return not list(
                records
            )  # taking the records reports the error; there is no file to write
        target = self.target(item)
        if problem := self._problem(item, target):
            self.tell(item.name, problem)
            return False
        if not self.skips(item):
            return self._write(item, target, records)
        self._used[target] = item.name
        return True

    def _write(self, item: Input, target: Path, records: Iterator[Record]) -> bool:
        # A journal, because a long input's records need not fit into the memory. Its name is
        # random, because other runs (shards) may write to this folder.
        path = self.folder / f".audiossl-{secrets.token_hex(6)}.journal"
        with Journal(path, {}, resume=False) as journal:
            try:
                kept = Journalled(journal, [journal.add("", records)])
                ok = kept.entries[0].ok
                if not ok:
                    self.state.result(item.relative, ok)
                if not kept.fruitless:
                    self.state.add()
                    make_folder(target.parent)
                    self.writer().write(target, kept)
                    self._used[target] = item.name
            finally:
                journal.remove()
        if ok:  # now that the file is there
            self.state.result(item.relative, ok)
        return ok

    def _problem(self, item: Input, target: Path) -> InputError | None:
        other = self._used.get(target, item.name)
        if other != item.name:
            return InputError(f"{target} already holds the result of {other}", code="name-clash")
        if any(too_long(file) for file in self.writer().files(target)):
            return InputError(f"{target} is too long a name for a file", code="output")
        there = existing(self.writer(), target)
        if there and not self._may_replace(item):
            return InputError(f"{there[0]} exists: --on-exists skip or overwrite", code="exists")
        return None

    def _may_replace(self, item: Input) -> bool:
        if self.resume or self.on_exists == "overwrite" or self.skips(item):
            return True
        return self.on_exists == "skip" and item.relative in self.state.failed

    def finish(self, code: int) -> None:
        self.state.finish()

    def close(self) -> None:
        return None


def make_sink(
    formats: Formats,
    format_: str,
    out: str | None,
    on_exists: str,
    resume: bool,
    settings: Record,
    tell: Tell,
    many: bool = False,
) -> Sink | None:
    """The sink that the options ask for; None if the output exists and may stay as it is.

    formats: writers by the name of their format.
    format_: the name of the format.
    out: where to write; None: stdout.
    on_exists: "error", "skip" or "overwrite".
    resume: whether to go on from what an earlier run has done.
    settings: everything that shapes the records.
    tell: says on stderr what is wrong with an input.
    many: whether more than one input is known to come.

    Raises OptionError if options do not go together, OutputError if nothing can be written there.
    """
    if out in STDOUT:
        if resume:
            raise OptionError("--resume needs --out: what went to stdout cannot be known")
        if many and format_ in ONE_DOCUMENT_A_FILE:
            raise OptionError(f"{format_} is one document an input: give --out FOLDER")
        writer = formats[format_]()
        if not isinstance(writer, TextWriter):
            raise OptionError(f"{format_} is no text: give --out FILE")
        return StdoutSink(writer)
    if format_ == "table":
        raise OptionError("a table is for the terminal: give another --format with --out")
    if out.endswith(os.sep) or os.path.isdir(out) or (many and format_ in ONE_DOCUMENT_A_FILE):
        return FolderSink(Path(out), formats[format_], on_exists, resume, settings, tell)
    return _file_sink(Path(out), formats[format_](), on_exists, resume, settings)


def _file_sink(
    path: Path, writer: Writer, on_exists: str, resume: bool, settings: Record
) -> FileSink | None:
    if special(path):
        if resume:
            raise OptionError(f"--resume needs a file: what went to {path} cannot be known")
        return PipeSink(path, writer)
    there = existing(writer, path)
    if there and not (resume and os.path.exists(journal_of(path))):
        if path in there and (resume or on_exists == "skip"):
            return None
        if on_exists != "overwrite":
            raise OutputError(f"{there[0]} exists: --on-exists overwrite or skip, or another --out")
    if not os.path.isdir(path.parent):
        raise OutputError(f"{path.parent}: no such folder")
    if too_long(path):
        raise OutputError(f"cannot write {path}: {os.strerror(errno.ENAMETOOLONG)}")
    return FileSink(path, writer, Journal(journal_of(path), settings, resume))


def existing(writer: Writer, path: Path) -> list[Path]:
    """What writing to `path` would replace."""
    return [file for file in writer.files(path) if os.path.exists(file)]


def too_long(path: Path) -> bool:
    """Whether no file can have this name."""
    try:
        os.lstat(path)
    except OSError as error:
        return error.errno == errno.ENAMETOOLONG
    return False


def check_writable(path: str) -> None:
    """Raise OutputError if no file can be written there; called before hours of work, not after."""
    if special(path):
        return  # a pipe or terminal, which gets it directly
    target = os.path.realpath(path)
    if os.path.isdir(target):
        raise OutputError(f"cannot write {path}: it is a folder")
    folder = os.path.dirname(target)
    if not os.path.isdir(folder):
        raise OutputError(f"{folder}: no such folder")
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: {error.strerror}") from error
