"""The pipeline contract, command by command: streams, records, order, names, exit codes.

Every exit code that applies to `tag` is reached by a real process; of `embed` those that stand or
fall with its own code, the others within this one (test_commands_embed.py).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import soundfile

COMMAND = Path(sys.executable).parent / "audiossl"
SCHEMA = json.loads((resources.files("audiossl") / "schema.json").read_text())
NASTY = [
    b"a b.wav",
    b"new\nline.wav",
    b"caf\xe9.wav",
    b"-leading.wav",
    b"*.wav",
    b"[x].wav",
    b"tab\there.wav",
    b"'quote\".wav",
    "żółw.wav".encode(),
    b"$HOME.wav",
    b"UPPER.WAV",
    b"two..dots.wav",
]


def records(output: bytes) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in output.splitlines()]
    for record in found:
        jsonschema.validate(record, SCHEMA)
    return found


@pytest.fixture
def tone(tmp_path: Path) -> Path:
    """A short sound with little in it."""
    path = tmp_path / "tone.wav"
    wave = 0.1 * np.sin(2 * np.pi * 440 * np.arange(8000) / 16000)
    soundfile.write(path, wave, 16000)
    return path


# Every exit code


def test_exit_0_and_valid_records(cli: Callable, tone: Path) -> None:
    done = cli("tag", tone)
    assert done.returncode == 0, done.stderr
    (record,) = records(done.stdout)
    assert record["file"] == str(tone)
    assert (record["start"], record["end"]) == (0.0, 0.5)
    assert done.stderr == b""


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["tga"], "tag"),
        (["tag", "--no-such-option"], "--no-such-option"),
        (["tag", "x.wav", "--format", "xml"], "xml"),
        (["tag", "x.wav", "--labels", "Dgo"], "Dog"),
        (["tag", "x.wav", "--device", "cuda:7"], "cuda"),
        (["tag", "x.wav", "--resume"], "--out"),
        (["tag", "x.wav", "--window", "nan"], "not a finite number"),
        (["tag", "x.wav", "--rate", "8000"], "--input-format raw"),
        (["tag", "-", "--input-format", "raw"], "--rate"),
        (["tag", "a.wav", "b.wav", "--format", "audacity"], "--out"),
        (["tag", "a.wav", "--out", "t.txt", "--format", "table"], "--format"),
        (["tag", "a.wav", "b.wav", "--plot", "p.png"], "single input"),
        (["tag", "-", "--files-from", "-"], "stdin"),
        (["tag", "-", "-"], "only once"),
        (["tag", "a.wav", "--out", "labels.txt"], "--format"),
        (["embed", "x.wav", "--format", "npz"], "--out"),
        (["embed", "x.wav", "--shard", "4/3"], "2/5"),
        (["embed", "x.wav", "--pool", "meen"], "mean"),
        (["embed", "-", "--files-from", "-"], "stdin"),
        (["completions", "tcsh"], "tcsh"),
        (["models", "shwo"], "shwo"),
    ],
)
def test_exit_2_says_what_is_wrong(cli: Callable, args: list[str], says: str) -> None:
    done = cli(*args)
    assert done.returncode == 2, done.stderr
    assert done.stdout == b""
    assert says in done.stderr.decode()
    assert b"Traceback" not in done.stderr


def test_exit_3_some_failed_the_rest_is_written(cli: Callable, tone: Path, broken: Path) -> None:
    done = cli("tag", broken, tone, "none.wav")
    assert done.returncode == 3
    bad, good, missing = records(done.stdout)
    assert "labels" in good
    assert bad["error"]["code"]
    assert missing["error"]["code"] == "missing"
    lines = done.stderr.decode().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"audiossl: error: {broken}: ")
    assert lines[1].startswith("audiossl: error: none.wav: missing: ")


def test_embed_exit_3_with_audio_on_stdin(cli: Callable, clips: Path, broken: Path) -> None:
    sound = (clips / "crow.wav").read_bytes()
    done = cli(
        "embed", broken, "-", "--name", "crow.wav", "--window", "1", "--hop", "1", stdin=sound
    )
    assert done.returncode == 3
    bad, *good = records(done.stdout)
    assert bad["error"]["code"]
    assert [(record["start"], record["end"]) for record in good] == [(0, 1), (1, 2), (1.6, 2.6)]
    assert {(record["file"], len(record["embedding"])) for record in good} == {("crow.wav", 1024)}
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("args", [["none.wav"], [], ["--files-from", os.devnull], ["no*match.wav"]])
def test_exit_4_all_failed_or_nothing_to_do(cli: Callable, args: list[str]) -> None:
    done = cli("tag", *args)
    assert done.returncode == 4
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("model", ["no-such-model", "tagegr", "."])
def test_exit_5_no_such_model(cli: Callable, tone: Path, model: str, tmp_path: Path) -> None:
    done = cli("tag", tone, "--model", model, cwd=tmp_path)
    assert done.returncode == 5
    assert done.stdout == b""
    assert len(done.stderr.splitlines()) == 1


def test_exit_6_cannot_write(cli: Callable, tone: Path, tmp_path: Path) -> None:
    done = cli("tag", tone, "--out", tmp_path / "no" / "such" / "folder.jsonl")
    assert done.returncode == 6
    assert b"no such folder" in done.stderr
    kept = tmp_path / "kept.jsonl"
    kept.write_text("precious")
    done = cli("tag", tone, "--out", kept)
    assert done.returncode == 6
    assert b"--on-exists" in done.stderr
    assert kept.read_text() == "precious"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_exit_6_stdout_is_full(tone: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [COMMAND, "tag", tone], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 6
    assert len(done.stderr.splitlines()) == 1
    assert b"No space left" in done.stderr


def test_exit_141_when_the_reader_leaves(tone: Path) -> None:
    for command in (f"tag {tone} {tone} {tone}", "--help", "tag --help", "completions bash"):
        script = f"set -o pipefail; '{COMMAND}' {command} | true; exit ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", script], capture_output=True, check=False)
        assert done.returncode in (0, 141), command
        assert done.stderr == b"", command
    for command in ("tag", "embed"):
        script = f"yes '{tone}' | '{COMMAND}' {command} --files-from - | head -1"
        script += "; exit ${PIPESTATUS[1]}"
        done = subprocess.run(["bash", "-c", script], capture_output=True, check=False, timeout=60)
        assert done.returncode == 141
        assert done.stderr == b""
        assert len(records(done.stdout)) == 1


@pytest.mark.parametrize(
    ("command", "number", "code"),
    [("tag", signal.SIGINT, 130), ("tag", signal.SIGTERM, 143), ("embed", signal.SIGTERM, 143)],
)
def test_exit_by_signal_leaves_nothing_half_done(
    tone: Path, tmp_path: Path, command: str, number: int, code: int
) -> None:
    out = tmp_path / "out.jsonl"
    read, write = os.pipe()
    process = subprocess.Popen(
        [COMMAND, command, "--files-from", "-", "--out", out],
        stdin=read,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    os.write(write, f"{tone}\n".encode())
    journal = tmp_path / ".out.jsonl.journal"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if journal.exists() and journal.read_bytes().count(b"\n") == 3:
            break
        time.sleep(0.05)
    process.send_signal(number)
    _, error = process.communicate(timeout=30)
    os.close(read)
    os.close(write)
    assert process.returncode == code
    assert b"Traceback" not in error
    assert not out.exists()
    done = subprocess.run(
        [COMMAND, command, tone, "--out", out, "--resume"], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(records(out.read_bytes())) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "tone.wav"]


# Streams


def test_the_first_record_comes_before_the_second_name(tone: Path) -> None:
    process = subprocess.Popen(
        [COMMAND, "tag", "--files-from", "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{tone}\n".encode())
    process.stdin.flush()
    first = process.stdout.readline()
    assert records(first)
    rest, _ = process.communicate(f"{tone}\n".encode(), timeout=60)
    assert rest == first


def test_names_of_every_kind(cli: Callable, tone: Path, tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path / "nasty")
    os.mkdir(folder)
    for name in NASTY:
        shutil.copy(tone, os.path.join(folder, name))
    paths = [os.path.join(folder, name) for name in NASTY]
    by_list = cli("tag", "--files-from", "-", "-0", stdin=b"\0".join(paths))
    assert by_list.returncode == 0, by_list.stderr
    by_argument = cli("tag", *paths)
    assert by_argument.stdout == by_list.stdout
    by_name = cli("tag", "--", *NASTY, cwd=os.fsdecode(folder))
    assert by_name.returncode == 0, by_name.stderr
    found = records(by_name.stdout)
    assert found[0]["file"] == "a b.wav"
    assert found[2]["file_b64"] == "Y2Fm6S53YXY="
    assert len(found) == len(NASTY)
    by_folder = cli("tag", tmp_path / "nasty")
    assert sorted(by_folder.stdout.splitlines()) == sorted(by_list.stdout.splitlines())


def test_same_bytes_whatever_the_jobs_and_the_output(
    cli: Callable, clips: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    one = cli("tag", clips, "--jobs", "1", "--hop", "0.5", "--window", "1")
    four = cli("tag", clips, "--jobs", "4", "--hop", "0.5", "--window", "1", "--quiet")
    assert one.returncode == 0, one.stderr
    assert one.stdout == four.stdout
    assert cli("tag", clips, "--hop", "0.5", "--window", "1", "--out", out).returncode == 0
    assert out.read_bytes() == one.stdout


def test_good_results_do_not_change_beside_bad_ones(
    cli: Callable, clips: Path, broken: Path
) -> None:
    good = cli("tag", clips)
    mixed = cli("tag", broken, clips, broken, "none.wav")
    assert mixed.returncode == 3
    kept = [line for line in mixed.stdout.splitlines() if b'"error"' not in line]
    assert kept == good.stdout.splitlines()


def test_environment_gives_defaults_and_flags_win(cli: Callable, tone: Path) -> None:
    env = {"AUDIOSSL_TAG_THRESHOLD": "0", "AUDIOSSL_TAG_TOP_K": "2"}
    (record,) = records(cli("tag", tone, env=env).stdout)
    assert len(record["labels"]) == 2
    (record,) = records(cli("tag", tone, "--top-k", "3", env=env).stdout)
    assert len(record["labels"]) == 3


# Output files


def test_a_folder_of_outputs_mirrors_the_inputs(cli: Callable, tone: Path, tmp_path: Path) -> None:
    sounds = tmp_path / "sounds"
    for place in ("x", "y/z"):
        (sounds / place).mkdir(parents=True)
        shutil.copy(tone, sounds / place / "same.wav")
    out = tmp_path / "labels"
    done = cli("tag", sounds, "--format", "audacity", "--out", out)
    assert done.returncode == 0, done.stderr
    found = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert found == [".audiossl.txt.settings", "x/same.txt", "y/z/same.txt"]
    again = cli("tag", sounds, "--format", "audacity", "--out", out)
    assert again.returncode == 4
    assert b"exists" in again.stderr
    assert cli("tag", sounds, "--format", "audacity", "--out", out, "--resume").returncode == 0


def test_two_inputs_never_share_an_output(cli: Callable, tone: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(tone, other / "tone.wav")
    out = f"{tmp_path}/out/"
    done = cli("tag", tone, other / "tone.wav", "--format", "textgrid", "--out", out)
    assert done.returncode == 3
    assert b"name-clash" in done.stderr


def test_on_exists(cli: Callable, tone: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.csv"
    out.write_text("old")
    assert cli("tag", tone, "-f", "csv", "-o", out, "--on-exists", "skip").returncode == 0
    assert out.read_text() == "old"
    assert cli("tag", tone, "-f", "csv", "-o", out, "--on-exists", "overwrite").returncode == 0
    assert out.read_text().startswith("file,start,end,label")


def test_failed_inputs_are_tried_again_on_resume(
    cli: Callable, tone: Path, broken: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    assert cli("tag", broken, tone, "--out", out).returncode == 3
    shutil.copy(tone, broken)
    done = cli("tag", broken, tone, "--out", out, "--resume")
    assert done.returncode == 0, done.stderr
    assert all("labels" in record for record in records(out.read_bytes()))


def test_resume_refuses_other_options(
    cli: Callable, tone: Path, broken: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    cli("tag", broken, tone, "--out", out)
    done = cli("tag", broken, tone, "--out", out, "--resume", "--top-k", "1")
    assert done.returncode == 2
    assert b"other options" in done.stderr


# The other commands


@pytest.mark.parametrize(
    "args",
    [["models", "ls"], ["recipes", "ls"], ["models", "show", "tagger"], ["doctor", "--json"]],
)
def test_listings_are_json_for_programs(cli: Callable, args: list[str]) -> None:
    done = cli(*args)
    assert done.returncode == 0, done.stderr
    first, *_ = done.stdout.splitlines() if "--json" not in args else [done.stdout]
    assert isinstance(json.loads(first), dict)


def test_a_bug_is_one_line_and_a_traceback_only_on_demand(cli: Callable, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import audiossl.diagnosis as d\ndef facts(): raise RuntimeError('boom')\nd.facts = facts\n"
    )
    env = {"PYTHONPATH": str(tmp_path)}
    done = cli("doctor", env=env)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        b"audiossl: error: internal error: RuntimeError: boom"
        b" (run again with --debug for the traceback, and please report it)"
    ]
    assert b"Traceback" in cli("doctor", "--debug", env=env).stderr
