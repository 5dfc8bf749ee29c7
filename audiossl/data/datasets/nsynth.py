"""NSynth: 305,979 musical notes of 4 s, 16 kHz (Engel et al., arXiv 1704.01279).

    nsynth-train/examples.json    {"guitar_acoustic_001-082-050": {"pitch": 82, ...}, ...}
    nsynth-train/audio/guitar_acoustic_001-082-050.wav
    nsynth-valid/...    nsynth-test/...

The label is the instrument's family, of `nsynth_pitch` the MIDI pitch. A group is an instrument:
none of those in training is in the other two parts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from audiossl.data.datasets.dataset import Dataset
from audiossl.data.rows import Row, inside
from audiossl.errors import UsageError

TABLE = "examples.json"
PARTS = ("train", "valid", "test")
EXTRA = ("pitch", "velocity", "instrument_source_str", "qualities_str")


def read(folder: Path, label: str) -> Iterator[Row]:
    """Rows of the parts that are there, in the order of their names."""
    for part in PARTS:
        path = folder / f"nsynth-{part}" / TABLE
        if not path.is_file():
            continue
        for name, note in sorted(_notes(path).items()):
            try:
                extra = {key: _shown(note[key]) for key in EXTRA}
                labels, group = (str(note[label]),), str(note["instrument_str"])
            except (KeyError, TypeError) as error:
                raise UsageError(f"{path}: note {name!r}: no {error}") from None
            audio = inside(f"{name}.wav", path.parent / "audio", str(path))
            yield Row(audio, labels=labels, group=group, split=part, extra=extra)


def _notes(path: Path) -> dict[str, Any]:
    try:
        notes = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from error
    if not isinstance(notes, dict):
        raise UsageError(f"{path}: expected an object of notes by name")
    return notes


def _shown(value: Any) -> str:
    return ";".join(map(str, value)) if isinstance(value, list) else str(value)


def _dataset(name: str, title: str, label: str) -> Dataset:
    return Dataset(
        name=name,
        title=title,
        licence="CC BY 4.0",
        citation=(
            "J. Engel et al.: Neural Audio Synthesis of Musical Notes with WaveNet Autoencoders."
            " 2017, https://arxiv.org/abs/1704.01279"
        ),
        page="https://magenta.tensorflow.org/datasets/nsynth",
        folders=("NSynth", "nsynth"),
        signs=tuple(f"nsynth-{part}/{TABLE}" for part in PARTS),
        expected=f"nsynth-train, nsynth-valid and nsynth-test, each with {TABLE} and audio/",
        read=partial(read, label=label),
        counts={"train": 289_205, "valid": 12_678, "test": 4_096},
        by_parts=True,
    )


DATASETS = (
    _dataset("nsynth", "NSynth", "instrument_family_str"),
    _dataset("nsynth_pitch", "NSynth, pitch", "pitch"),
)
