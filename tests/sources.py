"""What the tests of audio.py read from: clips in every container, pipes, and what goes wrong."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from malformed import CONTAINERS, encoded, sound

from audiossl.audio import reading as audio
from audiossl.errors import InputError


def every_container(folder: Path) -> dict[str, Path]:
    """Three seconds of stereo in every container."""
    wave = np.stack([sound(1, seconds=3.0), sound(7, seconds=3.0)], axis=1)
    paths = {name: folder / f"clip.{name}" for name in CONTAINERS}
    for name, path in paths.items():
        encoded(path, name, wave)
    return paths


@contextmanager
def piped(data: bytes) -> Iterator[str]:
    """`data` coming through a pipe, as the path that a process substitution gives."""
    reader, writer = os.pipe()

    def feed() -> None:
        with os.fdopen(writer, "wb") as file, suppress(BrokenPipeError):
            file.write(data)

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        yield f"/dev/fd/{reader}"
    finally:
        os.close(reader)
        thread.join()


def failure(source: audio.Source, **options: object) -> tuple[str, str]:
    with pytest.raises(InputError) as caught:
        audio.read(source, **options)  # type: ignore[arg-type]
    return caught.value.code, str(caught.value)
