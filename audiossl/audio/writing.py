"""Sound out: a wave to a file."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile

from audiossl.atomic import atomic_write
from audiossl.audio.sources import STDIN
from audiossl.errors import UsageError

WRITTEN = {
    ".wav": ("WAV", "PCM_24"),
    ".flac": ("FLAC", "PCM_24"),
    ".ogg": ("OGG", "VORBIS"),
    ".oga": ("OGG", "VORBIS"),
    ".opus": ("OGG", "OPUS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
    ".aiff": ("AIFF", "PCM_24"),
    ".aif": ("AIFF", "PCM_24"),
    ".au": ("AU", "PCM_24"),
    ".caf": ("CAF", "PCM_24"),
    ".w64": ("W64", "PCM_24"),
    ".rf64": ("RF64", "PCM_24"),
}


def write(
    target: str | os.PathLike[str], wave: np.ndarray, rate: int, subtype: str | None = None
) -> None:
    """Write `wave`, (samples,) or (samples, channels) in [-1, 1], under its name when it is whole.

    The suffix names the format; "-" is a WAV on standard output. `subtype`: libsndfile's name of
    the encoding, by default 24 bits where nothing is lost. Values beyond [-1, 1] are clipped in
    whole numbers ("FLOAT" keeps them). Raises OutputError, or UsageError for what the format cannot
    hold.
    """
    suffix = ".wav" if os.fspath(target) == STDIN else Path(target).suffix.lower()
    if suffix not in WRITTEN:
        raise UsageError(
            f"cannot write {suffix or 'a file without suffix'}: one of {', '.join(WRITTEN)}"
        )
    container, usual = WRITTEN[suffix]
    encoding = subtype or usual
    if not soundfile.check_format(container, encoding):
        known = ", ".join(soundfile.available_subtypes(container))
        raise UsageError(f"{container} has no encoding {encoding}: one of {known}")
    if os.fspath(target) == STDIN:
        held = io.BytesIO()  # libsndfile goes back to write the length: a pipe has no back
        _encode(held, wave, rate, container, encoding)
        sys.stdout.buffer.write(held.getbuffer())
        sys.stdout.buffer.flush()
        return
    with atomic_write(Path(target)) as file:
        _encode(file, wave, rate, container, encoding)


def _encode(file: BinaryIO, wave: np.ndarray, rate: int, container: str, encoding: str) -> None:
    channels = 1 if wave.ndim == 1 else wave.shape[1]
    where = file if isinstance(file, io.BytesIO) else file.fileno()
    try:
        sound = soundfile.SoundFile(
            where, "w", rate, channels, encoding, format=container, closefd=False
        )
    except soundfile.LibsndfileError as error:
        raise UsageError(
            f"{container} {encoding} cannot hold {rate} Hz with {channels} channels"
        ) from error
    with sound:
        sound.write(wave)
