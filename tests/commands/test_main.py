"""main.py: streams that are closed or full, what stands on stderr; no model is loaded here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from audiossl.commands.main import say_error

COMMAND = [sys.executable, "-m", "audiossl"]
FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")


def shell(script: str, unbuffered: str = "") -> subprocess.CompletedProcess[bytes]:
    """A script in which "$@" is `audiossl`; `unbuffered`: Python holds nothing back, if "1"."""
    return subprocess.run(
        ["sh", "-c", script, "sh", *COMMAND],
        capture_output=True,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        check=False,
    )


@FULL
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("args", ["--help", "models --help", "completions bash", "recipes ls"])
def test_a_full_stdout_is_one_line_and_exit_6(args: str, unbuffered: str) -> None:
    done = shell(f'"$@" {args} >/dev/full', unbuffered)
    assert done.returncode == 6, done.stderr
    assert done.stderr == b"audiossl: error: stdout: No space left on device\n"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_closed_stdout_is_one_line_and_exit_6(unbuffered: str) -> None:
    done = shell('"$@" completions bash >&-', unbuffered)
    assert done.returncode == 6
    assert done.stderr == b"audiossl: error: stdout: Bad file descriptor\n"


@pytest.mark.parametrize(("args", "code"), [("--version", 0), ("tga", 2), ("tag none*.wav", 4)])
def test_a_closed_stderr_changes_nothing_else(args: str, code: int) -> None:
    assert shell(f'"$@" {args} 2>&-').returncode == code


def test_with_all_streams_closed() -> None:
    assert shell('"$@" recipes ls <&- >&- 2>&-').returncode == 6
    assert shell('"$@" tga <&- >&- 2>&-').returncode == 2


@pytest.mark.parametrize("args", ["", "models", "recipes", "data"])
def test_without_arguments_the_help_stands_as_it_is(args: str) -> None:
    done, helped = shell(f'"$@" {args}'), shell(f'"$@" {args} --help')
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == helped.stdout


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("x\x1b[31mred\a.wav", "x?[31mred?.wav"),
        ("new\nline", "new line"),
        ("caf\udce9 żółw", r"caf\udce9 żółw"),
        ("c1\x9b2J", "c1?2J"),
    ],
)
def test_no_name_commands_the_terminal(
    capsys: pytest.CaptureFixture[str], name: str, said: str
) -> None:
    say_error(name)
    assert capsys.readouterr().err == f"audiossl: error: {said}\n"
