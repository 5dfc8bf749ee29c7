"""`audiossl tag`: name the sounds in recordings."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any, BinaryIO

import click

from audiossl.output.records import TagRecord
from audiossl.pipeline.inputs import Input

from . import options

FORMATS = ["table", "jsonl", "json", "csv", "tsv", "audacity", "raven", "textgrid"]


@click.command()
@options.inputs
@options.model
@click.option(
    "--backend",
    type=click.Choice(["auto", "torch", "onnx"]),
    default="auto",
    show_default=True,
    help="Library that runs the network. auto: onnxruntime on the CPU, if the model has an"
    " up-to-date exported graph and --device is auto or cpu; otherwise torch.",
)
@click.option(
    "--int8",
    is_flag=True,
    help="Compute a transformer's linear layers in 8-bit integers: faster on a CPU.",
)
@click.option(
    "--top-k",
    type=click.IntRange(1),
    default=5,
    show_default=True,
    help="Largest number of labels per record.",
)
@click.option(
    "--threshold",
    type=options.Finite(0, 1),
    default=0.5,
    show_default=True,
    help="Leave out labels with a lower score.",
)
@click.option(
    "--labels",
    multiple=True,
    metavar="NAME[;NAME...]",
    help="Only these labels; an ontology group such as Animal means every label below it.",
)
@options.windows
@click.option(
    "--pool",
    type=click.Choice(["max", "mean"]),
    default="max",
    show_default=True,
    help="Without --hop, how a file's scores come from its windows: maximum or mean.",
)
@click.option(
    "--plot", type=click.Path(), metavar="PNG", help="Draw the spectrogram and labels of one file."
)
@options.output(FORMATS)
@options.batching
@options.decoding
@options.common
def command(
    inputs: tuple[str, ...],
    files_from: BinaryIO | None,
    null: bool,
    name: str,
    plot: str | None,
    **values: Any,
) -> int:
    """Name the sounds in recordings.

    Inputs are files, folders (searched recursively), quoted globs, or - for audio on stdin. Without
    --hop, each file gets one record. A label with a score of 0.8 is right in about 8 of 10 cases. A
    file without a score above the threshold gets no label.

    \b
    audiossl tag clip.wav
    audiossl tag calls/ --hop 5 --format csv --out calls.csv
    find . -name '*.wav' -print0 | audiossl tag --files-from - -0 --format jsonl
    ffmpeg -v error -i talk.mp4 -f wav - | audiossl tag - --name talk.mp4
    """
    from .output import pick_format

    items = options.listed(inputs, files_from, null, name)
    values["format_"] = pick_format(values["format_"], values["out"], FORMATS)
    reading = options.reading(values)
    if values["format_"] in ("audacity", "textgrid") or plot:
        items, many = several(items)
        if many and plot:
            raise click.UsageError("--plot takes a single input")
        if plot:
            check_plot(plot, values)
    else:
        many = False
    return run(items, reading, values, many, plot)


def check_plot(plot: str, values: dict[str, Any]) -> None:
    """Raise before the work begins if the picture could not be drawn.

    Raises click.UsageError, or OutputError if `plot` cannot be written.
    """
    from audiossl.errors import OutputError
    from audiossl.output.picture import check
    from audiossl.pipeline.sinks import check_writable

    if values["resume"] or values["on_exists"] == "skip":
        raise click.UsageError("--plot does not go with --resume or --on-exists skip")
    check(plot)
    check_writable(plot)
    if os.path.exists(plot) and values["on_exists"] == "error":
        raise OutputError(f"{plot} exists: --on-exists overwrite, or another --plot")


def several(items: Iterator[Input]) -> tuple[Iterator[Input], bool]:
    """The same inputs, and whether there is more than one."""
    first = list(islice(items, 2))
    return chain(first, items), len(first) > 1


def run(
    items: Iterator[Input],
    reading: dict[str, Any],
    values: dict[str, Any],
    many: bool,
    plot: str | None,
) -> int:
    """Load the model, tag every input, write the records; the exit code."""
    from audiossl.hub.facts import digest
    from audiossl.inference import network
    from audiossl.inference.tagging import Tagger, TagOptions
    from audiossl.output.writers import FORMATS as TEXTS

    from .session import session
    from .table import Table

    with session(values, "tag") as task:
        names = [part.strip() for text in values.pop("labels") for part in text.split(";")]
        backend, int8 = values.pop("backend"), values.pop("int8")
        model = network.load(task.model, task.device, backend, threads=1, int8=int8)
        batch_size = 1 if int8 else task.batch_size  # int8: a batch would share one range
        tagger = Tagger(model, batch_size, task.executor(model.device))
        tagging = TagOptions(labels=tagger.find_labels(names) if names else None, **values)
        settings = {
            "tag": tagging,
            "model": digest(task.model),
            "backend": f"{model.backend} int8" if int8 else model.backend,
            "reading": reading,
        }
        picture = Picture(plot, model.rate) if plot else None

        def work(item: Input) -> Iterator[dict[str, Any]]:
            tap = picture.sketch.add if picture else None
            for record in tagger.tag(item.path, item.name, tagging, tap=tap, **reading):
                if picture:
                    picture.records.append(record)
                yield record.to_dict()

        code = task.run(items, work, "tagged", {"table": Table, **TEXTS}, settings, many)
        if picture:
            picture.draw()
        return code


class Picture:
    """Spectrogram and labels of a single input, drawn when it has been read to its end."""

    def __init__(self, path: str, rate: int) -> None:
        from audiossl.output import picture as plotting

        self.path, self.sketch = path, plotting.SpectrogramSketch(rate)
        self.records: list[TagRecord] = []

    def draw(self) -> None:
        """Write the picture, unless the input gave no record."""
        from audiossl.output import picture as plotting

        if self.records:
            plotting.draw(self.path, self.sketch, self.records, self.records[0].file)
