"""A run that was stopped, killed or moved ends with the bytes of one that was not."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from tinyrun import VIT, Fit, Listener, digests

from audiossl.caches import sha256
from audiossl.commands import main
from audiossl.engine import checkpoint, train
from audiossl.engine import run_folder as run
from audiossl.engine.distributed import Team
from audiossl.engine.signals import ASKING, Stop
from audiossl.errors import UsageError
from audiossl.recipe import loading as recipe

pytest_plugins = ("tinyrun",)


# The resume matrix; further below signals and a time limit, two processes in test_distributed.py.
MATRIX: dict[str, list[str]] = {
    "plain": [],
    "an epoch's end": ["train.batch_size=6"],
    "several epochs an update": ["train.batch_size=20"],
    "accumulation": ["train.accumulate=2"],
    "average": ["train.ema=0.9"],
    "no evaluation": ["data.valid_fraction=0"],
    "balanced": ["data.balanced=true"],
    "one worker": ["data.workers=1", "data.cache=none", "data.augment.noise=0.5"],
    "two workers": ["data.workers=2"],
    "no cache": ["data.cache=none"],
    "sgd": ["train.optimizer=sgd", "train.lr=0.1"],
    "adam": ["train.optimizer=adam", "train.weight_decay=0.1"],
    "warm-up to the end": ["train.warmup=8"],
    "linear": ["train.schedule=linear", "train.min_lr=1e-4"],
    "cuts": ["train.schedule=step", "train.step_every=2", "train.step_factor=0.5"],
    "clipping": ["train.clip=0.05"],
    "bf16": ["train.precision=bf16"],
    "fp16": ["train.precision=fp16"],
    "frozen": ["method.freeze_encoder=true"],
    "transformer": [*VIT],
    "recomputed blocks": [*VIT, "train.checkpointing=true", "train.ema=0.5"],
    "everything random": [
        "data.augment.gain_db=[-6, 6]", "data.augment.roll=0.5", "data.augment.noise=0.5",
        "method.mixup=0.5", "method.freq_masks=1", "method.freq_width=8", "method.time_masks=1",
        "method.time_width=10",
    ],
}  # fmt: skip
SHORT = ["train.steps=8", "train.eval_every=4", "train.log_every=5", "train.warmup=4"]


@pytest.mark.parametrize("overrides", MATRIX.values(), ids=MATRIX)
def test_a_run_in_pieces_ends_with_the_same_bytes(fit: Fit, overrides: list[str]) -> None:
    """Stopped after 3 and after 6 updates: within the warm-up, and in the middle of a log line."""
    overrides = [*SHORT, *overrides]
    whole = fit("whole", *overrides).folder
    fit("pieces", *overrides, max_steps=3)
    fit("pieces", *overrides, max_steps=6, resume=True)
    pieces = fit("pieces", *overrides, resume=True).folder
    assert digests(pieces) == digests(whole)


class Sender(Listener):
    """Sends this process a signal after some updates."""

    def __init__(self, number: int, after: int) -> None:
        super().__init__()
        self.number, self.after = number, after

    def step(self, step: int, values: dict[str, float], clips: int) -> None:
        if step == self.after:
            os.kill(os.getpid(), self.number)


class Left(BaseException):
    """What the process's own handler raises."""


@pytest.mark.parametrize("number", ASKING)
def test_a_signal_stops_it_after_the_update_at_work(
    fit: Fit, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave(*_: object) -> None:
        raise Left

    before = [(name, signal.signal(name, leave)) for name in (signal.SIGTERM, signal.SIGHUP)]
    sender = Sender(number, after=3)
    try:
        with pytest.raises((Left, KeyboardInterrupt)):
            fit("pieces", *SHORT, watch=sender)
    finally:
        for name, handler in before:
            signal.signal(name, handler)
    assert sender.texts[-1] == f"{signal.Signals(number).name}: saving after step 3"
    pieces = fit("pieces", *SHORT, resume=True).folder
    assert digests(pieces) == digests(fit("whole", *SHORT).folder)


def test_a_hung_up_terminal_ends_no_run_under_nohup(monkeypatch: pytest.MonkeyPatch) -> None:
    handlers = {name: signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGHUP)}
    monkeypatch.setattr(main, "leave", lambda code: None)
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        main.run(["--version"])
        with Stop() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.agree(Team(torch.device("cpu"))) is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        for name, handler in handlers.items():
            signal.signal(name, handler)


def test_a_time_limit_stops_it_after_every_update(fit: Fit) -> None:
    for step in range(1, 8):
        result = fit("pieces", *SHORT, time_limit=0, resume=step > 1)
        assert (result.steps, result.stopped) == (step, "time limit")
    pieces = fit("pieces", *SHORT, resume=True)
    assert pieces.stopped is None
    assert digests(pieces.folder) == digests(fit("whole", *SHORT).folder)


def test_the_number_of_workers_changes_no_byte(fit: Fit) -> None:
    overrides = ["train.steps=6", "data.augment.noise=0.5", "data.cache=none"]
    alone = fit("alone", *overrides).folder
    for workers in (1, 2):
        shared = fit(f"shared by {workers}", *overrides, f"data.workers={workers}").folder
        assert digests(shared) == digests(alone)


def test_a_finished_run_resumed_stays_as_it_is(fit: Fit) -> None:
    folder = fit("run", "train.steps=4").folder
    before = digests(folder)
    assert fit("run", "train.steps=4", resume=True).steps == 4
    assert digests(folder) == before


def test_only_the_same_recipe_may_go_on(fit: Fit, tmp_path: Path) -> None:
    fit("run", "train.steps=4", max_steps=2)
    with pytest.raises(UsageError, match=r"recipe train\.lr: 0\.5, but .* begun with 0\.01"):
        fit("run", "train.steps=4", "train.lr=0.5", resume=True)
    with pytest.raises(UsageError, match="holds a run: --resume"):
        fit("run", "train.steps=4")
    assert fit("run", "train.steps=4", "data.workers=1", resume=True).steps == 4
    assert fit("run", "train.steps=2", "train.lr=0.5", overwrite=True).steps == 2
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    for options in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(UsageError, match="holds no run"):
            fit("other", **options)
    assert (tmp_path / "other" / "thesis.txt").read_text() == "mine"


def test_only_the_same_data_may_go_on(fit: Fit, tmp_path: Path) -> None:
    clips = shutil.copytree(fit.clips, tmp_path / "clips")
    given = [f"data.train={clips}", "train.steps=4"]
    fit("run", *given, max_steps=2)
    facts = (tmp_path / "run" / run.FACTS).read_bytes()
    (clips / "low").rename(clips / "deep")
    with pytest.raises(UsageError, match=r"begun with other labels \(high, low, mid\): give them"):
        fit("run", *given, resume=True)
    (clips / "deep").rename(clips / "low")
    gone = (clips / "low" / "0.wav").rename(tmp_path / "0.wav")
    with pytest.raises(UsageError, match="begun with other data"):
        fit("run", *given, resume=True)
    assert (tmp_path / "run" / run.FACTS).read_bytes() == facts
    gone.rename(clips / "low" / "0.wav")
    with pytest.raises(UsageError, match=r"data\.cache"):  # it rounds
        fit("run", *given, "data.cache=none", resume=True)
    moved = clips.rename(tmp_path / "moved")
    whole = fit("whole", "train.steps=4").folder
    assert digests(fit("run", f"data.train={moved}", "train.steps=4", resume=True).folder) == (
        digests(whole)
    )


def test_its_own_recipe_goes_on_with_it_under_its_own_name(fit: Fit) -> None:
    whole = digests(fit("whole", *SHORT).folder)
    folder = fit("run", *SHORT, max_steps=3).folder
    train.fit(recipe.load(str(folder / run.RECIPE), [f"out={folder}"]), resume=True)
    assert digests(folder) == whole


def test_no_two_processes_work_in_one_folder(fit: Fit) -> None:
    folder = fit("run", "train.steps=4", max_steps=2).folder
    before = digests(folder)
    with FileLock(folder / run.LOCK):
        for options in ({"resume": True}, {"overwrite": True}):
            with pytest.raises(UsageError, match="another process is at work in this run"):
                fit("run", "train.steps=4", **options)
    assert digests(folder) == before
    assert fit("run", "train.steps=4", resume=True).steps == 4


def test_what_a_killed_save_left_is_removed_by_the_next(fit: Fit) -> None:
    folder = fit("run", *SHORT, max_steps=2).folder / "checkpoints"
    (folder / "step-00000001.tmp").mkdir()
    fit("run", *SHORT, resume=True)
    assert not list(folder.glob("*.tmp"))


def test_passes_may_move_between_processes_but_not_be_more(fit: Fit) -> None:
    """Two processes with one pass each are gone on from by one with two."""
    given = ["train.steps=4", "train.batch_size=4"]
    whole = fit("whole", *given, "train.accumulate=2").folder
    fit("moved", *given, "train.accumulate=2", max_steps=2)
    facts = (fit.folder / "moved" / run.FACTS).read_text()
    begun = (fit.folder / "moved" / run.RECIPE).read_text()
    (fit.folder / "moved" / run.FACTS).write_text(facts.replace('"processes": 1', '"processes": 2'))
    (fit.folder / "moved" / run.RECIPE).write_text(begun.replace("accumulate: 2", "accumulate: 1"))
    with pytest.raises(UsageError, match=r"train\.accumulate: 3, but .* begun with 1"):
        fit("moved", *given, "train.accumulate=3", resume=True)
    moved = fit("moved", *given, "train.accumulate=2", resume=True).folder
    assert digests(moved) == digests(whole)


def test_another_global_batch_is_told(fit: Fit) -> None:
    fit("run", "train.steps=4", max_steps=2)
    path = next((fit.folder / "run" / "checkpoints").glob("*/state.json"))
    listener = Listener()
    rewrite(path, '"processes": 1', '"processes": 3', '"clips": 8', '"clips": 24')
    fit("run", "train.steps=4", resume=True, watch=listener)
    assert "processes 1 instead of 3: the last bits of the weights may differ" in listener.texts[0]
    assert "an update is now of 8 clips, not 24: for the same global batch" in listener.texts[1]


def rewrite(path: Path, *pairs: str) -> None:
    """Replace texts in a state's facts and sign it anew."""
    text = path.read_text()
    for old, new in zip(pairs[::2], pairs[1::2], strict=True):
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    manifest = path.with_name(checkpoint.MANIFEST)
    digests = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**digests, path.name: sha256(path)}))


def test_a_process_that_torchrun_restarts_goes_on_by_itself(
    fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = digests(fit("whole", *SHORT).folder)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "mine")
    fit("run", *SHORT, max_steps=3)
    with pytest.raises(UsageError, match="holds a run"):
        fit("run", *SHORT)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert digests(fit("run", *SHORT).folder) == whole
    # Another torchrun must not take up what it did not begin.
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "other")
    with pytest.raises(UsageError, match="holds a run"):
        fit("run", *SHORT)
    # One that was to overwrite it and died before that still has to.
    assert fit("run", "train.steps=2", overwrite=True).steps == 2


CODE = """
import sys, torch
from audiossl.recipe import loading as recipe
from audiossl.engine import train
torch.set_num_threads(1)
train.fit(recipe.load("tiny/supervised", sys.argv[1:]), resume=True)
"""


def kill_and_resume(arguments: list[str], moments: str, seed: int) -> None:
    """Start and kill -9, once for each letter of `moments`; then let it end.

    r: at a random moment after the next state is there; s: while the next one is being saved.
    """
    command = [sys.executable, "-c", CODE, *arguments]
    states = Path(arguments[1].removeprefix("out=")) / "checkpoints"
    rng = random.Random(seed)
    for moment in moments:
        before = {path.name for path in states.glob("*")}
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None:
                new = {path.name for path in states.glob("*")} - before
                if any(name.endswith(".tmp") == (moment == "s") for name in new):
                    break
                time.sleep(0.001)
            time.sleep(rng.random() * 0.4 if moment == "r" else 0)
            process.kill()
        assert process.returncode == -signal.SIGKILL
    subprocess.run(command, check=True)


def killed_equals_whole(fit: Fit, steps: int, moments: str, seed: int) -> None:
    overrides = ["train.eval_every=4", "train.ema=0.9", "method.mixup=0.5", f"train.steps={steps}"]
    whole = fit("whole", *overrides).folder
    kill_and_resume(fit.given("killed", *overrides), moments, seed)
    killed = fit.folder / "killed"
    assert digests(killed) == digests(whole)
    assert not list(killed.glob("checkpoints/*.tmp"))


def test_killed_and_resumed_equals_undisturbed(fit: Fit) -> None:
    killed_equals_whole(fit, steps=16, moments="s", seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_killed_twenty_times(fit: Fit, seed: int) -> None:
    killed_equals_whole(fit, steps=200, moments="rsrs", seed=seed)
