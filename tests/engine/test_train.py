"""The loop: a whole run, what it learns, what it writes and what it refuses."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from tinyrun import Fit, Listener, digests, lines

from audiossl import methods
from audiossl.data import manifest, reading
from audiossl.engine import checkpoint, job, train
from audiossl.engine.log import Metrics
from audiossl.errors import InputError, RecipeError, UsageError
from audiossl.methods import supervised
from audiossl.model import load
from audiossl.recipe import loading as recipe

pytest_plugins = ("tinyrun",)

# The first four losses of `tiny/supervised` on the clips of tinyrun, seed 0.
GOLDEN = [0.736432, 0.707711, 0.657283, 0.612749]


def test_a_whole_run_learns_and_its_folder_says_everything(fit: Fit, tiny_clips: Path) -> None:
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
        wave = torch.from_numpy(soundfile.read(tiny_clips / label / "0.wav", dtype="float32")[0])
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
    torch.testing.assert_close(
        new.encoder.stages[0][0].conv.weight, old.encoder.stages[0][0].conv.weight
    )
    assert new.config.frontend == old.config.frontend
    assert new.config.training["from"] == "tiny/supervised"


def test_unreadable_files_are_said_once_and_too_many_end_the_run(
    tiny_clips: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_clips, copy)
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


def test_too_many_bad_files_in_an_evaluation_end_it_saved(
    fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        train, "evaluate", lambda *_: ({"loss": 1.0}, [(f"{i}.wav", "cut") for i in range(9)])
    )
    with pytest.raises(InputError, match="9 of 24 files cannot be read"):
        fit("run", "train.steps=8", "train.eval_every=4")
    state = checkpoint.newest(fit.folder / "run" / "checkpoints", pytest.fail)
    assert state is not None
    assert state[1]["progress"]["step"] == 4


def test_bad_files_are_counted_among_files_not_rows(
    fit: Fit, tiny_clips: Path, tmp_path: Path
) -> None:
    """Of 24 files in 192 rows 3 are bad: an eighth, not a 64th."""
    copy = shutil.copytree(tiny_clips, tmp_path / "clips")
    rows = [
        replace(row, start=i / 8, end=(i + 1) / 8) for row in reading.read(copy) for i in range(8)
    ]
    manifest.write(copy / "parts.csv", rows)
    for i in range(3):
        (copy / "mid" / f"{i}.wav").write_bytes(b"no audio")
    given = [f"data.train={copy / 'parts.csv'}", "data.cache=memory", "data.crop_seconds=0.125"]
    with pytest.raises(InputError, match="3 of 24 files cannot be read, more than"):
        fit("parts", *given, "data.max_bad_fraction=0.1")


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


def test_a_separate_evaluation_table(fit: Fit, tiny_clips: Path, tmp_path: Path) -> None:
    from audiossl.data import manifest

    rows = reading.read(tiny_clips)
    manifest.write(tiny_clips / "train.csv", [row for row in rows if "0" not in row.path.name])
    manifest.write(tiny_clips / "valid.csv", [row for row in rows if "0" in row.path.name])
    tables = [f"data.train={tiny_clips / 'train.csv'}", f"data.valid={tiny_clips / 'valid.csv'}"]
    result = fit("run", *tables, "data.valid_fraction=0", "train.steps=2")
    assert "map" in result.metrics
    tables[1] = f"data.valid={tiny_clips / 'train.csv'}"
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


def test_steps_and_evaluations_from_epochs(tiny_clips: Path) -> None:
    def prepared(*overrides: str) -> job.Job:
        given = [f"data.train={tiny_clips}", "data.valid_fraction=0", *overrides]
        return job.prepare(recipe.load("tiny/supervised", given))

    one = prepared("train.epochs=2.5", "train.batch_size=5", "train.accumulate=2")
    assert (one.steps, one.eval_every) == (6, 2)
    many = prepared("train.epochs=1000", "train.batch_size=24")
    assert (many.steps, many.eval_every) == (1000, 20)
    given = prepared("train.steps=7", "train.eval_every=3")
    assert (given.steps, given.eval_every) == (7, 3)


def test_a_monitor_of_labels_needs_labels(tiny_clips: Path, tmp_path: Path) -> None:
    given = [f"data.folder={tiny_clips}", "data.valid_fraction=0.25", f"out={tmp_path / 'run'}"]
    with pytest.raises(RecipeError, match=r"recipe train\.monitor: 'map' is of labels"):
        train.fit(recipe.load("tiny/bird_mae", [*given, "train.monitor=map"]))
    assert not (tmp_path / "run").exists()
