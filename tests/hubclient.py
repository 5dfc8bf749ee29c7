"""Child processes that use the loopback Hub, and what it serves them.

Use as a plugin: `pytest_plugins = ("hubclient",)`. The tests also import from it, so pytest
comes too late to rewrite its asserts, which have messages of their own: PYTEST_DONT_REWRITE
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hubserver import HubServer

from audiossl.hub.config import ModelConfig
from audiossl.model import Model, save_model

COMMAND = Path(sys.executable).parent / "audiossl"
WEIGHTS = "model.safetensors"
CONFIG: dict[str, Any] = {
    "name": "toy",
    "task": "tag",
    "architecture": {"name": "dscnn", "widths": [8, 4096], "strides": [1, 2], "stem": 8},
    "frontend": {"name": "logmel", "rate": 16000, "mels": 16, "n_fft": 512, "hop": 160},
    "head": {"name": "linear", "labels": [f"class {i}" for i in range(40)]},
    "licence": "MIT",
}
Files = dict[str, bytes]


@pytest.fixture(scope="session")
def server() -> Iterator[HubServer]:
    with HubServer() as running:
        yield running


@pytest.fixture
def hub(server: HubServer) -> HubServer:
    server.reset()
    return server


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A model in this program's own layout; its weights take 0.8 MB."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("toy")
    save_model(Model(ModelConfig(**CONFIG)), folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class Client:
    """Child processes that know one Hub and one cache."""

    def __init__(self, hub: HubServer, cache: Path) -> None:
        self.hub, self.cache = hub, cache

    def environment(self, **env: str) -> dict[str, str]:
        agents = ("CLAUDE", "AGENT", "CODEX", "CURSOR")  # the client asks who runs it
        kept = {k: v for k, v in os.environ.items() if not any(word in k for word in agents)}
        return {**kept, **self.hub.environment(self.cache, **env)}

    def run(
        self, *args: str | Path, env: dict[str, str] | None = None, **more: Any
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [COMMAND, *args],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env=self.environment(**env or {}),
            **more,
        )

    def start(self, *args: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [COMMAND, *args],
            env=self.environment(),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def pull(self, name: str, **more: Any) -> subprocess.CompletedProcess[str]:
        return self.run("models", "pull", name, **more)

    def pulled(self, name: str, **more: Any) -> Path:
        """The folder of a pull that must go well."""
        done = self.pull(name, **more)
        assert done.returncode == 0, done.stderr
        return Path(done.stdout.rstrip("\n"))

    def attempts(self, names: list[str]) -> dict[str, list[Any]]:
        """Exit code and message of getting each, in one process."""
        code = (
            "import json, sys\n"
            "from audiossl.hub import find as hub\n"
            "from audiossl.errors import AudiosslError\n"
            "found = {}\n"
            "for name in sys.argv[1:]:\n"
            "    try: found[name] = [0, str(hub.resolve(name))]\n"
            "    except AudiosslError as error: found[name] = [error.exit_code, str(error)]\n"
            "print(json.dumps(found))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, *names],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env=self.environment(),
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    @property
    def left(self) -> list[str]:
        """Every file in the cache, but for the locks."""
        files = (path for path in self.cache.rglob("*") if path.is_file())
        names = (str(path.relative_to(self.cache)) for path in files)
        return sorted(name for name in names if ".locks" not in name and not name.startswith("hf/"))


@pytest.fixture
def client(hub: HubServer, tmp_path: Path) -> Client:
    return Client(hub, tmp_path / "cache")


def one_line(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The message of a run that failed as it should."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert lines[-1].startswith("audiossl: error: "), done.stderr
    assert all("downloading commit" in line for line in lines[:-1]), done.stderr
    return lines[-1]
