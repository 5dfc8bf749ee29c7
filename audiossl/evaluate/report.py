"""One HTML page of an evaluation: it needs no network, no script and no other file.

Results with their intervals, who is taken for whom, how well each class does, and a map of the
clips. It follows the reader's choice of light or dark, and its pictures say in words what they are.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

import audiossl
from audiossl.atomic import atomic_write
from audiossl.evaluate import charts, metrics, projection
from audiossl.evaluate.charts import shown
from audiossl.evaluate.estimates import mean
from audiossl.evaluate.evaluation import Evaluation, Result
from audiossl.evaluate.probe_record import ProbeRecord
from audiossl.evaluate.report_style import STYLE

MOST_CLASSES = 30  # in a confusion matrix
CONFUSIONS = 30  # listed where there are more classes
MOST_ERRORS = 100
NUMBERS = ("Clips", "AP", "Of the class")  # heads of columns of numbers
FULL = 0.6  # share from which a cell is dark
TITLES = {
    "accuracy": "Accuracy",
    "top1": "Top-1 hit",
    "cmap": "cmAP",
    "auroc": "AUROC",
    "map_samples": "mAP of clips",
    "dprime": "d′",
}
MEANINGS = {
    "accuracy": "share of clips whose highest score is at their label",
    "top1": "share of clips whose highest score is at one of their labels",
    "cmap": "average precision, the mean over classes",
    "auroc": "area under the ROC curve, the mean over classes",
    "map_samples": "average precision of each clip’s ranking of the classes, the mean over clips",
    "dprime": "√2 z(AUROC), where AUROC is below 1",
}
PROTOCOLS = {
    "folds": "each fold is tested by probes trained on the others",
    "split": "the test split is tested",
    "holdout": "groups of clips are held out at random, anew for each seed",
}


def write(
    path: str | os.PathLike[str],
    evaluation: Evaluation,
    results: Sequence[Result],
    kind: str = "pca",
) -> None:
    """Write the page of `results` to `path`. kind: of the map, one of projection.MAPS.

    Raises OutputError, or UsageError when such a map cannot be made here.
    """
    text = page(evaluation, results, kind)
    with atomic_write(path) as file:
        file.write(text.encode("utf-8"))


def page(evaluation: Evaluation, results: Sequence[Result], kind: str = "pca") -> str:
    """The whole page."""
    title = f"{shown(evaluation.model)} on {shown(os.path.basename(evaluation.data) or 'data')}"
    details = [_details(evaluation, result, not i) for i, result in enumerate(results)]
    parts = [
        f'<h1>{title}</h1><p class="lead">{_lead(evaluation, results)}</p>',
        _section("Results", results_table(results) + _figure(evaluation, results)),
        _section("Classes", "".join(details)),
        _section("Map of the clips", _map(evaluation, kind)),
        _section("How to read this", _reading(results)),
    ]
    if evaluation.errors:
        parts.append(_section("Left out", _errors(evaluation)))
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>Probe: {title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n"
        f"<footer>audiossl {audiossl.__version__}</footer>\n</main>\n</body>\n</html>\n"
    )


def results_table(results: Sequence[Result]) -> str:
    """A row a probe and number of shots, a column a metric; the numbers are the records'."""
    names = _metrics(results)
    head = "".join(f'<th scope="col">{TITLES[name]}</th>' for name in names)
    rows = []
    for result in results:
        found = {record.metric: record for record in result.records}
        cells = "".join(f"<td>{_number(found.get(name))}</td>" for name in names)
        rows.append(
            f'<tr><th scope="row">{result.probe}</th><td>{result.shots or "all"}</td>{cells}'
            f"<td>{len({unit.seed for unit in result.units})}</td></tr>"
        )
    return (
        '<div class="wide"><table class="results"><caption>Mean over folds and seeds, below it its'
        ' 95 % interval</caption><thead><tr><th scope="col">Probe</th><th scope="col">Clips a class'
        f'</th>{head}<th scope="col">Seeds</th></tr></thead><tbody>{"".join(rows)}</tbody></table>'
        "</div>"
    )


def _number(record: ProbeRecord | None) -> str:
    if record is None:
        return "–"
    said = record.to_dict()
    low, high = said["ci95"]
    return f"<b>{said['mean']:.4f}</b><small>{low:.4f} – {high:.4f}</small>"


def _figure(evaluation: Evaluation, results: Sequence[Result]) -> str:
    name = "accuracy" if evaluation.single else "cmap"
    rows = [
        (f"{result.probe}, {_shots(result)}", record.mean, *record.ci95)
        for result in results
        for record in result.records
        if record.metric == name
    ]
    return f"<figure>{charts.intervals(rows, TITLES[name])}</figure>" if rows else ""


def _details(evaluation: Evaluation, result: Result, opened: bool) -> str:
    record = result.records[0] if result.records else None
    value = f": {TITLES[record.metric]} {record.to_dict()['mean']:.4f}" if record else ""
    matrix = _confusions(evaluation, result) if evaluation.single else ""
    return (
        f"<details{' open' if opened else ''}><summary><b>{result.probe}</b>,"
        f" {_shots(result)}{value}</summary><div>{matrix}"
        f"{_bars(evaluation, result)}</div></details>"
    )


def confusion(evaluation: Evaluation, result: Result) -> NDArray[np.float64]:
    """(classes, classes): tested clips of a row's class that score highest in a column's, the mean
    over seeds. One label a clip."""
    classes = len(evaluation.labels)
    counts = np.zeros((classes, classes))
    for unit in result.units:
        true = evaluation.targets[unit.test].argmax(1)
        np.add.at(counts, (true, unit.scores.argmax(1)), 1)
    return counts / len({unit.seed for unit in result.units})


def _confusions(evaluation: Evaluation, result: Result) -> str:
    counts = confusion(evaluation, result)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1e-9)
    labels = [shown(label) for label in evaluation.labels]
    title = "<h3>Confusions: clips of the row’s class that were taken for the column’s</h3>"
    if len(labels) > MOST_CLASSES:
        return title + _worst(counts, shares, labels)
    head = "".join(f'<th scope="col"><span>{label}</span></th>' for label in labels)
    rows = []
    for label, own, share in zip(labels, counts, shares, strict=True):
        cells = "".join(map(_cell, own, share))
        rows.append(f'<tr><th scope="row">{label}</th>{cells}</tr>')
    return (
        f'{title}<div class="wide"><table class="matrix"><thead><tr><td></td>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell(count: float, share: float) -> str:
    if not count:
        return "<td></td>"
    dark = ' class="full"' if share >= FULL else ""
    return f'<td{dark} style="--s:{share:.2f}">{count:.3g}</td>'


def _worst(counts: NDArray[np.float64], shares: NDArray[np.float64], labels: list[str]) -> str:
    """The most frequent confusions, by the share of the class."""
    wrong = np.where(np.eye(len(labels), dtype=bool), 0, shares)
    order = np.argsort(-wrong, axis=None, kind="stable")[:CONFUSIONS]
    rows = [
        f'<tr><th scope="row">{labels[i]}</th><td>{labels[j]}</td>'
        f'<td class="number">{counts[i, j]:.3g}</td><td class="number">{shares[i, j]:.0%}</td></tr>'
        for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True)
        if wrong[i, j]
    ]
    return _table("bars", ("Class", "Taken for", "Clips", "Of the class"), rows)


def class_precision(evaluation: Evaluation, result: Result) -> NDArray[np.float64]:
    """(classes,) average precision, the mean over folds and seeds; NaN where none was tested."""
    parts = [
        metrics.average_precision(unit.scores, evaluation.targets[unit.test])
        for unit in result.units
    ]
    return mean(np.array(parts))


def _bars(evaluation: Evaluation, result: Result) -> str:
    found = class_precision(evaluation, result)
    clips = (evaluation.targets > 0).sum(0)
    order = np.argsort(-np.nan_to_num(found, nan=-1), kind="stable")
    rows = []
    for i in order:
        value = "–" if np.isnan(found[i]) else f"{found[i]:.3f}"
        width = 100 * float(np.nan_to_num(found[i]))
        rows.append(
            f'<tr><th scope="row">{shown(evaluation.labels[i])}</th><td class="number">{clips[i]}'
            f'</td><td class="number">{value}</td><td class="bar"><span style="width:{width:.1f}%">'
            "</span></td></tr>"
        )
    return "<h3>Average precision of each class</h3>" + _table(
        "bars", ("Class", "Clips", "AP", ""), rows
    )


def _table(style: str, head: Sequence[str], rows: Sequence[str]) -> str:
    cells = "".join(
        f'<th scope="col"{" class=number" * (name in NUMBERS)}>{name}</th>' if name else "<td></td>"
        for name in head
    )
    return (
        f'<div class="wide"><table class="{style}"><thead><tr>{cells}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _map(evaluation: Evaluation, kind: str) -> str:
    if evaluation.pooled is None or len(evaluation.pooled) < 3:
        return "<p>Too few clips for a map.</p>"
    places, words = projection.project(evaluation.pooled, kind)
    labels = list(evaluation.labels)
    classes = np.where(
        (evaluation.targets > 0).any(1), evaluation.targets.argmax(1), len(labels)
    ).astype(np.int64)
    if (classes == len(labels)).any():
        labels.append("no label")
    names = [
        f"{os.path.basename(row.name)}: {', '.join(row.labels) or 'no label'}"
        for row in evaluation.rows
    ]
    drawing = charts.scatter(places, classes, labels, names, f"{len(names)} clips by {words}")
    several = "" if evaluation.single else " A clip with several labels has the mark of its first."
    return (
        f"<figure>{drawing}{charts.legend(labels)}<figcaption>Pooled features of all clips:"
        f" {words}.{several}</figcaption></figure>"
    )


def _lead(evaluation: Evaluation, results: Sequence[Result]) -> str:
    kind = "one label a clip" if evaluation.single else "any number of labels a clip"
    folds = max((record.folds for result in results for record in result.records), default=1)
    return (
        f"{len(evaluation.rows)} clips, {len(evaluation.labels)} classes, {kind}."
        f" {folds} test set{'s' if folds > 1 else ''}: {PROTOCOLS[evaluation.protocol]}."
    )


def _reading(results: Sequence[Result]) -> str:
    terms = "".join(f"<dt>{TITLES[n]}</dt><dd>{MEANINGS[n]}</dd>" for n in _metrics(results))
    return (
        f"<dl>{terms}</dl><p>The intervals hold with 95 % for probes trained like these: groups of"
        " test clips are drawn again and again with replacement within their folds, and with"
        " several seeds the spread of the seeds is added. With one seed they do not say what other"
        " training clips would have given.</p>"
    )


def _errors(evaluation: Evaluation) -> str:
    items = [
        f"<li>{shown(row.name)}: {shown(error.message)}</li>"
        for row, error in evaluation.errors[:MOST_ERRORS]
    ]
    more = len(evaluation.errors) - len(items)
    rest = f"<p>… and {more} more.</p>" if more > 0 else ""
    return f"<p>Files that could not be read:</p><ul>{''.join(items)}</ul>{rest}"


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>"


def _metrics(results: Sequence[Result]) -> list[str]:
    found = {record.metric for result in results for record in result.records}
    return [name for name in TITLES if name in found]


def _shots(result: Result) -> str:
    if result.shots is None:
        return "all clips"
    return f"{result.shots} clip{'s' if result.shots > 1 else ''} a class"
