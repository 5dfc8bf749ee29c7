"""stdout: it carries data only, and its errors are told apart from those of files."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from audiossl import errors


class ClosedPipe(BaseException):
    """The reader of stdout has left. Not an OSError, which click would answer itself."""


@contextlib.contextmanager
def stdout_told() -> Iterator[None]:
    """Inside, an OSError comes from stdout: ClosedPipe if the reader has gone, else OutputError."""
    try:
        yield
    except BrokenPipeError:
        raise ClosedPipe from None
    except OSError as error:
        raise errors.OutputError(f"stdout: {error.strerror}") from error


class Stdout:
    """A text stream whose errors become ClosedPipe or OutputError, whoever writes to it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with stdout_told():
            return self._stream.write(text)

    def flush(self) -> None:
        with stdout_told():
            self._stream.flush()


def write_stdout(text: str) -> None:
    """Write all of `text` to stdout at once. Raises ClosedPipe if nobody reads any more."""
    if not text:
        return
    from audiossl.output.writers import encoded

    with stdout_told():
        sys.stdout.buffer.write(encoded(text))
        sys.stdout.buffer.flush()
