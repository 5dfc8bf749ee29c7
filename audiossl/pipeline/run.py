"""Work through many inputs, in order, into one sink."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator

from audiossl import errors
from audiossl.errors import InputError
from audiossl.output.records import ErrorRecord
from audiossl.output.writers import Record
from audiossl.pipeline import workers
from audiossl.pipeline.inputs import Input
from audiossl.pipeline.sinks import Sink, Tell

Work = Callable[[Input], Iterable[Record]]


def run_batch(
    inputs: Iterable[Input],
    work: Work,
    sink: Sink,
    jobs: int,
    progress: Callable[[str], None],
    tell: Tell,
    nothing: Callable[[], int],
) -> int:
    """Work through the inputs and write their records in order.

    jobs: inputs at work at once.
    progress: called with the name of each input.
    tell: says on stderr what is wrong with an input.
    nothing: called when there was no input: says what that means, and gives the exit code.

    Returns the exit code.
    """
    done = failed = 0

    def records(item: Input) -> Iterator[Record]:
        return iter(()) if sink.skips(item) else guarded(item, work)

    with contextlib.closing(sink):
        for item, results in workers.ordered(records, inputs, jobs):
            progress(item.name)
            if sink.file(item, _told(item, results, tell)):
                done += 1
            else:
                failed += 1
        if failed:
            code = errors.EXIT_SOME_FAILED if done else errors.EXIT_ALL_FAILED
        else:
            code = errors.EXIT_OK if done else nothing()
        sink.finish(code)
    return code


def guarded(item: Input, work: Work) -> Iterator[Record]:
    """The records of one input; an error of that input becomes its last record."""
    try:
        if item.error is not None:
            raise item.error
        yield from work(item)
    except InputError as error:
        yield ErrorRecord(item.name, error.code, error.message).to_dict()


def _told(item: Input, records: Iterator[Record], tell: Tell) -> Iterator[Record]:
    for record in records:
        if "error" in record:
            error = record["error"]
            tell(item.name, InputError(error["message"], error["code"]))
        yield record
