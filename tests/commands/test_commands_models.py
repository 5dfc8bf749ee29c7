"""`audiossl models`, as installed: output for people and programs, exit codes, no torch."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import evil
import pytest
import torch
from modelfolders import COMMIT, OTHER, flip, put, write_model
from safetensors.torch import save_file

from audiossl.hub import find as hub
from audiossl.models.ast import build

SUBCOMMANDS = ["convert", "export", "ls", "path", "pull", "rm", "show", "verify"]
Run = Callable[..., "subprocess.CompletedProcess[bytes]"]
pytest_plugins = ("modelfolders",)
pytestmark = pytest.mark.usefixtures("cache")


def test_help_names_every_command(cli: Run) -> None:
    said = cli("models", "--help").stdout.decode()
    assert [name for name in SUBCOMMANDS if f"\n  {name} " in said] == SUBCOMMANDS


def test_ls_shows_what_is_here(cli: Run) -> None:
    put("hf:org/m")
    done = cli("models", "ls", "--format", "json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [row["name"] for row in rows] == [*hub.embedded(), "hf:org/m"]
    keys = {"name", "task", "labels", "rate", "megabytes", "licence", "data", "sha256"}
    assert all(keys <= set(row) for row in rows)
    assert rows[-1]["commit"] == COMMIT
    table = cli("models", "ls", "--format", "table").stdout.decode().splitlines()
    assert table[0].split() == ["name", "task", "labels", "rate", "megabytes", "licence", "data"]
    assert table[-1].startswith("hf:org/m")
    assert "toys (CC0), more toys" in table[-1]


def test_ls_says_which_model_is_broken_and_shows_the_others(cli: Run) -> None:
    (put("hf:org/m") / "config.json").write_text("{")
    put("hf:org/n")
    done = cli("models", "ls", "--format", "json")
    broken, good = json.loads(done.stdout)[-2:]
    assert "not valid" in broken["error"]
    assert good["labels"] == 2
    done = cli("models", "ls", "--format", "table")
    assert done.returncode == 0
    assert b"hf:org/n" in done.stdout
    assert done.stderr.startswith(b"audiossl: error: hf:org/m: ")


def test_show(cli: Run) -> None:
    put("hf:org/m")
    facts = json.loads(cli("models", "show", "hf:org/m").stdout)
    assert facts["labels"] == ["cat", "dog"]
    assert facts["graph"] == "none"
    assert facts["endpoint"] == "https://hub.test"
    assert facts["training"]["data"][0] == {"name": "toys", "licence": "CC0"}
    table = cli("models", "show", "hf:org/m", "--format", "table").stdout.decode()
    assert "\nlabels         cat, dog\n" in table
    assert cli("models", "show", "hf:org/m", "--labels").stdout == b"cat\ndog\n"


def test_path(cli: Run) -> None:
    made = put("hf:org/m")
    assert cli("models", "path", "hf:org/m").stdout.decode() == f"{made}\n"
    missing = cli("models", "path", "hf:org/none")
    assert missing.returncode == 5
    assert missing.stderr.decode() == (
        "audiossl: error: hf:org/none is not in the cache: run `audiossl models pull hf:org/none`\n"
    )


def test_verify_finds_the_damaged_one(cli: Run, tmp_path: Path) -> None:
    put("hf:org/good")
    bad = put("hf:org/bad")
    done = cli("models", "verify")
    assert done.returncode == 0, done.stderr
    assert all(json.loads(line)["ok"] for line in done.stdout.splitlines())
    flip(bad / "model.safetensors")
    done = cli("models", "verify")
    assert done.returncode == 5
    rows = {row["name"]: row for row in map(json.loads, done.stdout.splitlines())}
    assert rows["hf:org/good"]["ok"]
    assert "damaged" in rows["hf:org/bad"]["error"]
    assert done.stderr.decode().count("\n") == 1
    assert cli("models", "verify", "hf:org/good").returncode == 0
    folder = write_model(tmp_path / "plain")
    said = cli("models", "verify", folder, "--format", "table").stdout.decode()
    assert said == f"{folder}  ok  nothing recorded\n"


def test_rm_removes_from_the_cache_and_nothing_else(cli: Run, tmp_path: Path) -> None:
    first, second = put("hf:org/m"), put("hf:org/m@v1", OTHER)
    folder = write_model(tmp_path / "mine")
    for name in (*hub.embedded(), folder):
        done = cli("models", "rm", name)
        assert done.returncode == 2
        assert b"not in the cache" in done.stderr
    done = cli("models", "rm", "hf:org/m@v1")
    assert (done.returncode, done.stdout) == (0, b"")
    assert done.stderr.decode() == f"audiossl: removed {second}\n"
    assert cli("models", "rm", "-q", "hf:org/m").stderr == b""
    assert not first.exists()
    assert (folder / "config.json").is_file()
    assert cli("models", "rm", "hf:org/m").returncode == 5


def test_rm_does_nothing_when_one_name_is_wrong(cli: Run, tmp_path: Path) -> None:
    made = put("hf:org/m")
    assert cli("models", "rm", "hf:org/m", str(tmp_path)).returncode == 2
    assert made.is_dir()


def test_pull_without_a_network_says_so(cli: Run) -> None:
    done = cli("models", "pull", "hf:org/m", env={"AUDIOSSL_OFFLINE": "1"})
    assert done.returncode == 5
    assert b"AUDIOSSL_OFFLINE forbids" in done.stderr
    assert done.stderr.count(b"\n") == 1


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A tiny AST in its authors' layout."""
    torch.manual_seed(0)
    encoder = build(dim=64, depth=1, heads=1, frames=128, stride=(10, 10))
    tensors = {
        ("v.patch_embed.proj." + name[12:] if name.startswith("patch_embed.") else "v." + name): v
        for name, v in encoder.state_dict().items()
    }
    for name, shape in (
        ("0.weight", [64]),
        ("0.bias", [64]),
        ("1.weight", [3, 64]),
        ("1.bias", [3]),
    ):
        tensors[f"mlp_head.{name}"] = torch.randn(shape)
    torch.save({f"module.{k}": v for k, v in tensors.items()}, tmp_path / "ast.pth")
    save_file(tensors, tmp_path / "ast.safetensors")
    return tmp_path / "ast.pth"


def test_convert_makes_a_model_that_works(cli: Run, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "made"
    labels = b"cat\n\n dog \nbell\n"
    done = cli("models", "convert", checkpoint, "--out", out, "--labels", "-", stdin=labels)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode() == f"{out}\n"
    assert done.stderr.startswith(b"audiossl: layout ast, ")
    facts = json.loads(cli("models", "show", out).stdout)
    assert facts["labels"] == ["cat", "dog", "bell"]
    assert facts["architecture"]["name"] == "ast"
    assert json.loads(cli("models", "verify", out).stdout)["checked"] == ["model.safetensors"]
    again = cli("models", "convert", checkpoint, "--out", out)
    assert again.returncode == 6
    assert b"give --out a new folder" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["{}"], 2, "--out"),
        (["{}", "--out", "new", "--layout", "sat"], 5, "unknown layout 'sat'"),
        (["{}", "--out", "new", "--layout", "ast-transformers"], 5, "layout|unexpected"),
        (["none.pth", "--out", "new"], 5, "none.pth"),
        (["hf:org/m", "--out", "new"], 5, "hf:org/m"),
        (["{}", "--out", "{}"], 6, "new folder"),
    ],
)
def test_convert_says_what_is_wrong(
    cli: Run, checkpoint: Path, tmp_path: Path, arguments: list[str], code: int, says: str
) -> None:
    weights = str(checkpoint.with_suffix(".safetensors"))
    arguments = [weights if argument == "{}" else argument for argument in arguments]
    done = cli("models", "convert", *arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert any(word in done.stderr.decode() for word in says.split("|"))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("kind", ["zip", "auto_map"])
@pytest.mark.parametrize("place", ["show", "path", "verify", "convert"])
def test_evil_files_end_the_real_process_with_5(
    cli: Run, kind: str, place: str, tmp_path: Path
) -> None:
    """The full table is in test_evil.py, in one process."""
    canary = tmp_path / "canary"
    path = evil.files(tmp_path / "evil", canary)[kind]
    more = ["--out", tmp_path / "new"] if place == "convert" else []
    done = cli("models", place, path, *more)
    assert done.returncode == 5
    assert done.stderr.count(b"\n") == 1
    assert not canary.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["ls"],
        ["show", "hf:org/m"],
        ["path", "hf:org/m"],
        ["verify"],
        ["rm", "hf:org/m"],
        ["pull", "hf:org/m"],
    ],
)
def test_no_torch(cli: Run, arguments: list[Any], tmp_path: Path) -> None:
    put("hf:org/m")
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, sys\n"
        "atexit.register(lambda: print('TORCH' * ('torch' in sys.modules), file=sys.stderr))\n"
    )
    env = {"PYTHONPATH": str(tmp_path), "AUDIOSSL_OFFLINE": "1"}
    assert b"TORCH" not in cli("models", *arguments, env=env).stderr


def test_completion_offers_what_is_here(cli: Run) -> None:
    put("hf:org/m")
    env = {
        "_AUDIOSSL_COMPLETE": "bash_complete",
        "COMP_WORDS": "audiossl models show hf",
        "COMP_CWORD": "3",
    }
    assert b"hf:org/m" in cli(env=env).stdout
