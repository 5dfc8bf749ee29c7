"""audiossl: self-supervised audio in a shell, and in Python.

    import audiossl
    records = audiossl.tag("clip.wav")
    records[0].labels

The names below are imported when first used (PEP 562), so `import audiossl` costs nothing.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "AudiosslError": "audiossl.errors",
    "InputError": "audiossl.errors",
    "ModelError": "audiossl.errors",
    "UsageError": "audiossl.errors",
    "Limits": "audiossl.audio.formats",
    "RawFormat": "audiossl.audio.formats",
    "EmbedRecord": "audiossl.output.records",
    "ErrorRecord": "audiossl.output.records",
    "Label": "audiossl.output.records",
    "TagRecord": "audiossl.output.records",
    "load": "audiossl.model",
    "Embedder": "audiossl.inference.embedding",
    "embed": "audiossl.inference.embedding",
    "Tagger": "audiossl.inference.tagging",
    "tag": "audiossl.inference.tagging",
}
__all__ = ["__version__", *_PUBLIC]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return __all__
