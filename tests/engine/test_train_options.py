"""What a recipe may ask of the loop besides: precision, recomputed and compiled blocks, trackers,
and what a run shows of itself."""

from __future__ import annotations

import importlib.util
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Runner
from tinyrun import VIT, Fit, digests, lines
from torch import nn

from audiossl.engine import log
from audiossl.engine.blocks import (
    blocks_of,
    compile_blocks,
    compiler_error,
    set_checkpointing,
)
from audiossl.errors import RecipeError
from audiossl.methods import supervised
from audiossl.model import load
from audiossl.models import vit

pytest_plugins = ("tinyrun",)

SHORT = ["train.steps=4", "train.eval_every=2", "train.log_every=1"]


@pytest.mark.parametrize(
    ("precision", "inside"),
    [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)],
)
def test_precision_is_that_of_the_loss_and_not_of_the_weights(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, precision: str, inside: torch.dtype
) -> None:
    seen: dict[bool, set[torch.dtype]] = {True: set(), False: set()}
    real = supervised.Method.loss

    def watched(self: Any, batch: Any) -> Any:
        seen[self.training].add((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
        return real(self, batch)

    monkeypatch.setattr(supervised.Method, "loss", watched)
    folder = fit("run", *SHORT, f"train.precision={precision}").folder
    assert seen == {True: {inside}, False: {torch.float32}}
    assert {value.dtype for value in load(str(folder / "last")).parameters()} == {torch.float32}
    losses = [row["loss"] for row in lines(folder) if "loss" in row]
    whole = [row["loss"] for row in lines(fit("whole", *SHORT).folder) if "loss" in row]
    assert losses == pytest.approx(whole, rel=0.05)


def test_recomputed_blocks_change_no_byte(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = vit.checkpoint
    monkeypatch.setattr(vit, "checkpoint", lambda *a, **k: calls.append(1) or real(*a, **k))
    whole = fit("whole", *SHORT, *VIT).folder
    assert not calls
    folder = fit("run", *SHORT, *VIT, "train.checkpointing=true").folder
    assert len(calls) == 4 * 2  # updates x blocks
    assert digests(folder) == digests(whole)


def test_an_encoder_that_cannot_recompute_is_told(fit: Fit) -> None:
    with pytest.raises(RecipeError, match=r"train\.checkpointing: the encoder dscnn cannot"):
        fit("run", "train.checkpointing=true")
    assert not (fit.folder / "run").exists()


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(2, 2)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(2, 2), nn.ReLU()) for _ in range(2))
        self.decoder = nn.Module()
        self.decoder.mask_layers = nn.Sequential(nn.Linear(2, 2))
        self.blocks[0].layers = nn.Sequential(nn.Linear(2, 2))


def test_blocks_are_the_outermost_children_of_what_is_named_so() -> None:
    tower = Tower()
    found = list(blocks_of(tower))
    assert found == [tower.blocks[0], tower.blocks[1], tower.decoder.mask_layers[0]]


@pytest.mark.slow
def test_without_a_compiler_the_recipe_is_told_so(fit: Fit, cli: Runner) -> None:
    given = fit.given("run", *SHORT, *VIT, "train.compile=true")
    done = cli("finetune", "tiny/supervised", *given, "-q", env={"CXX": "/nonexistent/g++"})
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"audiossl: error: recipe train.compile: InvalidCxxCompiler")
    assert done.stderr.count(b"\n") == 1


def test_the_compiler_s_errors_are_told_from_others() -> None:
    from torch._dynamo.exc import TorchDynamoException

    told = compiler_error(TorchDynamoException("\nno g++ here\n\nSet TORCHDYNAMO_VERBOSE=1"))
    assert told is not None
    assert told.message.startswith("recipe train.compile: no g++ here (torch.compile needs")
    assert compiler_error(RuntimeError("shapes differ")) is None


@pytest.mark.slow
@pytest.mark.parametrize("network", [[], [*VIT, "train.checkpointing=true"]], ids=["cnn", "vit"])
def test_compiled_blocks_learn_the_same_and_keep_their_names(fit: Fit, network: list[str]) -> None:
    torch._dynamo.reset()
    random = ["method.mixup=0.5", "method.freq_masks=1", "method.freq_width=8"]
    given = [*SHORT, *network, *random, "train.compile=true", "train.optimizer=sgd"]
    plain = fit("plain", *given, "train.compile=false").folder
    folder = fit("run", *given).folder
    for one, other in zip(lines(plain), lines(folder), strict=True):
        assert other == pytest.approx(one, abs=1e-4)
    first, second = load(str(plain / "last")).state_dict(), load(str(folder / "last")).state_dict()
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, atol=1e-4, rtol=1e-4)
    fit("pieces", *given, max_steps=3)
    assert digests(fit("pieces", *given, resume=True).folder) == digests(folder)


def test_compiling_and_checkpointing_leave_the_names_of_a_state(tiny_clips: Path) -> None:
    from audiossl.engine.job import prepare
    from audiossl.recipe import loading as recipe

    job = prepare(recipe.load("tiny/supervised", [f"data.train={tiny_clips}", *VIT]))
    names = list(job.method.state_dict())
    compile_blocks(job.method)
    set_checkpointing(job.model)
    assert list(job.method.state_dict()) == names


def test_a_tracker_that_is_not_there_is_told(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError) as caught:
        fit("run", "train.tracker=tensorboard")
    assert caught.value.message == (
        "recipe train.tracker: tensorboard is not installed:"
        " pip install 'audiossl-toolkit[tensorboard]'"
    )
    assert not (fit.folder / "run").exists()


def test_tensorboard_shows_the_numbers_of_metrics(fit: Fit) -> None:
    pytest.importorskip("tensorboard", reason="the extra [tensorboard] is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    given = [*SHORT, "train.tracker=tensorboard"]
    whole = fit("whole", *SHORT).folder
    fit("run", *given, max_steps=3)
    folder = fit("run", *given, resume=True).folder
    assert digests(folder) == digests(whole)
    board = EventAccumulator(str(folder / "tensorboard"))
    board.Reload()
    rows = lines(folder)
    for name, key in (("train/loss", "loss"), ("train/lr", "lr"), ("valid/map", "valid_map")):
        shown = {event.step: event.value for event in board.Scalars(name)}
        written = {row["step"]: row[key] for row in rows if key in row}
        assert shown == pytest.approx(written, rel=1e-6)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


def test_lines_show_loss_rate_memory_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, stream = Clock(), io.StringIO()
    monkeypatch.setattr(log, "time", clock)
    monkeypatch.setattr(log, "memory", lambda: "1.5 GB")
    watch = log.Lines(stream)
    watch.begin("mine", 1000, 400)
    for step in range(401, 407):
        clock.now += 4
        watch.step(step, {"loss": 0.51239, "lr": 1e-3}, 32)
    watch.say("an evaluation")
    assert stream.getvalue().splitlines() == [
        "mine: 1000 steps, going on after 400",
        "step 403/1000 loss 0.5124 lr 0.001 8 clips/s 1.5 GB 0:39:48 left",
        "step 406/1000 loss 0.5124 lr 0.001 8 clips/s 1.5 GB 0:39:36 left",
        "an evaluation",
    ]


def test_memory_is_this_process_s() -> None:
    shown = log.memory()
    assert shown.endswith(" GB")
    assert 0.05 < float(shown.split()[0]) < 100


def test_a_metric_that_is_no_number_is_null(tmp_path: Path) -> None:
    metrics = log.Metrics(tmp_path / "metrics.jsonl")
    metrics.add({"step": 1, "loss": math.inf})
    assert json.loads(metrics.path.read_text()) == {"step": 1, "loss": None}


def test_the_folder_says_how_it_was_made(fit: Fit) -> None:
    folder = fit("run", *SHORT).folder
    facts = json.loads((folder / "run.json").read_text())
    assert set(facts) == {
        "command", "audiossl", "python", "torch", "numpy", "machine", "device", "threads",
        "processes", "clips_an_update", "steps", "parameters", "data", "launcher", "recipe",
    }  # fmt: skip
    assert (facts["processes"], facts["clips_an_update"], facts["steps"]) == (1, 8, 4)
    assert len(facts["data"]) == 64
