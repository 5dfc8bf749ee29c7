"""`audiossl models`: list, show, fetch, convert and check models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from . import options
from .listing import LISTED, in_words, say, say_table
from .main import say_error

COLUMNS = ("name", "task", "labels", "rate", "megabytes", "licence", "data")


def complete_here(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[Any]:
    """Models that are here; folders if no model begins with `incomplete`."""
    from audiossl.hub import find as hub

    items = [CompletionItem(name) for name in hub.here()]
    items = [item for item in items if item.value.startswith(incomplete)]
    return items or [CompletionItem(incomplete, type="dir")]


@click.group(name="models")
def command() -> None:
    """List, show, fetch, convert and check models.

    NAME is an embedded model, a model folder, or hf:owner/repo[@revision] for a model on the
    Hugging Face Hub. Only `pull` and commands that load a model use the network.

    \b
    audiossl models pull hf:MIT/ast-finetuned-audioset-10-10-0.4593
    audiossl tag clip.wav --model hf:MIT/ast-finetuned-audioset-10-10-0.4593
    audiossl models convert audioset_10_10_0.4593.pth --out ast
    """


@command.command()
@LISTED
@options.common
def ls(format_: str, quiet: bool) -> None:
    """List the models that are here: embedded ones and those pulled from the Hub."""
    from audiossl.errors import ModelError
    from audiossl.hub import find as hub
    from audiossl.hub.facts import describe

    rows = []
    for name in hub.here():
        try:
            rows.append(describe(name))
        except ModelError as error:
            rows.append({"name": name, "error": error.message})
    if say(rows, format_):
        return
    for row in rows:
        if "error" in row:
            say_error(f"{row['name']}: {row['error']}")
    say_table([row for row in rows if "error" not in row], COLUMNS)


@command.command()
@click.argument("name", shell_complete=complete_here)
@click.option("--labels", is_flag=True, help="Print only the labels, one per line.")
@LISTED
@options.common
def show(name: str, labels: bool, format_: str, quiet: bool) -> None:
    """Show what a model is: architecture, labels, training data, licence, measured numbers."""
    from audiossl.hub import find as hub
    from audiossl.hub.facts import describe
    from audiossl.inference import graph

    facts = describe(name, details=True)
    facts["graph"] = graph.state(hub.resolve(name, download=False))
    if labels:
        click.echo("\n".join(facts["labels"]))
    elif not say(facts, format_):
        for key, value in facts.items():
            click.echo(f"{key:14} {in_words(value)}")


@command.command()
@click.argument("name", shell_complete=complete_here)
@options.common
def pull(name: str, quiet: bool) -> None:
    """Fetch a model from the Hub, check it, and print its folder.

    A branch or tag is looked up again, and its commit is used until the next pull. A damaged copy
    is replaced. Environment variables: HF_TOKEN gives access to private and gated models,
    HF_ENDPOINT names another Hub, AUDIOSSL_CACHE another folder for the models.
    """
    import logging
    import os

    from audiossl.hub import cache as hub_cache
    from audiossl.hub.download import obtain
    from audiossl.hub.facts import describe

    if quiet:
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # read when the client is imported
        logging.getLogger("audiossl").setLevel(logging.ERROR)
    folder = obtain(hub_cache.parse(name), refresh=True)
    if not quiet:
        facts = describe(name)
        say = f"{facts['megabytes']} MB, licence {facts['licence'] or 'unknown'}"
        click.echo(f"audiossl: {name} is commit {facts['commit']}: {say}", err=True)
    click.echo(folder)


@command.command()
@click.argument("name", shell_complete=complete_here)
@options.common
def path(name: str, quiet: bool) -> None:
    """Print the folder of a model that is here."""
    from audiossl.hub import find as hub

    click.echo(hub.resolve(name, download=False))


@command.command()
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=complete_here)
@LISTED
@options.common
def verify(names: tuple[str, ...], format_: str, quiet: bool) -> int:
    """Compare the files of all models, or of those named, with their recorded sha256.

    The exit code is 5 if a model is damaged.
    """
    from audiossl.errors import EXIT_MODEL, EXIT_OK, ModelError
    from audiossl.hub import find as hub
    from audiossl.hub import folder

    rows: list[dict[str, Any]] = []
    for name in names or hub.here():
        try:
            checked = folder.verify(hub.resolve(name, download=False))
            rows.append({"name": name, "ok": True, "checked": checked})
        except ModelError as error:
            rows.append({"name": name, "ok": False, "error": error.message})
            say_error(f"{name}: {error.message}")
    if not say(rows, format_) and not quiet:
        for row in rows:
            if row["ok"]:
                click.echo(f"{row['name']}  ok  {in_words(row['checked']) or 'nothing recorded'}")
    return EXIT_OK if all(row["ok"] for row in rows) else EXIT_MODEL


@command.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=complete_here)
@options.common
def rm(names: tuple[str, ...], quiet: bool) -> None:
    """Remove models of the Hub from the cache: the revision named, or else all revisions."""
    from audiossl.hub import cache as hub_cache

    for name in names:
        if not name.startswith(hub_cache.PREFIX):
            raise click.UsageError(
                f"{name} is not in the cache: only models of the Hub (hf:owner/repo) can be"
                " removed; embedded models belong to the package, and other folders are yours"
            )
    for parsed in [hub_cache.parse(name) for name in names]:
        for folder in hub_cache.remove(parsed):
            if not quiet:
                click.echo(f"audiossl: removed {folder}", err=True)


@command.command()
@click.argument("source", metavar="FILE|FOLDER", type=click.Path(path_type=Path))
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Folder to create for the model."
)
@click.option(
    "--layout", metavar="NAME", help="Layout of the published weights, if it is not recognised."
)
@click.option(
    "--labels",
    "labels_file",
    type=click.File(encoding="utf-8"),
    metavar="FILE|-",
    help="Read the names of the classes from here, one per line.",
)
@options.common
def convert(source: Path, out: Path, layout: str | None, labels_file: Any, quiet: bool) -> None:
    """Turn a published checkpoint into a model folder; downloads nothing and runs no code of it.

    Files ending in .pt, .pth, .ckpt or .bin must be converted before use. They are read in a
    separate process, which refuses anything but plain tensors.
    """
    from audiossl.errors import OutputError

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out} exists: give --out a new folder")
    from audiossl.hub import convert as converter

    overrides = {}
    if labels_file is not None:
        overrides["labels"] = [line.strip() for line in labels_file if line.strip()]
    made = converter.convert_folder(source, out, layout=layout, overrides=overrides)
    if not quiet:
        unused = f", left out {len(made.unused)}" if made.unused else ""
        labels = f", {len(made.config.labels)} labels" if made.config.head else ""
        say = f"layout {made.layout}, {len(made.tensors)} tensors{unused}{labels}"
        click.echo(f"audiossl: {say}, licence {made.config.licence}", err=True)
    click.echo(out)


@command.command()
@click.argument("name", metavar="MODEL", shell_complete=complete_here)
@click.option("--onnx", is_flag=True, required=True, help="Write one ONNX file.")
@click.option(
    "-o",
    "--out",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="File to write.  [default: model.onnx in the model's folder]",
)
@options.common
def export(name: str, onnx: bool, out: Path | None, quiet: bool) -> None:
    """Write a model as a graph that runs without torch.

    The graph includes the frontend: it takes a wave at the model's sample rate and gives scores and
    the embedding. It is compared with torch before it is written. If it lies in the model's own
    folder, `tag` uses it. Needs pip install 'audiossl-toolkit[export]'.

    \b
    audiossl models export tagger --onnx
    audiossl models export runs/frogs/best --onnx --out frogs.onnx
    """
    from audiossl.inference.export import export as write

    path, varying = write(name, out)
    if not quiet:
        size = path.stat().st_size / 1e6
        click.echo(f"audiossl: {size:.1f} MB; its input may vary in {varying}", err=True)
    click.echo(path)
