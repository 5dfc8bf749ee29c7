"""The report: one page that stands alone, says what the records say, and opens in a browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from audiossl.data.rows import Row
from audiossl.errors import InputError, OutputError, UsageError
from audiossl.evaluate import charts, projection, report
from audiossl.evaluate.evaluation import Evaluation, Options, Result
from audiossl.evaluate.probes import Settings

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
HEADLESS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)
VOID = {"meta", "br", "link", "img"}
LABELS = ('<b>"bird" & co', "rain", "tür\u202e")


class Page(HTMLParser):
    """Elements, their attributes and texts; every element is closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and data.strip():
            self.texts.append((self.open[-1], data.strip()))

    def of(self, tag: str) -> list[str]:
        return [text for where, text in self.texts if where == tag]


def evaluation(labels: tuple[str, ...] = LABELS, **options) -> Evaluation:
    """Features of made-up clips with awkward names; the last class is hard."""
    rng = np.random.default_rng(0)
    rows, features = [], []
    for i in range(12 * len(labels)):
        number = i % len(labels)
        label, centre = labels[number], np.eye(len(labels))[number] * (number < len(labels) - 1)
        name = f"<script>alert({i})<script>.wav" if i % 2 else f"a&b '{i}'\udcff.wav"
        rows.append(
            Row(Path("clips") / name, labels=(label,), fold=str(i // len(labels) % 3), number=i)
        )
        features.append(centre + 0.35 * rng.normal(size=len(labels)))
    error = InputError("text & <no> sound", code="unknown-format")
    return Evaluation(
        "data/<esc>.csv",
        "my model",
        rows,
        Options(settings=Settings(l2=0.1), **options),
        np.array(features, np.float32),
        errors=[(Row(Path("bad<.wav")), error)],
    )


@pytest.fixture(scope="module")
def whole() -> tuple[Evaluation, list[Result], str]:
    own = evaluation(probes=("knn", "linear"), shots=(2, None), seeds=2)
    results = list(own.results())
    return own, results, report.page(own, results)


def test_the_page_is_whole_accessible_and_alone(
    whole: tuple[Evaluation, list[Result], str],
) -> None:
    text = whole[2]
    page = Page(text)
    tags = [tag for tag, _ in page.tags]
    assert text.startswith("<!doctype html>")
    assert dict(page.tags)["html"] == {"lang": "en"}
    assert page.of("title")[0] == "Probe: my model on <esc>.csv"
    assert "script" not in tags
    for tag, attributes in page.tags:
        assert not {"src", "href", "xlink:href", "onload", "onclick"} & set(attributes), tag
        if tag == "svg":
            assert attributes.get("aria-label") or attributes.get("aria-hidden") == "true"
        if tag == "th":
            assert attributes["scope"] in ("row", "col")
    assert not re.search(r"https?:|url\(|@import|//", text.replace("<!doctype", ""))
    assert "prefers-color-scheme: dark" in text
    headings = [int(tag[1]) for tag in tags if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(headings))


def test_names_are_shown_as_they_are_and_never_as_markup(
    whole: tuple[Evaluation, list[Result], str],
) -> None:
    text = whole[2]
    page = Page(text)
    texts = [own for _, own in page.texts]
    assert "<script>" not in text
    assert LABELS[0] in texts
    assert "tür\ufffd" in texts  # what turns the direction of writing is not shown
    assert any("<script>alert(1)<script>.wav" in own for own in texts)
    assert any("a&b '0'\ufffd.wav" in own for own in texts)
    assert any(own == "bad<.wav: text & <no> sound" for own in page.of("li"))
    text.encode("utf-8")


def test_the_numbers_are_those_of_the_records(
    whole: tuple[Evaluation, list[Result], str],
) -> None:
    _, results, text = whole
    table = re.search(r'<table class="results">.*?</table>', text, re.DOTALL)
    assert table
    page = Page(table[0])
    rows = re.findall(r"<tr><th scope=\"row\">.*?</tr>", table[0])
    assert len(rows) == 4
    heads = page.of("th")[2:]
    for result, row in zip(results, rows, strict=True):
        cells = Page(row)
        assert cells.of("th") == [result.probe]
        assert cells.of("td")[0] == str(result.shots or "all")
        found = {record.metric: record.to_dict() for record in result.records}
        names = [name for name in report.TITLES if name in found]
        assert [report.TITLES[name] for name in names] == heads[: len(names)]
        assert cells.of("b") == [f"{found[name]['mean']:.4f}" for name in names]
        ends = [found[name]["ci95"] for name in names]
        assert cells.of("small") == [f"{low:.4f} – {high:.4f}" for low, high in ends]


def test_the_confusion_matrix_is_counted_by_hand(
    whole: tuple[Evaluation, list[Result], str],
) -> None:
    own, results, text = whole
    counts = report.confusion(own, results[0])
    expected = np.zeros((3, 3))
    for unit in results[0].units:
        for place, scores in zip(unit.test, unit.scores, strict=True):
            expected[own.targets[place].argmax(), scores.argmax()] += 0.5  # two seeds
    np.testing.assert_allclose(counts, expected)
    np.testing.assert_allclose(counts.sum(1), 12)
    right = np.diag(counts).sum() / counts.sum()
    (accuracy,) = (r.mean for r in results[0].records if r.metric == "accuracy")
    assert right == pytest.approx(accuracy)
    matrix = re.search(r'<table class="matrix">.*?</table>', text, re.DOTALL)
    assert matrix
    shown = [float(cell) for cell in Page(matrix[0]).of("td")]
    assert shown == pytest.approx([n for n in counts.ravel() if n], rel=0.01)


def test_class_precision_is_what_cmap_is_the_mean_of(
    whole: tuple[Evaluation, list[Result], str],
) -> None:
    own, results, _ = whole
    for result in results:
        found = report.class_precision(own, result)
        (cmap,) = (r.mean for r in result.records if r.metric == "cmap")
        assert found.mean() == pytest.approx(cmap)


def test_many_classes_have_their_worst_confusions_listed() -> None:
    labels = tuple(f"class {i:02}" for i in range(report.MOST_CLASSES + 2))
    own = evaluation(labels, probes=("knn",))
    (result,) = own.results()
    text = report.page(own, [result])
    Page(text)
    assert 'class="matrix"' not in text
    assert "Taken for" in text
    counts = report.confusion(own, result)
    wrong = counts - np.diag(np.diag(counts))
    i, j = np.unravel_index(wrong.argmax(), wrong.shape)
    assert f'<th scope="row">{labels[i]}</th><td>{labels[j]}</td>' in text


def test_several_labels_have_no_matrix_and_no_label_is_a_class_of_the_map() -> None:
    own = evaluation(probes=("knn",), task="multi")
    own.rows = [replace(own.rows[0], labels=()), *own.rows[1:]]
    own.targets[0] = 0
    results = list(own.results())
    text = report.page(own, results)
    Page(text)
    assert 'class="matrix"' not in text
    assert "no label" in text
    assert "Top-1 hit" in text


def test_pca_is_scikit_learns() -> None:
    from sklearn.decomposition import PCA

    rng = np.random.default_rng(0)
    for shape in ((50, 7), (20, 90)):
        features = rng.normal(size=shape) @ np.diag(np.linspace(1, 4, shape[1]))
        places, shares = projection.pca(features.astype(np.float32))
        reference = PCA(2).fit(features)
        expected = reference.transform(features)
        np.testing.assert_allclose(np.abs(places), np.abs(expected), atol=1e-3)
        np.testing.assert_allclose(shares, reference.explained_variance_ratio_, atol=1e-5)
        assert (places[np.abs(places).argmax(0), [0, 1]] > 0).all()
    flat, shares = projection.pca(np.ones((5, 1), np.float32))
    assert flat.shape == (5, 2)
    assert (flat == 0).all()
    assert (shares == 0).all()


def test_tsne_needs_scikit_learn_and_keeps_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    features = np.repeat(rng.normal(size=(3, 10)), 8, axis=0) + 0.05 * rng.normal(size=(24, 10))
    places, words = projection.project(features.astype(np.float32), "tsne")
    assert "t-SNE" in words
    for i in range(24):
        nearest = np.square(places - places[i]).sum(1).argsort()[1:4]
        assert (nearest // 8 == i // 8).all()
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(UsageError, match="pip install scikit-learn"):
        projection.check("tsne")
    with pytest.raises(UsageError, match="one of pca, tsne"):
        projection.check("umap")


def test_a_map_of_many_clips_shows_some_and_names_lie_apart() -> None:
    places = np.random.default_rng(0).normal(size=(9000, 2))
    drawing = charts.scatter(places, np.zeros(9000, np.int64), ["a"], ["n"] * 9000, "t")
    assert 2000 < drawing.count("<circle") <= charts.MOST_POINTS
    apart = charts.apart([("one", 10, 50), ("two", 12, 52), ("far", 300, 51)])
    heights = {name: y for name, _, y in apart}
    assert heights["two"] - heights["one"] >= charts.LINE
    assert heights["far"] == 51
    marks = {charts.mark(number, 0, 0) for number in range(40)}
    assert len(marks) == 40


def test_the_page_appears_whole_or_not_at_all(
    whole: tuple[Evaluation, list[Result], str], tmp_path: Path
) -> None:
    own, results, text = whole
    report.write(tmp_path / "report.html", own, results)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == text
    with pytest.raises(OutputError):
        report.write(tmp_path / "no" / "report.html", own, results)
    with pytest.raises(UsageError):
        report.write(tmp_path / "other.html", own, results, kind="umap")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")
def test_a_browser_shows_it_without_a_word_of_complaint(
    whole: tuple[Evaluation, list[Result], str], tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    path.write_text(whole[2], encoding="utf-8")

    def browse(*options: str) -> subprocess.CompletedProcess[str]:
        own = f"--user-data-dir={tmp_path / 'profile'}"
        return subprocess.run(
            [str(CHROMIUM), *HEADLESS, own, "--enable-logging=stderr", *options, path.as_uri()],
            capture_output=True, text=True, check=False, timeout=110,
        )  # fmt: skip

    picture = tmp_path / "shot.png"
    done = browse("--dump-dom", "--window-size=1000,2000", f"--screenshot={picture}")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "CONSOLE" not in done.stderr
    if "<table" not in done.stdout:  # some versions do one of both at a time
        done = browse("--dump-dom")
    page = Page(done.stdout)
    assert len([tag for tag, _ in page.tags if tag == "table"]) == 9
    assert LABELS[0] in [text for _, text in page.texts]
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert picture.stat().st_size > 20_000
