"""Shared fixtures: an isolated home, the command as installed, the clips."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Started in the background by a shell: without this, no child could be interrupted either.
    signal.signal(signal.SIGINT, signal.default_int_handler)

CLIPS = Path(__file__).parent / "data" / "clips"
COMMAND = Path(sys.executable).parent / "audiossl"


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's caches, and none may reach the network by accident."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / ".cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in list(os.environ):
        if name.startswith("AUDIOSSL_") and name != "AUDIOSSL_DATA":
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _own_log() -> None:
    """The command line sets the package's logger up: no test sees what one before it left."""
    logger = logging.getLogger("audiossl")
    logger.handlers.clear()
    logger.setLevel(logging.NOTSET)


@pytest.fixture
def clips() -> Path:
    """The folder of committed clips."""
    return CLIPS


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A file that is no sound, whatever its name says."""
    path = tmp_path / "broken.wav"
    path.write_bytes(b"not audio at all" * 10)
    return path


Runner = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def cli() -> Runner:
    """Run the installed `audiossl` in a process of its own: cli("tag", "a.wav", stdin=b"...")."""

    def run(
        *args: str | bytes | os.PathLike[str],
        stdin: bytes | None = None,
        env: dict[str, str] | None = None,
        cwd: os.PathLike[str] | None = None,
        timeout: float = 120,
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [COMMAND, *args],
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            env={**os.environ, **(env or {})},
            cwd=cwd,
            timeout=timeout,
            check=False,
        )

    return run
