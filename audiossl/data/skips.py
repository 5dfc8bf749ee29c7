"""Files that cannot be read: left out, said once, and counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from audiossl.errors import InputError


class Skips:
    """Counts unreadable files of `files`: each is said once, too many end the run."""

    def __init__(self, max_fraction: float, files: int, say: Callable[[str], None]) -> None:
        self.max_fraction, self.files, self.say = max_fraction, files, say
        self.found: dict[str, str] = {}

    def note(self, skipped: Iterable[tuple[str, str]]) -> None:
        """skipped: (path, why). Raises InputError above the fraction."""
        for path, why in skipped:
            if path not in self.found:
                self.found[path] = why
                self.say(f"warning: {path}: {why}: left out")
        if len(self.found) > self.max_fraction * self.files:
            raise InputError(
                f"{len(self.found)} of {self.files} files cannot be read, more than the"
                f" data.max_bad_fraction of {self.max_fraction:g}: {next(iter(self.found))}, ..."
            )
