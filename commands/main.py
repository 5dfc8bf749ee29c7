"""`audiossl`: a group that imports a command's module only when that command runs.

Help and completion import neither torch nor numpy nor rich. Exit codes: audiossl/errors.py.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn, TextIO, cast

import click

import audiossl
from audiossl import errors
from audiossl.pipeline.stdout import ClosedPipe, Stdout

# Name -> one line of help. A test compares the names with the files of this folder.
COMMANDS = {
    "tag": "Name the sounds in recordings.",
    "embed": "Turn recordings into vectors: one per file, window or token.",
    "probe": "Measure how good a model's features are for your classes.",
    "finetune": "Train a model on labelled recordings, as a recipe describes.",
    "pretrain": "Train an encoder without labels, as a recipe describes.",
    "models": "List, show, fetch, convert and check models.",
    "recipes": "List, show, check and copy training recipes.",
    "data": "List and check data sets; write manifests and shards.",
    "doctor": "Show what is installed, what is missing and how to get it.",
    "completions": "Print the script that lets your shell complete audiossl commands.",
}


class Terminated(BaseException):
    """SIGTERM or SIGHUP arrived."""


class LazyGroup(click.Group):
    """A group whose help comes from COMMANDS; a command's module is imported when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        return importlib.import_module(f"audiossl.commands.{cmd_name.replace('-', '_')}").command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            raise with_suggestion(error, args[0], list(COMMANDS)) from None

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        found = [name for name in COMMANDS if name.startswith(incomplete)]
        items = [CompletionItem(name, help=COMMANDS[name]) for name in found]
        return items + click.Command.shell_complete(self, ctx, incomplete)


def with_suggestion(error: click.UsageError, word: str, known: list[str]) -> click.UsageError:
    """The same error with the nearest known name as a suggestion."""
    near = errors.nearest(word, known)
    hint = f" Did you mean {near!r}?" if near else ""
    return click.UsageError(error.message + hint, error.ctx)


@click.group(
    cls=LazyGroup,
    context_settings={"auto_envvar_prefix": "AUDIOSSL", "help_option_names": ["-h", "--help"]},
)
@click.version_option(audiossl.__version__, prog_name="audiossl")
def cli() -> None:
    """Self-supervised audio in a shell.

    Results go to stdout, messages to stderr. See `audiossl COMMAND --help` for each command.
    """


def run(args: Sequence[str] | None = None) -> NoReturn:
    """The installed entry point: one line of error at most, then exit with the right code.

    args: the command line without the program's name; None: sys.argv.
    """
    _open_closed_streams()
    for name in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(name) is not signal.SIG_IGN:  # nohup ignores SIGHUP on purpose
            signal.signal(name, _terminate)
    leave(_run(list(args) if args is not None else None))


def _open_closed_streams() -> None:
    """Replace stdout or stderr, which Python sets to None if the caller has closed them.

    The replacement takes the stream's own number, so that no file opened later gets it. Messages to
    stderr are lost; writing to stdout is an error, because results must not be lost.
    """
    for name, number, flags in (("stdout", 1, os.O_RDONLY), ("stderr", 2, os.O_WRONLY)):
        if getattr(sys, name) is None:
            _put_devnull(number, flags)
            setattr(sys, name, os.fdopen(number, "w", encoding="utf-8", errors="backslashreplace"))


def _put_devnull(number: int, flags: int) -> None:
    descriptor = os.open(os.devnull, flags)
    if descriptor != number:
        os.dup2(descriptor, number)
        os.close(descriptor)


def _run(args: list[str] | None) -> int:
    _show_warnings()
    try:
        with contextlib.redirect_stdout(cast(TextIO, Stdout(sys.stdout))):
            code = cli.main(args=args, prog_name="audiossl", standalone_mode=False)
            sys.stdout.flush()
        return int(code or 0)
    except click.ClickException as error:
        return _usage(error)
    except errors.AudiosslError as error:
        say_error(error.message)
        _let_go()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return errors.EXIT_SIGINT
    except Terminated as error:
        return 128 + int(error.args[0])
    except SystemExit as error:
        # If a pipe (here: stderr) is closed, click wraps both streams and exits with 1.
        closed = type(sys.stderr).__name__.endswith("PacifyFlushWrapper")
        return _closed_pipe() if closed else _code(error)
    except (ClosedPipe, BrokenPipeError):
        return _closed_pipe()
    except Exception as error:
        return _bug(error)


def _show_warnings() -> None:
    """Print the package's log on stderr, one line per message; with --quiet only errors."""
    import logging

    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("audiossl: %(message)s"))
    logger = logging.getLogger("audiossl")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.ERROR if {"-q", "--quiet"} & set(sys.argv) else logging.WARNING)


def _terminate(number: int, _frame: object) -> NoReturn:
    raise Terminated(number)


def _code(error: SystemExit) -> int:
    return error.code if isinstance(error.code, int) else errors.EXIT_BUG


def _usage(error: click.ClickException) -> int:
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return errors.EXIT_USAGE
    context = getattr(error, "ctx", None)
    say_error(error.format_message())
    if context is not None:
        click.echo(f"Try `{context.command_path} --help`.", err=True)
    return errors.EXIT_USAGE


def _closed_pipe() -> int:
    """Point stdout at /dev/null, so that Python's flush at exit does not fail as well."""
    _put_devnull(1, os.O_WRONLY)
    return errors.EXIT_SIGPIPE


def _let_go() -> None:
    """If stdout cannot be flushed, point it at /dev/null: Python's flush at exit would fail too."""
    try:
        sys.stdout.flush()
    except OSError:
        _put_devnull(1, os.O_WRONLY)


def _bug(error: Exception) -> int:
    if debugging():
        raise error
    say_error(
        f"internal error: {type(error).__name__}: {error}"
        " (run again with --debug for the traceback, and please report it)"
    )
    return errors.EXIT_BUG


def debugging() -> bool:
    """Whether --debug was given to any command, or AUDIOSSL_DEBUG is set."""
    return "--debug" in sys.argv or os.environ.get("AUDIOSSL_DEBUG", "0") not in ("", "0")


def say_error(message: str) -> None:
    """Print one line on stderr; unprintable characters become "?", so that no file name can send
    control codes to the terminal."""
    line = "".join(
        c if c.isprintable() or "\ud800" <= c <= "\udfff" else "?"
        for c in " ".join(message.splitlines())
    )
    click.echo(f"audiossl: error: {line}".encode("utf-8", "backslashreplace"), err=True)


def leave(code: int) -> NoReturn:
    """Exit; after a signal or a closed pipe at once, without waiting for worker threads."""
    if code > 128:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                continue
        os._exit(code)
    sys.exit(code)
