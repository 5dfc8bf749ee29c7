"""torchrun: restarts after a kill, signals to one process, and what must not hang. All slow."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gloo_worker
import pytest
import tinyrun
from conftest import COMMAND
from test_checkpoint import fill, small_disk
from test_distributed import assert_close, together
from tinyrun import Fit, digests, lines

from audiossl.engine import checkpoint

pytest_plugins = ("tinyrun",)

pytestmark = pytest.mark.slow

PATIENCE = 120  # seconds, on a busy machine: gloo itself would wait for half an hour
TORCHRUN = COMMAND.with_name("torchrun")


SHORT = ["train.steps=8", "train.eval_every=4", "train.log_every=5", "train.warmup=4"]


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["train.ema=0.9", "train.accumulate=2", "data.workers=1", "data.cache=none"],
        ["train.parallel=fsdp", "train.ema=0.9", "method.mixup=0.5"],
    ],
    ids=["ddp", "ddp, all at once", "fsdp"],
)
def test_two_processes_in_pieces_end_with_the_same_bytes(fit: Fit, overrides: list[str]) -> None:
    def job(name: str, **options: Any) -> dict[str, Any]:
        return {"overrides": fit.given(name, *SHORT, *overrides), "options": options}

    first, second = together(
        [
            job("whole"),
            job("pieces", max_steps=3),
            job("pieces", time_limit=0, resume=True),
            job("pieces", resume=True),
        ]
    )
    assert first == second
    assert [said["steps"] for said in first] == [8, 3, 4, 8]
    assert first[2]["stopped"] == "time limit"
    assert digests(fit.folder / "pieces") == digests(fit.folder / "whole")


@pytest.mark.parametrize("name", ["audio_mae", "bird_mae", "ssast", "ssamba"])
def test_every_objective_comes_to_the_same_in_two_processes(fit: Fit, name: str) -> None:
    given = [
        "train.steps=3", "train.batch_size=4", "train.log_every=1", "train.optimizer=sgd",
        "train.eval_every=3", "train.lr=0.05", "data.valid_fraction=0.25",
    ]  # fmt: skip
    alone = {"overrides": fit.given("one", *given, "train.accumulate=2"), "options": {}}
    assert gloo_worker.run(**alone, name=f"tiny/{name}")["steps"] == 3
    kinds = ("ddp", "fsdp")
    jobs: list[dict[str, Any]] = [
        {
            "overrides": fit.given(kind, *given, f"train.parallel={kind}"),
            "options": {},
            "name": f"tiny/{name}",
        }
        for kind in kinds
    ]
    first, second = together(jobs)
    assert first == second
    for kind in kinds:
        assert_close(fit.folder / "one", fit.folder / kind)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_compiled_blocks_go_with_both(fit: Fit, kind: str) -> None:
    given = [*SHORT, *tinyrun.VIT, f"train.parallel={kind}", "train.optimizer=sgd"]
    compiled = fit.given("compiled", *given, "train.compile=true")
    first, _ = together(
        [{"overrides": fit.given("plain", *given), "options": {}},
         {"overrides": compiled, "options": {}}]
    )  # fmt: skip
    assert [said.get("steps") for said in first] == [8, 8], first
    for one, other in zip(lines(fit.folder / "plain"), lines(fit.folder / "compiled"), strict=True):
        assert other == pytest.approx(one, abs=1e-4)


def test_one_process_takes_over_from_two_with_twice_the_passes(fit: Fit) -> None:
    given = [*SHORT, "train.batch_size=4", "train.optimizer=sgd"]
    whole = fit("whole", *given, "train.accumulate=2").folder
    together([{"overrides": fit.given("run", *given), "options": {"max_steps": 4}}])
    folder = fit("run", *given, "train.accumulate=2", resume=True).folder
    for one, other in zip(lines(whole), lines(folder), strict=True):
        assert other == pytest.approx(one, abs=1e-5)


def test_a_full_disk_of_the_first_ends_both(fit: Fit) -> None:
    disk = fit.folder / "disk"
    with small_disk(disk, 1024) as there:
        if not there:
            pytest.skip("needs root, to mount a small disk")
        given = Fit(fit.clips, disk).given("run", "train.steps=4", "train.eval_every=2")
        together([{"overrides": given, "options": {"max_steps": 2}}])
        fill(disk / "filler", 8 << 10)
        started = time.monotonic()
        said = together([{"overrides": given, "options": {"resume": True}}])
        assert time.monotonic() - started < PATIENCE
        assert [answer[0]["exit"] for answer in said] == [6, 6]
        assert checkpoint.newest(disk / "run" / "checkpoints", pytest.fail) is not None


def test_too_many_unreadable_files_end_both(fit: Fit, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    folder = tinyrun.write_clips(tmp_path / "copy")
    (folder / "low" / "3.wav").write_bytes(b"RIFF of no use")
    given = Fit(folder, tmp_path).given(
        "run", "train.steps=9", "data.cache=none", "data.max_bad_fraction=0",
        "data.valid_fraction=0",
    )  # fmt: skip
    said = together([{"overrides": given, "options": {}}])
    assert [answer[0]["exit"] for answer in said] == [3, 3]


class Group:
    """torchrun with two processes of `audiossl pretrain`."""

    def __init__(self, fit: Fit, name: str, *overrides: str, restarts: int = 0) -> None:
        self.folder = fit.folder / name
        command = [
            TORCHRUN, "--standalone", "--nproc-per-node", "2", "--max-restarts", str(restarts),
            "-m", "audiossl", "pretrain", "tiny/supervised", *fit.given(name, *overrides),
        ]  # fmt: skip
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def wait_for_state(self, after: int = 0) -> int:
        """The step of the newest state, once it is later than `after`."""
        while True:
            steps = [int(path.name[-8:]) for path in self.folder.glob("checkpoints/step-*[0-9]")]
            if steps and max(steps) > after:
                return max(steps)
            assert self.process.poll() is None, self.end()
            time.sleep(0.005)

    def worker(self, rank: int) -> int:
        """Process number of rank `rank`, once it is there."""
        while True:
            for path in Path("/proc").glob("[0-9]*/environ"):
                with contextlib.suppress(OSError):
                    variables = path.read_bytes().split(b"\0")
                    parent = int((path.parent / "stat").read_text().rsplit(")", 1)[1].split()[1])
                    if parent == self.process.pid and f"RANK={rank}".encode() in variables:
                        return int(path.parent.name)
            time.sleep(0.01)

    def end(self, seconds: float = PATIENCE) -> tuple[int, str, str]:
        """(exit code, stdout, stderr)."""
        out, err = self.process.communicate(timeout=seconds)
        return self.process.returncode, out, err


@contextlib.contextmanager
def started(fit: Fit, name: str, *overrides: str, restarts: int = 0) -> Iterator[Group]:
    group = Group(fit, name, *overrides, restarts=restarts)
    try:
        yield group
    finally:
        if group.process.poll() is None:
            group.process.terminate()
            group.process.communicate(timeout=PATIENCE)


LONG = ["train.steps=240", "train.eval_every=4", "train.ema=0.9", "method.mixup=0.5"]


@pytest.mark.parametrize(("rank", "kills"), [(1, 10), (0, 2)])
def test_a_killed_process_is_restarted_and_the_run_goes_on(fit: Fit, rank: int, kills: int) -> None:
    """Without --resume on the command line; the end is that of an undisturbed run."""
    rng, step, killed = random.Random(rank), 0, set()
    with started(fit, "killed", *LONG, restarts=kills) as group:
        for _ in range(kills):
            step = group.wait_for_state(step)
            time.sleep(rng.random() * 0.3)
            worker = group.worker(rank)
            os.kill(worker, signal.SIGKILL)
            killed.add(worker)
            time.sleep(0.5)
        code, out, err = group.end(600)
    assert code == 0, err
    assert json.loads(out)["steps"] == 240
    assert len(killed) == kills
    # on a busy machine one may die before it has said where it goes on
    assert 1 <= err.count("going on after") <= kills
    with started(fit, "whole", *LONG) as group:
        assert group.end(600)[0] == 0
    assert digests(fit.folder / "killed") == digests(fit.folder / "whole")


@pytest.mark.parametrize("rank", [0, 1])
def test_without_restarts_the_others_end_soon(fit: Fit, rank: int) -> None:
    with started(fit, "run", "train.steps=100000", "train.eval_every=4") as group:
        group.wait_for_state()
        os.kill(group.worker(rank), signal.SIGKILL)
        code, out, err = group.end()
    assert (code, out) == (1, "")
    assert "internal error" not in err
    assert checkpoint.newest(fit.folder / "run" / "checkpoints", pytest.fail) is not None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_to_one_saves_and_ends_both(fit: Fit, number: signal.Signals) -> None:
    with started(fit, "run", "train.steps=100000", "train.eval_every=4") as group:
        group.wait_for_state()
        workers = [group.worker(rank) for rank in range(2)]
        os.kill(workers[1], number)
        _, out, err = group.end()
    assert out == ""
    assert f"{number.name}: saving after step" in err
    step = int(err.split("saving after step ")[1].split()[0])
    assert (fit.folder / "run" / "checkpoints" / f"step-{step:08d}").is_dir()
    for pid in workers:
        assert not Path(f"/proc/{pid}").exists()


def test_torchrun_s_own_end_reaches_workers_of_workers(fit: Fit) -> None:
    """It signals whole process groups: those that load data must last until the save."""
    given = ["train.steps=100000", "train.eval_every=4", "data.workers=1", "data.cache=none"]
    with started(fit, "run", *given) as group:
        group.wait_for_state()
        group.process.send_signal(signal.SIGTERM)
        _, _, err = group.end()
    assert "SIGTERM: saving after step" in err
    assert "internal error" not in err
    assert "exited unexpectedly" not in err


@pytest.mark.parametrize("dry", [False, True])
def test_the_first_alone_talks(fit: Fit, dry: bool) -> None:
    with started(fit, "run", "train.steps=4", *["--dry-run"] * dry) as group:
        code, out, err = group.end()
    assert code == 0, err
    assert out.count("parameters:" if dry else '"steps": 4') == 1
    assert err.count("step 4/4") == (0 if dry else 1)
