"""`audiossl data`: ls, check, manifest, shards."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import minisets
import pytest
from conftest import Runner

from audiossl.commands.main import cli as group
from audiossl.data import datasets, reading
from audiossl.errors import OutputError, UsageError


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AUDIOSSL_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def run(*args: str | Path) -> int:
    """The command in this process: its exit code; errors are raised."""
    code = group.main([*map(str, args)], prog_name="audiossl", standalone_mode=False)
    return int(code or 0)


def test_ls_lists_every_set_and_where_it_is(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = minisets.esc50(data)
    assert run("data", "ls") == 0
    rows = {row["name"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert list(rows) == datasets.names()
    assert rows["esc10"]["folder"] == rows["esc50"]["folder"] == str(folder)
    assert (rows["esc50"]["clips"], rows["audioset"]["clips"]) == (2000, None)
    assert rows["fsd50k"]["folder"] is None
    run("data", "ls", "--format", "table")
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["name", "title", "clips", "licence", "folder"]
    assert len(table) == 1 + len(datasets.names())


def test_check_ends_with_3_where_something_lacks(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = minisets.esc50(data)
    assert run("data", "check", "esc50") == 3
    record = json.loads(capsys.readouterr().out)
    assert (record["clips"], record["complete"], record["intact"]) == (10, False, None)
    assert run("data", "check", "esc50", "--root", folder, "--checksums") == 3
    assert json.loads(capsys.readouterr().out)["files"]["audio/"] == "differs"
    minisets.audioset(data)  # nobody has all of it
    assert run("data", "check", "audioset", "--format", "table") == 0
    assert "missing          1" in capsys.readouterr().out
    minisets.speech_commands(data)  # of the twelve classes no count is published
    assert run("data", "check", "speech_commands_v2_12") == 0
    with pytest.raises(UsageError, match="unknown data set 'esc5'"):
        run("data", "check", "esc5")
    with pytest.raises(UsageError, match="nsynth: not in AUDIOSSL_DATA"):
        run("data", "check", "nsynth")


def test_manifest_goes_to_a_file_that_recipes_read(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = minisets.esc50(data)
    table = tmp_path / "esc50.csv"
    assert run("data", "manifest", "esc50", "-o", table) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert f"10 rows; paths start from {folder}" in said.err
    assert reading.read(table, str(folder)) == datasets.read("esc50")


def test_manifest_of_a_folder_and_of_another_manifest(tmp_path: Path, cli: Runner) -> None:
    """To stdout, in a process of its own; names that are not UTF-8 pass."""
    name = b"caf\xe9.wav".decode("utf-8", "surrogateescape")
    minisets.put(tmp_path / "calls" / "owl" / name)
    done = cli("data", "manifest", "calls", "-q", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    header, row = done.stdout.splitlines()
    assert header == b"path,start,end,labels,known,fold,group,split"
    assert row == b"owl/caf\xe9.wav,,,owl,,,owl/caf\xe9.wav,"
    (tmp_path / "calls" / "all.csv").write_bytes(done.stdout)
    assert cli("data", "manifest", "calls/all.csv", "-q", cwd=tmp_path).stdout == done.stdout
    done = cli("data", "manifest", "none", cwd=tmp_path)
    assert done.returncode == 2
    assert b"none: No such file or directory: no manifest or folder here" in done.stderr


def test_shards_are_named_as_they_are_done(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("webdataset")
    minisets.esc50(data)
    out = tmp_path / "new" / "shards"
    assert run("data", "shards", "esc50", "--out", out, "--shard-size", "10kB", "-q") == 0
    paths = capsys.readouterr().out.splitlines()
    assert paths == [str(out / f"esc50-{i:06d}.tar") for i in range(len(paths))]
    assert len(paths) > 1
    rows = reading.read(out)
    assert [row.labels for row in rows] == [row.labels for row in datasets.read("esc50")]
    with pytest.raises(OutputError, match=r"esc50-000000\.tar exists: --on-exists overwrite"):
        run("data", "shards", "esc50", "--out", out)
    assert run("data", "shards", "esc50", "--out", out, "--on-exists", "overwrite") == 0
    assert [path.name for path in out.iterdir()] == ["esc50-000000.tar"]
    assert run("data", "shards", out, "--out", tmp_path / "b", "--name", "other") == 0
    assert reading.read(tmp_path / "b")[3].extra == rows[3].extra
    minisets.put(tmp_path / "file")
    with pytest.raises(OutputError, match="file"):
        run("data", "shards", "esc50", "--out", tmp_path / "file" / "x")


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("sh/*.tar", "set"),
        ("sh/esc-*.tar", "esc"),
        ("sh/esc-{000000..000002}.tar", "esc"),
        ("sh/esc-50", "esc-50"),
        ("clips of owls/", "clips of owls"),
        ("..", "set"),
        (".", "set"),
    ],
)
def test_the_name_of_shards_is_one_of_a_file(source: str, name: str) -> None:
    from audiossl.commands.data import name_of

    assert name_of(source) == name


def test_shards_of_a_pattern_replace_themselves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("webdataset")
    for label in ("owl", "lark"):
        minisets.put(tmp_path / "calls" / label / "a.wav")
    assert run("data", "shards", tmp_path / "calls", "--out", tmp_path / "sh", "-q") == 0
    (path,) = (tmp_path / "sh").iterdir()
    pattern = tmp_path / "sh" / "calls-*.tar"
    again = ("data", "shards", pattern, "--out", tmp_path / "sh", "--on-exists", "overwrite")
    assert run(*again) == 0
    assert capsys.readouterr().out.split() == [str(path), str(path)]
    assert list((tmp_path / "sh").iterdir()) == [path]
    assert [row.labels for row in reading.read(tmp_path / "sh")] == [("lark",), ("owl",)]


@pytest.mark.parametrize("size", ["0", "1TB", "much", "-1", "0.1"])
def test_sizes_that_are_none(size: str) -> None:
    import click

    with pytest.raises(click.BadParameter, match="expected a size such as 500MB or 1GB"):
        run("data", "shards", "x", "--out", "y", "--shard-size", size)


def test_no_torch_is_imported(data: Path) -> None:
    minisets.esc50(data)
    program = (
        "import sys\nfrom audiossl.commands.main import cli\n"
        "for args in (['data', 'ls'], ['data', 'check', 'esc50'], ['data', 'manifest', 'esc50']):\n"
        "    cli.main(args, standalone_mode=False)\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
