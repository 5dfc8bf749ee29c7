"""`audiossl embed` run as a command, and what its tests share: models, sounds, readers.

Use as a plugin: `pytest_plugins = ("embedruns",)`. The tests also import from it, so pytest comes
too late to rewrite asserts, of which there are none: PYTEST_DONT_REWRITE
"""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema
import numpy as np
import pyarrow.parquet
import pytest
import soundfile
from safetensors.numpy import load_file
from test_contract import SCHEMA
from test_embedding import made

from audiossl.inference.embedding import Embedder
from audiossl.model import save_model

VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)  # made once: much faster than validate()
BYTES_ALIKE = ["jsonl", "csv", "npz", "npy", "parquet", "safetensors"]


class Done(NamedTuple):
    code: int
    stdout: bytes
    stderr: bytes


@pytest.fixture
def embed(capfdbinary: pytest.CaptureFixture[bytes], tiny: Path) -> Iterator[Callable[..., Done]]:
    """Run `audiossl embed` here: embed("a.wav", "--hop", "1")."""
    (entry,) = metadata.entry_points(group="console_scripts", name="audiossl")
    run = entry.load()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}

    def call(*args: Any, model: Any = tiny, command: str = "embed") -> Done:
        words = [command, *(os.fsdecode(word) for word in args), "--model", str(model)]
        capfdbinary.readouterr()
        with pytest.raises(SystemExit) as ended:
            run(words)
        sys.stderr.flush()
        return Done(int(ended.value.code or 0), *capfdbinary.readouterr())

    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    save_model(made("dscnn"), folder)
    return folder


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder(made("dscnn"))


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty clips of 0.1 to 0.4 s in two folders."""
    return generated(tmp_path_factory.mktemp("sounds"), 60)


def generated(folder: Path, count: int) -> Path:
    random = np.random.default_rng(0)
    for n in range(count):
        place = folder / f"{n % 2}"
        place.mkdir(exist_ok=True)
        wave = random.standard_normal(1600 + n % 7 * 800) * random.uniform(0.01, 0.2)
        soundfile.write(place / f"{n:05d}.wav", wave, 16000)
    return folder


def lines(output: bytes) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in output.splitlines()]
    for record in found:
        VALIDATOR.validate(record)
    return found


def vectors(records: list[dict[str, Any]]) -> np.ndarray:
    return np.array([record["embedding"] for record in records], dtype=np.float32)


def rows(path: Path) -> tuple[np.ndarray, list[str], list[float]]:
    """Embeddings, file names and start times of an output, by independent readers."""
    if path.suffix == ".parquet":
        table = pyarrow.parquet.read_table(path).to_pydict()
        return np.array(table["embedding"], np.float32), table["file"], table["start"]
    if path.suffix == ".safetensors":
        found = load_file(path)
        names = bytes(found["names"]).decode().split("\0")
        return found["embedding"], [names[k] for k in found["file"]], found["start"].tolist()
    if path.suffix == ".npz":
        with np.load(path) as found:
            return found["embedding"], found["file"].tolist(), found["start"].tolist()
    text = path if path.suffix == ".csv" else path.with_name(f"{path.name}.csv")
    table = list(csv.DictReader(io.StringIO(text.read_text(), newline="")))
    table = [row for row in table if not row.get("error")]
    names, starts = [row["file"] for row in table], [float(row["start"]) for row in table]
    if path.suffix == ".npy":
        return np.load(path), names, starts
    columns = sorted(
        (k for k in table[0] if k[0] == "e" and k[1:].isdigit()), key=lambda k: int(k[1:])
    )
    return np.array([[row[k] for k in columns] for row in table], np.float32), names, starts
