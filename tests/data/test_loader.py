"""Order, crops and replacement of unreadable files: functions of (seed, epoch, position) alone."""

from __future__ import annotations

import multiprocessing
import tracemalloc
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from audiossl.config.sections import Augment
from audiossl.data import clips as clips_module
from audiossl.data import loader
from audiossl.data.clip import clip_seconds, fill, read_clip
from audiossl.data.clips import Clips, Windows, count_files
from audiossl.data.draws import SKIPPED, Draw, Stream
from audiossl.data.rows import Member, Row
from audiossl.data.skips import Skips
from audiossl.errors import InputError, UsageError

RATE = 8000


def ramp(seconds: float) -> np.ndarray:
    """A wave that tells where in it one is, to a quarter of a 16-bit step."""
    return np.linspace(-0.9, 0.9, round(seconds * RATE), dtype=np.float32)


@pytest.fixture
def rows(tmp_path: Path) -> list[Row]:
    lengths = (0.5, 1.0, 2.0, 3.0)
    for i, seconds in enumerate(lengths):
        soundfile.write(tmp_path / f"{i}.wav", ramp(seconds), RATE, subtype="FLOAT")
    return [
        Row(tmp_path / f"{i}.wav", labels=("odd",) if i % 2 else ("even",), number=i)
        for i in range(len(lengths))
    ]


def clips(rows: list[Row], **options: Any) -> Clips:
    return Clips(rows, ["even", "odd"], RATE, options.pop("crop_seconds", 1.0), **options)


def test_each_epoch_has_every_item_once_in_its_own_order() -> None:
    draws = [draw for batch in islice(iter(Stream(10, 4, seed=3)), 10) for draw in batch]
    epochs = [[d.index for d in draws if d.epoch == epoch] for epoch in range(4)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(10))
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert [d.position for d in draws] == list(range(10)) * 4
    other = [d for batch in islice(iter(Stream(10, 4, seed=4)), 10) for d in batch]
    assert [d.index for d in other] != [d.index for d in draws]


@pytest.mark.parametrize("start", [0, 1, 7, 10, 23, 40])
@pytest.mark.parametrize("balanced", [False, True])
def test_one_integer_is_enough_to_go_on(start: int, balanced: bool) -> None:
    weights = np.arange(1, 11) / 55 if balanced else None

    def flat(begin: int) -> list[Draw]:
        stream = Stream(10, 3, 5, begin, weights)
        return [draw for batch in islice(iter(stream), 20) for draw in batch]

    assert flat(start)[:15] == flat(0)[start : start + 15]


def test_weights_decide_how_often_an_item_comes() -> None:
    weights = np.array([0.7, 0.2, 0.1, 0.0])
    stream = Stream(4, 1000, seed=0, weights=weights)
    indices = [draw.index for batch in islice(iter(stream), 10) for draw in batch]
    np.testing.assert_allclose(np.bincount(indices, minlength=4) / 10000, weights, atol=0.02)


def test_a_crop_lies_in_its_clip_and_hangs_on_the_draw_alone(rows: list[Row]) -> None:
    items = clips(rows)
    whole = torch.from_numpy(ramp(3.0))
    starts = set()
    for position in range(40):
        item = items[Draw(0, position, 3)]
        assert item["wave"].shape == (RATE,)
        start = int((whole - item["wave"][0]).abs().argmin())
        torch.testing.assert_close(item["wave"], whole[start : start + RATE])
        starts.add(start)
        torch.testing.assert_close(clips(rows)[Draw(0, position, 3)]["wave"], item["wave"])
    assert len(starts) > 35
    assert max(starts) - min(starts) > 1.5 * RATE
    torch.testing.assert_close(items[Draw(1, 0, 3)]["target"], torch.tensor([0.0, 1.0]))
    assert items[Draw(1, 0, 3)]["index"] == 3


def test_seed_and_augmentation_change_the_wave(rows: list[Row]) -> None:
    draw = Draw(0, 0, 3)
    one = clips(rows, seed=1)[draw]["wave"]
    assert not torch.equal(one, clips(rows, seed=2)[draw]["wave"])
    louder = clips(rows, seed=1, augment=Augment(gain_db=(6, 6)))[draw]["wave"]
    torch.testing.assert_close(louder, one * 10 ** (6 / 20))


def test_of_a_long_clip_only_the_crop_is_decoded(
    rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crop of 0.25 s from 3 s: the ramp still tells that it comes from one place of the file."""
    asked = []
    real = read_clip

    def spy(row: Row, rate: int) -> np.ndarray:
        asked.append((row.start, row.end))
        return real(row, rate)

    monkeypatch.setattr(clips_module, "read_clip", spy)
    items = clips(rows, crop_seconds=0.25)
    whole = torch.from_numpy(ramp(3.0))
    for position in range(10):
        wave = items[Draw(0, position, 3)]["wave"]
        start, end = asked[-1]
        assert end - start == pytest.approx(0.25)
        first = round(start * RATE)
        torch.testing.assert_close(wave, whole[first : first + RATE // 4], atol=2e-4, rtol=0)
    assert len({start for start, _ in asked}) == 10


def test_start_and_end_of_a_row_are_kept(rows: list[Row]) -> None:
    row = Row(rows[3].path, start=1.0, end=1.5)
    np.testing.assert_array_equal(read_clip(row, RATE), ramp(3.0)[RATE : RATE * 3 // 2])
    assert clip_seconds(row) == 0.5
    assert clip_seconds(Row(rows[3].path, start=1.0)) == pytest.approx(2.0)
    with pytest.raises(InputError, match="no sample in this part"):
        read_clip(Row(rows[3].path, start=5.0), RATE)


def test_short_clips_are_repeated_or_followed_by_zeros(rows: list[Row]) -> None:
    half = torch.from_numpy(ramp(0.5))
    torch.testing.assert_close(clips(rows)[Draw(0, 0, 0)]["wave"], torch.cat([half, half]))
    padded = clips(rows, short="zero")[Draw(0, 0, 0)]["wave"]
    torch.testing.assert_close(padded, torch.cat([half, torch.zeros_like(half)]))


@pytest.mark.parametrize("samples", [1, 2, 3, 5, 7, 11])
def test_fill(samples: int) -> None:
    wave = np.arange(1, 4, dtype=np.float32)
    expected = [wave[i % 3] for i in range(samples)]
    np.testing.assert_array_equal(fill(wave, samples, "repeat"), expected)
    expected = [wave[i] if i < 3 else 0 for i in range(samples)]
    np.testing.assert_array_equal(fill(wave, samples, "zero"), expected)


def test_the_cache_gives_the_same_crops_to_float16(rows: list[Row]) -> None:
    plain, cached = clips(rows), clips(rows)
    cached.fill_cache()
    assert sorted(cached.cache) == [0, 1, 2, 3]
    for index in range(4):
        draw = Draw(0, index, index)
        torch.testing.assert_close(
            cached[draw]["wave"], plain[draw]["wave"], atol=2**-11, rtol=2**-10
        )
    rows[0].path.unlink()
    assert cached[Draw(0, 0, 0)]["index"] == 0


@pytest.mark.parametrize("cache", [False, True])
def test_an_unreadable_file_is_replaced_by_the_next_and_named(rows: list[Row], cache: bool) -> None:
    rows[2].path.write_bytes(b"this is no audio")
    rows[3].path.write_bytes(rows[3].path.read_bytes()[:40])
    items = clips(rows)
    if cache:
        items.fill_cache()
    item = items[Draw(0, 9, 2)]
    assert item["index"] == 0
    assert [path for path, _ in item[SKIPPED]] == [str(rows[2].path), str(rows[3].path)]
    expected = clips(rows)[Draw(0, 9, 0)]
    torch.testing.assert_close(item["wave"], expected["wave"], atol=1e-3, rtol=1e-3)
    for row in rows:
        row.path.write_bytes(b"no")
    with pytest.raises(InputError, match="none of the 4 files"):
        clips(rows)[Draw(0, 0, 1)]


def test_windows_cover_each_clip_in_order(rows: list[Row]) -> None:
    windows = Windows(rows, ["even", "odd"], RATE, 1.0, "repeat")
    items = [windows[i] for i in range(len(windows))]
    assert [item["index"] for item in items] == [0, 1, 2, 2, 3, 3, 3]
    np.testing.assert_array_equal(np.concatenate([i["wave"] for i in items[2:4]]), ramp(2.0))
    np.testing.assert_array_equal(np.concatenate([i["wave"] for i in items[4:]]), ramp(3.0))


@pytest.mark.parametrize(("seconds", "count"), [(0.1, 1), (1.4, 1), (1.6, 2), (2.4, 2), (2.6, 3)])
def test_a_rest_of_less_than_half_a_window_is_left(
    seconds: float, count: int, tmp_path: Path
) -> None:
    soundfile.write(tmp_path / "x.wav", ramp(seconds), RATE)
    assert len(Windows([Row(tmp_path / "x.wav")], [], RATE, 1.0, "repeat")) == count


def test_an_unreadable_file_in_evaluation_is_unknown(rows: list[Row]) -> None:
    rows[1].path.write_bytes(b"this is no audio")
    windows = Windows(rows, ["even", "odd"], RATE, 1.0, "repeat")
    item = windows[1]
    assert item["target"].tolist() == [-1, -1]
    assert not item["wave"].any()
    assert item[SKIPPED][0][0] == str(rows[1].path)


def test_too_many_unreadable_files_end_the_run() -> None:
    said: list[str] = []
    skips = Skips(0.5, 4, said.append)
    skips.note([("a", "no"), ("a", "no")])
    skips.note([("a", "no"), ("b", "cut")])
    assert said == ["warning: a: no: left out", "warning: b: cut: left out"]
    with pytest.raises(InputError, match="3 of 4 files cannot be read"):
        skips.note([("c", "no")])


def test_files_are_counted_once_however_many_rows_they_have(
    rows: list[Row], tmp_path: Path
) -> None:
    parts = [replace(rows[3], start=i / 4, end=i / 4 + 0.25, number=i) for i in range(12)]
    short = {"crop_seconds": 0.25}
    train, valid = clips([*parts, rows[0]], **short), Windows(rows[:2], [], RATE, 0.25, "zero")
    assert (count_files(train, valid), count_files(train, None)) == (3, 2)
    folder = tmp_path / "wind"
    folder.mkdir()
    for i in range(5):
        soundfile.write(folder / f"{i}.wav", ramp(0.5), RATE)
    augment = Augment(background=str(folder), background_noise=1)
    assert count_files(clips(parts, **short, augment=augment), valid) == 3 + 5


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_the_number_of_workers(rows: list[Row], workers: int) -> None:
    rows[1].path.write_bytes(b"this is no audio")

    def take(count: int) -> list[dict[str, Any]]:
        items = clips(rows, augment=Augment(roll=0.5, noise=0.5))
        return list(islice(loader.train_loader(items, Stream(4, 3, 0), count), 6))

    for alone, shared in zip(take(0), take(workers), strict=True):
        assert alone[SKIPPED] == shared[SKIPPED]
        for name in ("wave", "target", "index"):
            assert torch.equal(alone[name], shared[name])


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_a_worker_is_the_error_itself(rows: list[Row], workers: int) -> None:
    for row in rows:
        row.path.write_bytes(b"this is no audio")
    batches = loader.train_loader(clips(rows), Stream(4, 3, 0), workers)
    with pytest.raises(InputError) as caught:
        next(batches)
    del batches  # what is caught holds this frame, which must not hold the worker
    expected = "none of the 4 files can be read: text, not audio"
    assert (caught.value.message, caught.value.code) == (expected, "unreadable")

    class Bank(list[int]):
        def __getitem__(self, draw: Any) -> Any:
            raise UsageError(f"no item {draw}", code="odd")

    with pytest.raises(UsageError, match=r"^no item 0$") as told:
        next(loader.valid_loader(Bank([1, 2]), 2, workers))
    assert told.value.code == "odd"
    assert not multiprocessing.active_children()


def test_items_may_make_whole_batches_themselves() -> None:
    class Bank:
        def __len__(self) -> int:
            return 5

        def batch(self, draws: list[Any]) -> dict[str, torch.Tensor]:
            return {"index": torch.tensor([getattr(d, "index", d) for d in draws])}

    batch = next(loader.train_loader(Bank(), Stream(5, 5, 0)))
    assert sorted(batch["index"].tolist()) == [0, 1, 2, 3, 4]
    sizes = [b["index"].tolist() for b in loader.valid_loader(Bank(), 2)]
    assert sizes == [[0, 1], [2, 3], [4]]


def test_a_late_part_of_a_long_file_needs_no_memory_for_what_is_before(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    soundfile.write(path, np.zeros(RATE * 600, np.float32), RATE)
    tracemalloc.start()
    assert len(read_clip(Row(path, start=590.0, end=591.0), RATE)) == RATE
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < RATE * 600 * 4 / 4  # bytes: a quarter of the whole as float32


def test_a_clip_within_another_file_is_read_as_from_its_own(
    rows: list[Row], tmp_path: Path
) -> None:
    path = tmp_path / "bundle.bin"
    sounds = [row.path.read_bytes() for row in rows]
    path.write_bytes(b"head" + b"".join(sounds))
    offset = 4
    for row, sound in zip(rows, sounds, strict=True):
        part = replace(row, path=path, member=Member(row.path.name, offset, len(sound)))
        np.testing.assert_array_equal(read_clip(part, RATE), read_clip(row, RATE))
        assert clip_seconds(part) == clip_seconds(row)
        offset += len(sound)
    assert part.name == f"{path}/3.wav"
    broken = replace(part, member=Member("x.wav", 2, 50))
    assert clips([broken, part])[Draw(0, 0, 0)][SKIPPED][0][0] == f"{path}/x.wav"
