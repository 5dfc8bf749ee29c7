"""`audiossl embed`: turn recordings into vectors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

import click

from audiossl.pipeline.inputs import Input, Shard

from . import options

ARRAYS = ["npz", "npy", "parquet", "safetensors"]
FORMATS = ["table", "jsonl", "json", "csv", *ARRAYS]


@click.command()
@options.inputs
@options.model
@options.windows
@click.option(
    "--tokens", is_flag=True, help="Write one record per token of the encoder: finer than windows."
)
@click.option(
    "--pool",
    type=click.Choice(["mean", "max", "statistics"]),
    help="Write one record per file, pooled over its windows or tokens; statistics: mean and"
    " standard deviation, one after the other."
    "  [default: mean, without --hop and --tokens]",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    show_default=True,
    help="Number type of the vectors.",
)
@options.shard
@options.output(FORMATS)
@options.batching
@options.decoding
@options.common
def command(
    inputs: tuple[str, ...],
    files_from: BinaryIO | None,
    null: bool,
    name: str,
    shard: tuple[int, int] | None,
    **values: Any,
) -> int:
    """Turn recordings into vectors: one per file, window or token.

    Inputs are files, folders (searched recursively), quoted globs, or - for audio on stdin. Any
    model will do; of a tagger, the encoder is used. The start and end of a token are those of the
    sound that it describes. A ViT's tokens are columns of patches, averaged over frequency.

    \b
    audiossl embed clip.wav
    audiossl embed -r calls/ --out calls.parquet
    audiossl embed day1.flac --window 2 --hop 1 --out day1.npz
    audiossl embed song.mp3 --tokens --format jsonl
    audiossl embed calls/ --tokens --pool statistics --out calls.csv

    Array formats need --out FILE. They hold one row per embedding, with its file, start and end, in
    the order of the inputs; errors go to stderr only:

    \b
    npz          arrays embedding, file, start, end
    npy          embedding only; file, start, end go to FILE.csv
    safetensors  embedding, start, end; file, an index into names (bytes, each ended by NUL)
    parquet      columns file, start, end, embedding, model; needs pyarrow

    To divide the work among four machines, give all of them the same inputs and each its own part:
    --shard 1/4 --out part1.parquet, then 2/4 and so on. Afterwards join the parts:

    \b
    cat part*.jsonl > all.jsonl
    python -c "import pyarrow.parquet as p; p.write_table(p.read_table('parts/'), 'all.parquet')"
    """
    from audiossl.output import arrays

    from .output import pick_format

    format_ = values["format_"] = pick_format(values["format_"], values["out"], FORMATS)
    if format_ in ARRAYS and values["out"] is None:
        raise click.UsageError(f"{format_} is not text: give --out FILE")
    arrays.check(format_)
    part = Shard(*(shard or (1, 1)))
    items = part.of(options.listed(inputs, files_from, null, name))
    return run(part, items, options.reading(values), values)


def run(
    part: Shard, items: Iterator[Input], reading: dict[str, Any], values: dict[str, Any]
) -> int:
    """Load the model, embed every input, write the records; the exit code."""
    from functools import partial

    from audiossl.device import pick_device
    from audiossl.hub.facts import digest
    from audiossl.inference.embedding import Embedder, EmbedOptions
    from audiossl.output import arrays
    from audiossl.output.writers import EMBED_TEXTS

    from .output import no_input
    from .session import session
    from .table import EmbedTable

    with session(values, "embed") as task:
        embedding = EmbedOptions(**values)
        device = pick_device(task.device, threads=1)
        executor = task.executor(device)
        embedder = Embedder.load(task.model, device, batch_size=task.batch_size, executor=executor)
        embedder.check(embedding)
        size = embedder.size(embedding)
        texts = {kind: partial(writer, size) for kind, writer in EMBED_TEXTS.items()}
        formats = {"table": EmbedTable, **texts, **arrays.formats(size, embedding.dtype)}
        settings = {
            "embed": embedding,
            "model": digest(task.model),
            "reading": reading,
            "device": device.partition(":")[0],
        }

        def work(item: Input) -> Iterator[dict[str, Any]]:
            for record in embedder.embed(item.path, item.name, embedding, **reading):
                yield record.to_row()

        def nothing() -> int:
            return 0 if part.seen else no_input()  # more parts than inputs: fine

        return task.run(items, work, "embedded", formats, settings, nothing=nothing)
