"""A run of a command: one model over many inputs, with its threads, output and progress."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import click

from audiossl.errors import OptionError
from audiossl.hub import find as hub
from audiossl.output.writers import Record
from audiossl.pipeline.inputs import Input
from audiossl.pipeline.run import Work, run_batch
from audiossl.pipeline.sinks import Formats, Sink, make_sink

from .options import cores
from .output import no_input, progress_line, say_record_error


@dataclass(frozen=True)
class Session:
    """How a command's model works, and where its results go.

    model: its name.
    device: as it was asked for.
    jobs: inputs at work at once.
    batch_size: windows of one input that the network takes at a time.
    quiet: no progress on stderr.
    writing: the options of `options.output`, as `make_sink` takes them.
    """

    model: str
    device: str
    jobs: int
    batch_size: int
    quiet: bool
    writing: dict[str, Any]
    _open: contextlib.ExitStack

    def executor(self, device: object) -> Executor:
        """Threads for the batches of a model on `device`, until the session ends.

        As many as there are jobs on a CPU; one for a GPU, which takes one batch after the other.
        """
        threads = self.jobs if str(device) == "cpu" else 1
        return self._open.enter_context(ThreadPoolExecutor(threads))

    def run(
        self,
        items: Iterable[Input],
        work: Work,
        verb: str,
        formats: Formats,
        settings: Record,
        many: bool = False,
        nothing: Callable[[], int] = no_input,
    ) -> int:
        """Work through the inputs and write their records; the exit code.

        items: inputs, taken one by one.
        work: gives the records of one input.
        verb: what was done to an input, for the progress line.
        formats: writers by the name of their format.
        settings: everything that shapes the records, for `--resume`.
        many: whether more than one input is known to come.
        nothing: called when there was no input; gives the exit code.
        """
        sink = self._sink(formats, settings, many)
        if sink is None:
            click.echo(f"audiossl: {self.writing['out']} is there already: nothing to do", err=True)
            return 0
        with progress_line(self.quiet, verb) as progress:
            return run_batch(items, work, sink, self.jobs, progress, say_record_error, nothing)

    def _sink(self, formats: Formats, settings: Record, many: bool) -> Sink | None:
        """The sink that the options ask for; None when the output is there and may stay."""
        try:
            return make_sink(
                formats, settings=settings, tell=say_record_error, many=many, **self.writing
            )
        except OptionError as error:
            raise click.UsageError(error.message) from None


@contextlib.contextmanager
def session(values: dict[str, Any], task: str) -> Iterator[Session]:
    """Take the options of model, batching and output out of a command's values.

    task: "tag" or "embed": whose default model is used when none was named.
    """
    with contextlib.ExitStack() as stack:
        yield Session(
            model=values.pop("model") or hub.DEFAULTS[task],
            device=values.pop("device"),
            jobs=values.pop("jobs") or cores(),
            batch_size=values.pop("batch_size"),
            quiet=values.pop("quiet"),
            writing={key: values.pop(key) for key in ("format_", "out", "on_exists", "resume")},
            _open=stack,
        )
