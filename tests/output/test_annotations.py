"""Label tracks: what we write others read, what others write we read, and damage is told.

Oracles: crowsetta (Audacity, Raven, TextGrid), the `textgrid` package, pandas, and two readers
written here from the formats' manuals.
"""

from __future__ import annotations

import io
import math
import string
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audiossl.errors import AudiosslError, InputError, UsageError
from audiossl.output import annotations as an
from audiossl.output import tables
from audiossl.output import textgrid as praat
from audiossl.output.annotations import Annotation

pytestmark = pytest.mark.filterwarnings("ignore:The inplace keyword")  # crowsetta on pandas 3

TRACK = [
    Annotation(0.0, 5.0, "Dog", 0.97, "day 1/a.wav"),
    Annotation(5.0, 10.0, "Gunshot, gunfire", 0.5, "day 1/a.wav", 150.0, 12000.5),
    Annotation(7.25, 7.25, "Jäger 鳥", None, "b.wav", None, 800.0),
]
NASTY = [
    'say "hi"',
    '"Dog" bark',
    '"',
    "a\tb\nc\r\nd",
    "comma, semicolon; pipe|",
    "naïve 鳥 🐦",
    " spaces around ",
    "x = 3 ! no comment <exists>",
    "back\\slash",
    "line\u2028sep\x85next\x0bfeed",
    "'",
]
MICROS = st.integers(0, 10**11)
TEXT = st.one_of(
    st.sampled_from(NASTY), st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
)
FILES = st.none() | TEXT
UNIT = st.integers(0, 10**4).map(lambda value: value / 10**4)
HERTZ = st.none() | st.integers(0, 10**8).map(lambda value: value / 10**3)


@st.composite
def tracks(draw, labels=TEXT, files=FILES, bands=HERTZ, size=8, longest=10**7):
    found = []
    for _ in range(draw(st.integers(0, size))):
        start = draw(MICROS)
        end = start + draw(st.integers(0, longest))
        values = draw(labels), draw(st.none() | UNIT), draw(files), draw(bands), draw(bands)
        found.append(Annotation(start / 10**6, end / 10**6, *values))
    return found


def one_line(text: str) -> str:
    """What a format of lines keeps of a label."""
    breaks = {*map(chr, range(32)), *map(chr, range(0x7F, 0xA0)), "\u2028", "\u2029"}
    return "".join(" " if char in breaks else char for char in text)


def plain(text: str) -> str:
    text = one_line(text)
    return text.replace('"', "'") if text[:1] == '"' else text


def spans(items):
    return [(item.start, item.end, item.label) for item in items]


# Exact text


def test_audacity_text():
    assert an.write_audacity(TRACK) == (
        "0.000000\t5.000000\tDog\n"
        "5.000000\t10.000000\tGunshot, gunfire\n"
        "\\\t150.000000\t12000.500000\n"
        "7.250000\t7.250000\tJäger 鳥\n"
        "\\\t-1.000000\t800.000000\n"
    )


def test_raven_text_counts_on_over_the_files():
    table = an.write_raven(TRACK, {"day 1/a.wav": 12.5, "empty.wav": 100.0, "b.wav": 60.0})
    head = (
        "Selection\tView\tChannel\tBegin File\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)"
        "\tHigh Freq (Hz)\tAnnotation\tBegin Path\tFile Offset (s)\tScore\n"
    )
    first = "\tSpectrogram 1\t1\ta.wav\t"
    assert table == (
        f"{head}1{first}0.000000\t5.000000\t0.000\t8000.000\tDog\tday 1/a.wav"
        "\t0.000000\t0.9700\n"
        f"2{first}5.000000\t10.000000\t150.000\t12000.500\tGunshot, gunfire\tday 1/a.wav"
        "\t5.000000\t0.5000\n"
        "3\tSpectrogram 1\t1\tb.wav\t119.750000\t119.750000\t0.000\t800.000\tJäger 鳥\tb.wav"
        "\t7.250000\t\n"
    )


def test_raven_rows_one_by_one_are_the_table():
    table = an.RavenTable()
    parts = [table.header]
    for file, seconds in (("day 1/a.wav", 12.5), ("b.wav", 60.0)):
        parts += [table.row(item, 22050.0) for item in TRACK if item.file == file]
        table.end_file(seconds)
    lengths = {"day 1/a.wav": 12.5, "b.wav": 60.0}
    assert "".join(parts) == an.write_raven(TRACK, lengths, 22050.0)


def test_raven_files_of_unknown_length_end_with_their_last_annotation():
    items = [Annotation(1, 4, "x", file="a"), Annotation(2, 3, "y", file="b")]
    begins = [row.split("\t")[4] for row in an.write_raven(items).splitlines()[1:]]
    assert begins == ["1.000000", "6.000000"]


def test_csv_text():
    assert an.write_csv(TRACK) == (
        "file,start,end,label,score,low,high\n"
        "day 1/a.wav,0,5,Dog,0.97,,\n"
        'day 1/a.wav,5,10,"Gunshot, gunfire",0.5,150,12000.5\n'
        "b.wav,7.25,7.25,Jäger 鳥,,,800\n"
    )
    assert an.write_tsv(TRACK[1:2]).splitlines()[1] == (
        "day 1/a.wav\t5\t10\tGunshot, gunfire\t0.5\t150\t12000.5"
    )


def test_textgrid_text_is_praats_long_form():
    items = [Annotation(0.5, 1.25, 'Dog "Rex"'), Annotation(2, 2, "Click")]
    assert an.write_textgrid(items, 2.3) == (
        'File type = "ooTextFile"\nObject class = "TextGrid"\n\nxmin = 0 \nxmax = 2.3 \n'
        "tiers? <exists> \nsize = 2 \nitem []: \n    item [1]:\n"
        '        class = "IntervalTier" \n        name = "Dog ""Rex""" \n        xmin = 0 \n'
        "        xmax = 2.3 \n        intervals: size = 3 \n        intervals [1]:\n"
        '            xmin = 0 \n            xmax = 0.5 \n            text = "" \n'
        "        intervals [2]:\n            xmin = 0.5 \n            xmax = 1.25 \n"
        '            text = "Dog ""Rex""" \n        intervals [3]:\n            xmin = 1.25 \n'
        '            xmax = 2.3 \n            text = "" \n    item [2]:\n'
        '        class = "TextTier" \n        name = "Click" \n        xmin = 0 \n'
        "        xmax = 2.3 \n        points: size = 1 \n        points [1]:\n"
        '            number = 2 \n            mark = "Click" \n'
    )


def test_nothing_known_is_one_empty_tier_over_all_of_the_file():
    grid = praat_rules(an.write_textgrid([], 3.5))
    assert grid == (0, 3.5, [("IntervalTier", "labels", [(0, 3.5, "")])])
    assert an.read_textgrid(an.write_textgrid([], 3.5)) == []
    assert an.write_audacity([]) == ""
    assert an.read_raven(an.write_raven([])) == []
    assert an.read_csv(an.write_csv([])) == []


def test_overlaps_of_one_label_join_in_a_textgrid_and_neighbours_do_not():
    items = [Annotation(*span, "Dog") for span in ((0, 5), (2.5, 7.5), (7.5, 10), (4, 5))]
    assert spans(an.read_textgrid(an.write_textgrid(items))) == [(0, 7.5, "Dog"), (7.5, 10, "Dog")]


@pytest.mark.parametrize("kind", ["csv", "tsv", "raven"])
def test_names_that_are_not_utf8_stand_in_text_that_is(kind, tmp_path):
    write = {"csv": an.write_csv, "tsv": an.write_tsv, "raven": an.write_raven}[kind]
    path = tmp_path / "table"
    path.write_text(write([Annotation(0.5, 1.5, "Dog", file="caf\udce9.wav")]), encoding="utf-8")
    (read,) = an.read(path)
    assert (read.file, read.label) == ("caf\\xe9.wav", "Dog")


# Round trips


@given(tracks())
def test_audacity_round_trip(track):
    expected = [
        Annotation(item.start, item.end, plain(item.label), low=item.low, high=item.high)
        for item in track
    ]
    assert an.read_audacity(an.write_audacity(track)) == expected
    assert audacity_rules(an.write_audacity(track)) == expected


@given(tracks(), st.lists(st.integers(0, 10**10)))
def test_raven_round_trip(track, lengths):
    lengths = [seconds / 10**6 for seconds in lengths]
    files = dict(zip(dict.fromkeys(item.file or "" for item in track), lengths, strict=False))
    found = an.read_raven(an.write_raven(track, files, 9000.0))
    order = list(dict.fromkeys([*files, *(item.file or "" for item in track)]))
    expected = [
        Annotation(
            item.start,
            item.end,
            plain(item.label),
            item.score,
            plain(item.file or "") or None,
            item.low or 0.0,
            9000.0 if item.high is None else item.high,
        )
        for name in order
        for item in track
        if (item.file or "") == name
    ]
    assert found == expected


@given(tracks(), st.sampled_from(",\t"))
def test_csv_round_trip(track, delimiter):
    assert an.read_csv(an.write_csv(track, delimiter), delimiter) == track


def joined(track):
    """Slow union of the spans of each label, on a grid of the borders that there are."""
    expected = []
    for label in dict.fromkeys(one_line(item.label) for item in track):
        mine = [item for item in track if one_line(item.label) == label]
        cells = []
        borders = sorted({time for item in mine for time in (item.start, item.end)})
        for left, right in pairwise(borders):
            holding = {n for n, i in enumerate(mine) if i.start <= left and right <= i.end}
            if holding and cells and cells[-1][1] == left and cells[-1][2] & holding:
                cells[-1] = cells[-1][0], right, holding
            elif holding:
                cells.append((left, right, holding))
        points = sorted({(item.start, item.end) for item in mine if item.start == item.end})
        expected += [(left, right, label) for left, right, _ in cells]
        expected += [(left, right, label) for left, right in points]
    return expected


@given(tracks(longest=10**11))
def test_textgrid_round_trip(track):
    assert spans(an.read_textgrid(an.write_textgrid(track))) == joined(track)


@given(tracks(longest=10**11), st.integers(0, 10**11))
def test_textgrid_by_praats_rules_has_no_gap(track, micros):
    text = an.write_textgrid(track, micros / 10**6)
    start, end, tiers = praat_rules(text)
    assert start == 0
    assert end == max([micros / 10**6, *(item.end for item in track)])
    kept = []
    for kind, name, items in tiers:
        if kind == "TextTier":
            assert [time for time, _ in items] == sorted({time for time, _ in items})
            kept += [(time, time, name) for time, _ in items]
            continue
        assert items[0][0] == start
        assert items[-1][1] == end
        assert all(a[1] == b[0] for a, b in pairwise(items))
        assert end == 0 or all(left < right for left, right, _ in items)
        kept += [item for item in items if item[2]]
    assert kept == joined(track)


@given(tracks(labels=st.sampled_from(["Dog", "Cat", '"x"'])), st.booleans())
def test_textgrid_short_form_and_encodings(track, big):
    """The short form is the long one without its words."""
    text = an.write_textgrid(track, 5.0)
    short = text.split("\n")[:3] + [
        line.split("=")[-1].split("?")[-1].strip()
        for line in text.split("\n")[3:]
        if not line.strip().endswith("]:") and line.strip()
    ]
    expected = an.read_textgrid(text)
    assert an.read_textgrid("\n".join(short)) == expected
    assert an.read_textgrid(text.replace("\n", "\r\n")) == expected
    mark = "\ufeff".encode("utf-16-be" if big else "utf-16-le")
    data = mark + text.encode("utf-16-be" if big else "utf-16-le")
    assert an.read_textgrid(an.decode(data)) == expected
    assert an.read_textgrid(an.decode(b"\xef\xbb\xbf" + text.encode())) == expected


# Independent readers


def praat_rules(text: str):
    """Praat's manual read literally, character by character: (start, end, tiers).

    Data are free-standing numbers, quoted texts (quotes inside doubled) and flags; an exclamation
    mark starts a comment to the end of the line; any other word is comment.
    """
    data: list = []
    at = 0
    while at < len(text):
        if text[at].isspace():
            at += 1
        elif text[at] == "!":
            while at < len(text) and text[at] != "\n":
                at += 1
        elif text[at] == '"':
            word, at = "", at + 1
            while text[at] != '"' or text[at : at + 2] == '""':
                word += text[at]
                at += 2 if text[at] == '"' else 1
            at += 1
            assert at == len(text) or text[at].isspace(), "character after a closing quote"
            data.append(word)
        else:
            word = ""
            while at < len(text) and not text[at].isspace():
                word, at = word + text[at], at + 1
            if word[0] in "+-" + string.digits:
                data.append(float(word))
            elif word[0] == "<":
                data.append((word,))
    assert data[:2] == ["ooTextFile", "TextGrid"]
    start, end, flag, count = data[2:6]
    assert flag == ("<exists>",)
    rest = iter(data[6:])
    tiers = []
    for _ in range(int(count)):
        kind, name, left, right, size = (next(rest) for _ in range(5))
        assert (left, right) == (start, end)
        width = 3 if kind == "IntervalTier" else 2
        tiers.append(
            (kind, name, [tuple(next(rest) for _ in range(width)) for _ in range(int(size))])
        )
    assert next(rest, None) is None
    return start, end, tiers


def audacity_rules(text: str) -> list[Annotation]:
    """Audacity's manual read literally."""
    found = []
    for line in text.split("\n")[:-1]:
        first, second, *third = line.split("\t")
        if first == "\\":
            low, high = (None if float(x) < 0 else float(x) for x in (second, *third))
            last = found[-1]
            found[-1] = Annotation(last.start, last.end, last.label, low=low, high=high)
        else:
            (label,) = third
            found.append(Annotation(float(first), float(second), label))
    return found


SOBER = st.one_of(
    st.sampled_from([f"x{text}" for text in NASTY]),
    st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"])).map("x".__add__),
)  # labels that pandas does not take for a number or a missing value
ORACLE = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@ORACLE
@given(track=tracks(labels=SOBER, bands=st.none()))
def test_crowsetta_reads_our_audacity_labels(track, tmp_path):
    crowsetta = pytest.importorskip("crowsetta")
    if not track:
        return
    path = tmp_path / "labels.txt"
    path.write_text(an.write_audacity(track), encoding="utf-8", newline="")
    read = crowsetta.formats.seq.AudSeq.from_file(path)
    got = list(zip(read.start_times, read.end_times, read.labels, strict=True))
    assert [label for *_, label in got] == [one_line(item.label) for item in track]
    for (start, end, _), item in zip(got, track, strict=True):
        assert (float(start), float(end)) == pytest.approx((item.start, item.end), abs=1e-9)


BAND = st.tuples(st.integers(0, 10**6), st.integers(1, 10**6))


@st.composite
def boxes(draw):
    """Annotations with a length and a band, as crowsetta wants its boxes."""
    track = [item for item in draw(tracks(labels=SOBER, bands=st.none())) if item.start < item.end]
    bands = [draw(BAND) for _ in track]
    return [
        replace(item, low=low / 100, high=(low + width) / 100)
        for item, (low, width) in zip(track, bands, strict=True)
    ]


@ORACLE
@given(track=boxes())
def test_crowsetta_reads_our_audacity_bands(track, tmp_path):
    crowsetta = pytest.importorskip("crowsetta")
    if not track:
        return
    path = tmp_path / "labels.txt"
    path.write_text(an.write_audacity(track), encoding="utf-8", newline="")
    read = crowsetta.formats.bbox.AudBBox.from_file(path).to_bbox()
    got = [(box.onset, box.offset, box.label, box.low_freq, box.high_freq) for box in read]
    assert got == [(i.start, i.end, one_line(i.label), i.low, i.high) for i in track]


@ORACLE
@given(track=boxes())
def test_crowsetta_reads_our_raven_tables(track, tmp_path):
    crowsetta = pytest.importorskip("crowsetta")
    if not track:
        return
    path = tmp_path / "table.txt"
    path.write_text(an.write_raven(track), encoding="utf-8", newline="")
    read = crowsetta.formats.bbox.Raven.from_file(path).to_bbox()
    ours = an.read_raven(path.read_text(encoding="utf-8"))
    got = [(box.label, box.low_freq, box.high_freq) for box in read]
    assert got == [(item.label, item.low, item.high) for item in ours]
    assert [box.offset - box.onset for box in read] == pytest.approx(
        [item.end - item.start for item in ours], abs=1e-5
    )


@ORACLE
@given(track=tracks(labels=SOBER, longest=10**9))
def test_crowsetta_and_textgrid_read_our_textgrids(track, tmp_path):
    crowsetta, package = pytest.importorskip("crowsetta"), pytest.importorskip("textgrid")
    track = [item for item in track if item.start < item.end]
    path = tmp_path / "labels.TextGrid"
    path.write_text(an.write_textgrid(track, 1.0), encoding="utf-8", newline="")
    expected = joined(track)
    grid = package.TextGrid()
    grid.read(str(path), round_digits=6)
    got = [(i.minTime, i.maxTime, i.mark) for tier in grid.tiers for i in tier if i.mark]
    assert got == expected
    if not track:
        return
    sequences = crowsetta.formats.seq.TextGrid.from_file(path).to_seq(round_times=False)
    sequences = sequences if isinstance(sequences, list) else [sequences]
    got = [
        (
            part.onset_s,
            part.offset_s,
            part.label.replace('""', '"'),
        )  # crowsetta leaves them doubled
        for sequence in sequences
        for part in sequence.segments
    ]
    assert got == expected


def test_praat_points_are_read_by_the_textgrid_package(tmp_path):
    package = pytest.importorskip("textgrid")
    path = tmp_path / "points.TextGrid"
    path.write_text(an.write_textgrid([Annotation(1.5, 1.5, "Click")], 3.0), encoding="utf-8")
    (tier,) = package.TextGrid.fromFile(str(path)).tiers
    assert [(point.time, point.mark) for point in tier] == [(1.5, "Click")]


@ORACLE
@given(track=tracks(labels=SOBER, files=st.none() | SOBER), delimiter=st.sampled_from(",\t"))
def test_pandas_reads_our_tables(track, delimiter):
    pandas = pytest.importorskip("pandas")
    table = pandas.read_csv(
        io.StringIO(an.write_csv(track, delimiter)),
        sep=delimiter,
        keep_default_na=False,
        na_values={"score": [""]},
        lineterminator="\n",
    )
    assert list(table.columns) == list(an.COLUMNS)
    assert list(table.label) == [item.label for item in track]
    assert list(table.file) == [item.file or "" for item in track]
    assert [None if math.isnan(score) else score for score in table.score] == [
        i.score for i in track
    ]


# What others write


def test_audacity_as_audacity_writes_it():
    text = (
        "\ufeff2.150000\t2.150000\tpoint label\r\n"
        "3.400000\t6.100000\tregion\r\n"
        "\\\t-1.000000\t6334.588867\r\n"
        "7,5\t8,25\tdecimal comma\r\n"
        "\\\t100,5\t-1,0\r\n"
        "9.5\tone-sided, 3\r\n"
        "10\t11\r\n"
    )
    assert an.read_audacity(text) == [
        Annotation(2.15, 2.15, "point label"),
        Annotation(3.4, 6.1, "region", low=None, high=6334.588867),
        Annotation(7.5, 8.25, "decimal comma", low=100.5),
        Annotation(9.5, 9.5, "one-sided, 3"),
        Annotation(10.0, 11.0, ""),
    ]


def test_raven_as_raven_pro_writes_it():
    text = (
        "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)"
        "\tSpecies\n"
        "1\tWaveform 1\t1\t154.387792767\t154.911598217\t2878.2\t4049.0\tEATO\n"
        "1\tSpectrogram 1\t1\t154.387792767\t154.911598217\t2878.2\t4049.0\tEATO\n"
        "2\tWaveform 1\t1\t167.5\t168.25\t\t\tEATO\n"
    )
    first = Annotation(154.387792767, 154.911598217, "EATO", low=2878.2, high=4049.0)
    assert an.read_raven(text) == [first, Annotation(167.5, 168.25, "EATO")]
    assert an.read_raven(text, "Species") == an.read_raven(text)
    with pytest.raises(InputError, match="line 1: no column 'Genus'"):
        an.read_raven(text, "Genus")


def test_raven_as_birdnet_writes_it():
    text = (
        "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)"
        "\tCommon Name\tSpecies Code\tConfidence\tBegin Path\tFile Offset (s)\n"
        "1\tSpectrogram 1\t1\t3603.0\t3606.0\t0\t15000\tGreat Tit\tgretit1\t0.8123\t/x/b.wav\t3.0\n"
    )
    expected = Annotation(3.0, 6.0, "Great Tit", 0.8123, "/x/b.wav", 0.0, 15000.0)
    assert an.read_raven(text) == [expected]


def test_textgrid_with_comments_units_and_everything_on_one_line():
    text = (
        'File type = "ooTextFile short"\n"TextGrid"\n! a comment with 3 and "text"\n'
        '0s 2.5s <exists> 2 "IntervalTier" "M""x" 0s 2.5s 2 ! type name\n'
        '0 1e0 "a\nb" [7] 1 2.5 ""\n"TextTier" "bell" 0 2.5 1\t+1.5 "ding ! dong"'
    )
    assert praat.read(text) == [
        praat.Tier('M"x', ((0.0, 1.0, "a\nb"),)),
        praat.Tier("bell", ((1.5, 1.5, "ding ! dong"),), points=True),
    ]
    absent = (
        'File type = "ooTextFile"\nObject class = "TextGrid"\n\nxmin = 0\nxmax = 1\ntiers? <absent>'
    )
    assert praat.read(absent) == []


def test_csv_of_tag_is_read_without_its_empty_rows():
    text = (
        "file,start,end,label,score,model,error\n"
        "a.wav,0.0,5.0,Dog,0.9,tagger,\n"
        "a.wav,5.0,10.0,,,tagger,\n"
        "b.wav,,,,,,truncated: half of it\n"
    )
    assert an.read_csv(text) == [Annotation(0.0, 5.0, "Dog", 0.9, "a.wav")]


def test_read_knows_the_format_by_its_first_line(tmp_path):
    track = [Annotation(0.5, 1.5, "Dog")]
    texts = {
        "audacity": an.write_audacity(track),
        "raven": an.write_raven(track),
        "textgrid": an.write_textgrid(track),
        "csv": an.write_csv(track),
        "tsv": an.write_tsv(track),
    }
    assert set(texts) == set(an.READERS)
    path = tmp_path / "labels"
    for kind, text in texts.items():
        for encoding in ("utf-8", "utf-8-sig", "utf-16"):
            path.write_text(text, encoding=encoding)
            assert an.detect(text) == kind
            assert spans(an.read(path)) == spans(an.read(path, kind)) == spans(track)


# Damage


@pytest.mark.parametrize(
    ("kind", "text", "told"),
    [
        ("audacity", "0\t1\tok\n1.0\tnan\tx", "line 2: expected a number, got 'nan'"),
        ("audacity", "0\t1\tok\n\n5\t4\tx", "line 3: ends at 4, before it starts at 5"),
        ("audacity", "\\\t1\t2", "line 1: a frequency line without a label before it"),
        ("audacity", "0\t1\tx\n\\\t1", "line 2: 1 fields, 2 expected"),
        ("audacity", "1_0\t1e999\tx", "line 1: expected a number, got '1_0'"),
        ("audacity", "just text", "line 1: expected a number, got 'just text'"),
        ("raven", "", "line 1: no column 'Begin Time (s)'"),
        ("raven", "Begin Time (s)\tEnd Time (s)\n1\t2\n", "line 1: no column 'Annotation' or"),
        ("raven", "Begin Time (s)\tEnd Time (s)\tLabel\n1\t2\n", "line 2: 2 fields, 3 expected"),
        ("raven", "Begin Time (s)\tEnd Time (s)\tLabel\n1\tx\tD\n", "line 2: expected a number"),
        ("textgrid", "", "line 1: the file ends where the file type should be"),
        ("textgrid", '"ooTextFile"\n"Pitch"', "line 2: a Praat Pitch, not a TextGrid"),
        ("textgrid", '"other"', "line 1: not a Praat text file"),
        (
            "textgrid",
            '"ooTextFile" "TextGrid" 0 1\n2',
            "line 2: expected <exists> or <absent>, got 2",
        ),
        ("textgrid", '"ooTextFile" "TextGrid"\n0 "1"', 'line 2: expected the end time, got "1"'),
        (
            "textgrid",
            '"ooTextFile" "TextGrid" 0 1 <exists> 1.5',
            "the number of tiers cannot be 1.5",
        ),
        ("textgrid", '"ooTextFile" "TextGrid" 0 1 <exists> 9999999999', "the file ends where"),
        ("textgrid", '"ooTextFile" "TextGrid" 0 1 <exists> 1 "Tier"', "a tier of class 'Tier'"),
        ("textgrid", '"ooTextFile"\n"TextGrid', "line 2: a quoted text that does not end"),
        ("textgrid", '"ooTextFile" "Text"Grid"', "a quote in it not doubled"),
        (
            "textgrid",
            '"ooTextFile" "TextGrid" 0 1 <exists> 1 "IntervalTier" "x" 0 1 1\n1 0 "y"',
            "line 2: ends at 0, before it starts at 1",
        ),
        ("csv", "", "line 1: no column 'start'"),
        ("csv", "start,end\n1,2", "line 1: no column 'label'"),
        ("csv", "start,end,label\n0,1,x\n1,2", "line 3: 2 fields, 3 expected"),
        ("csv", "start,end,label\n0,inf,x", "line 2: expected a number, got 'inf'"),
        ("csv", 'start,end,label\n0,1,"x', "line 2: unexpected end of data"),
        ("csv", "start,end,label\n0,1," + "x" * 200_000, "line 2: field larger than"),
        ("tsv", "start\tend\tlabel\n2\t1\tx", "line 2: ends at 1, before it starts at 2"),
    ],
)
def test_damage_is_told_with_its_line(kind, text, told):
    with pytest.raises(InputError) as error:
        an.READERS[kind](text)
    assert told in str(error.value)
    assert error.value.code == "corrupt"


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError) as missing:
        an.read(tmp_path / "none.txt")
    with pytest.raises(InputError) as folder:
        an.read(tmp_path)
    (tmp_path / "b").write_bytes(b"\xff\x00 latin-1 \xe9")
    with pytest.raises(InputError) as binary:
        an.read(tmp_path / "b")
    with pytest.raises(UsageError, match="no label format 'elan': choose from audacity, raven"):
        an.read(tmp_path / "b", "elan")
    codes = [failed.value.code for failed in (missing, folder, binary)]
    assert codes == ["missing", "unreadable", "corrupt"]


WHOLE = [
    writer(TRACK)
    for writer in (
        an.write_audacity,
        an.write_raven,
        an.write_textgrid,
        an.write_csv,
        an.write_tsv,
    )
]


@st.composite
def broken(draw):
    """A whole file with a few stretches cut, doubled or replaced."""
    text = draw(st.sampled_from(WHOLE))
    for _ in range(draw(st.integers(0, 4))):
        left = draw(st.integers(0, len(text)))
        right = min(len(text), left + draw(st.integers(0, 20)))
        new = draw(st.sampled_from(["", text[left:right] * 2]) | st.text(max_size=5))
        new = draw(st.sampled_from([new, "\t", '"', "\n", "-1", "1e999", "\\", "!"]))
        text = text[:left] + new + text[right:]
    return text


@settings(max_examples=400)
@given(st.one_of(broken(), st.text()), st.sampled_from(sorted(an.READERS)))
def test_fuzz_text(text, kind):
    for reader in (an.READERS[kind], an.READERS[an.detect(text)]):
        try:
            items = reader(text)
        except AudiosslError as error:
            assert "line " in str(error)  # noqa: PT017
        else:
            assert all(math.isfinite(i.start) and i.start <= i.end < math.inf for i in items)


@given(st.binary(max_size=200))
def test_fuzz_bytes(data):
    try:
        an.READERS[an.detect(an.decode(data))](an.decode(data))
    except AudiosslError as error:
        assert error.code == "corrupt"  # noqa: PT017


@given(st.lists(st.none() | st.text(st.characters(exclude_categories=["Cs"])), min_size=1))
def test_delimited_is_read_back_by_the_standard_library(values):
    import csv

    line = tables.delimited(values)
    rows = list(csv.reader(io.StringIO(line, newline=""), strict=True))
    assert rows == [[value or "" for value in values]] or (
        values in ([None], [""]) and rows == [[]]
    )


@given(st.floats(-1e9, 1e9), st.integers(0, 6))
def test_trimmed_is_the_rounded_number(value, digits):
    text = tables.trimmed(value, digits)
    assert float(text) == round(value, digits)
    assert "e" not in text
    assert text != "-0"
    assert not ("." in text and text.endswith("0"))
