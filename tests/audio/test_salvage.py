"""Salvaged: everything before an InputError, then the error, and no other error held back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from audiossl.audio.salvage import Salvaged
from audiossl.errors import InputError, UsageError


def numbers(error: Exception | None) -> Iterator[int]:
    yield 1
    yield 2
    if error is not None:
        raise error


def test_items_come_first_and_the_error_is_raised_when_asked() -> None:
    problem = InputError("torn", code="truncated")
    items = Salvaged(numbers(problem))
    assert list(items) == [1, 2]
    assert items.error is problem
    with pytest.raises(InputError) as caught:
        items.raise_error()
    assert caught.value is problem


def test_without_an_error_nothing_is_raised() -> None:
    items = Salvaged(numbers(None))
    assert list(items) == [1, 2]
    assert items.error is None
    items.raise_error()


def test_other_errors_pass_at_once() -> None:
    with pytest.raises(UsageError, match="wrong call"):
        list(Salvaged(numbers(UsageError("wrong call"))))
