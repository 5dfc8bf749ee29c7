"""`audiossl probe`: measure how good a model's features are for the classes of a data set."""

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
    """`--probe knn,linear --probe mlp` -> three names, without repeats; "all" means `expand`."""
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
    click.option(
        "--data",
        required=True,
        metavar="MANIFEST|FOLDER|NAME",
        shell_complete=options.complete_sets,
        help="Labelled clips: a manifest, a folder or a known data set.",
    ),
    click.option(
        "--root",
        metavar="FOLDER",
        type=click.Path(),
        help="Folder that the paths of a manifest start from, or folder of the data set.",
    ),
    click.option(
        "-p",
        "--probe",
        "probes",
        multiple=True,
        default=["linear"],
        callback=probe_names,
        metavar="NAME[,NAME...]",
        help=f"Classifiers: {', '.join(PROBES)}, or all.  [default: linear]",
    ),
    click.option(
        "-s",
        "--shots",
        multiple=True,
        default=["all"],
        callback=shot_numbers,
        metavar="K[,K...]",
        help="Number of training clips per class.  [default: all]",
    ),
    click.option(
        "--seeds",
        type=click.IntRange(1),
        metavar="N",
        help="Number of repetitions.  [default: 5 if training clips are drawn at random, else 1]",
    ),
    click.option(
        "--rule",
        type=click.Choice(["any", "lenient", "strict"]),
        default="any",
        show_default=True,
        help="Which clips --shots may draw: any; lenient: up to 20 s and"
        " one label; strict: up to 5 s.",
    ),
    click.option(
        "--protocol",
        type=click.Choice(["auto", "folds", "split", "holdout"]),
        default="auto",
        show_default=True,
        help="What is tested: each fold in"
        " turn, the test split, or groups drawn at random (holdout).",
    ),
    click.option(
        "--test-fraction",
        "fraction",
        default=0.2,
        show_default=True,
        type=options.Finite(0, 1, min_open=True, max_open=True),
        help="Fraction of the groups that a holdout tests.",
    ),
    click.option(
        "--task",
        type=click.Choice(["auto", "single", "multi"]),
        default="auto",
        show_default=True,
        help="single: one label per clip; multi: any number; auto: by the data.",
    ),
    click.option(
        "--standardise/--no-standardise",
        default=True,
        show_default=True,
        help="Scale pooled features to mean 0 and deviation 1 over the training clips.",
    ),
)

settings = options.chain(
    click.option(
        "--l2",
        type=options.Finite(0, min_open=True),
        metavar="X",
        help="L2 penalty of linear and ridge.  [default: chosen on training clips]",
    ),
    click.option(
        "--k",
        type=click.IntRange(1),
        default=10,
        show_default=True,
        help="Number of neighbours of knn.",
    ),
    click.option(
        "--prototypes",
        type=click.IntRange(1),
        default=20,
        show_default=True,
        help="Number of prototypes per class of prototypical.",
    ),
    click.option(
        "--epochs",
        type=click.IntRange(1),
        metavar="N",
        help="Training epochs of"
        " mlp, attentive and prototypical.  [default: 50, more for few clips]",
    ),
)

where = options.chain(
    click.option(
        "--cache",
        type=click.Path(),
        metavar="FOLDER",
        help="Store features here and reuse them in later runs.",
    ),
    click.option(
        "--report", type=click.Path(), metavar="HTML", help="Write a web page with all results."
    ),
    click.option(
        "--map",
        "map_",
        type=click.Choice(["pca", "tsne"]),
        default="pca",
        show_default=True,
        help="Projection of the clips for the map on that page.",
    ),
    click.option(
        "-f",
        "--format",
        "format_",
        type=click.Choice(["auto", *FORMATS]),
        default="auto",
        help="auto: by the suffix of --out; without --out, table on a terminal, else jsonl.",
    ),
    click.option(
        "-o",
        "--out",
        type=click.Path(),
        metavar="FILE",
        help="Output file; it appears when it is complete.",
    ),
    click.option(
        "--on-exists",
        type=click.Choice(["error", "skip", "overwrite"]),
        default="error",
        help="What to do if an output exists already.",
    ),
    options.device,
    options.offline,
    click.option(
        "-j",
        "--jobs",
        type=click.IntRange(1),
        help="Files and fits processed at once; does not change the results.  [default: all cores]",
    ),
    options.common,
)


@click.command()
@click.argument("model", metavar="MODEL", shell_complete=options.complete_models)
@what
@settings
@where
def command(model: str, format_: str, on_exists: str, **values: Any) -> int:
    """Measure how good a model's features are for your classes, with many labels or few.

    The model is not changed: small classifiers are trained on its features of some clips and tested
    on others, never from the same group. The data are a manifest (columns path, labels, fold,
    group, split), a folder with one subfolder per label, or a data set by name. Each metric gets
    one record, with its 95 % confidence interval.

    \b
    audiossl probe tagger --data clips/
    audiossl probe runs/a/best --data esc10 --probe prototypical --shots 5 --report report.html
    audiossl probe tagger --data clips.csv --probe all --shots 1,5,10,all --format csv -o probes.csv
    """
    from .output import pick_format

    format_ = pick_format(format_, values["out"], FORMATS)
    if format_ == "table" and values["out"]:
        raise click.UsageError(
            "--format table is for the terminal only: with --out give another format"
        )
    out, report, done = destinations(values["out"], values["report"], on_exists)
    if done:
        return 0
    return run(model, format_=format_, **{**values, "out": out, "report": report})


def destinations(
    out: str | None, report: str | None, on_exists: str
) -> tuple[str | None, str | None, bool]:
    """Paths for the records and the page, and whether there is nothing to do.

    A file that exists and stays is left out. This is checked before the work, which is long.
    Raises OutputError.
    """
    from audiossl.errors import OutputError
    from audiossl.pipeline.sinks import check_writable

    paths = [path for path in (out, report) if path]
    if len({os.path.realpath(path) for path in paths}) < len(paths):
        raise click.UsageError(f"--out and --report are the same file: {out}")
    there = [path for path in paths if os.path.exists(path)]
    kept = there if on_exists == "skip" else []
    for path in kept:
        click.echo(f"audiossl: {path} exists already and is kept", err=True)
    for path in paths:
        if path not in kept:
            check_writable(path)
    if there and on_exists == "error":
        raise OutputError(f"{there[0]} exists: --on-exists overwrite or skip, or another name")
    if out in kept and (report is None or report in kept):
        click.echo("audiossl: nothing to do", err=True)
        return out, report, True
    # If the file of records is kept, the records do not go to stdout instead.
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
    """Records of the files that failed (also reported on stderr), then of the metrics.

    Each result is also appended to `results`.
    """
    from audiossl.output.records import ErrorRecord

    from .output import say_record_error

    for row, error in evaluation.errors:
        say_record_error(row.name, error)
        yield ErrorRecord(row.name, error.code, error.message).to_dict()
    for result in evaluation.results() if evaluation.rows else ():
        results.append(result)
        yield from (record.to_dict() for record in result.records)


def deliver(items: Iterator[dict[str, Any]], format_: str, out: str | None) -> None:
    """Write records to stdout one by one, or to a file when all are known."""
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
