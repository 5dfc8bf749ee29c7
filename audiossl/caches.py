"""Where the user's caches are, and checksums of files."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from audiossl.errors import OutputError

HINT = "set AUDIOSSL_CACHE to a folder that can be written"


def root() -> Path:
    """The cache folder, absolute; it need not exist. Raises OutputError if the user has no home."""
    given = os.environ.get("AUDIOSSL_CACHE")
    if given:
        return Path(given).absolute()
    import platformdirs

    folder = Path(platformdirs.user_cache_dir("audiossl"))
    if not folder.is_absolute():
        raise OutputError(f"no home folder for the model cache: {HINT}")
    return folder


def sha256(path: Path) -> str:
    """Hex digest of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
