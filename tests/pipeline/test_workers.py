"""Ordered work in threads: order, liveness, errors at their place, an early end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from audiossl.pipeline import workers


def squares(n: int) -> Iterator[int]:
    time.sleep(0.002 * (5 - n % 5))  # later items finish first
    yield from (n, n * n)


def drain(run: Iterator[tuple[int, Iterator[int]]], seen: list[int]) -> None:
    for _item, results in run:
        for result in results:
            seen.append(result)  # one by one: what came before an exception counts


@pytest.mark.parametrize("jobs", [1, 2, 7])
def test_results_come_in_order_whatever_the_number_of_jobs(jobs: int) -> None:
    got = [(item, list(results)) for item, results in workers.ordered(squares, range(40), jobs)]
    assert got == [(n, [n, n * n]) for n in range(40)]


def test_a_result_is_given_before_the_next_item_is_known() -> None:
    release = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        assert release.wait(10), "the first result never came"
        yield 2

    seen = []
    for _item, results in workers.ordered(lambda n: [n], items(), 2):
        seen += list(results)
        release.set()
    assert seen == [1, 2]


def test_results_of_one_item_flow_while_it_is_at_work() -> None:
    release = threading.Event()

    def slow(_n: int) -> Iterator[str]:
        yield "first"
        assert release.wait(10), "the first result was held back"
        yield "second"

    for _item, results in workers.ordered(slow, [0], 1):
        assert next(results) == "first"
        release.set()
        assert list(results) == ["second"]


def test_an_item_may_give_more_results_than_the_channel_holds() -> None:
    n = 10 * workers.CHANNEL_SIZE
    got = [list(results) for _item, results in workers.ordered(lambda _: range(n), range(5), 3)]
    assert got == [list(range(n))] * 5


def test_an_exception_is_raised_at_its_place_after_the_good_results() -> None:
    def fragile(n: int) -> Iterator[int]:
        yield n
        if n == 1:
            raise ValueError("broken")

    seen: list[int] = []
    with pytest.raises(ValueError, match="broken"):
        drain(workers.ordered(fragile, range(5), 2), seen)
    assert seen == [0, 1]


def test_an_exception_of_the_list_is_raised_after_the_results_before_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("list torn")

    seen: list[int] = []
    with pytest.raises(OSError, match="list torn"):
        drain(workers.ordered(lambda n: [n], items(), 2), seen)
    assert seen == [1]


def test_leaving_early_stops_the_workers() -> None:
    before = set(threading.enumerate())
    started = []

    def endless(n: int) -> Iterator[int]:
        started.append(n)
        while True:
            yield n

    for _item, results in workers.ordered(endless, range(1000), 2):
        next(results)
        break
    time.sleep(5 * workers.POLL_SECONDS)
    assert len(started) <= 4
    alive = set(threading.enumerate()) - before
    deadline = time.monotonic() + 5
    while any(t.is_alive() for t in alive) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(t.is_alive() for t in alive)


def test_the_list_is_not_read_far_ahead() -> None:
    taken = []

    def items() -> Iterator[int]:
        for n in range(1000):
            taken.append(n)
            yield n

    run = workers.ordered(lambda n: [n], items(), 2)
    next(run)
    time.sleep(0.1)
    assert len(taken) <= 6
    run.close()  # type: ignore[attr-defined]
