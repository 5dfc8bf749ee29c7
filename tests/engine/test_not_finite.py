"""Losses, gradients, inputs and weights that are no numbers: what is left out, said and kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tinyrun import Fit, Listener, digests, lines
from torch import Tensor

from audiossl.engine import checkpoint
from audiossl.errors import AudiosslError
from audiossl.methods import supervised
from audiossl.model import load

pytest_plugins = ("tinyrun",)

NAN = float("nan")
SHORT = ["train.steps=8", "train.eval_every=4", "train.log_every=4", "train.ema=0.9"]


@pytest.fixture(scope="module")
def batches(tiny_clips: Path, tmp_path_factory: pytest.TempPathFactory) -> list[list[int]]:
    """The clips of each update, which a seed decides."""
    seen: list[list[int]] = []
    real = supervised.Method.loss

    def watched(self: Any, batch: dict[str, Tensor]) -> Any:
        if self.training:
            seen.append(batch["index"].tolist())
        return real(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(supervised.Method, "loss", watched)
        Fit(tiny_clips, tmp_path_factory.mktemp("seen"))("run", *SHORT)
    return seen


def in_input(real: Callable[..., Any], method: Any, batch: dict[str, Tensor]) -> Any:
    wave = batch["wave"].clone()
    wave[1, 100] = NAN
    return real(method, {**batch, "wave": wave})


def in_loss(real: Callable[..., Any], method: Any, batch: dict[str, Tensor]) -> Any:
    loss, values = real(method, batch)
    return loss * NAN, values


def in_gradient(real: Callable[..., Any], method: Any, batch: dict[str, Tensor]) -> Any:
    """The slope of a root at 0, times 0."""
    loss, values = real(method, batch)
    return loss + (next(method.parameters()).sum() * 0).sqrt(), values


def in_weights(real: Callable[..., Any], method: Any, batch: dict[str, Tensor]) -> Any:
    with torch.no_grad():
        next(method.parameters()).fill_(NAN)
    return real(method, batch)


def poison(monkeypatch: pytest.MonkeyPatch, how: Callable[..., Any], *updates: list[int]) -> None:
    """Put NaN into these batches of training; into all when none is named."""
    real = supervised.Method.loss

    def poisoned(self: Any, batch: dict[str, Tensor]) -> Any:
        hit = self.training and (not updates or batch["index"].tolist() in updates)
        return how(real, self, batch) if hit else real(self, batch)

    monkeypatch.setattr(supervised.Method, "loss", poisoned)


def tensors(folder: Path, step: int) -> dict[str, Tensor]:
    return load_file(folder / "checkpoints" / f"step-{step:08d}" / checkpoint.TENSORS)


@pytest.mark.parametrize("how", [in_input, in_loss, in_gradient])
def test_one_bad_update_is_left_out_and_the_run_goes_on(
    fit: Fit, batches: list[list[int]], monkeypatch: pytest.MonkeyPatch, how: Any
) -> None:
    poison(monkeypatch, how, batches[2])
    listener = Listener()
    folder = fit("run", *SHORT, watch=listener).folder
    rows = [row for row in lines(folder) if "loss" in row]
    assert [row["left_out"] for row in rows] == [1, 1]
    assert all(row["loss"] is not None and row["grad_norm"] is not None for row in rows)
    assert all(value.isfinite().all() for value in tensors(folder, 8).values())
    path = folder / "not-finite-00000002.json"
    facts = json.loads(path.read_text())
    assert (facts["step"], facts["seed"], facts["index"]) == (2, 0, batches[2])
    assert [part["index"] for part in facts["passes"]] == [batches[2]]
    assert [Path(name).is_file() for name in facts["clips"]] == [True] * len(batches[2])
    assert "nan" in (facts["loss"], facts["grad_norm"])
    said = [text for text in listener.texts if text.startswith("warning")]
    assert len(said) == 1
    assert "step 2: the loss is" in said[0]
    assert "left out (1 in a row, 3 end the run)" in said[0]
    assert str(path) in said[0]


@pytest.mark.parametrize("how", [in_input, in_loss, in_gradient])
def test_a_bad_update_leaves_everything_as_it_was(
    fit: Fit, batches: list[list[int]], monkeypatch: pytest.MonkeyPatch, how: Any
) -> None:
    """Batch norm's running statistics too, which the forward pass has already moved."""
    poison(monkeypatch, how, batches[2])
    before = tensors(fit("before", *SHORT, max_steps=2).folder, 2)
    after = tensors(fit("after", *SHORT, max_steps=3).folder, 3)
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(after[name], value), name


def test_bad_updates_are_resumed_exactly(
    fit: Fit, batches: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted within a row of two, and the count of the row goes on."""
    poison(monkeypatch, in_input, batches[2], batches[3], batches[5])
    whole = fit("whole", *SHORT).folder
    fit("pieces", *SHORT, max_steps=3)
    fit("pieces", *SHORT, max_steps=6, resume=True)
    pieces = fit("pieces", *SHORT, resume=True).folder
    assert digests(pieces) == digests(whole)
    assert lines(whole)[-2]["left_out"] == 3

    fit("row", *SHORT, max_steps=3)
    with pytest.raises(AudiosslError, match="step 3: the loss is nan"):
        fit("row", *SHORT, "train.max_bad_steps=2", resume=True)


@pytest.mark.parametrize(
    ("how", "precision"), [(in_input, "fp32"), (in_loss, "bf16"), (in_loss, "fp16")]
)
def test_too_many_in_a_row_end_the_run_with_the_last_good_state(
    fit: Fit,
    batches: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
    how: Any,
    precision: str,
) -> None:
    poison(monkeypatch, how, *batches[4:])
    with pytest.raises(
        AudiosslError, match=r"step 6: the loss is nan .* after 2 like it"
    ) as caught:
        fit("run", *SHORT, f"train.precision={precision}")
    assert (caught.value.code, caught.value.exit_code) == ("not-finite", 1)
    assert "\n" not in caught.value.message
    folder = fit.folder / "run"
    assert len(list(folder.glob("not-finite-*.json"))) == 3
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-00000004"]
    for name in ("best", "last"):
        assert all(value.isfinite().all() for value in load(str(folder / name)).parameters())


def test_gradients_that_overflow_fp16_are_its_scaler_s_business(
    fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An infinite gradient lowers the scale and is no bad update, until the scale is below 1."""
    poison(monkeypatch, in_gradient)
    given = ["train.precision=fp16", "train.steps=40", "data.valid_fraction=0"]
    folder = fit("run", *given, max_steps=8).folder
    facts = json.loads((folder / "checkpoints" / "step-00000008" / "state.json").read_text())
    assert facts["progress"]["left_out"] == 0
    assert facts["scaler"]["scale"] == 2.0**16 / 2**8
    with pytest.raises(AudiosslError, match=r"step 19: .* gradient's norm nan"):
        fit("run", *given, resume=True)


def test_weights_that_are_no_numbers_end_the_run(
    fit: Fit, batches: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, in_weights, batches[4])
    with pytest.raises(AudiosslError, match="step 6: the loss is nan"):
        fit("run", *SHORT)
    found = checkpoint.newest(fit.folder / "run" / "checkpoints", pytest.fail)
    assert found is not None
    assert found[1]["progress"]["step"] == 4
    assert checkpoint.not_finite(checkpoint.read(found[0])) is None


def test_weights_that_are_no_numbers_are_not_saved(
    fit: Fit, batches: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The save comes between the update that broke them and the one that would show it."""
    poison(monkeypatch, in_weights, batches[7])
    with pytest.raises(AudiosslError, match=r"step 8: method\.\S+ is not finite") as caught:
        fit("run", *SHORT)
    assert caught.value.code == "not-finite"
    folder = fit.folder / "run"
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-00000004"]
    assert all(value.isfinite().all() for value in load(str(folder / "last")).parameters())


def test_an_evaluation_that_is_no_number_loses_nothing(
    fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = supervised.Method.loss

    def poisoned(self: Any, batch: dict[str, Tensor]) -> Any:
        return real(self, batch) if self.training else in_loss(real, self, batch)

    monkeypatch.setattr(supervised.Method, "loss", poisoned)
    listener = Listener()
    result = fit("run", *SHORT, "train.monitor=map", watch=listener)
    assert result.steps == 8
    assert "warning: step 4: no map to judge it by" in listener.texts
    assert checkpoint.newest(result.folder / "checkpoints", pytest.fail) is not None
    assert not (result.folder / "best").exists()
