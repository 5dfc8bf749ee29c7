"""`audiossl probe`: how good a model's features are for the classes of some data."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import click

from . import options

PROBES = ("knn", "linear", "ridge", "mlp", "attentive", "prototypical")
FORMATS = ("table", "jsonl", "json", "csv", "tsv")

Texts = tuple[str, ...]


def _listed(texts: Texts, expand: Texts) -> list[str]:
    """`--probe knn,linear --probe mlp` -> three names, each once; "all" stands for `expand`."""
    names = [part.strip() for text in texts for part in text.split(",") if part.strip()]
    return list(dict.fromkeys(n for name in names for n in (expand if name == "all" else (name,))))


def probe_names(_ctx: click.Context, _param: click.Parameter, texts: Texts) -> Texts:
    names = _listed(texts, PROBES)
    for name in names:
        if name not in PROBES:
            raise click.BadParameter(f"{name!r} is not one of all, {', '.join(PROBES)}.")
    return tuple(names)


def shot_numbers(
    _ctx: click.Context, _param: click.Parameter, texts: Texts
) -> tuple[int | None, ...]:
    names = _listed(texts, ("all",))
    for name in names:
        if name != "all" and not (name.isascii() and name.isdigit() and int(name)):
            raise click.BadParameter(f"{name!r} is neither a number of clips nor all.")
    return tuple(None if name == "all" else int(name) for name in names)


what = options.chain(
    click.option("--data", required=True, metavar="MANIFEST|FOLDER|NAME",
                 shell_complete=options.complete_sets, help="Labelled clips."),
    click.option("--root", metavar="FOLDER", type=click.Path(),
                 help="Where the paths of a manifest begin, or where a set lies."),
    click.option("-p", "--probe", "probes", multiple=True, default=["linear"],
                 callback=probe_names, metavar="NAME[,NAME...]",
                 help=f"{', '.join(PROBES)}, or all.  [default: linear]"),
    click.option("-s", "--shots", multiple=True, default=["all"], callback=shot_numbers,
                 metavar="K[,K...]", help="Clips a class to train on.  [default: all]"),
    click.option("--seeds", type=click.IntRange(1), metavar="N", help="Repetitions."
                 "  [default: 5 where chance decides which clips train, else 1]"),
    click.option("--rule", type=click.Choice(["any", "lenient", "strict"]), default="any",
                 show_default=True, help="Few shots from recordings of any kind, of up to 20 s with"
                 " one label (lenient), or of up to 5 s (strict)."),
    click.option("--protocol", type=click.Choice(["auto", "folds", "split", "holdout"]),
                 default="auto", show_default=True, help="What is tested: each fold in turn, the"
                 " test split, or groups drawn at random."),
    click.option("--test-fraction", "fraction", default=0.2, show_default=True,
                 type=options.Finite(0, 1, min_open=True, max_open=True),
                 help="Share of the groups in a holdout."),
    click.option("--task", type=click.Choice(["auto", "single", "multi"]), default="auto",
                 show_default=True, help="One label a clip or any number; auto: as the data are."),
    click.option("--standardise/--no-standardise", default=True, show_default=True,
                 help="Pooled features, by mean and deviation of the training clips."),
)  # fmt: skip

settings = options.chain(
    click.option("--l2", type=options.Finite(0, min_open=True), metavar="X",
                 help="Strength for linear and ridge.  [default: chosen on training clips]"),
    click.option("--k", type=click.IntRange(1), default=10, show_default=True,
                 help="Neighbours for knn."),
    click.option("--prototypes", type=click.IntRange(1), default=20, show_default=True,
                 help="A class, for prototypical."),
    click.option("--epochs", type=click.IntRange(1), metavar="N", help="For mlp, attentive and"
                 " prototypical.  [default: 50, more where they are short]"),
)  # fmt: skip

where = options.chain(
    click.option("--cache", type=click.Path(), metavar="FOLDER",
                 help="Keep features here, and take those that are here already."),
    click.option("--report", type=click.Path(), metavar="HTML", help="Write a page about it all."),
    click.option("--map", "map_", type=click.Choice(["pca", "tsne"]), default="pca",
                 show_default=True, help="How the page draws the clips."),
    click.option("-f", "--format", "format_", type=click.Choice(["auto", *FORMATS]),
                 default="auto", help="auto: table on a terminal, jsonl otherwise."),
    click.option("-o", "--out", type=click.Path(), metavar="FILE",
                 help="Write here, whole or not at all."),
    click.option("--on-exists", type=click.Choice(["error", "skip", "overwrite"]), default="error",
                 help="What to do when an output exists."),
    options.device,
    options.offline,
    click.option("-j", "--jobs", type=click.IntRange(1), help="Files and fits at work at once;"
                 " results are the same.  [default: all cores]"),
    options.common,
)  # fmt: skip


@click.command()
@click.argument("model", metavar="MODEL", shell_complete=options.complete_models)
@what
@settings
@where
def command(model: str, format_: str, on_exists: str, **values: Any) -> int:
    """Say how good a model's features are for your classes, with how many labels.

    The model stays as it is: small classifiers learn from its features of some clips and are tested
    on others, never of the same group. The data are a manifest (columns path, labels, fold, group,
    split), a folder with a subfolder a label, or a data set by name. There is one record a metric,
    with its 95 % interval.

    \b
    audiossl probe tagger --data clips/
    audiossl probe runs/a/best --data esc10 --probe prototypical --shots 5 --report report.html
    audiossl probe tagger --data clips.csv --probe all --shots 1,5,10,all --format csv -o probes.csv
    """
    from .output import pick_format

    format_ = pick_format(format_, values["out"], FORMATS)
    if format_ == "table" and values["out"]:
        raise click.UsageError("a table is for the terminal: give another --format with --out")
    out, report, done = destinations(values["out"], values["report"], on_exists)
    if done:
        return 0
    return run(model, format_=format_, **{**values, "out": out, "report": report})


def destinations(
    out: str | None, report: str | None, on_exists: str
) -> tuple[str | None, str | None, bool]:
    """Where records and page go, without what is there and stays; whether nothing is to be done.

    Looked at before the work, which is long. Raises OutputError.
    """
    from audiossl.errors import OutputError
    from audiossl.pipeline.sinks import check_writable

    paths = [path for path in (out, report) if path]
    if len({os.path.realpath(path) for path in paths}) < len(paths):
        raise click.UsageError(f"--out and --report are one file: {out}")
    there = [path for path in paths if os.path.exists(path)]
    kept = there if on_exists == "skip" else []
    for path in kept:
        click.echo(f"audiossl: {path} is there already: it stays as it is", err=True)
    for path in paths:
        if path not in kept:
            check_writable(path)
    if there and on_exists == "error":
        raise OutputError(f"{there[0]} exists: --on-exists overwrite or skip, or another name")
    if out in kept and (report is None or report in kept):
        click.echo("audiossl: nothing to do", err=True)
        return out, report, True
    # Records that stand in a file already do not go to stdout instead.
    return (os.devnull if out in kept else out), (None if report in kept else report), False


def run(
    model: str,
    *,
    data: str,
    root: str | None,
    format_: str,
    out: str | None,
    report: str | None,
    map_: str,
    cache: str | None,
    device: str,
    jobs: int | None,
    quiet: bool,
    **values: Any,
) -> int:
    """Evaluate, write the records and the page; the exit code."""
    from audiossl import errors
    from audiossl.device import pick_device
    from audiossl.evaluate import probe, probes, projection
    from audiossl.evaluate.evaluation import Options
    from audiossl.hub.facts import digest
    from audiossl.model import load

    from . import output

    if report:
        projection.check(map_)
    own = {name: values.pop(name) for name in ("l2", "k", "prototypes", "epochs")}
    chosen = Options(settings=probes.Settings(**own), **values)
    name, rows = probe.read_data(data, root)
    loaded = load(model, pick_device(device, threads=1))
    keeping = {"digest": digest(model), "cache": cache, "pooled": bool(report)}
    with output.progress_line(quiet, "probed") as progress:
        keeping |= {"jobs": jobs or options.cores(), "progress": progress}
        with probe.opened(loaded, rows, chosen, name, **keeping) as evaluation:
            results: list[Any] = []
            deliver(records(evaluation, results), format_, out)
            if report and results:
                from audiossl.evaluate.report import write

                write(report, evaluation, results, map_)
    if evaluation.errors:
        return errors.EXIT_SOME_FAILED if evaluation.rows else errors.EXIT_ALL_FAILED
    return errors.EXIT_OK


def records(evaluation: Any, results: list[Any]) -> Iterator[dict[str, Any]]:
    """Files that failed, which are told on stderr as well, and what was measured on the others;
    each result is added to `results`."""
    from audiossl.output.records import ErrorRecord

    from .output import say_record_error

    for row, error in evaluation.errors:
        say_record_error(row.name, error)
        yield ErrorRecord(row.name, error.code, error.message).to_dict()
    for result in evaluation.results() if evaluation.rows else ():
        results.append(result)
        yield from (record.to_dict() for record in result.records)


def deliver(items: Iterator[dict[str, Any]], format_: str, out: str | None) -> None:
    """Records to stdout as they come, or to a file when all are there."""
    from audiossl.atomic import atomic_write
    from audiossl.evaluate.probe_record import FORMATS
    from audiossl.pipeline.stdout import write_stdout

    writer, text = FORMATS[format_](), []
    put: Callable[[str], None] = text.append if out else write_stdout
    put(writer.begin())
    for item in items:
        put(writer.record(item))
    put(writer.end())
    if out:
        with atomic_write(out) as file:
            file.write("".join(text).encode("utf-8", "surrogateescape"))
