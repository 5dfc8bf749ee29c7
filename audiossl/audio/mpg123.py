"""Keep mpg123, inside libsndfile, from writing to the terminal."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Iterator


class Mpg123:
    """Keeps libmpg123's complaints about odd frames off standard error.

    libsndfile leaves no way to set its quiet flag, and it prints several lines about MP3s that
    libsndfile itself wrote. Pointing descriptor 2 elsewhere would swallow what other threads say,
    so C's variable `stderr`, which libmpg123 prints to, is pointed at /dev/null while MP3 is being
    decoded. Python writes to descriptor 2 and C++ streams keep the FILE they began with: neither
    notices. What is lost is fprintf(stderr) of other C code at such a moment. Only glibc promises
    that the variable can be set (with musl it is const); elsewhere the lines stay.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._ready = False
        self._variable: ctypes.c_void_p | None = None
        self._null: int | None = None
        self._before: int | None = None

    def _prepare(self) -> None:
        self._ready = True
        with contextlib.suppress(AttributeError, OSError, ValueError):
            if not (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc"):
                return
            libc = ctypes.CDLL(None)
            libc.fopen.restype = ctypes.c_void_p
            libc.fopen.argtypes = (ctypes.c_char_p, ctypes.c_char_p)
            self._null = libc.fopen(os.devnull.encode(), b"we")
            if self._null:  # stays open: a thread may be printing to it at any time
                self._variable = ctypes.c_void_p.in_dll(libc, "stderr")

    @contextlib.contextmanager
    def silenced(self) -> Iterator[None]:
        with self._lock:
            if not self._ready:
                self._prepare()
            self._users += 1
            if self._users == 1 and self._variable is not None:
                self._before, self._variable.value = self._variable.value, self._null
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0 and self._variable is not None:
                    self._variable.value = self._before


mpg123 = Mpg123()
