"""The only file that imports torchaudio: `from audiossl._torchaudio import torchaudio`.

PyPI's torchaudio 2.11 is linked against CUDA 13.0, so beside a CPU build of torch (or another CUDA)
its compiled part does not load and `import torchaudio` fails. What is used of it here (Kaldi fbank,
MelSpectrogram, resample: oracles of the tests, peers of the benchmarks) is pure Python; only
`torchaudio._extension`, the module that loads the compiled part, stands in the way. When the plain
import fails, that one module is replaced by a stand-in that says "no extension", which is what
torchaudio itself says when it was built without one.

Import this before any library that imports torchaudio by itself (transformers' audio models):
they then find it loaded. Raises ModuleNotFoundError where torchaudio is not installed.
"""

from __future__ import annotations

import sys
import types

__all__ = ["torchaudio"]


def _stand_in() -> types.ModuleType:
    extension = types.ModuleType("torchaudio._extension")
    vars(extension).update(
        _IS_TORCHAUDIO_EXT_AVAILABLE=False,
        fail_if_no_align=lambda function: function,  # decorates forced_align, which we never call
    )
    return extension


try:
    import torchaudio
except (OSError, RuntimeError):  # a missing libcudart, or "compiled with different CUDA versions"
    for _name in [name for name in sys.modules if name.split(".")[0] == "torchaudio"]:
        del sys.modules[_name]
    sys.modules["torchaudio._extension"] = _stand_in()
    import torchaudio
