"""Run a function that yields records over many inputs in threads; results come in input order.

Decoding (libsndfile), resampling (soxr) and the network (torch) all release the GIL.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

CHANNEL_SIZE = 64  # results of one input that may wait for the reader
POLL_SECONDS = 0.1  # how soon a waiting thread notices that the run was given up


class _Stopped(Exception):
    """The reader has stopped reading."""


class _Channel(Generic[Result]):
    """Results of one input: put by its worker, iterated by the reader."""

    def __init__(self, stop: threading.Event) -> None:
        self._queue: queue.Queue[tuple[str, Result | BaseException | None]]
        self._queue = queue.Queue(CHANNEL_SIZE)
        self._stop = stop

    def put(self, kind: str, value: Result | BaseException | None = None) -> None:
        while not self._stop.is_set():
            try:
                return self._queue.put((kind, value), timeout=POLL_SECONDS)
            except queue.Full:
                continue
        raise _Stopped

    def __iter__(self) -> Iterator[Result]:
        while True:
            kind, value = self._queue.get()
            if kind == "end":
                return
            if isinstance(value, BaseException):
                raise value
            yield value  # type: ignore[misc]


def ordered(
    function: Callable[[Item], Iterable[Result]], items: Iterable[Item], jobs: int
) -> Iterator[tuple[Item, Iterator[Result]]]:
    """(item, its results) in the order of `items`; results can be read while others are made.

    function: gives the results of one item.
    items: read in a thread of their own, so that a slow list never holds back a finished result.
    jobs: items at work at once.

    An exception of `function` is raised where the results of its item are iterated; an exception
    of `items` where the next item would come.
    """
    stop = threading.Event()
    slots = threading.Semaphore(2 * jobs)
    line: queue.Queue[tuple[Item, _Channel[Result]] | BaseException | None] = queue.Queue()

    def work(item: Item, channel: _Channel[Result]) -> None:
        try:
            for result in function(item):
                channel.put("result", result)
            channel.put("end")
        except _Stopped:
            pass
        except BaseException as error:  # any exception at all is handed to the reader
            if not stop.is_set():
                channel.put("error", error)

    def feed(pool: ThreadPoolExecutor) -> None:
        try:
            for item in items:
                while not slots.acquire(timeout=POLL_SECONDS):
                    if stop.is_set():
                        return
                if stop.is_set():
                    return
                channel: _Channel[Result] = _Channel(stop)
                pool.submit(work, item, channel)
                line.put((item, channel))
            line.put(None)
        except BaseException as error:
            line.put(error)

    pool = ThreadPoolExecutor(jobs, thread_name_prefix="audiossl")
    feeder = threading.Thread(target=feed, args=(pool,), daemon=True)
    feeder.start()
    try:
        while (entry := line.get()) is not None:
            if isinstance(entry, BaseException):
                raise entry
            item, channel = entry
            yield item, iter(channel)
            slots.release()
    finally:
        stop.set()
        pool.shutdown(wait=False, cancel_futures=True)
