"""output.py: what a run writes where, with work that only says what it was asked for."""

from __future__ import annotations

import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import pytest

from audiossl import errors
from audiossl.commands import output
from audiossl.commands.output import say_record_error as tell
from audiossl.errors import InputError, OutputError, UsageError
from audiossl.output.writers import FORMATS, Record
from audiossl.pipeline import sinks
from audiossl.pipeline.inputs import Input, expand
from audiossl.pipeline.run import run_batch

LONGEST = 255  # bytes of a name, where the tests run


def work(item: Input) -> Iterator[Record]:
    """A record an input; `bad` in its bytes is an error, after as many records as stand before."""
    try:
        said = Path(item.path).read_bytes()
    except (OSError, ValueError):
        raise InputError("no such file", code="missing") from None
    for part in said.split(b"+"):
        if part == b"bad":
            raise InputError("not a number", code="corrupt")
        label = {"label": part.decode(), "score": 0.9}
        yield {"file": item.name, "start": 0.0, "end": 1.0, "labels": [label], "model": "m"}


class Run:
    """`tag` with `work` for a model: run("a.wav", out="o/", format_="audacity")."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(
        self,
        *names: str | Path,
        out: str | None,
        format_: str = "textgrid",
        on_exists: str = "error",
        resume: bool = False,
        items: Sequence[Input] | None = None,
    ) -> int:
        found = list(expand([str(name) for name in names])) if items is None else items
        many = len(found) > 1
        sink = sinks.make_sink(
            FORMATS, format_, out, on_exists, resume, {}, output.say_record_error, many
        )
        assert sink is not None

        def noted(item: Input) -> Iterator[Record]:
            self.asked.append(item.relative)
            return work(item)

        self.asked.clear()
        return run_batch(
            found, noted, sink, 1, lambda _name: None, output.say_record_error, output.no_input
        )


@pytest.fixture
def run() -> Run:
    return Run()


@pytest.fixture
def sound(tmp_path: Path) -> Callable[[str, bytes], Path]:
    def made(name: str, said: bytes = b"Dog") -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(said)
        return path

    return made


Sound = Callable[..., Path]
Said = pytest.CaptureFixture[str]


# A folder of outputs


@pytest.mark.parametrize("nothing", ["nodir/", "", "nodir/.", "nodir/..", "none.wav", "no*.wav"])
def test_what_leads_to_nothing_fails_alone(
    run: Run, sound: Sound, tmp_path: Path, capsys: Said, nothing: str
) -> None:
    out = tmp_path / "o"
    assert run(nothing, sound("a.wav"), out=f"{out}/") == 3
    assert (out / "a.TextGrid").exists()
    assert capsys.readouterr().err.startswith(f"audiossl: error: {nothing}: missing: ")


@pytest.mark.parametrize("out", ["o/", "o.jsonl"])
def test_a_nul_in_a_name_fails_alone(
    run: Run, sound: Sound, tmp_path: Path, capsys: Said, out: str
) -> None:
    items = list(expand(["\0bad", str(sound("a.wav"))]))
    assert run(out=f"{tmp_path}/{out}", format_="jsonl", items=items) == 3
    assert capsys.readouterr().err.count("missing: ") == 1
    assert (tmp_path / ("o/a.jsonl" if out == "o/" else out)).exists()


@pytest.mark.parametrize("again", [{"resume": True}, {"on_exists": "skip"}], ids=str)
def test_failed_inputs_of_a_folder_are_tried_again(
    run: Run, sound: Sound, tmp_path: Path, again: dict[str, Any]
) -> None:
    sounds, out = tmp_path / "part", f"{tmp_path}/o/"
    sound("part/good.wav")
    sound("part/half.wav", b"Dog+bad"), sound("part/none.wav", b"bad")
    assert run(sounds, out=out, format_="audacity") == 3
    assert (tmp_path / "o/half.txt").read_text().count("\n") == 1
    for _ in range(2):
        assert run(sounds, out=out, format_="audacity", **again) == 3
        assert run.asked == ["half.wav", "none.wav"]
    sound("part/half.wav", b"Dog+Cat")
    sound("part/none.wav", b"Cat")
    assert run(sounds, out=out, format_="audacity", **again) == 0
    assert run.asked == ["half.wav", "none.wav"]
    assert (tmp_path / "o/half.txt").read_text().count("\n") == 2
    assert run(sounds, out=out, format_="audacity", **again) == 0
    assert run.asked == []


def test_a_failure_that_leaves_an_old_file_is_remembered(
    run: Run, sound: Sound, tmp_path: Path
) -> None:
    path, out = sound("a.wav"), f"{tmp_path}/o/"
    assert run(path, out=out) == 0
    sound("a.wav", b"bad")
    assert run(path, out=out, on_exists="overwrite") == 4
    assert run(path, out=out, resume=True) == 4


def test_only_what_is_written_takes_a_name(
    run: Run, sound: Sound, tmp_path: Path, capsys: Said
) -> None:
    clash, out = tmp_path / "clash", tmp_path / "o"
    sound("clash/r.flac", b"bad")
    sound("clash/r.wav")
    assert run(clash, out=f"{out}/") == 3
    assert (out / "r.TextGrid").exists()
    assert "name-clash" not in capsys.readouterr().err
    sound("clash/r.flac")
    for resume in (False, True):
        assert run(clash, out=f"{out}/", on_exists="overwrite", resume=resume) == 3
        assert f"{clash}/r.wav: name-clash: " in capsys.readouterr().err


def test_an_output_with_too_long_a_name_fails_alone(
    run: Run, sound: Sound, tmp_path: Path, capsys: Said
) -> None:
    long = sound("a" * (LONGEST - 4) + ".wav")
    for on_exists in ("error", "skip"):
        shutil.rmtree(tmp_path / "o", ignore_errors=True)
        assert run(long, sound("b.wav"), out=f"{tmp_path}/o/", on_exists=on_exists) == 3
        assert f"{long}: output: " in capsys.readouterr().err
        assert (tmp_path / "o/b.TextGrid").exists()
    assert run(long, out=f"{tmp_path}/o/", format_="audacity") == 0, "just short enough"


@pytest.mark.parametrize("end", ["", "/"])
def test_an_out_with_too_long_a_name(run: Run, sound: Sound, tmp_path: Path, end: str) -> None:
    path = sound("a.wav")
    with pytest.raises(OutputError, match="File name too long"):
        run(path, out=f"{tmp_path}/{'a' * 300}{end}")
    assert sorted(tmp_path.iterdir()) == [path]


# What is no file


@pytest.mark.parametrize("out", ["-", "/dev/stdout"])
def test_stdout_by_name(
    run: Run, sound: Sound, capfd: Said, out: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = sound("a.wav")
    monkeypatch.chdir(tmp_path)
    assert output.pick_format("auto", out, FORMATS) == output.pick_format("auto", None, FORMATS)
    assert run(path, out=out, format_="csv") == 0
    assert capfd.readouterr().out.startswith("file,start")
    assert sorted(tmp_path.iterdir()) == [path]
    with pytest.raises(UsageError, match="--resume needs --out"):
        run(path, out=out, resume=True)


def test_arrays_do_not_go_to_stdout() -> None:
    class Arrays:
        suffix = ".npz"

    with pytest.raises(UsageError, match="npz is no text"):
        sinks.make_sink({"npz": Arrays}, "npz", "-", "error", False, {}, tell)  # type: ignore[dict-item]


@pytest.mark.parametrize("on_exists", ["error", "skip", "overwrite"])
def test_a_pipe_is_written_to_directly(
    run: Run, sound: Sound, tmp_path: Path, on_exists: str
) -> None:
    pipe, path, got = tmp_path / "pipe", sound("a.wav"), []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()), daemon=True)
    reader.start()
    assert run(path, out=str(pipe), format_="csv", on_exists=on_exists) == 0
    reader.join(10)
    assert got[0].startswith(b"file,start")
    assert sorted(tmp_path.iterdir()) == [path, pipe]
    with pytest.raises(UsageError, match="--resume needs a file"):
        run(path, out=str(pipe), resume=True)


def test_a_device_stays_one(run: Run, sound: Sound) -> None:
    before = set(os.listdir(os.path.dirname(os.devnull)))
    assert run(sound("a.wav"), out=os.devnull, format_="jsonl", on_exists="overwrite") == 0
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
    assert not {name for name in os.listdir("/dev") if name.endswith(".journal")} - before


def test_nothing_of_a_pipe_is_left_by_an_interruption(
    sound: Sound, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sinks.tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    sink = sinks.make_sink(
        FORMATS, "jsonl", os.devnull, "error", False, {}, output.say_record_error
    )
    assert sink is not None
    assert len(list((tmp_path / "tmp").iterdir())) == 1
    sink.close()
    assert not list((tmp_path / "tmp").iterdir())


# The name of --out


@pytest.mark.parametrize(
    ("out", "format_"),
    [("a.csv", "csv"), ("a.TextGrid", "textgrid"), ("a", "jsonl"), ("a.d/", "jsonl")],
)
def test_the_name_of_out_tells_the_format(out: str, format_: str) -> None:
    assert output.pick_format("auto", out, FORMATS) == format_


@pytest.mark.parametrize("out", ["labels.txt", "a.selections.txt", "A.TXT"])
def test_a_suffix_of_several_formats_tells_none(out: str) -> None:
    with pytest.raises(click.UsageError, match="give --format") as caught:
        output.pick_format("auto", out, FORMATS)
    assert caught.value.exit_code == errors.EXIT_USAGE
    assert output.pick_format("raven", out, FORMATS) == "raven"
