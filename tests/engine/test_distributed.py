"""Several processes: two with gloo come to what one comes to, and end together.

The first half runs in two processes that are started once; what needs torchrun is slow.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import gloo_worker
import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from torch.distributed import TCPStore

from audiossl.data import manifest
from audiossl.data.draws import Stream
from audiossl.data.loader import valid_loader
from audiossl.data.rows import Row
from audiossl.engine import checkpoint, distributed
from audiossl.engine.distributed import Team
from audiossl.engine.parallel import clip_gradients
from audiossl.errors import UsageError

RATE = 16000
WORKER = Path(gloo_worker.__file__)
CLOSE = {"atol": 1e-5, "rtol": 1e-5}

# Two passes of two clips in each of two processes: a global batch of 8, in 3 updates of SGD. Five
# clips to evaluate on, so three batches: the processes get unequally many.
SHARED = [
    "train.steps=3", "train.log_every=1", "train.eval_every=2", "train.optimizer=sgd",
    "train.lr=0.1", "train.batch_size=2", "train.ema=0.9", "method.mixup=0.5",
    "method.freq_masks=1", "method.freq_width=8", "data.augment.noise=0.5", "train.clip=0.4",
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of 24 clips of which a third leaves labels unknown: batches differ in weight."""
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    rows = []
    for i in range(24):
        tone = np.sin(2 * np.pi * (300, 900, 2500)[i % 3] * np.arange(RATE) / RATE)
        path = folder / f"{i}.wav"
        soundfile.write(path, 0.3 * tone + 0.02 * rng.standard_normal(RATE), RATE)
        label = ("low", "mid", "high")[i % 3]
        known = (label,) if i % 9 < 3 else ()
        rows.append(
            Row(path, labels=(label,), known=known, split="train" if i < 19 else "valid", number=i)
        )
    manifest.write(folder / "train.csv", [row for row in rows if row.split == "train"])
    manifest.write(folder / "valid.csv", [row for row in rows if row.split == "valid"])
    return folder


def given(data: Path) -> list[str]:
    tables = [f"data.train={data / 'train.csv'}", f"data.valid={data / 'valid.csv'}"]
    return [*tables, "data.valid_fraction=0", "data.labels=[low, mid, high]", *SHARED]


def environment(rank: int, port: int = 1) -> dict[str, str]:
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port}
    return {
        **os.environ,
        **{name: str(number) for name, number in numbers.items()},
        "MASTER_ADDR": "127.0.0.1",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "OMP_NUM_THREADS": "1",
    }


def together(jobs: list[dict[str, Any]], timeout: float = 1200) -> list[list[dict[str, Any]]]:
    """What each of two processes says of each job. They meet where this process keeps a store, as
    torchrun does."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    processes = [
        subprocess.Popen(
            [sys.executable, WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, env=environment(rank, store.port),
        )
        for rank in range(2)
    ]  # fmt: skip
    text = "".join(json.dumps(job) + "\n" for job in jobs)
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(text)
        process.stdin.close()
        process.stdin = None
    said = []
    for process in processes:
        out, err = process.communicate(timeout=timeout)
        assert process.returncode == 0, err
        said.append([json.loads(line) for line in out.splitlines()])
        assert len(said[-1]) == len(jobs), err
    return said


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same runs alone (`one-...`) and in two processes (`two-...`)."""
    folder = tmp_path_factory.mktemp("runs")
    both, twice = given(data), "train.accumulate=2"
    own = ["model.head=", *SHARED]
    kept = [*both, "method.mixup_on=spec", "data.augment.noise=0", "data.cache=features",
            "data.crop_seconds=0.5", f"data.cache_folder={folder}/kept"]  # fmt: skip
    alone = [
        {"overrides": [*both, "train.accumulate=4", f"out={folder}/one"], "options": {}},
        {
            "overrides": [*own, "train.accumulate=4", f"out={folder}/one-uneven"],
            "options": {},
            "method": "uneven",
        },
        {"overrides": [*kept, "train.accumulate=4", f"out={folder}/one-kept"], "options": {}},
    ]
    for job in alone:
        assert "error" not in gloo_worker.run(**job)
    shutil.rmtree(folder / "kept")  # the two processes fill it together
    jobs: list[dict[str, Any]] = [
        {"overrides": [*both, twice, f"out={folder}/ddp"], "options": {}},
        {
            "overrides": [*both, twice, "train.parallel=fsdp", f"out={folder}/fsdp"],
            "options": {"max_steps": 2},
        },
        {
            "overrides": [*own, twice, f"out={folder}/uneven"],
            "options": {},
            "method": "uneven",
        },
        {
            "overrides": [*own, twice, "train.lr=0.001", f"out={folder}/broken"],
            "options": {},
            "method": "broken",
        },
        {"overrides": [*kept, twice, f"out={folder}/two-kept"], "options": {}},
    ]
    first, second = together(jobs)
    assert first == second
    assert [job.get("error") for job in first] == [None] * len(jobs)
    return folder


def state(run: Path, step: int = 3) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{step:08d}" / checkpoint.TENSORS)


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_close(run: Path, other: Path, step: int = 3) -> None:
    """Weights, average, optimiser and metrics to 1e-5."""
    one, two = state(run, step), state(other, step)
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, **CLOSE, msg=lambda m, n=name: f"{n}: {m}")
    for line, same in zip(lines(run), lines(other), strict=False):
        assert same == pytest.approx(line, abs=1e-5)


def test_two_processes_come_to_what_one_comes_to(runs: Path) -> None:
    """Unknown labels, mixup, masks, clipping, batch norm, uneven evaluation included."""
    assert_close(runs / "one", runs / "ddp")
    assert len(lines(runs / "one")) == len(lines(runs / "ddp")) == 5
    facts = json.loads((runs / "ddp" / "run.json").read_text())
    assert (facts["processes"], facts["clips_an_update"]) == (2, 8)
    for name in ("best", "last"):
        config = [json.loads((runs / run / name / "config.json").read_text()) for run in
                  ("one", "ddp")]  # fmt: skip
        assert config[0]["training"] == config[1]["training"]


def test_two_processes_share_kept_features(runs: Path) -> None:
    assert_close(runs / "one-kept", runs / "two-kept")


def test_shards_come_to_the_same_and_one_process_goes_on_from_them(runs: Path, data: Path) -> None:
    assert_close(runs / "one", runs / "fsdp", step=2)
    result = gloo_worker.run(
        [*given(data), "train.accumulate=4", f"out={runs}/fsdp"], {"resume": True}
    )
    assert result["steps"] == 3
    assert_close(runs / "one", runs / "fsdp")


def test_unused_parameters_empty_batches_and_buffers_do_not_part_them(runs: Path) -> None:
    one, two = state(runs / "one-uneven"), state(runs / "uneven")
    assert one.keys() == two.keys()
    for name in one:
        if name != "method.seen":  # counts the passes of a process
            torch.testing.assert_close(two[name], one[name], **CLOSE)
    assert lines(runs / "uneven") == [
        pytest.approx(line, abs=1e-5) for line in lines(runs / "one-uneven")
    ]
    assert float(two["method.drawn"]) == float(one["method.drawn"]) != 0


def test_what_is_no_number_in_one_process_is_left_out_in_both(runs: Path) -> None:
    last = lines(runs / "broken")[-2]
    dumped = list((runs / "broken").glob("not-finite-*.json"))
    assert last["left_out"] == len(dumped) > 0
    facts = json.loads(dumped[0].read_text())
    assert len(facts["passes"]) == 4
    assert [5 in part["index"] for part in facts["passes"]].count(True) == 1
    assert all(value.isfinite().all() for value in state(runs / "broken").values())


def test_processes_take_turns_in_one_stream() -> None:
    whole = Stream(7, 3, seed=1, start=2)
    parts = [iter(Stream(7, 3, seed=1, start=2, turn=turn, turns=3)) for turn in range(3)]
    for number, batch in zip(range(12), whole, strict=False):
        assert next(parts[number % 3]) == batch


@pytest.mark.parametrize(("size", "turns"), [(1, 2), (5, 2), (6, 2), (7, 4), (16, 4)])
def test_evaluation_gives_every_process_equally_many_batches(size: int, turns: int) -> None:
    items = [{"index": number} for number in range(size)]
    shares = [
        [batch["index"].tolist() for batch in valid_loader(items, 2, turn=turn, turns=turns)]
        for turn in range(turns)
    ]
    assert len({len(share) for share in shares}) == 1
    inturn = [batch for turn in zip(*shares, strict=True) for batch in turn]
    batches = -(-size // 2)
    assert [number for batch in inturn[:batches] for number in batch] == list(range(size))
    assert all(batch == inturn[0] for batch in inturn[batches:])


def test_alone_a_team_is_its_only_member() -> None:
    with distributed.join("cpu") as team:
        assert team == Team(torch.device("cpu"))
        assert team.gather(3) == [3]
        assert team.mean(0.5) == 0.5
        assert team.first(lambda: "done") == "done"
        assert team.leads
    assert distributed.rank() == 0


def test_each_process_needs_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment(1).items():
        if name in distributed.ENVIRONMENT:
            monkeypatch.setenv(name, value)
    assert distributed.rank() == 1
    with (
        pytest.raises(UsageError, match="--device mps: several processes"),
        distributed.join("mps"),
    ):
        pass
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with (
        pytest.raises(UsageError, match="process 2 of this machine, but 1 GPUs"),
        distributed.join("cuda"),
    ):
        pass


def test_a_restart_is_known_by_its_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT", raising=False)
    assert (distributed.launcher(), distributed.restarted()) == (None, False)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job-7")
    assert (distributed.launcher(), distributed.restarted()) == ("job-7", False)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert distributed.launcher() == f"process {os.getppid()}"
    assert distributed.restarted()


def test_clipping_equals_torch_s() -> None:
    torch.manual_seed(0)
    values = [torch.nn.Parameter(torch.randn(5)) for _ in range(3)]
    for limit in (0.0, 0.5, 100.0):
        gradients = [torch.randn(5) for _ in values[:2]]
        for value, gradient in zip(values, gradients, strict=False):
            value.grad = gradient.clone()
        norm = torch.stack(gradients).norm()
        assert clip_gradients(values, limit) == pytest.approx(float(norm))
        scale = min(1.0, limit / float(norm)) if limit else 1.0
        for value, gradient in zip(values, gradients, strict=False):
            torch.testing.assert_close(value.grad, gradient * scale, atol=1e-5, rtol=1e-5)
