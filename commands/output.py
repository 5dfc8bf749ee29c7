"""Outputs of the commands: pick a format, open a sink, report errors and progress on stderr."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import click

from audiossl import errors
from audiossl.errors import InputError
from audiossl.pipeline.sinks import STDOUT

from .main import say_error


def pick_format(format_: str, out: str | None, known: Iterable[str]) -> str:
    """The format; `auto` goes by the suffix of --out, on stdout by whether it is a terminal."""
    if format_ != "auto":
        return format_
    if out is not None and out not in STDOUT:
        suffix = os.path.splitext(out)[1].removeprefix(".").lower()
        if suffix == "txt":  # Audacity's, Raven's and everybody's
            raise click.UsageError(f"{out}: the name does not tell the format: give --format")
        return suffix if suffix in known else "jsonl"
    return "table" if sys.stdout.isatty() else "jsonl"


def no_input() -> int:
    say_error("no input: give files, folders, a quoted glob, - for stdin, or --files-from")
    return errors.EXIT_ALL_FAILED


def say_record_error(name: str, error: InputError) -> None:
    """`audiossl: error: clip.flac: truncated: header says ...`"""
    say_error(f"{name}: {error.code}: {error.message}")


@contextlib.contextmanager
def progress_line(quiet: bool, what: str) -> Iterator[Callable[[str], None]]:
    """A live line on stderr that counts inputs; nothing if stderr is not a terminal."""
    if quiet or not sys.stderr.isatty() or sys.stdout.isatty():
        yield lambda _name: None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.completed:.0f} {task.description}"))
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=None)
        yield lambda name: cast(Any, bar.update)(task, advance=1, description=f"{what}: {name}")
