"""Array formats: what independent readers find in them is what the records say."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow.parquet
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from audiossl.errors import OutputError, UsageError
from audiossl.output import arrays, writers
from audiossl.output.records import EmbedRecord, ErrorRecord, full_name

DIM = 5
NAMES = ["a b.wav", "new\nline, 'quoted\".wav", "żółw.wav", "caf\udce9.wav", "-"]
FORMATS = ["npz", "npy", "parquet", "safetensors"]

Record = dict[str, Any]


def inputs(dtype: str = "float32", names: list[str] | None = None) -> list[list[Record]]:
    """Records of some inputs: one more each; one input without, and one that breaks at its end."""
    random = np.random.default_rng(1)
    out = []
    for n, name in enumerate(NAMES if names is None else names):
        vectors = (random.standard_normal((n + 1, DIM)) * 10.0 ** (n - 2)).astype(dtype)
        out.append(
            [
                EmbedRecord(name, 0.1 * k, 0.1 * k + 1 / 3, vector, "m").to_row()
                for k, vector in enumerate(vectors)
            ]
        )
    error = ErrorRecord("bad.wav", "truncated", "header says 10, 5 decoded").to_dict()
    out.insert(1, [error])
    out[-1] = [*out[-1], error]
    return out


def good(found: list[list[Record]]) -> list[Record]:
    return [record for records in found for record in records if "error" not in record]


def names_of(found: list[list[Record]]) -> list[str]:
    return [full_name(record) for record in good(found)]


def written(path: Path, found: list[list[Record]], dtype: str = "float32") -> Path:
    arrays.formats(DIM, dtype)[path.suffix[1:]]().write(path, found)
    return path


def check(rows: np.ndarray, start: Any, end: Any, found: list[list[Record]], dtype: str) -> None:
    assert rows.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(rows, np.stack([r["embedding"] for r in good(found)]))
    assert list(start) == [record["start"] for record in good(found)]
    assert list(end) == [record["end"] for record in good(found)]


@pytest.fixture(params=["float32", "float16"])
def dtype(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=[1 << 23, 1], ids=["one chunk", "many chunks"], autouse=True)
def _chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "CHUNK_BYTES", request.param)


def test_npz_is_read_by_numpy(tmp_path: Path, dtype: str) -> None:
    with np.load(written(tmp_path / "x.npz", inputs(dtype), dtype)) as found:
        assert sorted(found) == ["embedding", "end", "file", "start"]
        check(found["embedding"], found["start"], found["end"], inputs(dtype), dtype)
        assert found["file"].tolist() == names_of(inputs())
        assert os.fsencode(found["file"][6]) == b"caf\xe9.wav"


def test_npy_is_mapped_by_numpy_and_its_index_is_a_csv(tmp_path: Path, dtype: str) -> None:
    path = written(tmp_path / "x.npy", inputs(dtype), dtype)
    rows = np.load(path, mmap_mode="r")
    index = pandas.read_csv(tmp_path / "x.npy.csv", dtype={"file": str})
    check(rows, index["start"], index["end"], inputs(dtype), dtype)
    for row, name in zip(index.itertuples(), names_of(inputs()), strict=True):
        raw = None if pandas.isna(row.file_b64) else base64.b64decode(str(row.file_b64))
        assert (raw or str(row.file).encode()) == os.fsencode(name)
    plain = [name for name in NAMES if name.isprintable()][:2]
    written(tmp_path / "y.npy", inputs(names=plain))
    assert (tmp_path / "y.npy.csv").read_text().splitlines()[0] == "file,start,end"


def test_safetensors_is_read_by_its_library(tmp_path: Path, dtype: str) -> None:
    path = written(tmp_path / "x.safetensors", inputs(dtype), dtype)
    found = load_file(path)
    check(found["embedding"], found["start"], found["end"], inputs(dtype), dtype)
    names = bytes(found["names"]).split(b"\0")
    assert [names[k] for k in found["file"]] == [os.fsencode(n) for n in names_of(inputs())]
    with safe_open(path, framework="numpy") as file:
        assert file.metadata()["model"] == "m"
        np.testing.assert_array_equal(
            file.get_slice("embedding")[2:4],
            np.stack([r["embedding"] for r in good(inputs(dtype))[2:4]]),
        )


def test_parquet_is_read_by_arrow_and_pandas(tmp_path: Path, dtype: str) -> None:
    path = written(tmp_path / "x.parquet", inputs(dtype), dtype)
    table = pyarrow.parquet.read_table(path)
    assert table.column_names == ["file", "file_b64", "start", "end", "embedding", "model"]
    frame = pandas.read_parquet(path)
    check(np.stack(frame["embedding"]), frame["start"], frame["end"], inputs(dtype), dtype)
    assert set(frame["model"]) == {"m"}
    for row, name in zip(table.to_pylist(), names_of(inputs()), strict=True):
        raw = base64.b64decode(row["file_b64"]) if row["file_b64"] else row["file"].encode()
        assert raw == os.fsencode(name)
    plain = pyarrow.parquet.read_table(written(tmp_path / "y.parquet", inputs(names=["a", "b"])))
    assert plain.column_names == ["file", "start", "end", "embedding", "model"]


@pytest.mark.parametrize("format_", ["jsonl", "json", "csv"])
def test_texts_read_back_to_the_bit(tmp_path: Path, dtype: str, format_: str) -> None:
    path = tmp_path / f"x.{format_}"
    writers.EMBED_TEXTS[format_](DIM).write(path, inputs(dtype))
    text = path.read_text()
    if format_ == "csv":
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
        assert rows[1]["error"] == "truncated: header says 10, 5 decoded"
        assert rows[1]["e0"] == ""
        found = [row for row in rows if not row["error"]]
        vectors = [[row[f"e{k}"] for k in range(DIM)] for row in found]
    else:
        rows = json.loads(text) if format_ == "json" else [json.loads(x) for x in text.splitlines()]
        found = [row for row in rows if "error" not in row]
        vectors = [row["embedding"] for row in found]
    assert len(rows) == len(found) + 2
    got = np.array(vectors, dtype=dtype)
    times = ([float(row[name]) for row in found] for name in ("start", "end"))
    check(got, *times, inputs(dtype), dtype)


@pytest.mark.parametrize("format_", FORMATS)
def test_the_same_records_give_the_same_bytes(tmp_path: Path, format_: str) -> None:
    one, other = tmp_path / f"x.{format_}", tmp_path / f"y.{format_}"
    assert written(one, inputs()).read_bytes() == written(other, inputs()).read_bytes()


@pytest.mark.parametrize("format_", FORMATS)
def test_no_rows_are_an_empty_array(tmp_path: Path, format_: str) -> None:
    path = written(tmp_path / f"x.{format_}", inputs(names=[])[:1])
    if format_ == "parquet":
        assert len(pyarrow.parquet.read_table(path)) == 0
        return
    found = {"npz": np.load, "npy": np.load, "safetensors": load_file}[format_](path)
    rows = found if format_ == "npy" else found["embedding"]
    assert rows.shape == (0, DIM)


@pytest.mark.parametrize("format_", FORMATS)
def test_nothing_half_written_is_left(tmp_path: Path, format_: str) -> None:
    class Broken:
        def __init__(self) -> None:
            self.reads = 0

        def __iter__(self) -> Iterator[list[Record]]:
            self.reads += 1
            yield inputs()[0]
            if self.reads > 1:
                raise OutputError("the journal is gone")

    path = tmp_path / f"x.{format_}"
    path.write_text("precious")
    with pytest.raises(OutputError, match="journal"):
        arrays.formats(DIM, "float32")[format_]().write(path, Broken())
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [(path.name, "precious")]


@pytest.mark.parametrize("format_", ["npz", "npy", "safetensors"])
def test_memory_does_not_grow_with_what_rows_hold(
    tmp_path: Path, format_: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrays, "CHUNK_BYTES", 1 << 18)
    dim, count = 4096, 1000  # 16 MB

    class Many:
        def __iter__(self) -> Iterator[Iterator[Record]]:
            for n in range(10):
                yield (
                    EmbedRecord(f"{n}.wav", k, k + 1, np.full(dim, k, np.float32), "m").to_row()
                    for k in range(count // 10)
                )

    path = tmp_path / f"x.{format_}"
    tracemalloc.start()
    arrays.formats(dim, "float32")[format_]().write(path, Many())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 16_000_000
    assert peak < 3_000_000


def test_parquet_without_pyarrow_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(UsageError, match=r"pip install 'audiossl-toolkit\[parquet\]'"):
        arrays.check("parquet")
    arrays.check("npz")
