"""Data sets by name: where they are looked for, what a copy lacks, and recipes that use them."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import minisets
import numpy as np
import pytest
import soundfile
import torch

from audiossl import methods
from audiossl.data import datasets, reading, shards, splitting
from audiossl.data.datasets.check import DIFFERS, SAME, report
from audiossl.engine import job, train
from audiossl.engine.log import Silent
from audiossl.errors import RecipeError, UsageError
from audiossl.methods import supervised
from audiossl.recipe import loading as recipe
from audiossl.recipe import resolved

RATE = 8000


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AUDIOSSL_DATA", str(tmp_path))
    torch.set_num_threads(1)
    return tmp_path


def test_every_set_says_where_it_is_from() -> None:
    assert {"esc50", "esc10", "urbansound8k", "fsd50k", "audioset", "speech_commands_v1",
            "speech_commands_v2_12", "fsdd", "nsynth", "librispeech", "birdset_hsn"} < set(
        datasets.names()
    )  # fmt: skip
    for name in datasets.names():
        dataset = datasets.get(name)
        assert dataset.licence
        assert dataset.citation
        assert dataset.page.startswith("https://")
        assert dataset.expected
        for checksum in dataset.checksums.values():
            kind, _, digest = checksum.partition(":")
            assert len(bytes.fromhex(digest)) == {"md5": 16, "sha256": 32}[kind]


def test_a_set_is_found_by_its_usual_name_in_several_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = minisets.esc50(tmp_path / "b")
    (tmp_path / "a" / "ESC-50").mkdir(parents=True)  # of that name, but empty
    dataset = datasets.get("esc50")
    monkeypatch.setenv("AUDIOSSL_DATA", os.pathsep.join([f"{tmp_path}/a", f"{tmp_path}/b"]))
    assert dataset.find() == folder
    monkeypatch.setenv("AUDIOSSL_DATA", str(folder))  # the set's own folder will do
    assert dataset.find() == folder
    monkeypatch.delenv("AUDIOSSL_DATA")
    assert dataset.find(folder) == dataset.find(tmp_path / "b") == folder


def test_what_was_expected_where_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AUDIOSSL_DATA", raising=False)
    with pytest.raises(UsageError, match=r"esc50: AUDIOSSL_DATA is not set: .* ESC-50-master"):
        datasets.read("esc50")
    monkeypatch.setenv("AUDIOSSL_DATA", f"{tmp_path}/x{os.pathsep}{tmp_path}/y")
    with pytest.raises(UsageError) as caught:
        datasets.read("esc50")
    assert caught.value.message == (
        f"esc50: not in AUDIOSSL_DATA ({tmp_path}/x{os.pathsep}{tmp_path}/y): expected one of the"
        " folders ESC-50-master, ESC-50, esc50, in it meta/esc50.csv and audio/*.wav; or name its"
        " own folder (data.root of a recipe, --root of `audiossl data`)"
    )
    with pytest.raises(UsageError, match=r"x: no ESC-50 there: expected meta/esc50\.csv and aud"):
        datasets.read("esc50", tmp_path / "x")
    with pytest.raises(UsageError, match=r"unknown data set 'esc5' \(did you mean 'esc50'\?\)"):
        datasets.read("esc5")


def test_a_copy_that_is_not_whole_is_said(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    minisets.esc50(data)
    datasets.read("esc50")
    assert (
        "ESC-50-master: esc50: not the whole set: fold 1 2 of 400, fold 2 2 of 400" in caplog.text
    )


def test_the_report_of_a_copy(data: Path) -> None:
    folder = minisets.esc50(data)
    dataset = datasets.get("esc50")
    record = report(dataset, folder)
    assert json.loads(json.dumps(record)) == record
    assert record["clips"] == 10
    assert record["parts"]["3"] == {"clips": 2, "of": 400}
    assert (record["complete"], record["intact"]) == (False, None)
    assert (record["crossing"], record["crossing_groups"]) == (1, ["9"])
    assert (record["labels"], record["groups"], record["licence"]) == (2, 9, "CC BY-NC 3.0")
    assert report(dataset, folder, checksums=True)["files"] == {
        "meta/esc50.csv": DIFFERS,
        "audio/": DIFFERS,
    }
    (folder / "audio" / "1-100-A-0.wav").unlink()
    record = report(dataset, folder)
    assert (record["missing"], record["missing_files"]) == (1, ["audio/1-100-A-0.wav"])


def test_checksums_of_tables_archives_and_folders(data: Path) -> None:
    folder = minisets.urbansound8k(data)
    (data / "UrbanSound8K.tar.gz").write_bytes(b"x")
    table = (folder / "metadata" / "UrbanSound8K.csv").read_bytes()
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.wav"))
    lines = "".join(f"{hashlib.md5(minisets.SOUND).hexdigest()}  {name}\n" for name in names)
    checksums = {
        "UrbanSound8K.tar.gz": f"md5:{hashlib.md5(b'x').hexdigest()}",
        "metadata/UrbanSound8K.csv": f"md5:{hashlib.md5(table).hexdigest()}",
        "audio/": f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}",
    }
    parts = {"1": 2, "10": 1}
    dataset = _replace(datasets.get("urbansound8k"), checksums=checksums, counts=parts)
    record = report(dataset, folder, checksums=True)
    assert record["files"] == dict.fromkeys(checksums, SAME)
    assert (record["complete"], record["intact"]) == (True, True)
    (folder / "audio" / "fold1" / "101415-3-0-2.wav").write_bytes(b"changed")
    record = report(dataset, folder, checksums=True)
    assert (record["files"]["audio/"], record["intact"]) == (DIFFERS, False)
    unknown = _replace(dataset, checksums={})
    record = report(unknown, folder, checksums=True)
    digest = hashlib.sha256(table).hexdigest()
    assert record["files"] == {"metadata/UrbanSound8K.csv": f"sha256:{digest}"}
    assert record["intact"] is None


def _replace(dataset: datasets.Dataset, **changes: Any) -> datasets.Dataset:
    from dataclasses import replace

    return replace(dataset, **changes)


def test_folds_of_a_set_whose_sources_cross(data: Path) -> None:
    minisets.esc50(data)
    rows = datasets.read("esc50")
    with pytest.raises(UsageError, match=r"1 group is in training .*'9' \(data\.crossing: drop"):
        splitting.split(rows, ["5"])
    train, valid = splitting.split(rows, ["5"], crossing="keep")
    assert (len(train), len(valid)) == (8, 2)
    train, valid = splitting.split(rows, ["5"], crossing="drop")
    assert (len(train), len(valid)) == (7, 2)
    train, valid = splitting.split(rows, ["2"], train_folds=["1", "3"])
    assert {row.fold for row in train} == {"1", "3"}
    with pytest.raises(UsageError, match="no row in fold '6'"):
        splitting.split(rows, ["2"], train_folds=["6"])


# In recipes


def test_every_recipe_of_a_set_loads_and_its_folds_exist(data: Path) -> None:
    for make in (minisets.esc50, minisets.urbansound8k, minisets.fsd50k, minisets.audioset,
                 minisets.speech_commands, minisets.fsdd, minisets.nsynth):  # fmt: skip
        make(data)
    minisets.speech_commands(data, 1)
    names = [name for name in recipe.names() if name.startswith("finetune/")]
    assert len(names) == 10
    for name in names:
        loaded = recipe.load(name)
        assert loaded.data.dataset in datasets.names()
        assert loaded.description
        if not loaded.data.dataset.startswith("birdset"):
            rows, valid = job.read_rows(loaded)
            assert rows, name
            assert valid, name


def test_a_set_in_a_recipe_is_trained_on_and_its_licence_kept(data: Path) -> None:
    minisets.esc50(data)
    overrides = ["data.dataset=esc50", "data.valid_folds=[5]", "data.valid_fraction=0"]
    overrides.append("data.crossing=drop")
    loaded = recipe.load("tiny/supervised", overrides)
    made = job.prepare(loaded)
    assert made.model.labels == ["dog", "hen"]
    assert (len(made.train), len(made.valid.rows)) == (7, 2)  # type: ignore[union-attr]
    assert made.model.config.training["data"] == [
        {
            "name": "ESC-50",
            "licence": "CC BY-NC 3.0",
            "page": "https://github.com/karolpiczak/ESC-50",
        }
    ]
    again = recipe.loads(resolved.to_yaml(loaded))
    assert again.data == loaded.data


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.dataset=esc51"], r"data\.dataset: unknown data set 'esc51' \(did you mean 'esc50'"),
        (["data.crossing=yes"], r"data\.crossing: "),
        (["data.valid_split=dev"], r"data\.valid_split: "),
    ],
)
def test_wrong_keys_are_named(overrides: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe.load("tiny/supervised", overrides)


def test_one_source_and_one_way_to_evaluate() -> None:
    text = "base: tiny/supervised\ndata: {dataset: esc50, train: x.csv}\n"
    with pytest.raises(RecipeError, match=r"give either `train` or `dataset`"):
        recipe.loads(text)
    text = 'base: tiny/supervised\ndata: {dataset: esc50, valid_folds: ["1"], valid_split: test}\n'
    with pytest.raises(RecipeError, match=r"give one of `valid`, `valid_folds`, `valid_fraction`"):
        recipe.loads(text)
    loaded = recipe.load("finetune/esc50", ["data.folder=x/"])
    assert (loaded.data.dataset, loaded.data.folder) == (None, "x/")


@pytest.fixture
def tones(tmp_path: Path) -> Path:
    """Eight clips of half a second in two folders."""
    rng = np.random.default_rng(0)
    for i in range(8):
        path = tmp_path / "tones" / ("high", "low")[i % 2] / f"{i}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, rng.uniform(-0.5, 0.5, RATE // 2), RATE)
    return tmp_path / "tones"


def test_shards_train_to_the_bytes_that_files_do(tones: Path, tmp_path: Path) -> None:
    """The same clips in the same order: weights of a run equal to the last bit, resumed or not."""
    pytest.importorskip("webdataset")
    torch.set_num_threads(1)
    folder = tmp_path / "shards"
    folder.mkdir()
    assert len(shards.write(reading.read(tones), folder, "set", 20_000)) > 1
    given = ["train.epochs=1", "train.batch_size=4", "data.valid_fraction=0", "data.cache=none"]

    def weights(name: str, source: Path, *limits: dict[str, Any]) -> str:
        loaded = recipe.load("tiny/supervised", [*given, f"data.train={source}"])
        loaded.out = str(tmp_path / name)
        for more in limits or ({},):
            train.fit(loaded, torch.device("cpu"), watch=Silent(), **more)
        content = (tmp_path / name / "last" / "model.safetensors").read_bytes()
        return hashlib.sha256(content).hexdigest()

    whole = weights("run-files", tones)
    assert weights("run-shards", folder) == whole
    assert weights("run-resumed", folder, {"max_steps": 1}, {"resume": True}) == whole


def test_a_folder_without_labels_is_enough_to_pretrain_on(
    tones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A method that looks at waves alone, on `data.folder`, with a part of it for evaluation."""

    class Method(torch.nn.Module):
        def __init__(self, model: Any, config: Any) -> None:
            super().__init__()
            self.model = model

        def loss(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, Any]]:
            return self.model.embed(batch["wave"]).square().mean(), {}

    module = SimpleNamespace(Config=supervised.Config, Method=Method)
    monkeypatch.setattr(methods, "load", lambda name: module)
    loose = tmp_path / "loose"
    loose.mkdir()
    for path in tones.rglob("*.wav"):
        path.rename(loose / path.name)  # no subfolder: no label
    text = """
        method: {name: supervised}
        model:
          architecture: {name: dscnn, widths: [8, 8, 8], strides: [2, 2, 2], stem: 4}
          frontend: {preset: yamnet}
        data: {folder: FOLDER, valid_fraction: 0.3, crop_seconds: 0.5}
        train: {epochs: 2, batch_size: 4, lr: 1e-3}
        """
    loaded = recipe.loads(text.replace("FOLDER", str(loose)))
    loaded.out = str(tmp_path / "run")
    result = train.fit(loaded, torch.device("cpu"), watch=Silent())
    assert result.steps == 3
    assert set(result.metrics) == {"loss"}
    config = json.loads((tmp_path / "run" / "best" / "config.json").read_text())
    assert (config["task"], config.get("head")) == ("embed", None)
