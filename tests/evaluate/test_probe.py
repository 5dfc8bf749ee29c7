"""Evaluations end to end: what is learned from what, and that nothing leaks from tested clips."""

from __future__ import annotations

import json
import logging
import shutil
import time
import types
from dataclasses import replace
from importlib import resources
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import soundfile
from probe_clips import LABELS, convolutional, transformer, write_clips

from audiossl.data.rows import Row
from audiossl.errors import UsageError
from audiossl.evaluate import probe, probes
from audiossl.evaluate.evaluation import UNSEEN, Evaluation, Options, Result, is_single, standard
from audiossl.evaluate.probe import opened
from audiossl.evaluate.probe_record import ProbeRecord
from audiossl.evaluate.probes import Settings
from audiossl.evaluate.tokens import Tokens

pytest_plugins = ("probe_clips",)

SCHEMA = json.loads((resources.files("audiossl") / "schema.json").read_text())
QUICK = Settings(l2=0.1, epochs=4, prototypes=2)


def by_metric(records: list[ProbeRecord]) -> dict[str, ProbeRecord]:
    return {record.metric: record for record in records}


def made_up(rows: list[Row], dim: int = 6, **options) -> Evaluation:
    """An evaluation of features that are drawn, not extracted: classes apart, groups alike."""
    rng = np.random.default_rng(0)
    centres = np.random.default_rng(1).normal(size=(3, dim))
    labels = sorted({row.labels[0] for row in rows})
    own = [centres[labels.index(row.labels[0])] + 0.3 * rng.normal(size=dim) for row in rows]
    return Evaluation("d", "m", rows, Options(**options), np.array(own, np.float32))


def names(clips: int, **columns) -> list[Row]:
    """Rows of clips that are never opened."""
    rows = []
    for i in range(clips):
        own = {key: value[i % len(value)] for key, value in columns.items()}
        rows.append(Row(Path(f"{i}.wav"), labels=("abc"[i % 3],), number=i, **own))
    return rows


def test_the_embedded_tagger_knows_tones_from_noise(tmp_path: Path) -> None:
    write_clips(tmp_path, clips=24)
    records = probe.run(
        "tagger", tmp_path / "clips.csv", Options(probes=("knn", "linear"), settings=QUICK)
    )
    assert [record.probe for record in records].count("knn") >= 4
    for record in records:
        jsonschema.validate(record.to_dict(), SCHEMA)
        assert (record.model, record.data) == ("tagger", str(tmp_path / "clips.csv"))
        assert (record.protocol, record.folds, record.seeds, record.clips) == ("folds", 4, 1, 24)
        assert record.ci95[0] <= record.mean <= record.ci95[1]
        if record.metric == "accuracy":
            assert record.mean > 0.8


@pytest.mark.parametrize("build", [convolutional, transformer])
def test_every_probe_runs_on_every_kind_of_encoder(build, rows: list[Row]) -> None:
    options = Options(probes=probes.NAMES, shots=(2, None), seeds=1, settings=QUICK)
    told: list[str] = []
    with opened(build(), rows, options, "clips", jobs=2, progress=told.append) as evaluation:
        results = list(evaluation.results())
    assert [(result.probe, result.shots) for result in results] == [
        (name, shots) for name in probes.NAMES for shots in (2, None)
    ]
    for result in results:
        assert len(result.units) == 4
        for unit in result.units:
            assert len(unit.train) == (6 if result.shots else 36 - len(unit.test))
            assert unit.scores.shape == (len(unit.test), 3)
            assert np.isfinite(unit.scores).all()
    assert "linear, 2 a class, seed 1, fold 0" in told
    assert "00.wav" in told


def test_jobs_change_no_number(rows: list[Row]) -> None:
    options = Options(probes=("mlp", "prototypical"), shots=(3,), seeds=2, settings=QUICK)
    found = []
    for jobs in (1, 3):
        with opened(convolutional(), rows, options, "clips", jobs=jobs) as evaluation:
            found.append([record for result in evaluation.results() for record in result.records])
    assert found[0] == found[1]


def test_features_of_tested_clips_teach_nothing() -> None:
    """What stands in tested clips moves no score but their own: neither standardisation, nor the
    choice of a strength, nor the probe."""
    rows = names(24, fold="12")
    for name, settings in (
        ("knn", QUICK),
        ("linear", Settings()),
        ("ridge", Settings()),
        ("mlp", QUICK),
    ):
        whole = made_up(rows, probes=(name,), settings=settings)
        (result,) = whole.results()
        spoilt = made_up(rows, probes=(name,), settings=settings)
        assert spoilt.pooled is not None
        first = result.units[0]
        spoilt.pooled[first.test[1:]] *= 1000
        (other,) = spoilt.results()
        np.testing.assert_allclose(other.units[0].scores[0], first.scores[0], atol=1e-6)


def test_labels_of_tested_clips_teach_nothing() -> None:
    rows = names(24, fold="12")
    whole, turned = (made_up(rows, probes=("linear", "ridge")) for _ in range(2))
    first = next(whole.results()).units[0]
    turned.targets[first.test] = np.roll(turned.targets[first.test], 1, axis=1)
    np.testing.assert_array_equal(next(turned.results()).units[0].scores, first.scores)


def test_standardisation_is_of_the_training_clips_and_can_be_left_out() -> None:
    train = np.random.default_rng(0).normal(3, [1, 50, 0], (30, 3)).astype(np.float32)
    mean, scale = standard(train)
    np.testing.assert_allclose(mean, train.mean(0), atol=1e-4)
    np.testing.assert_allclose(scale[1], train[:, 1].std(), rtol=1e-5)
    assert scale[2] == pytest.approx(0.1 * train.std(0).mean(), rel=1e-4)
    np.testing.assert_array_equal(standard(np.ones((4, 2), np.float32))[1], [1, 1])
    rows = names(24, fold="12")
    scores = []
    for standardise in (True, False):
        evaluation = made_up(rows, probes=("knn",), standardise=standardise)
        assert evaluation.pooled is not None
        evaluation.pooled[:, 0] *= 1000
        scores.append(next(evaluation.results()).units[0].scores)
    assert not np.allclose(scores[0], scores[1])


def test_groups_are_never_on_both_sides_and_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    rows = names(24, fold="12", group="xyz")
    with pytest.raises(UsageError, match="0 clips to train"):
        made_up(rows).check()
    rows = names(24, fold="12", group=[*"ab", *(str(i) for i in range(22))])
    rows[0] = replace(rows[0], group="b")
    with caplog.at_level(logging.WARNING, "audiossl"):
        made_up(rows).check()
    assert "1 clip left out of training" in caplog.text
    (result,) = made_up(rows, settings=QUICK).results()
    for unit in result.units:
        train, test = ({rows[i].group for i in side} for side in (unit.train, unit.test))
        assert not train & test


def test_a_valid_split_chooses_and_is_not_trained_on_or_tested() -> None:
    rows = names(40, split=["train", "train", "valid", "test"])
    seen: list[Result] = list(made_up(rows, probes=("linear", "ridge")).results())
    for result in seen:
        (unit,) = result.units
        assert {rows[i].split for i in unit.train} == {"train"}
        assert {rows[i].split for i in unit.test} == {"test"}
        assert result.records[0].protocol == "split"
    turned = made_up(rows, probes=("linear",))
    valid = [i for i, row in enumerate(rows) if row.split == "valid"]
    turned.targets[valid] = np.roll(turned.targets[valid], 1, axis=1)
    other = next(turned.results()).units[0].scores
    assert not np.allclose(other, seen[0].units[0].scores)  # another strength was chosen
    few = made_up(rows, probes=("linear",), shots=(2,), seeds=1)
    spoilt = made_up(rows, probes=("linear",), shots=(2,), seeds=1)
    spoilt.targets[valid] = np.roll(spoilt.targets[valid], 1, axis=1)
    np.testing.assert_array_equal(
        next(few.results()).units[0].scores, next(spoilt.results()).units[0].scores
    )


def test_seeds_are_five_where_chance_decides_else_one() -> None:
    folded, plain = names(48, fold="1234"), names(48)
    for rows, options, seeds, folds in (
        (folded, {}, 1, 4),
        (folded, {"shots": (2,)}, 5, 4),
        (folded, {"seeds": 2}, 2, 4),
        (plain, {}, 5, 1),
        (plain, {"protocol": "holdout", "seeds": 3}, 3, 1),
    ):
        (result,) = made_up(rows, probes=("knn",), **options).results()
        assert (result.records[0].seeds, result.records[0].folds) == (seeds, folds)
    few = next(made_up(folded, probes=("knn",), shots=(2,)).results())
    trained = {tuple(unit.train) for unit in few.units if unit.split.name == "fold 1"}
    assert len(trained) == 5


def test_a_class_that_was_never_trained_on_scores_last() -> None:
    rows = [replace(row, fold="1" if row.labels == ("c",) else str(i // 3 % 2))
            for i, row in enumerate(names(36))]  # fmt: skip
    (result,) = made_up(rows, settings=QUICK).results()
    unit = next(unit for unit in result.units if unit.split.name == "fold 1")
    assert (unit.scores[:, 2] == UNSEEN).all()
    assert (unit.scores[:, :2] >= 0).all()


def test_the_data_decide_whether_clips_have_one_label() -> None:
    one = names(12, fold="12")
    assert is_single(one)
    assert not is_single(one, "multi")
    for other in (
        replace(one[0], labels=("a", "b")),
        replace(one[0], labels=()),
        replace(one[0], known=("b",)),
    ):
        assert not is_single([*one, other])
        with pytest.raises(UsageError, match="task single"):
            is_single([*one, other], "single")
    metrics = by_metric(next(made_up(one, settings=QUICK, task="multi").results()).records)
    assert set(metrics) >= {"top1", "cmap", "auroc", "map_samples"}
    metrics = by_metric(next(made_up(one, settings=QUICK).results()).records)
    assert "accuracy" in metrics


def test_several_labels_and_clips_without_any(rows: list[Row]) -> None:
    several = [replace(row, labels=row.labels + (LABELS[1],) * (i % 5 == 0))
               for i, row in enumerate(rows)]  # fmt: skip
    several[7] = replace(several[7], labels=())
    options = Options(probes=probes.NAMES, shots=(None, 2), seeds=1, settings=QUICK)
    with opened(transformer(), several, options, "clips") as evaluation:
        assert not evaluation.single
        for result in evaluation.results():
            found = by_metric(result.records)
            assert set(found) >= {"top1", "cmap", "auroc", "map_samples"}
            jsonschema.validate(found["top1"].to_dict(), SCHEMA)


def test_bad_files_are_left_out_and_what_is_left_must_do(rows: list[Row], tmp_path: Path) -> None:
    (tmp_path / "bad.wav").write_text("no sound")
    bad = Row(tmp_path / "bad.wav", labels=(LABELS[0],), fold="0")
    with opened(convolutional(), [*rows, bad], Options(settings=QUICK), "clips") as evaluation:
        assert [row.path.name for row, _ in evaluation.errors] == ["bad.wav"]
        (result,) = evaluation.results()
    assert result.records[0].clips == 36
    only = [replace(row, labels=(LABELS[0],)) for row in rows]
    with (
        opened(convolutional(), [*only, replace(bad, labels=("x",))], Options(), "d") as evaluation,
        pytest.raises(UsageError, match="1 labels"),
    ):
        next(evaluation.results())


def spoilt(rows: list[Row], places: list[int], folder: Path) -> list[Row]:
    """The same rows, of which those at `places` cannot be read."""
    found = list(rows)
    for i in places:
        found[i] = replace(rows[i], path=folder / f"bad {i}.wav")
        found[i].path.write_text("no sound")
    return found


def test_bad_files_change_neither_protocol_nor_task(
    rows: list[Row], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Only the bad file has what would decide otherwise: a split, a second fold, two labels."""
    plain = [replace(row, fold="", split="") for row in rows]
    tested = [replace(row, split="test" if i in (4, 5) else "") for i, row in enumerate(plain)]
    folded = [replace(row, fold="2" if i in (4, 5) else "1") for i, row in enumerate(plain)]
    several = [replace(row, labels=LABELS[:2]) if i == 4 else row for i, row in enumerate(rows)]
    for data, told in (
        (tested, "no clip of split test could be read: protocol split: no clip to test"),
        (folded, "no clip of fold 2 could be read: protocol folds: 1 to test"),
    ):
        with opened(convolutional(), spoilt(data, [4, 5], tmp_path), Options(), "d") as evaluation:
            assert len(evaluation.errors) == 2
            with pytest.raises(UsageError, match=told):
                next(evaluation.results())
    with opened(
        convolutional(), spoilt(several, [4], tmp_path), Options(settings=QUICK), "d"
    ) as evaluation:
        assert not evaluation.single
        assert "top1" in by_metric(next(evaluation.results()).records)
    assert not caplog.text


@pytest.mark.parametrize("asked", ["auto", "folds"])
def test_a_fold_or_label_that_is_gone_is_told(
    rows: list[Row], tmp_path: Path, caplog: pytest.LogCaptureFixture, asked: str
) -> None:
    gone = [i for i, row in enumerate(rows) if row.fold == "2"]
    marked = [replace(row, labels=("rare",)) if i == gone[0] else row for i, row in enumerate(rows)]
    options = Options(probes=("knn",), protocol=asked)
    with opened(convolutional(), spoilt(marked, gone, tmp_path), options, "d") as evaluation:
        (result,) = evaluation.results()
    assert (result.records[0].folds, result.records[0].protocol) == (3, "folds")
    (said,) = [record.message for record in caplog.records]
    assert said == "warning: no clip of fold 2, label rare could be read: the rest is evaluated"


def test_all_files_bad_is_told_file_by_file(rows: list[Row], tmp_path: Path) -> None:
    split = [replace(row, split="test" if i // 2 % 3 else "train") for i, row in enumerate(rows)]
    bad = spoilt(split, list(range(36)), tmp_path)
    for asked in ("auto", "folds", "split", "holdout"):
        with opened(convolutional(), bad, Options(protocol=asked), "d") as evaluation:
            assert len(evaluation.errors) == 36
            with pytest.raises(UsageError, match="d: none of its 36 clips could be read"):
                next(evaluation.results())


@pytest.mark.parametrize("protocol", ["folds", "holdout"])
def test_classes_with_few_clips_are_told_once(
    caplog: pytest.LogCaptureFixture, protocol: str
) -> None:
    """Of the third class there are four clips, of which one is tested."""
    rows = [row for row in names(48, fold="12345678") if row.labels != ("c",) or row.number < 12]
    assert [sum(row.labels == (label,) for row in rows) for label in "abc"] == [16, 16, 4]
    options: dict = {"protocol": protocol, "probes": ("knn", "ridge"), "settings": QUICK}
    list(made_up(rows, **options).results())
    list(made_up(rows, shots=(1, 3, None), **options).results())
    assert not caplog.text
    list(made_up(rows, shots=(1, 4, None), **options).results())
    (said,) = [record.message for record in caplog.records]
    assert said == "warning: fewer than 4 clips to train on in some division: c (3)"


def test_classes_that_no_rule_allows_or_no_fold_trains_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = write_clips(tmp_path, 36)
    long = tmp_path / "long.wav"
    soundfile.write(long, np.zeros(6 * 8000), 8000)
    for i, row in enumerate(rows):
        if row.labels == ("tone",):
            rows[i] = replace(row, path=long.with_name(f"long {i}.wav"))
            shutil.copy(long, rows[i].path)
    made = made_up(rows, shots=(2,), rule="strict", probes=("knn",))
    next(made.results())
    assert caplog.messages == [
        "warning: fewer than 2 clips to train on (rule strict) in some division: tone (0)"
    ]
    caplog.clear()
    single = [replace(row, fold="1") if row.labels == ("tone",) else row for row in rows]
    next(made_up(single, probes=("knn",)).results())
    assert caplog.messages == ["warning: no clip to train on in some division: tone (0)"]


def test_what_cannot_work_is_said_before_any_file_is_read() -> None:
    missing = [Row(Path(f"/no/{i}.wav"), labels=("a",), fold=str(i)) for i in range(3)]
    for options, message in (
        ({}, "1 labels"),
        ({"shots": (1,)}, "1 labels"),
    ):
        with (
            pytest.raises(UsageError, match=message),
            opened(convolutional(), missing, Options(**options), "d"),
        ):
            pass
    two = [replace(row, labels=("ab"[i % 2],)) for i, row in enumerate(missing)]
    for options, message in (
        ({"protocol": "split"}, "no clip to test"),
        ({"task": "several"}, "task"),
        ({"rule": "strict", "shots": (1,)}, "short enough"),
        ({"rule": "loose", "shots": (1,)}, "rule 'loose'"),
    ):
        with (
            pytest.raises(UsageError, match=message),
            opened(convolutional(), two, Options(**options), "d"),
        ):
            pass


def test_features_live_as_long_as_the_block_or_in_the_cache(
    rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    options = Options(probes=("prototypical",), settings=QUICK)
    with opened(transformer(), rows, options, "clips", pooled=False) as evaluation:
        assert evaluation.pooled is None
        assert isinstance(evaluation.tokens, Tokens)
        assert len(list(tmp_path.iterdir())) == 1
    assert list(tmp_path.iterdir()) == []
    cache = tmp_path / "cache"
    with opened(transformer(), rows, options, "clips", digest="x", cache=cache) as evaluation:
        assert evaluation.pooled is not None
    assert sorted(path.name.split("-")[0] for path in cache.iterdir()) == ["pooled", "tokens"]


def test_an_interruption_waits_for_no_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted: list[int] = []

    def fit(features, goal, settings, seed, valid=None):
        time.sleep(0.2)
        fitted.append(seed)
        return lambda asked: np.zeros((len(asked), goal.targets.shape[1]), np.float32)

    slow = types.SimpleNamespace(NEEDS="pooled", fit=fit)
    monkeypatch.setattr(probes, "load", lambda _name: slow)
    evaluation = made_up(names(24, fold="1234"), seeds=20)

    def interrupted(_what: str) -> None:
        raise KeyboardInterrupt

    evaluation.progress = interrupted
    with pytest.raises(KeyboardInterrupt):
        next(evaluation.results())
    time.sleep(0.6)
    assert 1 <= len(fitted) <= 3


def test_a_folder_of_labels_is_data_as_well(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for label in ("loud", "quiet"):
        (tmp_path / label).mkdir()
        for i in range(6):
            wave = rng.normal(0, {"loud": 0.3, "quiet": 0.01}[label], 8000)
            soundfile.write(tmp_path / label / f"{i}.wav", wave, 16000)
    records = probe.run(convolutional(), tmp_path, Options(probes=("knn",), seeds=2))
    assert (records[0].protocol, records[0].seeds) == ("holdout", 2)


def test_records_are_dicts_of_the_schema_with_four_digits() -> None:
    record = ProbeRecord(
        "d", "knn", None, "auroc", 0.123456, (0.1, 0.987654), 1, 2, 3, "folds", "m"
    )
    said = record.to_dict()
    jsonschema.validate(said, SCHEMA)
    assert (said["mean"], said["ci95"], said["shots"]) == (0.1235, [0.1, 0.9877], None)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**said, "probe": "svm"}, SCHEMA)
