"""`audiossl probe`: records in every format, exit codes, the report, files that are in the way."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import sys
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from conftest import Runner
from probe_clips import convolutional, write_clips

from audiossl.commands import main
from audiossl.commands.probe import FORMATS, PROBES
from audiossl.evaluate import evaluation, fewshot, probe, probe_record, probes, projection, protocol
from audiossl.model import save_model
from audiossl.output.writers import Record

SCHEMA = json.loads((resources.files("audiossl") / "schema.json").read_text())
QUICK = ("--l2", "0.1", "--epochs", "3")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, clips and their manifest."""
    folder = tmp_path_factory.mktemp("probe it")
    write_clips(folder)
    save_model(convolutional(), folder / "model")
    return folder


Answer = tuple[int, bytes, str]


@pytest.fixture
def run(
    capfdbinary: pytest.CaptureFixture[bytes], place: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Answer]:
    """The command in this process: exit code, stdout, stderr."""
    monkeypatch.setattr(sys, "argv", ["audiossl"])  # pytest's own -q is none of its business

    def call(*args: str | Path, data: str | Path | None = None) -> Answer:
        words = ["probe", place / "model", "--data", data or place / "clips.csv", *args]
        code = main._run([str(word) for word in words])
        told = capfdbinary.readouterr()
        return code, told.out, told.err.decode()

    return call


def records(text: bytes) -> list[Record]:
    found = [json.loads(line) for line in text.splitlines()]
    for record in found:
        jsonschema.validate(record, SCHEMA)
    return found


def test_the_installed_command_gives_one_record_a_metric(cli: Runner, place: Path) -> None:
    done = cli("probe", place / "model", "--data", "clips.csv", "-p", "knn", cwd=place)
    assert (done.returncode, done.stderr) == (0, b"")
    found = records(done.stdout)
    assert [record["metric"] for record in found[:2]] == ["accuracy", "cmap"]
    assert {record["model"] for record in found} == {"conv"}
    assert {record["data"] for record in found} == {"clips.csv"}
    assert {(record["shots"], record["seeds"], record["folds"]) for record in found} == {
        (None, 1, 4)
    }


def test_what_the_command_offers_is_what_there_is() -> None:
    assert probes.NAMES == PROBES
    assert set(FORMATS) == set(probe_record.FORMATS)
    known = {option.name: option for option in main.cli.get_command(None, "probe").params}  # type: ignore[arg-type, union-attr]
    for name, values in (
        ("rule", fewshot.RULES),
        ("protocol", ("auto", *protocol.PROTOCOLS)),
        ("task", evaluation.TASKS),
        ("map_", projection.MAPS),
    ):
        assert tuple(known[name].type.choices) == values  # type: ignore[attr-defined]
    for name in ("k", "prototypes"):
        assert known[name].default == getattr(probes.Settings(), name)


def test_several_probes_and_shots_in_one_run(run: Callable[..., Answer]) -> None:
    args = ("-p", "knn,ridge", "--probe", "knn", "-s", "2", "--shots", "1,all", "--seeds", "2")
    code, out, err = run(*args, *QUICK)
    assert (code, err) == (0, "")
    order = list(dict.fromkeys((r["probe"], r["shots"]) for r in records(out)))
    assert order == [(name, shots) for name in ("knn", "ridge") for shots in (2, 1, None)]
    assert {record["seeds"] for record in records(out)} == {2}


def test_all_probes_by_one_word(run: Callable[..., Answer], tmp_path: Path) -> None:
    cache = tmp_path / "features"
    code, out, _ = run("-p", "all", "--prototypes", "2", "--cache", cache, *QUICK)
    assert code == 0
    assert list(dict.fromkeys(record["probe"] for record in records(out))) == list(PROBES)
    assert len(list(cache.iterdir())) == 2
    assert run("-p", "all", "--prototypes", "2", "--cache", cache, *QUICK)[1] == out
    assert run("-p", "all", "--prototypes", "2", "-j", "1", *QUICK)[1] == out


def test_every_format_says_the_same(run: Callable[..., Answer]) -> None:
    args = ("-p", "knn", "-s", "all,3", "--seeds", "1")
    lines = records(run(*args)[1])
    assert json.loads(run(*args, "-f", "json")[1]) == lines
    for format_, delimiter in (("csv", ","), ("tsv", "\t")):
        text = run(*args, "--format", format_)[1].decode()
        rows = list(csv.DictReader(io.StringIO(text), delimiter=delimiter))
        assert tuple(rows[0]) == probe_record.COLUMNS
        assert [float(row["mean"]) for row in rows] == [record["mean"] for record in lines]
        assert [row["shots"] for row in rows] == [str(record["shots"] or "all") for record in lines]
        assert float(rows[0]["ci95_low"]) == lines[0]["ci95"][0]
    table = run(*args, "-f", "table")[1].decode().splitlines()
    heads = [line for line in table if line.startswith("probe")]
    assert heads[0].split()[:3] == ["probe", "shots", "accuracy"]
    body = [line for line in table if line not in heads]
    assert [line.split()[:2] for line in body] == [["knn", "all"], ["knn", "3"]]
    first = lines[0]
    assert f"{first['mean']:.3f} [{first['ci95'][0]:.3f}, {first['ci95'][1]:.3f}]" in body[0]


def test_a_file_gets_it_whole_and_is_not_overwritten_unasked(
    run: Callable[..., Answer], tmp_path: Path
) -> None:
    out, page = tmp_path / "out.csv", tmp_path / "report.html"
    args = ("-p", "knn", "-f", "csv", "-o", out, "--report", page)
    assert run(*args)[:2] == (0, b"")
    text = out.read_bytes()
    assert text.startswith(b"data,probe,shots,metric")
    assert page.read_text().startswith("<!doctype html>")
    code, said, err = run(*args)
    assert (code, said) == (6, b"")
    assert "out.csv exists: --on-exists" in err
    code, said, err = run(*args, "--on-exists", "skip")
    assert (code, said) == (0, b"")
    assert "nothing to do" in err
    page.write_text("old")
    assert run(*args, "--on-exists", "overwrite")[0] == 0
    assert out.read_bytes() == text
    assert page.read_text().startswith("<!doctype html>")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "report.html"]
    assert run("-f", "table", "-o", tmp_path / "out.txt")[0] == 2


def test_skip_makes_what_is_missing(run: Callable[..., Answer], tmp_path: Path) -> None:
    out, page = tmp_path / "out.csv", tmp_path / "report.html"
    args = ("-p", "knn", "-f", "csv", "--report", page, "--on-exists", "skip")
    page.write_text("old")
    code, said, err = run(*args, "-o", out)
    assert (code, said) == (0, b"")
    assert err == f"audiossl: {page} exists already and is kept\n"
    assert page.read_text() == "old"
    text = out.read_bytes()
    assert text.startswith(b"data,probe,shots,metric")
    assert run(*args)[1] == text  # stdout is never there already
    page.unlink()
    out.write_text("old")
    assert run(*args, "-o", out)[:2] == (0, b"")
    assert out.read_text() == "old"
    assert page.read_text().startswith("<!doctype html>")
    code, said, err = run(*args, "-o", out)
    assert (code, said) == (0, b"")
    assert err.endswith("audiossl: nothing to do\n")


@pytest.mark.parametrize("option", ["--out", "--report"])
def test_where_nothing_can_be_written_is_told_before_the_work(
    run: Callable[..., Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    monkeypatch.setattr(probe, "read_data", lambda *_: pytest.fail("the work has begun"))
    for path, says in (
        (tmp_path, "it is a folder"),
        (tmp_path / "no" / "x.csv", "no: no such folder"),
        (Path("/proc/x.csv"), "cannot write /proc/x.csv: "),
    ):
        if path.parent.name != "proc" or path.parent.exists():
            code, _, err = run(option, path, "-f", "csv", "--on-exists", "overwrite")
            assert code == 6
            assert says in err
    assert not list(tmp_path.iterdir())


def test_records_and_page_are_two_files(
    run: Callable[..., Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.html").symlink_to("x.html")
    for other in ("x.html", "./x.html", tmp_path / "x.html", "link.html"):
        code, out, err = run("-o", "x.html", "--report", other, "--on-exists", "overwrite")
        assert (code, out) == (2, b"")
        assert "--out and --report are the same file: x.html" in err
    assert not (tmp_path / "x.html").exists()


def test_bad_files_are_records_and_exit_3(
    run: Callable[..., Answer], place: Path, tmp_path: Path
) -> None:
    shutil.copytree(place, tmp_path / "clips")
    data = tmp_path / "clips" / "clips.csv"
    (tmp_path / "clips" / "03.wav").write_text("no sound")
    code, out, err = run("-p", "knn", "--report", tmp_path / "r.html", data=data)
    assert code == 3
    first, *rest = records(out)
    assert first["file"].endswith("03.wav")
    assert first["error"]["code"]
    assert {record["clips"] for record in rest} == {35}
    assert err.startswith("audiossl: error: ")
    assert err.count("\n") == 1
    assert "03.wav" in (tmp_path / "r.html").read_text()
    for path in (tmp_path / "clips").glob("*.wav"):
        path.write_text("no sound")
    args = ("-p", "knn", "-f", "csv", "--report", tmp_path / "none.html")
    for protocol_ in ("auto", "folds"):
        code, out, err = run(*args, "--protocol", protocol_, data=data)
        assert code == 4
        assert len(out.splitlines()) == 37
        assert [err.count(f"{i:02}.wav") for i in range(36)] == [1] * 36
        assert not (tmp_path / "none.html").exists()


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["-p", "svm"], 2, "'svm' is not one of all, knn"),
        (["-s", "0"], 2, "'0' is neither a number of clips nor all"),
        (["-s", "five"], 2, "'five'"),
        (["--test-fraction", "1"], 2, "test-fraction"),
        (["--protocol", "split"], 2, "no clip to test (column `split`)"),
        (["--task", "several"], 2, "several"),
        (["--report", "r.html", "--map", "umap"], 2, "umap"),
        (["--device", "cuda:7"], 2, "cuda"),
    ],
)
def test_wrong_options_are_said_in_a_line(
    run: Callable[..., Answer], args: list[str], code: int, says: str
) -> None:
    found, out, err = run(*args)
    assert (found, out) == (code, b"")
    assert says in err
    assert "Traceback" not in err


def test_a_data_set_by_name(
    run: Callable[..., Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folds and groups are used, and what the copy lacks is said."""
    import numpy as np
    import soundfile

    rng = np.random.default_rng(0)
    lines = ["filename,fold,target,category,src_file,take"]
    (tmp_path / "esc10" / "audio").mkdir(parents=True)
    for i in range(16):
        name = f"{i % 2 + 1}-{i // 4}-A.ogg" if i % 4 < 2 else f"{i % 2 + 1}-{i}-A.ogg"
        wave = rng.normal(0, 0.1 if i // 2 % 2 else 0.001, 8000)
        soundfile.write(tmp_path / "esc10" / "audio" / name, wave, 16000)
        lines.append(f"{name},{i % 2 + 1},0,{('dog', 'rain')[i // 2 % 2]},{name[2:-6]},A")
    (tmp_path / "esc10" / "esc10.csv").write_text("\n".join(lines))
    monkeypatch.setenv("AUDIOSSL_DATA", str(tmp_path))
    code, out, err = run("-p", "knn", data="esc10")
    assert code == 0, err
    found = records(out)
    assert {(r["data"], r["folds"], r["clips"]) for r in found} == {("esc10", 2, 16)}
    assert "not the whole set" in err
    assert "their group is tested" in err
    code, _, err = run(data="esc01")
    assert (code, "did you mean" in err) == (2, True)


def test_data_and_model_that_are_not_there(run: Callable[..., Answer], place: Path) -> None:
    code, out, err = run(data="no-such-thing")
    assert (code, out) == (2, b"")
    assert "no-such-thing" in err
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert main._run(["probe", "no-such-model", "--data", "clips.csv"]) == 5


def test_root_is_where_the_paths_of_a_manifest_begin(
    run: Callable[..., Answer], place: Path, tmp_path: Path
) -> None:
    shutil.copy(place / "clips.csv", tmp_path / "elsewhere.csv")
    assert run("-p", "knn", data=tmp_path / "elsewhere.csv")[0] == 2
    code, out, _ = run("-p", "knn", "--root", place, data=tmp_path / "elsewhere.csv")
    assert code == 0
    assert len(records(out)) >= 4


def test_settings_reach_the_probes(
    run: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def opened(_model: Any, _rows: Any, options: Any, _name: str, **_values: Any) -> Any:
        seen["options"] = options
        raise KeyboardInterrupt

    monkeypatch.setattr(probe, "opened", opened)
    code, _, _ = run(
        *("--l2", "0.5", "--k", "3", "--prototypes", "7", "--epochs", "9", "--seeds", "4"),
        *("--rule", "lenient", "--protocol", "holdout", "--test-fraction", "0.3"),
        *("--task", "multi", "--no-standardise", "-p", "mlp", "-s", "2"),
    )
    assert code == 130
    settings = probes.Settings(k=3, l2=0.5, epochs=9, prototypes=7)
    assert seen["options"] == evaluation.Options(
        ("mlp",), (2,), 4, "holdout", 0.3, "lenient", "multi", False, settings
    )


def test_a_closed_pipe_is_silent(place: Path) -> None:
    import subprocess

    from conftest import COMMAND

    script = f"'{COMMAND}' probe '{place}/model' --data '{place}/clips.csv' -p knn | true"
    done = subprocess.run(
        ["bash", "-c", f"{script}; exit ${{PIPESTATUS[0]}}"], capture_output=True, check=False,
        env={**os.environ},
    )  # fmt: skip
    assert done.returncode in (0, 141)
    assert done.stderr == b""
