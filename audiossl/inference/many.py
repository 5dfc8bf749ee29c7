"""Several sources, one after the other: in order, a bad one as an ErrorRecord among the results."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import TypeGuard, TypeVar

from audiossl.audio.reading import Source
from audiossl.errors import InputError
from audiossl.inference.sliding import name_of
from audiossl.output.records import ErrorRecord

Record = TypeVar("Record")
Sources = Iterable[Source]


def is_many(source: Source | Sources) -> TypeGuard[Sources]:
    """Whether these are several sources: no path, and no open file (which gives lines)."""
    return not isinstance(source, str | os.PathLike) and not hasattr(source, "read")


def each(
    sources: Sources, work: Callable[[Source], Iterable[Record]], progress: bool
) -> Iterator[Record | ErrorRecord]:
    """The records of all sources, in their order.

    sources: taken one by one, so an endless iterator is followed.
    work: gives the records of one source. Its InputError becomes an ErrorRecord behind what could
    be read of that source; every other error is raised.
    progress: show a bar on stderr that counts sources.
    """
    for source in _counted(sources) if progress else sources:
        try:
            yield from work(source)
        except InputError as error:
            yield ErrorRecord(name_of(source), error.code, error.message)


def _counted(sources: Sources) -> Iterator[Source]:
    from tqdm.auto import tqdm

    with tqdm(sources, unit="file") as bar:
        yield from bar
