"""What is installed: packages, data, commands; and what start-up may cost."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib import metadata, resources
from pathlib import Path

import pytest

import audiossl
from audiossl.commands.main import COMMANDS

ROOT = Path(__file__).parents[1]
HEAVY = (
    "torch",
    "onnxruntime",
    "numpy",
    "rich",
    "librosa",
    "torchaudio",
    "soundfile",
    "yaml",
    "huggingface_hub",
)


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_packages_listed_are_the_folders() -> None:
    folders = {
        ".".join(("audiossl", *path.parent.relative_to(ROOT / place).parts)).rstrip(".")
        if place == "audiossl"
        else ".".join(("audiossl", place, *path.parent.relative_to(ROOT / place).parts))
        for place in ("audiossl", "commands", "recipes")
        for path in (ROOT / place).rglob("__init__.py")
    }
    assert set(project()["tool"]["setuptools"]["packages"]) == folders


def test_every_command_has_its_file_and_every_file_its_command() -> None:
    shared = {"__init__", "listing", "main", "options", "output", "session", "table"}
    files = {path.stem for path in (ROOT / "commands").glob("*.py")} - shared
    assert {name.replace("-", "_") for name in COMMANDS} == files


def test_recipes_and_models_are_found_as_package_data() -> None:
    recipes = resources.files("audiossl.recipes")
    assert any(entry.name.endswith(".yaml") for entry in (recipes / "tiny").iterdir())
    assert (resources.files("audiossl.pretrained") / "tagger" / "config.json").is_file()


def test_the_distribution_knows_its_version() -> None:
    assert metadata.version("audiossl-toolkit") == audiossl.__version__


def modules_after(*args: str) -> set[str]:
    """Top-level modules in memory after `audiossl ARGS`."""
    program = (
        "import sys, atexit, os\n"
        "from audiossl.commands.main import run\n"
        "atexit.register(lambda: os.write(2, ('MODULES ' + ' '.join(sys.modules)).encode()))\n"
        f"run({list(args)!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    names = done.stderr.decode().split("MODULES ")[1].split()
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize(
    "args",
    [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS), ["completions", "bash"]],
)
def test_help_imports_nothing_heavy(args: list[str]) -> None:
    assert not modules_after(*args) & set(HEAVY)


def test_completion_imports_nothing_heavy() -> None:
    program = (
        "import sys\nfrom audiossl.commands.main import cli\n"
        "try: cli.main(prog_name='audiossl')\nexcept SystemExit: pass\n"
        "sys.stderr.write('MODULES ' + ' '.join(sys.modules))\n"
    )
    for words in ("audiossl tag --model ", "audiossl recipes show "):
        environment = {
            "_AUDIOSSL_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split())),
            "PATH": "/usr/bin:/bin",
        }
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, check=False
        )
        names = done.stderr.decode().split("MODULES ")[1].split()
        assert not {name.split(".")[0] for name in names} & set(HEAVY)
        assert done.stdout


def test_import_audiossl_is_lazy_and_every_public_name_is_there() -> None:
    program = "import sys, audiossl; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert not {name.split(".")[0] for name in done.stdout.decode().split()} & set(HEAVY)
    for name in audiossl.__all__:
        assert getattr(audiossl, name) is not None
    with pytest.raises(AttributeError):
        _ = audiossl.no_such_name


def test_stub_file_lists_the_public_names() -> None:
    stub = (ROOT / "audiossl" / "__init__.pyi").read_text()
    for name in audiossl.__all__:
        assert f" as {name}\n" in stub or f"{name}:" in stub


def test_no_command_module_is_imported_outside_commands() -> None:
    for path in (ROOT / "audiossl").rglob("*.py"):
        assert "import audiossl.commands" not in path.read_text()
        assert "from audiossl.commands" not in path.read_text()


def test_only_one_file_imports_torchaudio() -> None:
    users = [
        path.name
        for path in (ROOT / "audiossl").rglob("*.py")
        if "import torchaudio" in path.read_text() or "from torchaudio" in path.read_text()
    ]
    assert users == ["_torchaudio.py"]


def test_nothing_under_audiossl_prints() -> None:
    for path in (ROOT / "audiossl").rglob("*.py"):
        assert not [
            line for line in path.read_text().splitlines() if line.strip().startswith("print(")
        ]
