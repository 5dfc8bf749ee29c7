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
    """Embedded models; folders if no model begins with `incomplete`."""
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
    """Known data sets; files if no set begins with `incomplete`."""
    from audiossl.data import datasets

    items = [CompletionItem(name) for name in datasets.names() if name.startswith(incomplete)]
    return items or [CompletionItem(incomplete, type="file")]


def complete_recipes(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[Any]:
    """Recipes in the package; files if no recipe begins with `incomplete`."""
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
    click.option("-q", "--quiet", is_flag=True, help="Show no progress and no warnings on stderr."),
    click.option(
        "--debug",
        is_flag=True,
        expose_value=False,
        help="Show a traceback when something goes wrong.",
    ),
)

device = click.option(
    "--device", default="auto", show_default=True, metavar="auto|cpu|cuda[:N]|mps",
    help="Device that the network runs on.",
)  # fmt: skip

offline = click.option(
    "--offline",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=lambda _ctx, _param, value: value and os.environ.update(AUDIOSSL_OFFLINE="1"),
    help="Never use the network; take only models that are already here.",
)

model = chain(
    click.option(
        "-m",
        "--model",
        metavar="NAME|FOLDER|hf:OWNER/REPO",
        shell_complete=complete_models,
        help="An embedded model, a model folder, or a model on the Hub."
        "  [default: the embedded one]",
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
        help="Read the names of inputs from a file or stdin, one per line.",
    ),
    click.option(
        "-r",
        "--recursive",
        is_flag=True,
        expose_value=False,
        help="Accepted for habit's sake: folders are always searched recursively.",
    ),
    click.option(
        "-0",
        "--null",
        is_flag=True,
        help="Names in --files-from are separated by NUL bytes, as find -print0 does.",
    ),
    click.option("--name", default="-", help="File name in the results for audio from stdin."),
)


class Finite(click.FloatRange):
    """A range of numbers; click's own lets NaN and infinity through."""

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


windows = chain(
    click.option(
        "--window",
        type=Finite(0.05),
        metavar="SECONDS",
        help="Length of a window.  [default: the model's]",
    ),
    click.option(
        "--hop",
        type=Finite(0.01),
        metavar="SECONDS",
        help="Write one record per window; a window starts every SECONDS.",
    ),
)

decoding = chain(
    click.option(
        "--input-format",
        type=click.Choice(["auto", "raw"]),
        default="auto",
        help="raw: samples without a header, described by the next three options.",
    ),
    click.option("--rate", type=click.IntRange(1), metavar="HZ", help="Sample rate of raw input."),
    click.option(
        "--channels",
        type=click.IntRange(1),
        metavar="N",
        help="Number of channels of raw input.  [default: 1]",
    ),
    click.option(
        "--encoding",
        metavar="NAME",
        help="Sample format of raw input: s16le, S16_LE, f32le, mulaw ...  [default: s16le]",
    ),
    click.option(
        "--nan",
        type=click.Choice(["error", "zero"]),
        default="error",
        help="What to do with samples that are NaN or infinite: refuse the file, or set them to 0.",
    ),
    click.option(
        "--min-rate",
        type=click.IntRange(1),
        metavar="HZ",
        help="Refuse files with a lower sample rate.",
    ),
    click.option(
        "--max-rate",
        type=click.IntRange(1),
        metavar="HZ",
        help="Refuse files with a higher sample rate.",
    ),
    click.option(
        "--max-channels",
        type=click.IntRange(1),
        metavar="N",
        help="Refuse files with more channels.",
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
            help="auto: by the suffix of --out; without --out, table on a terminal, else jsonl.",
        ),
        click.option(
            "-o",
            "--out",
            metavar="FILE|FOLDER|-",
            type=click.Path(),
            help="Output; - is stdout. A file appears when it is complete; a folder gets one file"
            " per input.",
        ),
        click.option(
            "--on-exists",
            type=click.Choice(["error", "skip", "overwrite"]),
            default="error",
            help="What to do if an output exists already.",
        ),
        click.option("--resume", is_flag=True, help="Continue an interrupted run (with --out)."),
    )


batching = chain(
    click.option(
        "-b",
        "--batch-size",
        type=click.IntRange(1),
        default=4,
        show_default=True,
        help="Windows of one file that the network processes at once.",
    ),
    click.option(
        "-j",
        "--jobs",
        type=click.IntRange(1),
        help="Files processed at once; does not change the results.  [default: all cores]",
    ),
)


class ShardType(click.ParamType):
    """`2/5`, the second of five parts, as (2, 5)."""

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
    help="Process part I of N, as 2/5: every N-th input, starting with the I-th.",
)


def listed(
    inputs: tuple[str, ...], files_from: BinaryIO | None, null: bool, name: str
) -> Iterator[Input]:
    """The inputs that the `inputs` options name.

    Raises click.UsageError for options that do not go together.
    """
    from audiossl.pipeline.inputs import expand

    if files_from is not None and files_from.name == "<stdin>" and "-" in inputs:
        raise click.UsageError("stdin cannot be both audio (-) and the list (--files-from -)")
    if null and files_from is None:
        raise click.UsageError("-0 says how the names in --files-from end: give that as well")
    if name != "-" and files_from is None and "-" not in inputs:
        raise click.UsageError("--name is what audio on stdin is called: give - as an input")
    return expand(inputs, files_from, null, name)


def cores() -> int:
    """Number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def reading(values: dict[str, Any]) -> dict[str, Any]:
    """Remove the `decoding` options from `values`; returns keyword arguments of audio.stream."""
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
