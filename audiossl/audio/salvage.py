"""What could be read of a damaged input is given before its error is raised."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

from audiossl.errors import InputError

Item = TypeVar("Item")


class Salvaged(Generic[Item]):
    """Items up to an InputError, which is kept: finish the work, then call `raise_error`.

    items: any iterable that may raise InputError while it is read.
    error: the InputError that ended it; None if there was none (yet).
    """

    def __init__(self, items: Iterable[Item]) -> None:
        self._items = items
        self.error: InputError | None = None

    def __iter__(self) -> Iterator[Item]:
        try:
            yield from self._items
        except InputError as error:
            self.error = error

    def raise_error(self) -> None:
        """Raise the InputError that ended the items, if one did."""
        if self.error is not None:
            raise self.error
