"""Files that cannot be read: left out, reported once each, and counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from audiossl.errors import InputError


class Skips:
    """Counts unreadable files and reports each once; too many of them end the run.

    max_fraction: the largest share that may be unreadable.
    files: number of all files.
    say: prints a line.
    """

    def __init__(self, max_fraction: float, files: int, say: Callable[[str], None]) -> None:
        self.max_fraction, self.files, self.say = max_fraction, files, say
        self.found: dict[str, str] = {}

    def note(self, skipped: Iterable[tuple[str, str]]) -> None:
        """Count files. Raises InputError if they are more than the fraction.

        skipped: (path, reason) of each.
        """
        for path, why in skipped:
            if path not in self.found:
                self.found[path] = why
                self.say(f"warning: {path}: {why}: left out")
        if len(self.found) > self.max_fraction * self.files:
            raise InputError(
                f"{len(self.found)} of {self.files} files cannot be read, more than the"
                f" data.max_bad_fraction of {self.max_fraction:g}: {next(iter(self.found))}, ..."
            )
