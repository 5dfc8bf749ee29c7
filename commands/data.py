"""`audiossl data`: which data sets are here and whole; manifests and shards of them."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click

from . import options
from .listing import LISTED, in_words, say, say_table

COLUMNS = ("name", "title", "clips", "licence", "folder")
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}


def parse_size(_ctx: click.Context, _param: click.Parameter, value: str) -> int:
    """Bytes: 1000000, 500MB, 2g."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([kmg]?)b?", value.strip().lower())
    size = int(float(found[1]) * UNITS[found[2]]) if found else 0
    if size < 1:
        raise click.BadParameter(f"expected a size such as 500MB or 1GB, got {value!r}")
    return size


def name_of(source: str) -> str:
    """What shards of a source are called: as it is, a pattern as what stands before its marks."""
    return re.split(r"[*?\[{]", Path(source).stem)[0].strip("-_. ") or "set"


source = click.argument("source", shell_complete=options.complete_sets)
root = click.option(
    "--root",
    metavar="FOLDER",
    type=click.Path(),
    help="Where the set, or what a manifest names, lies.  [default: in a folder of AUDIOSSL_DATA]",
)


@click.group(name="data")
def command() -> None:
    """List and check data sets; write manifests and shards.

    AUDIOSSL_DATA names the folder (or folders, joined by ":") that holds ESC-50-master,
    UrbanSound8K, FSD50K and so on, as their archives unpack. Recipes use them by name.

    \b
    audiossl data check esc50
    audiossl finetune finetune/esc50 data.root=/disk/ESC-50-master
    audiossl data shards librispeech --out shards/
    """


@command.command()
@LISTED
@options.common
def ls(format_: str, quiet: bool) -> None:
    """The data sets that are known, and where they are here."""
    from audiossl.data import datasets
    from audiossl.errors import UsageError

    rows = []
    for name in datasets.names():
        dataset = datasets.get(name)
        try:
            folder = str(dataset.find())
        except UsageError:
            folder = None
        rows.append(
            {
                "name": name,
                "title": dataset.title,
                "clips": sum(dataset.counts.values()) or None,
                "licence": dataset.licence,
                "page": dataset.page,
                "folder": folder,
            }
        )
    if not say(rows, format_):
        say_table(rows, COLUMNS)


@command.command()
@click.argument("name", shell_complete=options.complete_sets)
@root
@click.option("--checksums", is_flag=True, help="Compare files with the published checksums.")
@LISTED
@options.common
def check(name: str, root: str | None, checksums: bool, format_: str, quiet: bool) -> int:
    """Say whether a copy of a set is whole.

    Clips of each part, what is missing, groups that are in several parts, licence and source. Exit
    code 3 if it is not whole, or differs from what was published.
    """
    from audiossl.data import datasets
    from audiossl.data.datasets.check import report
    from audiossl.errors import EXIT_OK, EXIT_SOME_FAILED

    dataset = datasets.get(name)
    record = report(dataset, dataset.find(root), checksums)
    if not say(record, format_):
        for key, value in record.items():
            click.echo(f"{key:16} {in_words(value)}")
    lacking = record["complete"] is False and not dataset.gaps
    return EXIT_SOME_FAILED if lacking or record["intact"] is False else EXIT_OK


@command.command()
@source
@root
@click.option(
    "--annotations",
    metavar="FILE|FOLDER",
    type=click.Path(),
    multiple=True,
    help="Label tracks of the sounds in the folder SOURCE; may be given several times.",
)
@click.option("-o", "--out", metavar="FILE", type=click.Path(), help="Write here, not to stdout.")
@options.common
def manifest(
    source: str, root: str | None, annotations: tuple[str, ...], out: str | None, quiet: bool
) -> int:
    """Write a set or folder as a manifest.

    Its columns are path, start, end, labels, known, fold, group, split. The paths start from the
    set's folder, which is said: a recipe needs it as data.root.

    With --annotations each annotation is a row. Read are Raven selection tables, Audacity labels,
    Praat TextGrids, CSV and TSV, found by the sound's name. Exit code 3 if something was left out.
    """
    from audiossl.atomic import atomic_write
    from audiossl.data import annotated, datasets
    from audiossl.data import manifest as manifests
    from audiossl.errors import EXIT_OK, EXIT_SOME_FAILED

    left_out: list[str] = []
    if annotations:
        folder = Path(source).expanduser()
        tracks = [Path(name).expanduser() for name in annotations]
        rows, left_out = annotated.read(folder, tracks, Path(out) if out else None)
    else:
        rows, folder = datasets.rows_of(source, root)
    content = manifests.encode(rows, folder)
    if out is None:
        sys.stdout.buffer.write(content)
    else:
        with atomic_write(out) as file:
            file.write(content)
    if not quiet:
        click.echo(f"audiossl: {len(rows):,} rows; paths start from {folder}", err=True)
    for sentence in left_out:
        click.echo(f"audiossl: warning: {sentence}", err=True)
    return EXIT_SOME_FAILED if left_out else EXIT_OK


@command.command()
@source
@root
@click.option(
    "-o", "--out", metavar="FOLDER", type=click.Path(), required=True, help="Where the shards go."
)
@click.option("--name", help="What they are called.  [default: as the source]")
@click.option(
    "--shard-size",
    default="1GB",
    show_default=True,
    callback=parse_size,
    metavar="SIZE",
    help="About so large is each.",
)
@click.option(
    "--on-exists",
    type=click.Choice(["error", "overwrite"]),
    default="error",
    help="What to do when there are shards of this name.",
)
@options.common
def shards(
    source: str,
    root: str | None,
    out: str,
    name: str | None,
    shard_size: int,
    on_exists: str,
    quiet: bool,
) -> None:
    """Copy a set's clips into tar files (WebDataset).

    SOURCE is a data set, a manifest or a folder. For sets of more files than a disk likes. The
    shards appear, and are printed, when all are whole: only then are old ones of this name
    replaced. Recipes take the folder as data.train, other programs read the tars with the
    webdataset library.
    """
    from audiossl.data import datasets
    from audiossl.data import shards as writer
    from audiossl.errors import OutputError

    rows, _ = datasets.rows_of(source, root)
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: {error.strerror}") from error
    overwrite = on_exists == "overwrite"
    for path in writer.write(rows, folder, name or name_of(source), shard_size, overwrite):
        click.echo(path)
