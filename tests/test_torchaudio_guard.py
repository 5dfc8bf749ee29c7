"""The guarded import: torchaudio's pure-Python parts work beside any build of torch."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOUND = importlib.util.find_spec("torchaudio")
needs_torchaudio = pytest.mark.skipif(FOUND is None, reason="torchaudio is not installed")

USE = """
import torch
from audiossl._torchaudio import torchaudio
import torchaudio.compliance.kaldi
wave = torch.randn(1, 16000)
assert torchaudio.compliance.kaldi.fbank(wave, num_mel_bins=40).shape == (98, 40)
assert torchaudio.transforms.MelSpectrogram(16000, 512)(wave).shape == (1, 128, 63)
assert torchaudio.functional.resample(wave, 16000, 8000).shape == (1, 8000)
"""

BROKEN = """
import sys
class Broken:
    def find_spec(self, name, path=None, target=None):
        if name == "torchaudio._extension":
            raise {error}("as where PyTorch and TorchAudio have different CUDA versions")
sys.meta_path.insert(0, Broken())
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@needs_torchaudio
@pytest.mark.parametrize(
    "before", ["", *(BROKEN.format(error=e) for e in ("OSError", "RuntimeError"))]
)
def test_fbank_mel_and_resample_work(before: str) -> None:
    done = run(before + USE)
    assert done.returncode == 0, done.stderr


@needs_torchaudio
def test_transformers_finds_torchaudio_loaded() -> None:
    done = run(
        "import audiossl._torchaudio\nfrom transformers import ASTFeatureExtractor, ASTModel"
    )
    assert done.returncode == 0, done.stderr


@needs_torchaudio
def test_another_fault_is_not_hidden() -> None:
    done = run(BROKEN.format(error="ValueError") + USE)
    assert "ValueError: as where" in done.stderr


def test_without_torchaudio_the_error_names_it() -> None:
    done = run("import sys\nsys.modules['torchaudio'] = None\nimport audiossl._torchaudio")
    assert "ModuleNotFoundError: import of torchaudio halted" in done.stderr


@needs_torchaudio
def test_the_private_seam_is_as_we_know_it() -> None:
    """What torchaudio asks of the module we stand in for: a release that asks more shows here."""
    assert FOUND is not None
    folder = Path(str(FOUND.origin)).parent
    asked = set()
    for path in folder.rglob("*.py"):
        if "_extension" not in path.relative_to(folder).parts:
            text = path.read_text(encoding="utf-8")
            asked |= set(re.findall(r"\b_extension(?:\.| import )(\w+)", text))
    # _load_lib: the CUDA CTC decoder, imported only by who wants it
    assert asked == {"_IS_TORCHAUDIO_EXT_AVAILABLE", "fail_if_no_align", "_load_lib"}


def test_no_other_file_imports_torchaudio() -> None:
    for folder in ("audiossl", "commands", "recipes"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom):
                    names = [node.module or ""]
                found = any(name.split(".")[0] == "torchaudio" for name in names)
                assert not found or path.name == "_torchaudio.py", path
