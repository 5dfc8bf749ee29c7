"""`audiossl embed`: formats, options and exit codes.

Runs are in this process, by the installed entry point.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from embedruns import BYTES_ALIKE, Done, lines, rows, vectors
from safetensors.numpy import load_file
from test_contract import NASTY

from audiossl.inference.embedding import Embedder, EmbedOptions
from audiossl.output import arrays
from audiossl.output.records import full_name

pytest_plugins = ("embedruns",)


# Formats and options


@pytest.mark.parametrize("format_", [name for name in BYTES_ALIKE if name != "jsonl"])
def test_every_format_holds_what_the_api_gives(
    embed: Callable[..., Done], embedder: Embedder, clips: Path, tmp_path: Path, format_: str
) -> None:
    out = tmp_path / f"x.{format_}"
    files = [clips / "crow.wav", clips / "speech.flac"]
    done = embed(*files, "--hop", "0.7", "--window", "1", "-o", out)
    assert done == (0, b"", b"")
    options = EmbedOptions(window=1.0, hop=0.7)
    expected = [record for file in files for record in embedder.embed(file, options=options)]
    got, names, starts = rows(out)
    np.testing.assert_array_equal(got, np.stack([record.embedding for record in expected]))
    assert names == [record.file for record in expected]
    assert starts == [round(record.start, 6) for record in expected]


def test_stdout_is_json_lines_or_what_is_asked_for(
    embed: Callable[..., Done], embedder: Embedder, clips: Path
) -> None:
    done = embed(clips / "crow.wav", "--tokens", "--dtype", "float16")
    assert done.code == 0
    expected = list(embedder.embed(clips / "crow.wav", options=EmbedOptions(tokens=True)))
    found = lines(done.stdout)
    assert [record["start"] for record in found] == [round(r.start, 6) for r in expected]
    half = np.stack([record.embedding for record in expected]).astype(np.float16)
    np.testing.assert_array_equal(vectors(found).astype(np.float16), half)
    assert (
        json.loads(embed(clips / "crow.wav", "-f", "json", "--tokens", "--dtype", "float16").stdout)
        == found
    )
    (row,) = embed(clips / "crow.wav", "-f", "table").stdout.decode().splitlines()
    assert row.split()[-4:-1] == ["16", "dims", "norm"]
    norm = np.linalg.norm(next(embedder.embed(clips / "crow.wav")).embedding)
    assert float(row.split()[-1]) == pytest.approx(norm, rel=1e-3)
    assert "0:00.0-0:02.6" in row


def test_pools(embed: Callable[..., Done], clips: Path) -> None:
    sizes = {}
    for pool in ("mean", "max", "statistics"):
        (record,) = lines(embed(clips / "rain.ogg", "--pool", pool, "--hop", "1").stdout)
        assert (record["start"], record["end"]) == (0.0, 6.0)
        sizes[pool] = len(record["embedding"])
    assert sizes == {"mean": 16, "max": 16, "statistics": 32}


@pytest.mark.parametrize("command", ["embed", "tag"])
def test_the_name_of_out_picks_the_format(
    embed: Callable[..., Done], clips: Path, tmp_path: Path, command: str
) -> None:
    model = "tagger" if command == "tag" else None
    for name, first in (("x.csv", b"file,start,"), ("x.JSON", b"[\n{"), ("x.what", b'{"file"')):
        extra = {"model": model} if model else {}
        done = embed(clips / "crow.wav", "-o", tmp_path / name, command=command, **extra)
        assert done.code == 0, done.stderr
        assert (tmp_path / name).read_bytes().startswith(first)


def test_a_folder_gets_one_file_an_input(
    embed: Callable[..., Done], sounds: Path, broken: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert embed("-r", sounds / "0", "-f", "npy", "-o", f"{out}/").code == 0
    whole = tmp_path / "whole.npy"
    assert embed(sounds / "0", "-o", whole).code == 0
    parts = [np.load(path) for path in sorted(out.glob("*.npy"))]
    np.testing.assert_array_equal(np.concatenate(parts), np.load(whole))
    assert len(parts) == len(list(out.glob("*.npy.csv"))) == 30
    (out / "00000.npy").unlink()
    done = embed(sounds / "0", broken, "-f", "npy", "-o", out, "--resume")
    assert done.code == 3
    assert (out / "00000.npy").exists()
    assert not (out / "broken.npy").exists()
    assert [path.name for path in out.glob(".*")] == [".audiossl.npy.settings"], "no journal"


def test_a_folder_is_not_gone_on_with_by_other_settings(
    embed: Callable[..., Done], clips: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    files, as_npy = (clips / "crow.wav", clips / "rain.ogg"), ("-f", "npy", "-o", f"{out}/")
    assert embed(files[0], *as_npy).code == 0
    for other in (["--dtype", "float16"], ["--tokens"], ["--pool", "max"]):
        done = embed(*files, *as_npy, "--resume", *other)
        assert (done.code, done.stderr.count(b"\n")) == (2, 1)
        assert b"other options" in done.stderr
    assert not (out / "rain.npy").exists()
    assert embed(*files, *as_npy, "--shard", "2/2", "--resume") == (0, b"", b"")
    assert (out / "rain.npy").exists()
    assert embed(*files, "-f", "csv", "-o", out, "--pool", "max").code == 0  # other files
    assert embed(*files, "-f", "csv", "-o", out, "--pool", "max", "--resume").code == 0
    assert embed(*files, *as_npy, "--resume").code == 0
    assert embed(*files, *as_npy, "--tokens", "--on-exists", "overwrite").code == 0
    assert embed(*files, *as_npy, "--tokens", "--resume").code == 2  # who knows what is old here
    names = [".audiossl.csv.settings", ".audiossl.npy.settings"]
    assert sorted(path.name for path in out.glob(".*")) == names


def test_nothing_is_noted_in_a_folder_where_nothing_is_written(
    embed: Callable[..., Done], broken: Path, tmp_path: Path
) -> None:
    assert embed(broken, "-f", "npy", "-o", f"{tmp_path}/out/").code == 4
    assert not list((tmp_path / "out").iterdir())


def test_an_index_in_the_way_is_not_overwritten_unasked(
    embed: Callable[..., Done], clips: Path, tmp_path: Path
) -> None:
    out, beside = tmp_path / "z.npy", tmp_path / "z.npy.csv"
    beside.write_text("precious")
    for on_exists in ("error", "skip"):
        done = embed(clips / "crow.wav", "-o", out, "--on-exists", on_exists)
        assert done.code == 6
        assert b"z.npy.csv exists: --on-exists" in done.stderr
    beside.rename(tmp_path / "crow.npy.csv")
    for on_exists in ("error", "skip"):
        args = ("-f", "npy", "-o", tmp_path, "--on-exists", on_exists)
        done = embed(clips / "crow.wav", *args)
        assert done.code == 4
        assert b"exists: " + os.fsencode(tmp_path / "crow.npy.csv") + b" exists" in done.stderr
    assert (tmp_path / "crow.npy.csv").read_text() == "precious"
    assert not list(tmp_path.glob("*.npy"))
    assert embed(clips / "crow.wav", *args[:-1], "overwrite").code == 0
    assert rows(tmp_path / "crow.npy")[1] == [str(clips / "crow.wav")]
    assert embed(clips / "crow.wav", "-o", out).code == 0
    out.unlink()  # as after a kill between the two
    assert embed(clips / "crow.wav", "-o", out, "--on-exists", "overwrite").code == 0


# Exit codes


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["x.wav", "-f", "npz"], b"give --out FILE"),
        (["x.wav", "-f", "table", "-o", "x.txt"], b"another --format"),
        (["x.wav", "--shard", "3/2"], b"2/5"),
        (["x.wav", "--shard", "0/2"], b"2/5"),
        (["x.wav", "--pool", "median"], b"statistics"),
        (["x.wav", "--dtype", "int8"], b"float16"),
        (["x.wav", "--resume"], b"--out"),
        (["x.wav", "--hop", "0"], b"--hop"),
    ],
)
def test_exit_2_says_what_is_wrong(
    embed: Callable[..., Done], args: list[str], says: bytes
) -> None:
    done = embed(*args)
    assert (done.code, done.stdout) == (2, b"")
    assert says in done.stderr


def test_exit_2_without_pyarrow(
    embed: Callable[..., Done], clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = arrays.importlib.util.find_spec
    monkeypatch.setattr(
        arrays.importlib.util, "find_spec", lambda name: None if name == "pyarrow" else found(name)
    )
    done = embed(clips, "-o", tmp_path / "x.parquet")
    assert done.code == 2
    assert b"pip install 'audiossl-toolkit[parquet]'" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format_", BYTES_ALIKE)
def test_exit_3_the_good_ones_are_written(
    embed: Callable[..., Done], clips: Path, broken: Path, tmp_path: Path, format_: str
) -> None:
    torn = tmp_path / "torn.wav"
    torn.write_bytes((clips / "clock.wav").read_bytes()[:40_000])
    good = clips / "crow.wav"
    out = tmp_path / f"out.{format_}"
    done = embed(broken, torn, good, "none.wav", "--hop", "1", "--window", "1", "-o", out)
    assert done.code == 3
    said = done.stderr.decode().splitlines()
    assert len(said) == 3
    assert said[0].startswith(f"audiossl: error: {broken}: ")
    assert said[2].startswith("audiossl: error: none.wav: missing: ")
    if format_ == "jsonl":
        found = lines(out.read_bytes())
        codes = [record["error"]["code"] for record in found if "error" in record]
        assert codes[1:] == ["truncated", "missing"]
        names = [record["file"] for record in found if "error" not in record]
    else:
        names = rows(out)[1]
    assert names == [str(torn)] * 2 + [str(good)] * 3
    assert (tmp_path / f".out.{format_}.journal").exists(), "for --resume"


def test_exit_4_all_failed_or_nothing_to_do(
    embed: Callable[..., Done], broken: Path, tmp_path: Path
) -> None:
    empty = tmp_path / "empty.txt"
    empty.touch()
    for args in ([broken], [], ["--files-from", empty], ["--files-from", empty, "--shard", "1/2"]):
        done = embed(*args)
        assert done.code == 4
        assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("format_", ["npz", "jsonl"])
def test_exit_4_writes_nothing(
    embed: Callable[..., Done], clips: Path, broken: Path, tmp_path: Path, format_: str
) -> None:
    """Where nothing came out, good results of another day stay as they are."""
    out, typo = tmp_path / f"out.{format_}", tmp_path / "typo*.wav"
    for inputs in ([broken], [typo], []):
        assert embed(*inputs, "-o", out).code == 4
        assert not out.exists()
    assert embed(clips / "crow.wav", "-o", out).code == 0
    good = out.read_bytes()
    for inputs in ([broken], [typo], [], [broken, typo]):
        assert embed(*inputs, "-o", out, "--on-exists", "overwrite").code == 4
        assert out.read_bytes() == good
    shutil.copy(clips / "rain.ogg", broken)  # the last call's failures can be tried again
    done = embed(broken, clips / "crow.wav", "-o", out, "--resume")
    assert done == (0, b"", b"")
    assert out.read_bytes() != good
    assert not list(tmp_path.glob(".*"))


def test_exit_4_with_what_was_read_before_the_damage(
    embed: Callable[..., Done], clips: Path, tmp_path: Path
) -> None:
    torn, out = tmp_path / "torn.wav", tmp_path / "out.npz"
    torn.write_bytes((clips / "clock.wav").read_bytes()[:40_000])
    assert embed(torn, "--hop", "1", "--window", "1", "-o", out).code == 4
    assert len(rows(out)[0]) == 2


def test_exit_5_no_such_model(embed: Callable[..., Done], clips: Path) -> None:
    done = embed(clips / "crow.wav", model="tagegr")
    assert (done.code, done.stdout) == (5, b"")
    assert b"did you mean 'tagger'?" in done.stderr


def test_exit_6_cannot_write(embed: Callable[..., Done], clips: Path, tmp_path: Path) -> None:
    assert embed(clips / "crow.wav", "-o", tmp_path / "no" / "x.npz").code == 6
    kept = tmp_path / "kept.npz"
    kept.write_text("precious")
    done = embed(clips / "crow.wav", "-o", kept)
    assert done.code == 6
    assert b"--on-exists" in done.stderr
    assert kept.read_text() == "precious"
    assert embed(clips / "crow.wav", "-o", kept, "--on-exists", "skip").code == 0
    assert kept.read_text() == "precious"
    assert embed(clips / "crow.wav", "-o", kept, "--on-exists", "overwrite").code == 0
    assert len(rows(kept)[0]) == 1


# The same whatever the way


@pytest.mark.parametrize("options", [[], ["--tokens"]], ids=str)
def test_the_same_bytes_whatever_jobs_and_batches(
    embed: Callable[..., Done], clips: Path, options: list[str]
) -> None:
    plain = embed(clips, "--jobs", "1", "--batch-size", "1", *options)
    assert plain.code == 0, plain.stderr
    assert embed(clips, "--jobs", "4", "--batch-size", "1", *options).stdout == plain.stdout
    batched = lines(embed(clips, "--jobs", "3", "--batch-size", "7", *options).stdout)
    np.testing.assert_allclose(vectors(batched), vectors(lines(plain.stdout)), rtol=1e-5, atol=1e-5)


def test_names_of_every_kind(embed: Callable[..., Done], clips: Path, tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path / "nasty")
    os.mkdir(folder)
    for name in NASTY:
        shutil.copy(clips / "crow.wav", os.path.join(folder, name))
    listed = tmp_path / "list"
    paths = [os.path.join(folder, name) for name in NASTY]
    listed.write_bytes(b"\0".join(paths))
    done = embed("--files-from", listed, "-0")
    assert done.code == 0, done.stderr
    found = lines(done.stdout)
    assert len({json.dumps(record["embedding"]) for record in found}) == 1
    assert [os.fsencode(full_name(record)) for record in found] == paths
    for format_ in ("npz", "safetensors"):
        out = tmp_path / f"x.{format_}"
        assert embed("--files-from", listed, "-0", "-o", out).code == 0
        if format_ == "npz":
            assert [os.fsencode(name) for name in rows(out)[1]] == paths
        else:
            tensors = load_file(out)
            names = bytes(tensors["names"]).split(b"\0")
            assert [names[k] for k in tensors["file"]] == paths
