"""Every error that a user can meet: its exit code, and its slug in error records.

A message names the cause and the way out, but not the file: the caller, who knows it, adds it.
"""

from collections.abc import Iterable

EXIT_OK = 0
EXIT_BUG = 1  # anything that is not an AudiosslError; a traceback only with --debug
EXIT_USAGE = 2  # wrong option, recipe or query
EXIT_SOME_FAILED = 3  # some inputs failed, the results of the others are written
EXIT_ALL_FAILED = 4  # every input failed, or nothing matched
EXIT_MODEL = 5  # model or Hub not available, or not to be trusted
EXIT_OUTPUT = 6  # cannot write: disk full, read-only, no permission
EXIT_SIGINT = 130
EXIT_SIGPIPE = 141
EXIT_SIGTERM = 143

LINE = 300  # characters of an error message


class AudiosslError(Exception):
    """Base of all expected errors.

    `code` is the slug of the error record (`{"error": {"code": ..., "message": ...}}`).
    """

    exit_code: int = EXIT_BUG
    default_code: str = "error"

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code or self.default_code

    @property
    def message(self) -> str:
        return str(self)


class InputError(AudiosslError):
    """An error of one input: the run goes on with the others."""

    exit_code = EXIT_SOME_FAILED
    default_code = "unreadable"


class UsageError(AudiosslError):
    """The call itself is wrong: an option, a label or a query."""

    exit_code = EXIT_USAGE
    default_code = "usage"


class OptionError(UsageError):
    """Options of the output that do not go together."""


class RecipeError(UsageError):
    """A recipe that cannot be run as it is written; the message names line, key and value."""

    default_code = "recipe"


class ModelError(AudiosslError):
    """A model that is missing, broken, or not to be trusted."""

    exit_code = EXIT_MODEL
    default_code = "model"


class OutputError(AudiosslError):
    """A result that cannot be written."""

    exit_code = EXIT_OUTPUT
    default_code = "output"


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known name that is most like a misspelt word; None: it is like none of them."""
    import difflib

    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return found[0] if found else None


def near(word: str, known: Iterable[str], otherwise: str | None = None) -> str:
    """A hint after a misspelt word: ` (did you mean 'lr'?)`.

    word: as it was written.
    known: the names that there are.
    otherwise: the hint if `word` is like none of them; None: the list of all.
    """
    names = list(known)
    found = nearest(word, names)
    if found is not None:
        return f" (did you mean {found!r}?)"
    otherwise = f"one of: {', '.join(names)}" if otherwise is None else otherwise
    return f" ({otherwise})" if otherwise else ""


def first_line(error: BaseException) -> str:
    """What an error of another library says, without what follows its first line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def one_line(text: str) -> str:
    """The first line of a text from outside: printable characters only, of bounded length."""
    line = (text.splitlines() or [""])[0]
    return "".join(char if char.isprintable() else "?" for char in line)[:LINE]
