"""`audiossl finetune` and `pretrain`, through the installed command."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import COMMAND, Runner

from audiossl.commands import main
from audiossl.recipe import loading as recipe

RATE = 16000


@pytest.fixture(scope="module")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 clips of half a second in two subfolders, one name with a space, one with an umlaut."""
    folder = tmp_path_factory.mktemp("two tones")
    for label, pitch in (("high ü", 3000), ("low", 300)):
        (folder / label).mkdir()
        for i in range(6):
            wave = 0.3 * np.sin(2 * np.pi * (pitch + 10 * i) * np.arange(RATE // 2) / RATE)
            soundfile.write(folder / label / f"clip {i}.wav", wave, RATE)
    return folder


Here = Callable[..., tuple[int, str, str]]


@pytest.fixture
def here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Here:
    """here("finetune", ...) in tmp_path and in this process: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)

    def run(*args: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main._run(list(args))
        return (code, *capsys.readouterr())

    return run


def test_a_run_tells_its_result_on_stdout_and_the_rest_on_stderr(
    cli: Runner, here: Here, tones: Path, tmp_path: Path
) -> None:
    args = ["tiny/supervised", f"data.train={tones}", "train.steps=4"]
    done = cli("finetune", *args, "-o", "run one", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["run"] == "run one"
    assert record["best"] == "run one/best"
    assert record["steps"] == 4
    assert record["stopped"] is None
    assert "accuracy" in record["metrics"]
    assert b"step 4/4" in done.stderr
    facts = json.loads((tmp_path / "run one" / "run.json").read_text())
    assert facts["command"][1:3] == ["finetune", "tiny/supervised"]

    done = cli(
        "tag", "--model", "run one/best", str(tones / "low"), "--format", "jsonl", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 6

    code, out, err = here("finetune", *args, "-o", "run one")
    assert (code, out) == (2, "")
    assert "run one holds a run" in err
    for verb, *options in (["finetune", "--resume"], ["pretrain", "--on-exists", "overwrite"]):
        code, out, err = here(verb, *args, "-o", "run one", "-q", *options)
        assert (code, err) == (0, "")
        assert json.loads(out)["steps"] == 4


def test_dry_run_prints_a_recipe_that_runs_and_writes_nothing(
    here: Here, tones: Path, tmp_path: Path
) -> None:
    args = ["finetune", "tiny/supervised", f"data.train={tones}", "train.steps=3", "--dry-run"]
    code, text, err = here(*args)
    assert (code, err) == (0, "")
    assert list(tmp_path.iterdir()) == []
    assert text.splitlines()[-1] == "# parameters: 1,618 (1,552 in the encoder)"
    got = recipe.loads(text, "tiny/supervised")
    assert got == recipe.load("tiny/supervised", [f"data.train={tones}", "train.steps=3"])


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["tiny/supervised", "train.lrr=1"], 2, "recipe train.lrr: unknown key"),
        (["tiny/supervised", "method.losss=1"], 2, "recipe method.losss: unknown key"),
        (["tiny/nothing"], 2, "no recipe 'tiny/nothing'"),
        (["tiny/supervised"], 2, "recipe data.train: missing"),
        (["tiny/supervised", "data.train=nowhere"], 2, "nowhere: No such file or directory"),
        (["tiny/supervised", "data.train=.", "--device", "tpu9"], 2, "--device tpu9"),
        (["tiny/supervised", "data.train=.", "model.from=nowhere"], 5, "nowhere"),
        ([], 2, "RECIPE"),
    ],
)  # fmt: skip
def test_exit_codes(
    here: Here, tones: Path, tmp_path: Path, args: list[str], code: int, message: str
) -> None:
    args = [arg.replace("data.train=.", f"data.train={tones}") for arg in args]
    got, out, err = here("finetune", *args, "-q")
    assert (got, out) == (code, ""), err
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_best_is_named_once_it_is_there(here: Here, tones: Path) -> None:
    values = [f"data.train={tones}", "train.steps=4", "train.eval_every=4"]
    given = ["finetune", "tiny/supervised", *values, "-q", "-o", "a"]
    code, out, err = here(*given, "--max-steps", "1")
    assert code == 0, err
    assert json.loads(out)["best"] is None
    assert here(*given, "--resume", "--on-exists", "overwrite")[0] == 2
    assert here(*given, "--resume", "--time-limit", "nan")[0] == 2
    assert json.loads(here(*given, "--resume")[1])["best"] == "a/best"


def test_exit_codes_of_inputs_and_outputs(here: Here, tones: Path, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    for i in range(3):
        (tmp_path / "bad" / f"{i}.wav").write_bytes(b"no audio")
    (tmp_path / "file").write_text("in the way")
    given = ["finetune", "tiny/supervised", "-q"]
    labels = ["data.labels=[x]", "data.valid_fraction=0"]
    table = tmp_path / "bad" / "t.csv"
    table.write_text("path,labels\n0.wav,x\n1.wav,x\n2.wav,x\n")
    code, _, err = here(*given, f"data.train={table}", *labels, "-o", "a")
    assert code == 3, err
    assert "3 of 3 files cannot be read" in err
    code, _, err = here(*given, f"data.train={tones}", "-o", "file")
    assert code == 6, err


@contextlib.contextmanager
def started(tones: Path, out: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """A long run, once its first checkpoint is there."""
    command = [COMMAND, "finetune", "tiny/supervised", f"data.train={tones}", "-o", out]
    steps = ["train.steps=100000", "train.eval_every=5", *options]
    process = subprocess.Popen(
        [*command, *steps], stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        while not list(out.glob("checkpoints/step-*[0-9]")):
            assert process.poll() is None
            time.sleep(0.01)
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("number", "workers"), [(signal.SIGINT, 1), (signal.SIGTERM, 1), (signal.SIGTERM, 0)]
)
def test_a_signal_saves_and_ends(tones: Path, tmp_path: Path, number: int, workers: int) -> None:
    """Sent to the whole group, as a terminal, torchrun and Slurm do: those that load data too."""
    with started(tones, tmp_path / "run", f"data.workers={workers}") as process:
        os.killpg(process.pid, number)
        stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 128 + number, stderr
    assert stdout == b""
    assert b"Traceback" not in stderr
    assert f"{signal.Signals(number).name}: saving after step" in stderr.decode()
    step = int(stderr.decode().split("saving after step ")[1].split()[0])
    assert (tmp_path / "run" / "checkpoints" / f"step-{step:08d}").is_dir()
    config = json.loads((tmp_path / "run" / "last" / "config.json").read_text())
    assert config["training"]["step"] == step


def test_time_limit_and_max_steps_save_and_end_well(here: Here, tones: Path) -> None:
    given = ["finetune", "tiny/supervised", f"data.train={tones}", "train.steps=100000", "-q"]
    code, out, _ = here(*given, "-o", "run", "--time-limit", "0.5")
    record = json.loads(out)
    assert (code, record["stopped"]) == (0, "time limit")
    steps = record["steps"] + 3
    code, out, _ = here(*given, "-o", "run", "--resume", "--max-steps", str(steps))
    record = json.loads(out)
    assert (code, record["steps"], record["stopped"]) == (0, steps, None)


def test_a_terminal_gets_a_live_line_and_words(tones: Path, tmp_path: Path) -> None:
    command = [COMMAND, "finetune", "tiny/supervised", f"data.train={tones}", "train.steps=4"]
    near, other = pty.openpty()
    process = subprocess.Popen(
        [*command, "-o", tmp_path / "run"], stdout=other, stderr=other,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    )  # fmt: skip
    os.close(other)
    shown = b""
    while True:
        try:
            shown += os.read(near, 65536)
        except OSError:  # the other end is closed: on Linux that is EIO
            break
    assert process.wait(120) == 0
    os.close(near)
    assert b"clips/s" in shown
    assert b"best" in shown
    assert b"{" not in shown.splitlines()[-6]
