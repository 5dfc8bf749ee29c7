"""The picture of `--plot`: right places, readable text, the same bytes, memory that stays flat."""

from __future__ import annotations

import importlib.util
import io
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiossl.errors import OutputError, UsageError
from audiossl.output import picture as plotting
from audiossl.output.picture import best_labels, clock_time, own_times, plot, shortened, strip
from audiossl.output.records import Label, TagRecord
from audiossl.output.sketch import BANDS, SpectrogramSketch

RATE = 16000
LONG_NAMES = [
    "Livestock, farm animals, working animals",
    "Vehicle horn, car horn, honking",
    "Bird vocalization, bird call, bird song",
    "Fire engine, fire truck (siren)",
    "Domestic animals, home sounds",
    "Inside, large room or hall",
    "Gunshot, gunfire",
    "Dog",
    "Rain",
    "Music",
    "Speech",
    "Siren",
    "Crow",
    "Wind noise (microphone)",
]


def record(start, end, best=None, **scores):
    ranked = sorted(scores.items(), key=lambda item: -item[1])
    labels = tuple(Label(name.replace("_", " "), score) for name, score in ranked)
    return TagRecord("a.wav", start, end, labels, "tagger", best)


def tone(hertz, seconds, rate=RATE, start=0.0, length=None):
    """A sine of `length` seconds from `start` on in silence."""
    time = np.arange(round(seconds * rate)) / rate
    inside = (time >= start) & (time < start + (length or seconds))
    return (0.5 * np.sin(2 * np.pi * hertz * time) * inside).astype(np.float32)


def sketch_of(wave, rate=RATE, sizes=None, **options):
    sketch = SpectrogramSketch(rate, **options)
    for part in np.split(wave, np.cumsum(sizes or [])):
        sketch.add(part)
    return sketch


def column_at(sketch, seconds):
    image, (start, end) = sketch.image()
    return min(image.shape[1] - 1, int((seconds - start) / (end - start) * image.shape[1]))


# The sketch


def test_sketch_equals_a_slow_spectrogram():
    """While no cells are joined: frame by frame, bin by bin, band by band."""
    rate = 2000
    wave = np.random.default_rng(0).standard_normal(700).astype(np.float32)
    sketch = sketch_of(wave, rate, bands=12)
    size, hop = 64, 8  # 32 ms and an eighth of it
    assert (sketch.size, sketch.hop) == (size, hop)

    def mel(hertz):
        return 1127 * np.log(1 + hertz / 700)

    edges = np.linspace(mel(40), mel(1000), 12)
    centres = 700 * (np.exp(edges / 1127) - 1)
    padded = np.concatenate([np.zeros(32), wave, np.zeros(64)])
    expected = np.zeros((12, 700 // hop + 1))
    for frame in range(expected.shape[1]):
        part = padded[frame * hop : frame * hop + size]
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
        power = np.abs(np.fft.rfft(part * hann)) ** 2
        for band in range(12):
            near = centres[max(0, band - 1)], centres[min(11, band + 1)]
            width = max((near[1] - near[0]) / (1 if band in (0, 11) else 2), rate / size)
            distance = np.abs(np.arange(33) * rate / size - centres[band])
            weight = np.maximum(0, 1 - distance / width)
            expected[band, frame] = (power * weight).sum() / weight.sum()
    image, (start, end) = sketch.image()
    np.testing.assert_allclose(image, 10 * np.log10(expected / expected.max()), atol=1e-3)
    assert start == -hop / 2 / rate
    assert end == pytest.approx(start + expected.shape[1] * hop / rate)


def test_joined_cells_hold_the_highest_power_of_their_time():
    """Frames that came before the joining are all in; later ones are every second one."""
    wave = np.random.default_rng(1).standard_normal(RATE * 4).astype(np.float32)
    fine, coarse = sketch_of(wave, columns=4000), sketch_of(wave, columns=300)
    many, _ = fine.image()
    few, _ = coarse.image()
    assert (many.shape[1], few.shape[1]) == (1001, 501)
    before = np.maximum(many[:, 0:600:2], many[:, 1:600:2])
    after = many[:, 600::2]
    difference = few - np.concatenate([before, after], axis=1)  # the peak may be in a lost frame
    np.testing.assert_allclose(difference, difference[0, 0], atol=1e-3)
    assert abs(difference[0, 0]) < 3


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 9000), max_size=12), st.sampled_from([50, 700]))
def test_sketch_does_not_depend_on_the_blocks(sizes, columns):
    wave = np.random.default_rng(2).standard_normal(30000).astype(np.float32)
    whole, (left, right) = sketch_of(wave, columns=columns).image()
    parts, times = sketch_of(wave, columns=columns, sizes=sizes).image()
    assert times == (left, right)
    np.testing.assert_allclose(parts, whole, atol=1e-3)


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 192000])
@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.9])
def test_a_tone_is_at_its_frequency(rate, share):
    hertz = share * rate / 2
    sketch = sketch_of(tone(hertz, 0.5, rate), rate)
    image, _ = sketch.image()
    loudest = image[:, image.shape[1] // 2].argmax()
    resolution = np.diff(sketch.rows_of([hertz, hertz + rate / sketch.size]))[0]
    assert abs(loudest - sketch.rows_of([hertz])[0]) <= max(1, resolution / 2 + 0.5)


@pytest.mark.parametrize("columns", [20, 450])
@pytest.mark.parametrize("start", [0.0, 0.31, 5.0, 19.9])
def test_a_sound_is_at_its_time(start, columns):
    sketch = sketch_of(tone(1000, 20, start=start, length=0.1), columns=columns, sizes=[70001])
    image, (left, right) = sketch.image()
    width = (right - left) / image.shape[1]
    loud = np.flatnonzero(image.max(axis=0) > -20)
    frame = sketch.size / RATE
    assert left + loud[0] * width == pytest.approx(start, abs=width + frame)
    assert left + (loud[-1] + 1) * width == pytest.approx(start + 0.1, abs=width + frame)
    assert left <= 0
    assert right >= 20 - frame


def test_a_short_call_survives_hours_of_noise():
    """A call of 0.1 s in three quarters of an hour stands out, and memory does not grow."""
    rate, block = 8000, np.random.default_rng(3).standard_normal(80000).astype(np.float32) * 0.01
    sketch = SpectrogramSketch(rate)
    tracemalloc.start()
    for number in range(270):
        sketch.add(block + tone(2000, 10, rate, 4, 0.1) if number == 101 else block)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    image, _ = sketch.image()
    assert sketch.seconds == 2700
    assert 450 <= image.shape[1] <= 900
    assert np.unravel_index(image.argmax(), image.shape)[1] == column_at(sketch, 1014)
    assert np.median(image) < -25
    assert peak < 30e6


@pytest.mark.parametrize("samples", [0, 1, 100, 4000])
def test_tiny_and_silent_waves_have_an_image(samples):
    image, (left, right) = sketch_of(np.zeros(samples, np.float32)).image()
    assert image.shape[0] == BANDS
    assert np.isfinite(image).all()
    assert left < right
    image, _ = sketch_of(np.ones(samples, np.float32), rate=100).image()
    assert np.isfinite(image).all()


def test_image_may_be_asked_for_twice():
    sketch = sketch_of(tone(500, 1.0))
    first, second = sketch.image(), sketch.image()
    np.testing.assert_array_equal(first[0], second[0])
    assert first[1] == second[1]


# Labels over time


def test_best_labels_are_ranked_over_all_windows():
    records = [record(0, 1, Dog=0.5, Cat=0.9), record(1, 2, Dog=0.7), record(2, 3, Ant=0.9)]
    assert best_labels(records) == [Label("Ant", 0.9), Label("Cat", 0.9), Label("Dog", 0.7)]
    assert best_labels([]) == []


def test_own_times_of_windows_apart_touching_and_overlapping():
    spans = [(0, 2), (2, 4), (5, 7), (6, 8), (7, 9)]
    times = own_times([record(*span) for span in spans])
    assert times == [(0, 2), (2, 4), (5, 6.5), (6.5, 7.5), (7.5, 9)]


@given(
    st.lists(st.tuples(st.floats(0.1, 5), st.floats(0.1, 1)), min_size=1),
    st.floats(0.1, 5),
    st.integers(20, 200),
)
def test_strip_shows_every_window_and_nothing_else(steps, length, cells):
    """Slow: ask of every cell which windows reach into it."""
    records, at = [], 0.0
    for hop, score in steps:
        records.append(record(at, at + length, Dog=score))
        at += hop
    seconds = max(item.end for item in records)
    (row,) = strip(records, ["Dog"], seconds, cells)
    spans = own_times(records)
    width = seconds / cells
    for cell, value in enumerate(row):
        left, right = cell * width, (cell + 1) * width
        touching = [
            item.labels[0].score
            for item, (start, end) in zip(records, spans, strict=True)
            if start < right + 1e-3 * width and end > left - 1e-3 * width
        ]
        assert value == 0 or any(value == np.float32(score) for score in touching)
    for item, (start, end) in zip(records, spans, strict=True):
        first = min(cells - 1, int(start / seconds * cells + 1e-6))
        assert row[first] >= np.float32(item.labels[0].score)
        assert start < end
    assert strip(records, ["Cat"], seconds, cells).max() == 0


def test_words():
    assert [clock_time(value) for value in (0, 65, 3600, 7230)] == [
        "0:00",
        "1:05",
        "1:00:00",
        "2:00:30",
    ]
    assert (
        shortened("Livestock, farm animals, working animals") == "Livestock, farm animals, working…"
    )
    assert shortened("a/" * 99 + "name.wav", 20, 10) == "a/a/a/a/a…a/name.wav"
    assert shortened("two\nlines\tand \x00 \udcff") == "two lines and ?"
    assert len(shortened("x" * 99)) == 34


# The picture

TIMELINE = [
    TagRecord(
        "a.wav",
        5.0 * number,
        5.0 * number + 5,
        tuple(Label(name, 0.9 - 0.05 * row) for row, name in enumerate(LONG_NAMES)),
        "tagger",
    )
    for number in range(4)
]
CASES = {
    "clip": [record(0, 20, Dog=0.97, Rain=0.4)],
    "clip of many": TIMELINE[:1],
    "timeline": TIMELINE,
    "one label": [record(0, 10, Dog=0.9), record(10, 20)],
    "nothing": [record(0, 20, best=Label("Dog", 0.12))],
    "nothing over time": [record(0, 10, best=Label("Cat", 0.1)), record(10, 20)],
    "no records": [],
}
WAVE = tone(1000, 20, start=3, length=6)


@pytest.fixture(autouse=True)
def _needs_matplotlib():
    pytest.importorskip("matplotlib")


@pytest.mark.parametrize("case", CASES)
def test_picture_is_png_of_the_same_bytes_every_time(case, tmp_path):
    import matplotlib
    from matplotlib import image

    title = "odd $name_1$ \\frac \udcff 鳥 <b>\n" * 9
    plot(tmp_path / "a.png", WAVE, RATE, CASES[case], title)
    with matplotlib.rc_context({"figure.facecolor": "red", "font.size": 30}):
        plot(tmp_path / "b.PNG", np.split(WAVE, [5, 70000]), RATE, CASES[case], title)
        assert matplotlib.rcParams["font.size"] == 30
    data = (tmp_path / "a.png").read_bytes()
    assert data == (tmp_path / "b.PNG").read_bytes()
    for chunk in (b"tEXt", b"tIME", b"iTXt"):
        assert chunk not in data
    height, width, _ = image.imread(io.BytesIO(data)).shape
    assert width == 1320
    assert 500 < height < 1000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.PNG"]


def laid_out(records, title="title"):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained", dpi=plotting.DPI)
    canvas = FigureCanvasAgg(figure)
    plotting._fill(figure, sketch_of(WAVE), records, title)
    canvas.draw()
    return figure


def shown_texts(figure):
    from matplotlib.text import Text

    texts = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
    return [(text.get_text(), text.get_window_extent()) for text in texts]


@pytest.mark.parametrize("case", CASES)
def test_text_stays_in_the_picture_and_apart(case):
    figure = laid_out(CASES[case], "a/" * 300 + "recording.wav")
    texts = shown_texts(figure)
    for text, box in texts:
        assert box.x0 >= -1, text
        assert box.x1 <= figure.bbox.x1 + 1, text
        assert box.y0 >= -1, text
        assert box.y1 <= figure.bbox.y1 + 1, text
    boxes = [box.padded(-1) for _, box in texts]
    for number, box in enumerate(boxes):
        for other in range(number):
            assert not box.overlaps(boxes[other]), (texts[number][0], texts[other][0])


def test_what_the_pictures_say():
    def words(case):
        return [text for text, _ in shown_texts(laid_out(CASES[case]))]

    assert {"Dog", "Rain", "0.97", "0.40", "time (s)", "frequency (kHz)"} <= set(words("clip"))
    timeline = words("timeline")
    assert "Livestock, farm animals, working…" in timeline
    assert "the 12 highest of 14 labels" in timeline
    assert "0.90" in timeline
    assert LONG_NAMES[12] not in timeline
    nothing = "nothing known: no label reaches the threshold"
    assert f"{nothing}\nnearest: Dog 0.12" in words("nothing")
    assert f"{nothing}\nnearest: Cat 0.10" in words("nothing over time")
    assert nothing in words("no records")


def test_time_axes_of_picture_and_labels_agree():
    upper, lower = laid_out(CASES["timeline"]).axes[:2]
    assert upper.get_xlim() == lower.get_xlim() == (0, 20)
    top, bottom = upper.get_window_extent(), lower.get_window_extent()
    assert (top.x0, top.x1) == pytest.approx((bottom.x0, bottom.x1))


@pytest.mark.parametrize("seconds", [0, 0.004, 0.5, 3, 59, 61, 119, 121, 600, 3599, 30000, 2e6])
def test_time_ticks_are_few_and_readable(seconds):
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    plotting._time_axis(axes, seconds)
    ticks = [label.get_text() for label in axes.get_xticklabels()]
    assert len(set(ticks)) == len(ticks)
    assert (2 if seconds >= 0.02 else 1) <= len(ticks) <= 24
    assert ticks[0] == ("0" if seconds < 120 else "0:00")


def test_wrong_name_and_missing_matplotlib_are_told_at_once(tmp_path, monkeypatch):
    for name in ("a.jpg", "a", "png"):
        with pytest.raises(UsageError, match=r"must end in \.png"):
            plotting.check(tmp_path / name)
    plotting.check(tmp_path / "a.png")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError) as error:
        plot(tmp_path / "a.png", WAVE, RATE, [])
    assert "pip install 'audiossl-toolkit[plot]'" in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_picture_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    with pytest.raises(OutputError):
        plot(tmp_path / "no folder" / "a.png", WAVE, RATE, [])

    def broken():
        yield WAVE
        raise RuntimeError("damage")

    with pytest.raises(RuntimeError, match="damage"):
        plot(path, broken(), RATE, [])
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_import_loads_no_matplotlib():
    code = "import sys, audiossl.output.picture; print('matplotlib' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
