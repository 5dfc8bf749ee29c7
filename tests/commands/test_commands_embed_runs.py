"""`audiossl embed` on many inputs: shards, runs at once, a kill -9 after which nothing is lost.

Most runs are in this process, by the installed entry point; signals need one of their own.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from embedruns import BYTES_ALIKE, Done, generated, rows

from audiossl.commands.output import say_record_error as tell
from audiossl.inference.embedding import Embedder, EmbedOptions
from audiossl.output import arrays
from audiossl.pipeline import sinks
from audiossl.pipeline.inputs import Input
from audiossl.pipeline.journal import Journal

pytest_plugins = ("embedruns",)

COMMAND = Path(sys.executable).parent / "audiossl"


# Shards


def test_shards_together_are_the_whole(
    embed: Callable[..., Done], sounds: Path, broken: Path, tmp_path: Path
) -> None:
    whole = embed(sounds, broken).stdout.splitlines()
    parts = [embed(sounds, broken, "--shard", f"{k}/3").stdout.splitlines() for k in (1, 2, 3)]
    assert [len(part) for part in parts] == [21, 20, 20]
    for k, part in enumerate(parts):
        assert part == whole[k::3]


def test_shards_are_joined_as_the_help_says(
    embed: Callable[..., Done], sounds: Path, tmp_path: Path
) -> None:
    assert embed(sounds, "-o", tmp_path / "whole.parquet").code == 0
    (tmp_path / "parts").mkdir()
    for k in (1, 2):
        out = tmp_path / "parts" / f"{k}.parquet"
        assert embed(sounds, "--shard", f"{k}/2", "-o", out).code == 0
    program = "import pyarrow.parquet as p; p.write_table(p.read_table('parts/'), 'all.parquet')"
    assert program in embed("--help").stdout.decode()
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    got, names, _ = rows(tmp_path / "all.parquet")
    expected, order, _ = rows(tmp_path / "whole.parquet")
    assert sorted(names) == sorted(order)
    place = {name: k for k, name in enumerate(order)}
    np.testing.assert_array_equal(got, expected[[place[name] for name in names]])


def test_more_machines_than_inputs_are_no_error(
    embed: Callable[..., Done], clips: Path, tmp_path: Path
) -> None:
    out = tmp_path / "x.npz"
    assert embed(clips / "crow.wav", "--shard", "2/5", "-o", out) == (0, b"", b"")
    assert rows(out)[0].shape == (0, 16)


# Several runs at once


def test_a_second_run_into_the_same_file_is_refused(
    embed: Callable[..., Done], clips: Path, tmp_path: Path
) -> None:
    out = tmp_path / "same.npz"
    with Journal(sinks.journal_of(out), {}, resume=False):
        done = embed(clips / "crow.wav", "-o", out)
        assert (done.code, done.stdout) == (6, b"")
        assert done.stderr.endswith(b"another run writes here\n")
        assert not out.exists()
    assert embed(clips / "crow.wav", "-o", out).code == 0


def test_runs_at_once_into_one_folder_keep_their_records_apart(
    embed: Callable[..., Done], embedder: Embedder, clips: Path, tmp_path: Path
) -> None:
    """Three shards, each in the middle of an input when the next begins one."""
    files = [clips / name for name in ("crow.wav", "speech.flac", "clock.wav")]
    items = [Input(file.name, str(file), file.name) for file in files]
    writer = arrays.formats(16, "float32")["npz"]
    found = [sinks.FolderSink(tmp_path / "fold", writer, "error", False, {}, tell) for _ in items]

    def work(k: int) -> Iterator[dict[str, Any]]:
        first, *rest = embedder.embed(items[k].path, items[k].name, EmbedOptions(tokens=True))
        yield first.to_row()
        if k + 1 < len(items):
            assert found[k + 1].file(items[k + 1], work(k + 1))
        yield from (record.to_row() for record in rest)

    assert found[0].file(items[0], work(0))
    for item in items:
        got, names, _ = rows((tmp_path / "fold" / item.name).with_suffix(".npz"))
        expected = embedder.embed(item.path, options=EmbedOptions(tokens=True))
        np.testing.assert_array_equal(got, [record.embedding for record in expected])
        assert set(names) == {item.name}
    assert not list((tmp_path / "fold").glob("*.journal"))


def test_nothing_is_left_in_a_folder_by_an_interruption(tmp_path: Path) -> None:
    def interrupted() -> Iterator[dict[str, Any]]:
        yield {"file": "a.wav", "start": 0.0, "end": 1.0, "embedding": np.zeros(16), "model": "m"}
        raise KeyboardInterrupt

    writer = arrays.formats(16, "float32")["npz"]
    sink = sinks.FolderSink(tmp_path, writer, "error", False, {}, tell)
    with pytest.raises(KeyboardInterrupt):
        sink.file(Input("a.wav", "a.wav", "a.wav"), interrupted())
    assert not list(tmp_path.iterdir())


# Kill and resume


def finished(out: Path) -> int:
    """Inputs that the journal of `out` has closed."""
    journal = out.with_name(f".{out.name}.journal")
    return journal.read_bytes().count(b'{"done"') if journal.exists() else 0


def kill_at(part: int, out: Path, arguments: list[Any], stdin: bytes = b"") -> int:
    """Run `audiossl embed` into `out`, kill -9 when `part` inputs are done; how many were.

    stdin: names, behind which the list does not end.
    """
    with subprocess.Popen(
        [COMMAND, "embed", *arguments, "--out", out], stdin=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        process.stdin.write(stdin)
        process.stdin.flush()
        deadline = time.monotonic() + 300
        while finished(out) < part and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not out.exists()
    return finished(out)


def spoil(path: Path) -> None:
    """Other bytes in a file that looks untouched: whoever reads it again will tell."""
    status = path.stat()
    path.write_bytes(bytes(status.st_size))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_resume_after_kill_9_gives_the_same_bytes(
    embed: Callable[..., Done], sounds: Path, tiny: Path, tmp_path: Path
) -> None:
    """Killed with a part done and a line half written; what was done is not read again."""
    copies = Path(shutil.copytree(sounds, tmp_path / "sounds"))
    names = [str(path) for path in sorted(copies.rglob("*.wav"))]
    for format_ in BYTES_ALIKE:
        assert embed(copies, "-o", tmp_path / f"whole.{format_}").code == 0
    first = tmp_path / "x.jsonl"
    some = "".join(f"{name}\n" for name in names[:25]).encode()
    done = kill_at(15, first, ["--files-from", "-", "--model", tiny], some)
    assert 15 <= done <= 25
    journal = tmp_path / ".x.jsonl.journal"
    with journal.open("ab") as file:
        file.write(b'{"record": {"file": "torn')
    for name in names[:done]:
        spoil(Path(name))
    for format_ in BYTES_ALIKE[1:]:
        shutil.copy(journal, tmp_path / f".x.{format_}.journal")
    for format_ in BYTES_ALIKE:
        out = tmp_path / f"x.{format_}"
        assert embed(copies, "-o", out, "--resume") == (0, b"", b"")
        assert out.read_bytes() == (tmp_path / f"whole.{format_}").read_bytes()
    assert not list(tmp_path.glob(".*")), "no journal is left"
    assert embed(copies, "-o", out, "--resume").stderr.endswith(b"nothing to do\n")


def test_resume_refuses_what_would_give_other_numbers(
    embed: Callable[..., Done], clips: Path, broken: Path, tmp_path: Path
) -> None:
    out = tmp_path / "x.npz"
    assert embed(clips / "crow.wav", broken, "-o", out).code == 3
    for other in (["--dtype", "float16"], ["--hop", "1"], ["--tokens"], ["--pool", "max"]):
        done = embed(clips / "crow.wav", broken, "-o", out, "--resume", *other)
        assert done.code == 2
        assert b"other options" in done.stderr
    shutil.copy(clips / "rain.ogg", broken)
    assert embed(clips / "crow.wav", broken, "-o", out, "--resume") == (0, b"", b"")
    assert len(rows(out)[0]) == 2


@pytest.mark.slow
def test_ten_thousand_clips_resume_after_kill_9_with_the_same_bytes(tmp_path: Path) -> None:
    """The embedded model, real processes, killed twice; then an uninterrupted run."""
    sounds = tmp_path / "sounds"
    sounds.mkdir()
    generated(sounds, 10_000)
    out, whole = tmp_path / "x.parquet", tmp_path / "whole.parquet"
    assert kill_at(2_000, out, [sounds]) < 10_000
    assert 6_000 <= kill_at(6_000, out, [sounds, "--resume", "--jobs", "1"]) < 10_000
    for arguments in ([out, "--resume"], [whole]):
        subprocess.run([COMMAND, "embed", sounds, "--out", *arguments], check=True)
    assert out.read_bytes() == whole.read_bytes()
    got, names, _ = rows(out)
    assert got.shape == (10_000, 1024)
    assert len(set(names)) == 10_000
