"""`audiossl data`: list and check data sets; write manifests and shards."""

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
    """Default name of a source's shards: its stem, of a pattern the part before the wildcards."""
    return re.split(r"[*?\[{]", Path(source).stem)[0].strip("-_. ") or "set"


source = click.argument("source", shell_complete=options.complete_sets)
root = click.option(
    "--root",
    metavar="FOLDER",
    type=click.Path(),
    help="Folder of the data set, or that a manifest's paths start from.  [default: found in"
    " AUDIOSSL_DATA]",
)


@click.group(name="data")
def command() -> None:
    """List and check data sets; write manifests and shards.

    The environment variable AUDIOSSL_DATA names the folder (or folders, joined by ":") that holds
    ESC-50-master, UrbanSound8K, FSD50K and so on, as unpacked from their archives. Recipes use the
    sets by name.

    \b
    audiossl data check esc50
    audiossl finetune finetune/esc50 data.root=/disk/ESC-50-master
    audiossl data shards librispeech --out shards/
    """


@command.command()
@LISTED
@options.common
def ls(format_: str, quiet: bool) -> None:
    """List the known data sets and the folders where they were found."""
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
@click.option(
    "--checksums", is_flag=True, help="Compare the files with the published checksums too."
)
@LISTED
@options.common
def check(name: str, root: str | None, checksums: bool, format_: str, quiet: bool) -> int:
    """Check whether a copy of a data set is complete.

    Shows the number of clips of each part, missing clips, groups that are in several parts, licence
    and source. The exit code is 3 if the copy is incomplete or differs from what was published.
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
@click.option(
    "-o", "--out", metavar="FILE", type=click.Path(), help="File to write.  [default: stdout]"
)
@options.common
def manifest(
    source: str, root: str | None, annotations: tuple[str, ...], out: str | None, quiet: bool
) -> int:
    """Write a manifest (CSV) of a data set or folder.

    Its columns are path, start, end, labels, known, fold, group and split. Paths are relative to
    the set's folder, which is shown on stderr: a recipe needs it as data.root.

    With --annotations every annotation becomes a row: Raven selection tables, Audacity labels,
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
    "-o", "--out", metavar="FOLDER", type=click.Path(), required=True, help="Folder for the shards."
)
@click.option("--name", help="Name of the shards.  [default: the source's]")
@click.option(
    "--shard-size",
    default="1GB",
    show_default=True,
    callback=parse_size,
    metavar="SIZE",
    help="Approximate size of a shard.",
)
@click.option(
    "--on-exists",
    type=click.Choice(["error", "overwrite"]),
    default="error",
    help="What to do if shards of this name exist already.",
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

    SOURCE is a data set, a manifest or a folder. Use this for sets of very many files, which file
    systems handle slowly. The shards appear, and their names are printed, when all are complete;
    only then are old shards of the same name replaced. Recipes take the folder as data.train; other
    programs can read the tar files with the webdataset library.
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
