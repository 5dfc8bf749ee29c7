"""The loop: a whole run, exactness, resumption, what stops it."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from audiossl import methods, recipe
from audiossl.engine import checkpoint, job, train
from audiossl.engine.log import Metrics, Silent
from audiossl.errors import (
    AudiosslError,
    InputError,
    ModelError,
    OutputError,
    RecipeError,
    UsageError,
)
from audiossl.methods import supervised
from audiossl.model import load

RATE = 16000
PITCH = {"high": 2500, "low": 300, "mid": 900}  # Hz

# The first four losses of `tiny/supervised` on the clips below, seed 0.
GOLDEN = [0.671893, 0.661343, 0.589846, 0.554801]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 clips of a second: a tone and some noise, three labels."""
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    time_ = np.arange(RATE) / RATE
    for label, pitch in PITCH.items():
        (folder / label).mkdir()
        for i in range(8):
            tone = np.sin(2 * np.pi * pitch * rng.uniform(0.9, 1.1) * time_)
            wave = 0.3 * tone + 0.02 * rng.standard_normal(RATE)
            soundfile.write(folder / label / f"{i}.wav", wave, RATE)
    return folder


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


Fit = Callable[..., train.Result]


@pytest.fixture
def fit(clips: Path, tmp_path: Path) -> Fit:
    """fit("name", "key=value", ..., resume=True): the tiny recipe into tmp_path/name."""

    def run(name: str, *overrides: str, **options: Any) -> train.Result:
        given = [f"data.train={clips}", f"out={tmp_path / name}", *overrides]
        return train.fit(recipe.load("tiny/supervised", given), **options)

    return run


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def digests(folder: Path) -> dict[str, str]:
    """Of everything that must come out the same, however the run was interrupted."""
    files = [
        folder / "metrics.jsonl",
        *folder.glob("*/*.safetensors"),
        *folder.glob("*/config.json"),
    ]
    files += sorted((folder / "checkpoints").glob("*/*"))[-3:]
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(files)
    }


def test_a_whole_run_learns_and_its_folder_says_everything(fit: Fit, clips: Path) -> None:
    result = fit("run", "train.epochs=25", "train.eval_every=20")
    folder = result.folder
    assert result.steps == job.prepare(recipe.load(str(folder / "recipe.yaml"))).steps
    assert result.stopped is None
    facts = json.loads((folder / "run.json").read_text())
    assert {"command", "torch", "threads", "parameters", "data"} <= set(facts)
    rows = lines(folder)
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < losses[0] / 2
    assert rows[-1]["valid_accuracy"] == result.metrics["accuracy"] == 1
    assert rows[-1]["step"] == result.steps
    for name in ("best", "last"):
        model = load(str(folder / name))  # the last one stays for the end
        assert model.labels == ["high", "low", "mid"]
        assert model.config.training["data"] == []
    for i, label in enumerate(model.labels):
        wave = torch.from_numpy(soundfile.read(clips / label / "0.wav", dtype="float32")[0])
        assert int(model(wave[None]).argmax()) == i
    again = recipe.load(str(folder / "recipe.yaml"))
    assert again.train.epochs == 25
    assert again.out == str(folder)


def test_the_same_seed_gives_the_same_bytes_another_seed_others(fit: Fit) -> None:
    first, second = fit("a", "train.steps=6").folder, fit("b", "train.steps=6").folder
    assert digests(first) == digests(second)
    other = fit("c", "train.steps=6", "train.seed=1").folder
    assert digests(other)["last/model.safetensors"] != digests(first)["last/model.safetensors"]


def test_golden_first_losses(fit: Fit) -> None:
    folder = fit("run", "train.log_every=1", max_steps=4).folder
    losses = [row["loss"] for row in lines(folder) if "loss" in row]
    assert losses == pytest.approx(GOLDEN, rel=1e-4)


MATRIX = {
    "plain": [],
    "an epoch's end": ["train.batch_size=6"],
    "accumulation": ["train.accumulate=2"],
    "average": ["train.ema=0.9"],
    "no evaluation": ["data.valid_fraction=0"],
    "balanced": ["data.balanced=true"],
    "workers": ["data.workers=2"],
    "no cache": ["data.cache=none"],
    "sgd": ["train.optimizer=sgd", "train.lr=0.1"],
    "bf16": ["train.precision=bf16"],
    "everything random": [
        "data.augment.gain_db=[-6, 6]", "data.augment.roll=0.5", "data.augment.noise=0.5",
        "method.mixup=0.5", "method.freq_masks=1", "method.freq_width=8", "method.time_masks=1",
        "method.time_width=10",
    ],
}  # fmt: skip


@pytest.mark.parametrize("overrides", MATRIX.values(), ids=MATRIX)
def test_a_run_in_pieces_ends_with_the_same_bytes(fit: Fit, overrides: list[str]) -> None:
    """Stopped after 3 and after 6 updates: within the warm-up, and in the middle of a log line."""
    overrides = [*overrides, "train.steps=8", "train.eval_every=4", "train.log_every=5"]
    overrides.append("train.warmup=4")
    whole = fit("whole", *overrides).folder
    fit("pieces", *overrides, max_steps=3)
    fit("pieces", *overrides, max_steps=6, resume=True)
    pieces = fit("pieces", *overrides, resume=True).folder
    assert digests(pieces) == digests(whole)


def test_the_number_of_workers_changes_no_byte(fit: Fit) -> None:
    overrides = ["train.steps=6", "data.augment.noise=0.5", "data.cache=none"]
    alone = fit("alone", *overrides).folder
    shared = fit("shared", *overrides, "data.workers=2").folder
    assert digests(alone)["metrics.jsonl"] == digests(shared)["metrics.jsonl"]


def test_a_finished_run_resumed_stays_as_it_is(fit: Fit) -> None:
    folder = fit("run", "train.steps=4").folder
    before = digests(folder)
    assert fit("run", "train.steps=4", resume=True).steps == 4
    assert digests(folder) == before


CODE = """
import sys, torch
from audiossl import recipe
from audiossl.engine import train
torch.set_num_threads(1)
train.fit(recipe.load("tiny/supervised", sys.argv[1:]), resume=True)
"""


def kill_and_resume(arguments: list[str], kills: int, seed: int) -> None:
    """Start, kill -9 at a random moment after the first checkpoint, ...; then let it end."""
    command = [sys.executable, "-c", CODE, *arguments]
    folder = Path(arguments[1].removeprefix("out="))
    rng = random.Random(seed)
    for _ in range(kills):
        before = set(folder.glob("checkpoints/*"))
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            while set(folder.glob("checkpoints/*")) <= before and process.poll() is None:
                time.sleep(0.005)
            time.sleep(rng.random() * 0.4)
            process.kill()
    subprocess.run(command, check=True)


def killed_equals_whole(fit: Fit, clips: Path, tmp_path: Path, kills: int, seed: int) -> None:
    overrides = ["train.steps=24", "train.eval_every=4", "train.ema=0.9", "method.mixup=0.5"]
    whole = fit("whole", *overrides).folder
    out = tmp_path / "killed"
    kill_and_resume([f"data.train={clips}", f"out={out}", *overrides], kills, seed)
    assert digests(out) == digests(whole)
    assert not list(out.glob("checkpoints/*.tmp"))


def test_killed_and_resumed_equals_undisturbed(fit: Fit, clips: Path, tmp_path: Path) -> None:
    killed_equals_whole(fit, clips, tmp_path, kills=2, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 8))
def test_killed_often(fit: Fit, clips: Path, tmp_path: Path, seed: int) -> None:
    killed_equals_whole(fit, clips, tmp_path, kills=3, seed=seed)


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "gone":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "cut":
        path.write_bytes(data[: len(data) // 2])
    else:
        middle = len(data) // 2
        path.write_bytes(data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :])


@pytest.mark.parametrize("name", ["state.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("how", ["gone", "empty", "cut", "bit"])
def test_a_damaged_state_falls_back_to_the_one_before(
    fit: Fit, tmp_path: Path, name: str, how: str
) -> None:
    overrides = ["train.steps=6", "train.eval_every=2"]
    whole = digests(fit("run", *overrides).folder)
    damage(tmp_path / "run" / "checkpoints" / "step-00000006" / name, how)
    said = Listener()
    fit("run", *overrides, resume=True, watch=said)
    assert any("step-00000006 is damaged" in text for text in said.texts)
    assert digests(tmp_path / "run") == whole


def test_when_all_states_are_damaged_the_error_says_so(fit: Fit, tmp_path: Path) -> None:
    fit("run", "train.steps=4", "train.eval_every=2")
    for path in (tmp_path / "run" / "checkpoints").glob("*/state.json"):
        path.unlink()
    with pytest.raises(ModelError, match="all 2 checkpoints are damaged"):
        fit("run", "train.steps=4", "train.eval_every=2", resume=True)


class Listener(Silent):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def say(self, text: str) -> None:
        self.texts.append(text)


def test_a_failed_save_leaves_the_states_before(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit("run", "train.steps=6", "train.eval_every=2", max_steps=2)
    monkeypatch.setattr(checkpoint, "_write_json", _disk_full)
    with pytest.raises(OutputError, match="step-00000004: No space"):
        fit("run", "train.steps=6", "train.eval_every=2", resume=True)
    names = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert names == ["step-00000002"]
    monkeypatch.undo()
    assert fit("run", "train.steps=6", "train.eval_every=2", resume=True).steps == 6


def _disk_full(*_: object) -> None:
    raise OSError(28, "No space left on device")


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


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_loss_that_is_no_number_stops_the_run(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    real, calls = supervised.Method.loss, []

    def poisoned(self: Any, batch: dict[str, torch.Tensor]) -> Any:
        calls.append(batch)
        loss, values = real(self, batch)
        return (loss * float("nan") if len(calls) > 3 and self.training else loss), values

    monkeypatch.setattr(supervised.Method, "loss", poisoned)
    overrides = ["train.eval_every=2", f"train.precision={precision}", "data.valid_fraction=0"]
    with pytest.raises(AudiosslError, match="step 3: the loss is nan") as caught:
        fit("run", *overrides)
    assert caught.value.code == "not-finite"
    facts = json.loads((tmp_path / "run" / "not-finite-00000003.json").read_text())
    assert facts["index"] == calls[3]["index"].tolist()
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000002"]
    assert all(torch.isfinite(v).all() for v in load(str(tmp_path / "run" / "last")).parameters())


def test_accumulated_passes_equal_one_big_batch(fit: Fit) -> None:
    """With the encoder frozen, so that batch norm does not see the size of the batch."""
    overrides = ["method.freeze_encoder=true", "train.steps=6"]
    big = fit("big", *overrides, "train.batch_size=8").folder
    parts = fit("parts", *overrides, "train.batch_size=2", "train.accumulate=4").folder
    first, second = load(str(big / "last")), load(str(parts / "last"))
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_clipping_and_the_schedule_are_logged(fit: Fit) -> None:
    folder = fit(
        "run", "train.steps=4", "train.log_every=1", "train.warmup=2", "train.lr=1e-3"
    ).folder
    rates = [row["lr"] for row in lines(folder) if "lr" in row]
    assert rates == pytest.approx([5e-4, 1e-3, 1e-3, 5e-4])
    assert all(row["grad_norm"] > 0 for row in lines(folder) if "lr" in row)


def test_the_average_is_what_is_evaluated_and_kept(fit: Fit, tmp_path: Path) -> None:
    folder = fit("run", "train.steps=4", "train.ema=0.99").folder
    state = checkpoint.newest(folder / "checkpoints", print)
    assert state is not None
    tensors = checkpoint.read(state[0])
    averaged = checkpoint.select(tensors, "ema.model.")
    plain = checkpoint.select(tensors, "method.model.")
    kept = load(str(folder / "last")).state_dict()
    for name in kept:
        torch.testing.assert_close(kept[name], averaged[name])
    assert any(not torch.equal(averaged[name], plain[name]) for name in kept)


def test_monitor_decides_what_is_best(fit: Fit) -> None:
    result = fit("run", "train.monitor=loss", "train.steps=8", "train.eval_every=2")
    evaluations = [row for row in lines(result.folder) if "valid_loss" in row]
    best = min(evaluations, key=lambda row: row["valid_loss"])
    assert result.best_step == best["step"]
    assert load(str(result.folder / "best")).config.training["step"] == best["step"]


def test_without_evaluation_best_is_last(fit: Fit) -> None:
    result = fit("run", "data.valid_fraction=0", "train.steps=3")
    assert result.metrics == {}
    assert result.best_step == 3
    names = [result.folder / name / "model.safetensors" for name in ("best", "last")]
    assert names[0].read_bytes() == names[1].read_bytes()


def test_from_takes_encoder_and_frontend_and_the_head_if_the_labels_are_equal(fit: Fit) -> None:
    start = fit("start", "train.steps=3").folder / "last"
    old = load(str(start))
    same = fit("same", f"model.from={start}", "train.steps=1", "train.lr=1e-30").folder
    for name, value in load(str(same / "last")).named_parameters():
        torch.testing.assert_close(value, old.state_dict()[name])
    other = fit(
        "other", f"model.from={start}", "data.labels=[low, mid]", "train.steps=1", "train.lr=1e-30"
    ).folder
    new = load(str(other / "last"))
    assert new.labels == ["low", "mid"]
    torch.testing.assert_close(new.encoder.state_dict()["stem.weight"], old.encoder.stem.weight)
    assert new.config.frontend == old.config.frontend
    assert new.config.training["from"] == "tiny/supervised"


def test_unreadable_files_are_said_once_and_too_many_end_the_run(
    clips: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(clips, copy)
    for i in range(2):
        (copy / "low" / f"{i}.wav").write_bytes(b"RIFF of no use")
    said = Listener()
    given = [f"data.train={copy}", "train.steps=9", "data.cache=none", "data.max_bad_fraction=0.1"]
    train.fit(recipe.load("tiny/supervised", [*given, f"out={tmp_path / 'a'}"]), watch=said)
    warnings = [text for text in said.texts if text.startswith("warning")]
    assert len(warnings) == len(set(warnings)) == 2
    assert all("low" in text for text in warnings)
    for cache in ("none", "memory"):
        changed = [
            *given,
            f"data.cache={cache}",
            "data.max_bad_fraction=0.05",
            f"out={tmp_path}/{cache}",
        ]
        with pytest.raises(InputError, match=r"2 of 24 files cannot be read"):
            train.fit(recipe.load("tiny/supervised", changed))


def test_data_problems_are_said_before_anything_is_written(fit: Fit, tmp_path: Path) -> None:
    cases = [
        ("data.labels=[Dog]", r"recipe data\.labels: no training row has one .*high, low, mid"),
        ("method.loss=ce", r"recipe method\.loss: 'ce' does not go with"),
        ("model.head=", r"recipe model\.head: missing"),
    ]
    for override, message in cases:
        with pytest.raises(RecipeError, match=message):
            fit("run", override)
    with pytest.raises(RecipeError, match=r"recipe data\.train: missing"):
        train.fit(recipe.load("tiny/supervised", [f"out={tmp_path / 'run'}"]))
    assert not (tmp_path / "run").exists()


def test_a_separate_evaluation_table(fit: Fit, clips: Path, tmp_path: Path) -> None:
    from audiossl.data import manifest

    rows = manifest.read(clips)
    manifest.write(clips / "train.csv", [row for row in rows if "0" not in row.path.name])
    manifest.write(clips / "valid.csv", [row for row in rows if "0" in row.path.name])
    tables = [f"data.train={clips / 'train.csv'}", f"data.valid={clips / 'valid.csv'}"]
    result = fit("run", *tables, "data.valid_fraction=0", "train.steps=2")
    assert "map" in result.metrics
    tables[1] = f"data.valid={clips / 'train.csv'}"
    with pytest.raises(UsageError, match="in training and in evaluation"):
        fit("run", *tables, "data.valid_fraction=0", overwrite=True)


def test_a_method_may_bring_its_own_data(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A method in the sense of the protocol: loss, after_step, model, datasets; no clips at all."""

    class Bank:
        def __len__(self) -> int:
            return 10

        def __getitem__(self, draw: Any) -> dict[str, Any]:
            seed = draw.generator(0) if hasattr(draw, "generator") else np.random.default_rng(draw)
            return {"spec": torch.from_numpy(seed.standard_normal((64, 20), np.float32))}

    class Method(torch.nn.Module):
        def __init__(self, model: Any, config: Any) -> None:
            super().__init__()
            self.model, self.config, self.steps = model, config, []

        def loss(self, batch: dict[str, torch.Tensor]) -> Any:
            value = self.model.encoder.embed(batch["spec"]).square().mean()
            return value, {"power": value.detach()}

        def after_step(self, step: int) -> None:
            self.steps.append(step)

    seen = []

    def datasets(given: Any, config: Any, model: Any) -> Any:
        seen.append((given.name, config, model))
        return Bank(), Bank()

    module = SimpleNamespace(Config=supervised.Config, Method=Method, datasets=datasets)
    monkeypatch.setattr(methods, "load", lambda name: module)
    given = recipe.load(
        "tiny/supervised", [f"out={tmp_path / 'own'}", "train.steps=4", "model.head="]
    )
    result = train.fit(given)
    assert set(result.metrics) == {"loss"}
    assert result.metrics["loss"] > 0
    assert seen[0][0] == "tiny/supervised"
    assert all("power" in row or "valid_loss" in row for row in lines(result.folder))
    assert load(str(result.folder / "best")).labels == []


def test_metrics_are_cut_after_a_step_and_half_lines_dropped(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl")
    metrics.cut_after(3)
    assert not metrics.path.exists()
    for step in (1, 2, 3, 4):
        metrics.add({"step": step, "loss": float("nan") if step == 2 else 0.1})
    with metrics.path.open("a") as file:
        file.write('{"step": 2, "lo')
    metrics.cut_after(2)
    assert metrics.path.read_text() == '{"step": 1, "loss": 0.1}\n{"step": 2, "loss": null}\n'


def test_steps_and_evaluations_from_epochs(clips: Path) -> None:
    def prepared(*overrides: str) -> job.Job:
        given = [f"data.train={clips}", "data.valid_fraction=0", *overrides]
        return job.prepare(recipe.load("tiny/supervised", given))

    one = prepared("train.epochs=2.5", "train.batch_size=5", "train.accumulate=2")
    assert (one.steps, one.eval_every) == (6, 2)
    many = prepared("train.epochs=1000", "train.batch_size=24")
    assert (many.steps, many.eval_every) == (1000, 20)
    given = prepared("train.steps=7", "train.eval_every=3")
    assert (given.steps, given.eval_every) == (7, 3)


def test_a_full_disk_ends_with_exit_6_and_the_state_before(clips: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: weights still fit, the state does not."""
    limited = """
import resource, sys, torch
from audiossl import recipe
from audiossl.engine import train
from audiossl.errors import OutputError
torch.set_num_threads(1)
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    train.fit(recipe.load("tiny/supervised", sys.argv[2:]), resume=True)
except OutputError as error:
    sys.exit(f"{error.exit_code} {error.message}")
"""
    given = [
        f"data.train={clips}",
        f"out={tmp_path / 'run'}",
        "train.steps=4",
        "train.eval_every=2",
    ]
    train.fit(recipe.load("tiny/supervised", given), max_steps=2)
    before = digests(tmp_path / "run")
    command = [sys.executable, "-c", limited, "20000", *given]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].startswith("6 "), done.stderr
    assert "step-00000004" in done.stderr
    after = digests(tmp_path / "run")
    state = "checkpoints/step-00000002/state.safetensors"
    assert after[state] == before[state]
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000002"]
    load(str(tmp_path / "run" / "last"))
