"""Evil and malformed files, at every place that takes the path of a model: nothing runs, exit 5."""

from __future__ import annotations

import contextlib
import pickle
import signal
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import evil
import numpy as np
import pytest
import soundfile

from audiossl.errors import ModelError
from audiossl.hub import facts
from audiossl.hub import find as hub
from audiossl.hub.folder import verify

pytest_plugins = ("modelfolders",)


def run_command(*args: str) -> int:
    """The installed command, in this process."""
    (entry,) = metadata.entry_points(group="console_scripts", name="audiossl")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        with pytest.raises(SystemExit) as ended:
            entry.load()([*args])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return ended.value.code


def through_python(function: Callable[[str], Any]) -> Callable[[str, Path], int]:
    def place(path: str, _tmp: Path) -> int:
        with pytest.raises(ModelError) as caught:
            function(path)
        return caught.value.exit_code

    return place


def load(path: str) -> Any:
    import audiossl

    return audiossl.load(path)


def tagger(path: str) -> Any:
    import audiossl

    return audiossl.Tagger.load(path)


def through_command(command: str) -> Callable[[str, Path], int]:
    def place(path: str, tmp: Path) -> int:
        soundfile.write(tmp / "x.wav", np.zeros(1600, dtype=np.float32), 16000)
        return run_command(command, str(tmp / "x.wav"), "--model", path)

    return place


PLACES: dict[str, Callable[[str, Path], int]] = {
    "audiossl.load": through_python(load),
    "Tagger.load": through_python(tagger),
    "hub.resolve": through_python(hub.resolve),
    "hub.describe": through_python(facts.describe),
    "hub.digest": through_python(facts.digest),
    "hub.verify": through_python(lambda path: verify(Path(path))),
    "models show": lambda path, tmp: run_command("models", "show", path),
    "models show --labels": lambda path, tmp: run_command("models", "show", path, "--labels"),
    "models path": lambda path, tmp: run_command("models", "path", path),
    "models verify": lambda path, tmp: run_command("models", "verify", path),
    "models convert": lambda path, tmp: run_command(
        "models", "convert", path, "--out", str(tmp / "converted")
    ),
    "tag --model": through_command("tag"),
    "embed --model": through_command("embed"),
}
KINDS = [
    "auto_map",
    "bin_index",
    "index",
    "joblib",
    "legacy",
    "npy",
    "npz",
    "pickle",
    "tar",
    "template",
    "torchscript",
    "zip",
]


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """A file that exists as soon as code of an evil file has run."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", KINDS)
def test_evil_files_are_refused_everywhere(
    kind: str, place: str, tmp_path: Path, canary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = evil.files(tmp_path / "evil", canary)
    assert sorted(made) == KINDS
    assert PLACES[place](str(made[kind]), tmp_path) == 5
    said = capsys.readouterr()
    assert said.err.count("\n") <= 1
    assert "Traceback" not in said.err
    assert not (tmp_path / "converted").exists()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", KINDS)
def test_evil_files_under_a_good_name_are_refused_everywhere(
    kind: str, place: str, folder: Path, tmp_path: Path, canary: Path
) -> None:
    """The same bytes as the model.safetensors of a good folder."""
    made = evil.files(tmp_path / "evil", canary)[kind]
    source = made if made.is_file() else sorted(made.glob("*.json"))[-1]
    (folder / "model.safetensors").write_bytes(source.read_bytes())
    assert PLACES[place](str(folder), tmp_path) == 5


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", evil.malformed())
def test_malformed_safetensors_are_refused_everywhere(
    kind: str, place: str, folder: Path, tmp_path: Path
) -> None:
    (folder / "model.safetensors").write_bytes(evil.malformed()[kind])
    assert PLACES[place](str(folder), tmp_path) == 5


def test_the_canary_would_sing(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    made = evil.files(tmp_path / "evil", canary)
    with contextlib.suppress(Exception):
        pickle.loads(made["pickle"].read_bytes())
    assert canary.exists()
