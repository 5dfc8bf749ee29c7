"""States on disk: what damages them, what a full disk does, and that whole ones come back."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tinyrun import Fit, Listener, digests
from torch import nn

from audiossl.commands import main
from audiossl.engine import checkpoint
from audiossl.errors import ModelError, OutputError
from audiossl.model import load

pytest_plugins = ("tinyrun",)

NAMES = (checkpoint.TENSORS, checkpoint.FACTS, checkpoint.MANIFEST)
OLD, NEW = 1, 2


def tensors(step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {
        "method.weight": torch.randn(40, 7, generator=generator),
        "method.count": torch.tensor(step),
        "method.image": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    }


@pytest.fixture
def states(tmp_path: Path) -> Path:
    """Two states."""
    for step in (OLD, NEW):
        checkpoint.write(tmp_path / "states", step, tensors(step), {"progress": {"step": step}})
    return tmp_path / "states"


def damages() -> Iterator[Any]:
    """Each file of a state gone and empty, cut at 10 places, with one of 10 bits turned."""
    for name in NAMES:
        yield pytest.param(name, lambda data, place: None, 0, id=f"{name} gone")
        yield pytest.param(name, lambda data, place: b"", 0, id=f"{name} empty")
        for place in range(10):
            yield pytest.param(
                name, lambda data, place: data[: int(len(data) * place)], place / 10 + 0.05,
                id=f"{name} cut at {place}",
            )  # fmt: skip
            yield pytest.param(name, turned, place / 10 + 0.05, id=f"{name} bit {place}")
    for text in (b"{}", b"[]", b"5", b"null", b'{"state.json": 1}', b"\xff\xfe", b"[" * 5000):
        yield pytest.param(
            checkpoint.MANIFEST, lambda data, place, text=text: text, 0,
            id=f"manifest {text[:20]!r}",
        )  # fmt: skip


def turned(data: bytes, place: float) -> bytes:
    position = int(len(data) * place)
    bit = 1 << random.Random(position).randrange(8)
    return data[:position] + bytes([data[position] ^ bit]) + data[position + 1 :]


@pytest.mark.parametrize(("name", "how", "place"), list(damages()))
def test_a_damaged_state_is_told_and_the_one_before_taken(
    states: Path, name: str, how: Any, place: float
) -> None:
    path = states / f"step-{NEW:08d}" / name
    changed = how(path.read_bytes(), place)
    path.unlink()
    if changed is not None:
        path.write_bytes(changed)
    said: list[str] = []
    found = checkpoint.newest(states, said.append)
    assert found is not None
    assert len(said) == 1
    assert said[0].startswith(f"checkpoint step-{NEW:08d} is damaged (")
    assert said[0].endswith("): going back to the one before")
    assert found[1]["progress"] == {"step": OLD}
    for key, value in tensors(OLD).items():
        if key != "method.image":
            torch.testing.assert_close(checkpoint.read(found[0])[key], value)


def test_an_undamaged_state_comes_back_and_none_is_none(states: Path, tmp_path: Path) -> None:
    found = checkpoint.newest(states, pytest.fail)
    assert found is not None
    assert found[1]["progress"] == {"step": NEW}
    back = checkpoint.read(found[0])
    assert torch.equal(back["method.weight"], tensors(NEW)["method.weight"])
    assert checkpoint.newest(tmp_path / "nowhere", pytest.fail) is None
    shutil.rmtree(found[0])
    (states / f"step-{NEW:08d}.tmp").mkdir()  # a save that was killed
    found = checkpoint.newest(states, pytest.fail)
    assert found is not None
    assert found[0].name == f"step-{OLD:08d}"


def test_when_all_are_damaged_the_error_says_so(states: Path) -> None:
    for path in states.glob("*/state.json"):
        path.unlink()
    with pytest.raises(ModelError, match="all 2 checkpoints are damaged") as caught:
        checkpoint.newest(states, lambda _: None)
    assert caught.value.exit_code == 5


def test_a_run_goes_on_from_the_state_before_the_damaged_one(fit: Fit) -> None:
    overrides = ["train.steps=6", "train.eval_every=2"]
    folder = fit("run", *overrides).folder
    whole = digests(folder)
    path = folder / "checkpoints" / "step-00000006" / checkpoint.TENSORS
    path.write_bytes(turned(path.read_bytes(), 0.5))
    listener = Listener()
    fit("run", *overrides, resume=True, watch=listener)
    assert any("step-00000006 is damaged" in text for text in listener.texts)
    assert digests(folder) == whole


def test_all_states_damaged_is_exit_5_of_the_command(
    fit: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ["train.steps=4", "train.eval_every=2"]
    folder = fit("run", *overrides).folder
    for path in folder.glob("checkpoints/*/manifest.json"):
        path.write_text("")
    code = main._run(["finetune", "tiny/supervised", *fit.given("run", *overrides), "--resume"])
    said = capsys.readouterr()
    assert (code, said.out) == (5, "")
    assert said.err.count("is damaged") == 2
    assert "audiossl: error: " in said.err
    assert "all 2 checkpoints are damaged" in said.err


def test_pack_and_unpack_bring_back_weights_and_optimiser() -> None:
    torch.manual_seed(0)
    method = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    optimizer = torch.optim.AdamW(method.parameters(), lr=0.1)
    method(torch.randn(8, 3)).square().sum().backward()
    optimizer.step()
    packed = {name: value.clone() for name, value in
              checkpoint.pack(method, None, optimizer).items()}  # fmt: skip
    other = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    fresh = torch.optim.AdamW(other.parameters(), lr=0.1)
    checkpoint.unpack(packed, other, None, fresh)
    again = checkpoint.pack(other, None, fresh)
    assert again.keys() == packed.keys()
    for name, value in packed.items():
        assert torch.equal(again[name], value), name
    assert checkpoint.not_finite(packed) is None
    packed["method.0.weight"][1, 1] = float("inf")
    assert checkpoint.not_finite(packed) == "method.0.weight"


def test_only_the_newest_are_kept_and_what_is_newer_goes(states: Path) -> None:
    third = checkpoint.write(states, 3, tensors(3), {})
    checkpoint.prune(states, third, keep=2)
    assert [path.name[-1] for path in sorted(states.iterdir())] == ["2", "3"]
    second = checkpoint.write(states, 2, tensors(2), {})
    checkpoint.prune(states, second, keep=2)
    assert [path.name[-1] for path in sorted(states.iterdir())] == ["2"]


@contextlib.contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[bool]:
    """A disk of its own at `folder`, if this machine lets us; whether it does."""
    folder.mkdir()
    size = f"size={kilobytes}k"
    mount = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)]
    there = os.getuid() == 0 and shutil.which("mount") is not None
    there = there and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield there
    finally:
        if there:
            subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("free", [0, 4, 12, 20, 28])
def test_a_full_disk_is_exit_6_and_the_state_before_is_intact(fit: Fit, free: int) -> None:
    """The disk is filled but for `free` kB before the second save: its parts fail one by one."""
    overrides = ["train.steps=4", "train.eval_every=2"]
    whole = digests(fit("whole", *overrides).folder)
    disk = fit.folder / "disk"
    with small_disk(disk, 1024) as there:
        if not there:
            pytest.skip("needs root, to mount a small disk")
        small = Fit(fit.clips, disk)
        folder = small("run", *overrides, max_steps=2).folder
        state = folder / "checkpoints" / "step-00000002" / checkpoint.TENSORS
        before = state.read_bytes()
        filler = disk / "filler"
        fill(filler, free << 10)
        with pytest.raises(OutputError) as caught:
            small("run", *overrides, resume=True)
        assert caught.value.exit_code == 6
        assert str(folder) in caught.value.message
        assert state.read_bytes() == before
        found = checkpoint.newest(folder / "checkpoints", pytest.fail)
        assert found is not None
        load(str(folder / "last"))
        assert not list(folder.rglob("*.tmp"))
        assert not list(folder.rglob(".audiossl-*"))
        filler.unlink()
        assert small("run", *overrides, resume=True).steps == 4
        assert digests(folder) == whole


def fill(path: Path, leave: int) -> None:
    """Take all of the disk but `leave` bytes."""
    space = os.statvfs(path.parent)
    with path.open("wb") as file:
        file.write(bytes(max(0, space.f_bavail * space.f_frsize - leave)))


LIMITED = """
import resource, sys, torch
from audiossl.recipe import loading as recipe
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


def test_a_limit_on_the_size_of_files_is_like_a_full_disk(fit: Fit) -> None:
    """Weights still fit, the state does not."""
    overrides = ["train.steps=4", "train.eval_every=2"]
    folder = fit("run", *overrides, max_steps=2).folder
    before = digests(folder)
    command = [sys.executable, "-c", LIMITED, "20000", *fit.given("run", *overrides)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].startswith("6 "), done.stderr
    assert "step-00000004" in done.stderr
    state = f"checkpoints/step-00000002/{checkpoint.TENSORS}"
    assert digests(folder)[state] == before[state]
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-00000002"]
    load(str(folder / "last"))


def test_a_failed_save_leaves_the_states_before(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = ["train.steps=6", "train.eval_every=2"]
    folder = fit("run", *overrides, max_steps=2).folder

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_write_json", full)
    with pytest.raises(OutputError, match="step-00000004: No space"):
        fit("run", *overrides, resume=True)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-00000002"]
    monkeypatch.undo()
    assert fit("run", *overrides, resume=True).steps == 6


def test_facts_are_plain_numbers(fit: Fit) -> None:
    folder = fit("run", "train.steps=2").folder
    facts = json.loads((folder / "checkpoints" / "step-00000002" / checkpoint.FACTS).read_text())
    assert {"progress", "scaler", "threads", "torch", "processes", "clips"} <= set(facts)
    assert facts["progress"]["step"] == 2
    assert facts["progress"]["drawn"] == 16
