"""Completion in the real shells, and the committed scripts against the generated ones."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
SCRIPTS = {"bash": "audiossl.bash", "zsh": "_audiossl", "fish": "audiossl.fish"}

BASH = r"""
source "$SCRIPT"
COMP_WORDS=(%s); COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 ))
_audiossl_completion audiossl
for entry in "${COMPREPLY[@]}"; do echo "$entry"; done
"""

# compadd is shadowed: it prints what the widget would offer.
ZSH = r"""
compdef() { : }
offer() { local entry; for entry in "${(@P)1}"; do echo "$entry"; done }
_describe() { offer "$3" }
compadd() { offer "$@[-1]" }
_path_files() { echo "(files)" }
words=(%s); CURRENT=${#words}
source "$SCRIPT"; _audiossl_completion
"""

FISH = """
source "$SCRIPT"
complete -C "%s"
"""


def complete(shell: str, line: str) -> set[str]:
    """What `shell` offers for the last word of `line`."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    words = line.split(" ")
    quoted = " ".join(f'"{word}"' for word in words)
    program = {"bash": BASH % quoted, "zsh": ZSH % quoted, "fish": FISH % line}[shell]
    arguments = {"bash": ["--norc", "-c"], "zsh": ["-f", "-c"], "fish": ["--no-config", "-c"]}
    environment = {
        **os.environ,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "SCRIPT": str(ROOT / "completions" / SCRIPTS[shell]),
    }
    done = subprocess.run(
        [shell, *arguments[shell], program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return {entry.split("\t")[0].split(":")[0] for entry in done.stdout.splitlines()}


@pytest.mark.parametrize("shell", SCRIPTS)
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("audiossl ", {"tag", "finetune", "models", "recipes", "doctor", "completions"}),
        ("audiossl ta", {"tag"}),
        ("audiossl tag --thr", {"--threshold"}),
        ("audiossl tag --format t", {"table", "tsv", "textgrid"}),
        ("audiossl tag --model ta", {"tagger"}),
        ("audiossl models sh", {"show"}),
        ("audiossl models show ta", {"tagger"}),
        ("audiossl recipes show tiny/s", {"tiny/supervised"}),
        ("audiossl finetune tiny/s", {"tiny/supervised"}),
        ("audiossl completions z", {"zsh"}),
    ],
)
def test_real_shell(shell: str, line: str, expected: set[str]) -> None:
    assert expected <= complete(shell, line)


@pytest.mark.parametrize("shell", SCRIPTS)
def test_only_what_begins_so_is_offered(shell: str) -> None:
    assert complete(shell, "audiossl do") == {"doctor"}


@pytest.mark.parametrize("shell", SCRIPTS)
def test_committed_scripts_are_current(shell: str) -> None:
    from audiossl.commands.completions import script

    assert (ROOT / "completions" / SCRIPTS[shell]).read_text() == script(shell)
