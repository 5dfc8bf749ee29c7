"""Options that commands share, and completion of names. No heavy import."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from audiossl.pipeline.inputs import Input

Decorator = Callable[[Any], Any]

RAW = ("rate", "channels", "encoding")  # options that describe raw input


def chain(*decorators: Decorator) -> Decorator:
    """Several decorators as one; help shows them in this order."""

    def apply(function: Any) -> Any:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


def complete_models(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[Any]:
    """Embedded models; folders where none begins so."""
    folder = Path(__file__).parents[1]
    for place in (folder / "pretrained", folder / "audiossl" / "pretrained"):
        names = sorted(path.parent.name for path in place.glob("*/config.json"))
        if names:
            break
    else:
        names = []
    items = [CompletionItem(name) for name in names if name.startswith(incomplete)]
    # Not both: click's bash script forgets the names when paths are offered as well.
    return items or [CompletionItem(incomplete, type="dir")]


def complete_sets(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[Any]:
    """Known data sets; files where none begins so."""
    from audiossl.data import datasets

    items = [CompletionItem(name) for name in datasets.names() if name.startswith(incomplete)]
    return items or [CompletionItem(incomplete, type="file")]


def complete_recipes(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[Any]:
    """Recipes in the package; files where none begins so."""
    from importlib import resources

    names: list[str] = []
    root = resources.files("audiossl.recipes")
    folders = sorted((entry for entry in root.iterdir() if entry.is_dir()), key=lambda e: e.name)
    for place, prefix in ((root, ""), *((folder, f"{folder.name}/") for folder in folders)):
        files = (entry.name for entry in place.iterdir())
        names += [prefix + n.removesuffix(".yaml") for n in sorted(files) if n.endswith(".yaml")]
    items = [CompletionItem(name) for name in names if name.startswith(incomplete)]
    return items or [CompletionItem(incomplete, type="file")]


common = chain(
    click.option("-q", "--quiet", is_flag=True, help="No progress on stderr."),
    click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks."),
)

device = click.option(
    "--device", default="auto", show_default=True, metavar="auto|cpu|cuda[:N]|mps",
    help="Where the network runs.",
)  # fmt: skip

offline = click.option(
    "--offline",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=lambda _ctx, _param, value: value and os.environ.update(AUDIOSSL_OFFLINE="1"),
    help="Never ask the Hub: only what is here.",
)

model = chain(
    click.option(
        "-m",
        "--model",
        metavar="NAME|FOLDER|hf:OWNER/REPO",
        shell_complete=complete_models,
        help="An embedded model, a model folder, or one of the Hub.  [default: the embedded one]",
    ),
    device,
    offline,
)

inputs = chain(
    click.argument("inputs", nargs=-1, metavar="[FILES|FOLDERS|GLOBS|-]..."),
    click.option(
        "--files-from",
        type=click.File("rb", lazy=False),
        metavar="FILE|-",
        help="Read names of inputs from a file or stdin, one a line.",
    ),
    click.option(
        "-r",
        "--recursive",
        is_flag=True,
        expose_value=False,
        help="Search folders to the bottom: always so.",
    ),
    click.option("-0", "--null", is_flag=True, help="Names in --files-from end with NUL."),
    click.option("--name", default="-", help="What to call the audio that comes on stdin."),
)


class Finite(click.FloatRange):
    """A range of numbers; click's own lets NaN and infinity through."""

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


windows = chain(
    click.option("--window", type=Finite(0.05), metavar="SECONDS", help="Length of a window."),
    click.option(
        "--hop",
        type=Finite(0.01),
        metavar="SECONDS",
        help="A timeline: one record a window, a window every so often.",
    ),
)

decoding = chain(
    click.option(
        "--input-format",
        type=click.Choice(["auto", "raw"]),
        default="auto",
        help="raw: headerless PCM, described by the next three.",
    ),
    click.option("--rate", type=click.IntRange(1), metavar="HZ", help="Rate of raw input."),
    click.option(
        "--channels",
        type=click.IntRange(1),
        metavar="N",
        help="Channels of raw input.  [default: 1]",
    ),
    click.option(
        "--encoding",
        metavar="NAME",
        help="Samples of raw input: s16le, S16_LE, f32le, mulaw ...  [default: s16le]",
    ),
    click.option(
        "--nan",
        type=click.Choice(["error", "zero"]),
        default="error",
        help="What to do with samples that are not numbers.",
    ),
    click.option(
        "--min-rate", type=click.IntRange(1), metavar="HZ", help="Refuse files that claim less."
    ),
    click.option(
        "--max-rate", type=click.IntRange(1), metavar="HZ", help="Refuse files that claim more."
    ),
    click.option(
        "--max-channels", type=click.IntRange(1), metavar="N", help="Refuse files that claim more."
    ),
    click.option(
        "--max-duration",
        type=Finite(0, min_open=True),
        metavar="SECONDS",
        help="Refuse longer files.",
    ),
)


def output(formats: list[str]) -> Decorator:
    """--format, --out, --on-exists, --resume for a command that writes records."""
    return chain(
        click.option(
            "-f",
            "--format",
            "format_",
            type=click.Choice(["auto", *formats]),
            default="auto",
            help="auto: what --out ends in; else table on a terminal, jsonl otherwise.",
        ),
        click.option(
            "-o",
            "--out",
            metavar="FILE|FOLDER|-",
            type=click.Path(),
            help="Write here, whole or not at all. A folder gets one file an input; - is stdout.",
        ),
        click.option(
            "--on-exists",
            type=click.Choice(["error", "skip", "overwrite"]),
            default="error",
            help="What to do when an output exists.",
        ),
        click.option("--resume", is_flag=True, help="Go on with an interrupted run (with --out)."),
    )


batching = chain(
    click.option(
        "-b",
        "--batch-size",
        type=click.IntRange(1),
        default=4,
        show_default=True,
        help="Windows of one file that the network takes at a time.",
    ),
    click.option(
        "-j",
        "--jobs",
        type=click.IntRange(1),
        help="Files at work at once; results are the same.  [default: all cores]",
    ),
)


class ShardType(click.ParamType):
    """`2/5`: the second of five parts."""

    name = "shard"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        first, _, second = str(value).partition("/")
        if not (first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second)):
            self.fail(f"{value!r} is no I/N with 1 <= I <= N, such as 2/5", param, ctx)
        return int(first), int(second)


shard = click.option(
    "--shard",
    type=ShardType(),
    metavar="I/N",
    help="Only every N-th input, from the I-th on: one part for each of N machines.",
)


def listed(
    inputs: tuple[str, ...], files_from: BinaryIO | None, null: bool, name: str
) -> Iterator[Input]:
    """What the `inputs` options name."""
    from audiossl.pipeline.inputs import expand

    if files_from is not None and files_from.name == "<stdin>" and "-" in inputs:
        raise click.UsageError("stdin cannot be both audio (-) and the list (--files-from -)")
    if null and files_from is None:
        raise click.UsageError("-0 says how the names in --files-from end: give that as well")
    if name != "-" and files_from is None and "-" not in inputs:
        raise click.UsageError("--name is what audio on stdin is called: give - as an input")
    return expand(inputs, files_from, null, name)


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def reading(values: dict[str, Any]) -> dict[str, Any]:
    """Take the `decoding` options out of a command's values: keyword arguments of audio.stream."""
    from dataclasses import replace

    from audiossl.audio.reading import Limits, RawFormat

    given = {
        "min_rate": values.pop("min_rate"),
        "max_rate": values.pop("max_rate"),
        "max_channels": values.pop("max_channels"),
        "max_seconds": values.pop("max_duration"),
    }
    limits = replace(Limits(), **{key: value for key, value in given.items() if value is not None})
    kind, described = values.pop("input_format"), {k: values.pop(k) for k in RAW}
    described = {key: value for key, value in described.items() if value is not None}
    raw = None
    if kind == "raw":
        if "rate" not in described:
            raise click.UsageError("--input-format raw needs --rate HZ")
        raw = RawFormat(**described)
    elif described:
        option = next(iter(described))
        raise click.UsageError(f"--{option} describes raw input: give --input-format raw as well")
    return {"limits": limits, "raw": raw, "nan": values.pop("nan")}
