"""Embeddings as arrays: npz, npy, safetensors, parquet, written row by row from the records.

In each of them row k is an embedding of (dim,) numbers and where it comes from: `file` (the name as
it was given), `start` and `end` (seconds). Inputs that failed have no rows.

npz          arrays `embedding` (rows, dim), `file`, `start`, `end`: np.load(path)["embedding"]
npy          the embeddings alone: np.load(path, mmap_mode="r"); their index stands beside it, in
             NAME.npy.csv, columns file, start, end
safetensors  tensors `embedding`, `start`, `end`, and `file`, an index into `names`, which holds the
             names' bytes, a NUL after each: bytes(names).split(b"\\0")[file[k]]
parquet      columns file, start, end, embedding, model (needs pyarrow: the extra `parquet`)

Names that are not UTF-8: npz has them as Python does (os.fsencode gives their bytes), safetensors
as they are, npy.csv and parquet in a column `file_b64` that is there only when there are any.
Memory grows with the number of rows (24 bytes each), not with what they hold; the same records give
the same bytes.
"""

from __future__ import annotations

import importlib.util
import json
import os
import zipfile
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

import audiossl
from audiossl.atomic import atomic_write
from audiossl.errors import UsageError
from audiossl.output.records import file_fields, full_name
from audiossl.output.tables import delimited
from audiossl.output.writers import Inputs, Record

CHUNK_BYTES = 1 << 23  # of rows held at a time
EPOCH = (1980, 1, 1, 0, 0, 0)  # the date of all parts of an npz: the same rows, the same bytes
SAFE = {"float32": "F32", "float16": "F16", "float64": "F64", "int64": "I64", "uint8": "U8"}


@dataclass
class Index:
    """Where rows come from: `file`, of each row its place in `names`; `start`, `end` in seconds.

    `names`: bytes that are not UTF-8 by surrogateescape.
    """

    names: list[str] = field(default_factory=list)
    file: array[int] = field(default_factory=lambda: array("q"))
    start: array[float] = field(default_factory=lambda: array("d"))
    end: array[float] = field(default_factory=lambda: array("d"))

    def add(self, records: Iterable[Record]) -> None:
        """Rows of one input."""
        for row, record in enumerate(records):
            if row == 0:
                self.names.append(full_name(record))
            self.file.append(len(self.names) - 1)
            self.start.append(record["start"])
            self.end.append(record["end"])


class Rows:
    """All rows of a run: an index in memory, embeddings read from the records as often as asked."""

    def __init__(self, inputs: Inputs, dim: int, dtype: str) -> None:
        self._inputs = inputs
        self.dim, self.dtype = dim, np.dtype(dtype)
        self.index = Index()
        self.model = ""
        for records in inputs:
            self.index.add(self._noted(records))

    def _noted(self, records: Iterable[Record]) -> Iterator[Record]:
        for record in records:
            if "error" not in record:
                self.model = record["model"]
                yield record

    def __len__(self) -> int:
        return len(self.index.file)

    @property
    def step(self) -> int:
        """Rows in a chunk."""
        return max(CHUNK_BYTES // (self.dim * self.dtype.itemsize), 1)

    @property
    def nbytes(self) -> int:
        return len(self) * self.dim * self.dtype.itemsize

    def chunks(self) -> Iterator[np.ndarray]:
        """(n, dim) each, n = `step` but for the last; the memory of one is used for the next."""
        chunk, filled = np.empty((min(self.step, len(self)), self.dim), self.dtype), 0
        for records in self._inputs:
            for record in self._noted(records):
                chunk[filled] = record["embedding"]
                filled += 1
                if filled == len(chunk):
                    yield chunk
                    filled = 0
        if filled:
            yield chunk[:filled]

    def names(self, begin: int, end: int) -> list[str]:
        """Names of rows `begin` to `end`."""
        return [self.index.names[k] for k in self.index.file[begin:end]]


@dataclass(frozen=True)
class ArrayWriter:
    """A format of arrays: all rows at once, from records that are kept elsewhere until then."""

    suffix: str
    function: Callable[[Path, Rows], None]
    dim: int
    dtype: str

    def files(self, path: Path) -> list[Path]:
        """What `write` makes: `path`, and of npy its index."""
        return [path, index_of(path)] if self.function is write_npy else [path]

    def write(self, path: Path, inputs: Inputs) -> None:
        """The rows of all inputs to `path`, whole or not at all. Raises OutputError."""
        self.function(path, Rows(inputs, self.dim, self.dtype))


def formats(dim: int, dtype: str) -> dict[str, Callable[[], ArrayWriter]]:
    """Writers of vectors of `dim` numbers, by the name of their format."""
    return {
        name: partial(ArrayWriter, f".{name}", function, dim, dtype)
        for name, function in FUNCTIONS.items()
    }


def check(format_: str) -> None:
    """Raise UsageError where a format cannot be written here: to ask before hours of work."""
    if format_ == "parquet" and importlib.util.find_spec("pyarrow") is None:
        raise UsageError("parquet needs pyarrow: pip install 'audiossl-toolkit[parquet]'")


# --- npz and npy ----------------------------------------------------------------------------------


def write_npz(path: Path, rows: Rows) -> None:
    with atomic_write(path, needed=rows.nbytes) as file, zipfile.ZipFile(file, "w") as archive:
        with _member(archive, "embedding", zipfile.ZIP_STORED) as member:
            _write_npy(member, rows)
        with _member(archive, "file", zipfile.ZIP_DEFLATED) as member:  # mostly the same again
            _write_names(member, rows)
        for name, values in (("start", rows.index.start), ("end", rows.index.end)):
            with _member(archive, name, zipfile.ZIP_STORED) as member:
                np.lib.format.write_array(member, np.asarray(values))


def _member(archive: zipfile.ZipFile, name: str, compression: int) -> IO[bytes]:
    info = zipfile.ZipInfo(f"{name}.npy", EPOCH)
    info.compress_type = compression
    return archive.open(info, "w", force_zip64=True)


def _write_npy(file: IO[bytes], rows: Rows) -> None:
    _header(file, rows.dtype, (len(rows), rows.dim))
    for chunk in rows.chunks():
        file.write(chunk.data)


def _write_names(file: IO[bytes], rows: Rows) -> None:
    dtype = np.dtype(f"<U{max(map(len, rows.index.names), default=1)}")
    _header(file, dtype, (len(rows),))
    for begin in range(0, len(rows), rows.step):
        file.write(np.array(rows.names(begin, begin + rows.step), dtype).tobytes())


def _header(file: IO[bytes], dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    described = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, described)


def write_npy(path: Path, rows: Rows) -> None:
    # Both are whole before either gets its name, the index first: where the array is, its index is.
    with atomic_write(path, needed=rows.nbytes) as file:
        _write_npy(file, rows)
        file.flush()
        os.fsync(file.fileno())
        with atomic_write(index_of(path)) as index:
            _write_index(index, rows)


def index_of(path: Path) -> Path:
    """Where the index of an npy stands."""
    return path.with_name(f"{path.name}.csv")


def _write_index(file: IO[bytes], rows: Rows) -> None:
    fields = [file_fields(name) for name in rows.index.names]
    columns = _name_columns(fields)
    file.write(delimited((*columns, "start", "end")).encode())
    places = zip(rows.index.file, rows.index.start, rows.index.end, strict=True)
    for k, start, end in places:
        values = (fields[k].get(column) for column in columns)
        file.write(delimited((*values, start, end)).encode())


def _name_columns(fields: list[dict[str, str]]) -> list[str]:
    return ["file", "file_b64"] if any("file_b64" in found for found in fields) else ["file"]


# --- safetensors ----------------------------------------------------------------------------------


def write_safetensors(path: Path, rows: Rows) -> None:
    # Written by hand: the library takes whole tensors. 8-byte types first, so that all are aligned.
    names = b"".join(os.fsencode(name) + b"\0" for name in rows.index.names)
    columns = {
        "file": np.asarray(rows.index.file),
        "start": np.asarray(rows.index.start),
        "end": np.asarray(rows.index.end),
    }
    shapes = {name: (values.dtype, values.shape) for name, values in columns.items()}
    shapes["embedding"] = (rows.dtype, (len(rows), rows.dim))
    shapes["names"] = (np.dtype(np.uint8), (len(names),))
    header = _safetensors_header(shapes, {"audiossl": audiossl.__version__, "model": rows.model})
    with atomic_write(path, needed=rows.nbytes) as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for values in columns.values():
            file.write(values.tobytes())
        for chunk in rows.chunks():
            file.write(chunk.data)
        file.write(names)


def _safetensors_header(
    shapes: dict[str, tuple[np.dtype[Any], tuple[int, ...]]], metadata: dict[str, str]
) -> bytes:
    header: dict[str, Any] = {"__metadata__": metadata}
    begin = 0
    for name, (dtype, shape) in shapes.items():
        end = begin + dtype.itemsize * int(np.prod(shape))
        header[name] = {"dtype": SAFE[dtype.name], "shape": shape, "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header).encode()
    return text + b" " * (-len(text) % 8)


# --- parquet --------------------------------------------------------------------------------------


def write_parquet(path: Path, rows: Rows) -> None:
    check("parquet")
    import pyarrow as pa
    from pyarrow import parquet

    fields = [file_fields(name) for name in rows.index.names]
    columns = _name_columns(fields)
    number = {"float32": pa.float32(), "float16": pa.float16()}[rows.dtype.name]
    schema = pa.schema(
        [
            *((column, pa.string()) for column in columns),
            ("start", pa.float64()),
            ("end", pa.float64()),
            ("embedding", pa.list_(number, rows.dim)),
            ("model", pa.string()),
        ]
    )
    repeated: Any = [*columns, "model"]  # the stubs know no list here
    with (
        atomic_write(path, needed=rows.nbytes) as file,
        parquet.ParquetWriter(file, schema, use_dictionary=repeated) as writer,
    ):
        begin = 0
        for chunk in rows.chunks():
            end = begin + len(chunk)
            found = [fields[k] for k in rows.index.file[begin:end]]
            data = [pa.array([item.get(column) for item in found]) for column in columns]
            for times in (rows.index.start, rows.index.end):
                data.append(pa.array(np.asarray(times[begin:end])))
            data.append(pa.FixedSizeListArray.from_arrays(pa.array(chunk.ravel()), rows.dim))
            data.append(pa.array([rows.model] * len(chunk)))
            writer.write_table(pa.Table.from_arrays(data, schema=schema))
            begin = end


FUNCTIONS: dict[str, Callable[[Path, Rows], None]] = {
    "npz": write_npz,
    "npy": write_npy,
    "parquet": write_parquet,
    "safetensors": write_safetensors,
}
