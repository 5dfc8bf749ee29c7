"""`tag` and `embed` on 140 broken and 20 good files at once: nothing good is lost.

The corpus is made by tests/malformed.py; test_malformed.py runs it through audio.py alone.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from audiossl.inference.embedding import Embedder

sys.path.insert(0, str(Path(__file__).parents[1]))

import malformed


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[malformed.Case]]:
    folder = tmp_path_factory.mktemp("corpus")
    return folder, malformed.make(folder)


def by_file(output: bytes) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for line in output.splitlines():
        record = json.loads(line)
        found.setdefault(os.path.basename(record["file"]), []).append(record)
    return found


def test_good_results_survive_any_neighbour(
    cli: Callable, corpus: tuple[Path, list[malformed.Case]]
) -> None:
    folder, cases = corpus
    good = [case.name for case in cases if case.verdict == "good"]
    bad = [case for case in cases if case.verdict != "good"]
    names = "\n".join(case.name for case in cases).encode()
    alone = cli("tag", *good, cwd=folder)
    assert alone.returncode == 0, alone.stderr
    mixed = cli("tag", "--files-from", "-", stdin=names, cwd=folder, timeout=300)
    assert mixed.returncode == 3
    assert b"Traceback" not in mixed.stderr
    lines = [line for line in mixed.stdout.splitlines() if json.loads(line)["file"] in good]
    assert lines == alone.stdout.splitlines()
    records = by_file(mixed.stdout)
    for case in bad:
        errors = [record for record in records[case.name] if "error" in record]
        assert len(errors) <= 1, case
        if case.verdict == "must_fail":
            assert len(errors) == 1, case
    told = [line for line in mixed.stderr.splitlines() if line.startswith(b"audiossl: error: ")]
    assert len(told) == sum("error" in r for found in records.values() for r in found)
    assert len(told) == len(mixed.stderr.splitlines()), "nothing else on stderr"


def test_a_folder_of_nothing_but_broken_files(
    cli: Callable, corpus: tuple[Path, list[malformed.Case]], tmp_path: Path
) -> None:
    folder, cases = corpus
    bad = [folder / case.name for case in cases if case.verdict == "must_fail"][:30]
    out = tmp_path / "out.jsonl"
    done = cli("tag", *bad, "--out", out, timeout=120)
    assert done.returncode == 4
    assert len(out.read_bytes().splitlines()) >= len(bad)


def test_rows_of_good_files_survive_any_neighbour(
    cli: Callable, corpus: tuple[Path, list[malformed.Case]], tmp_path: Path
) -> None:
    """`embed` of all at once into one array: the good ones' rows are those they have alone."""
    folder, cases = corpus
    names = "\n".join(case.name for case in cases).encode()
    out = tmp_path / "all.npz"
    done = cli("embed", "--files-from", "-", "--out", out, stdin=names, cwd=folder, timeout=300)
    assert done.returncode == 3
    assert b"Traceback" not in done.stderr
    told = [line for line in done.stderr.splitlines() if line.startswith(b"audiossl: error: ")]
    assert len(told) == len(done.stderr.splitlines()), "nothing else on stderr"
    embedder = Embedder.load()
    with np.load(out) as found:
        rows = dict(zip(found["file"], found["embedding"], strict=True))
    for case in cases:
        if case.verdict == "good":
            (record,) = embedder.embed(folder / case.name)
            np.testing.assert_allclose(rows[case.name], record.embedding, rtol=1e-5, atol=1e-5)
    failed = sum(case.verdict == "must_fail" for case in cases)
    assert len(told) >= failed
    assert all(np.isfinite(row).all() for row in rows.values())
