"""Wave to log-mel spectrogram, exactly as each published system does it, one frontend per file.

    frontend = build({"preset": "ast"})          # or {"name": "fbank", "rate": 16000, ...}
    spec = frontend(wave)                        # (batch, samples) -> (batch, mel, frames)

`fbank` is Kaldi's recipe (DC removal and pre-emphasis inside each frame), `logmel` the STFT's; both
are differentiable and run where the wave is. A frontend is part of a checkpoint: `config()` says
everything, `build(config())` gives it back. `presets.PRESETS` holds the published ones by name.

Each clip is worked on alone, so its spectrogram never depends on its batch: on a CPU clip by clip,
in blocks of frames that stay in the cache (faster than the whole batch at once), elsewhere the
whole batch. Clips of unequal length go in one padded tensor together with `lengths`.

Importing this package imports no torch; `build` does.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from audiossl.frontend.spectrogram import Frontend

KINDS = {"fbank": "Fbank", "logmel": "LogMel"}  # file -> class


def build(config: Mapping[str, Any]) -> Frontend:
    """The frontend that a config describes.

    config: `{"name": "fbank" or "logmel", **arguments}`, the arguments of `Clip` among them, or
        `{"preset": NAME}`, with the arguments that differ.

    Raises FrontendError.
    """
    from audiossl.frontend.clip import Clip, check_choice
    from audiossl.frontend.presets import PRESETS

    arguments = dict(config)
    preset = arguments.pop("preset", None)
    if preset is not None:
        check_choice("preset", preset, tuple(PRESETS))
        arguments = {**PRESETS[preset], **arguments}
    name = arguments.pop("name", None)
    check_choice("name", name, tuple(KINDS))
    kind = getattr(importlib.import_module(f"{__name__}.{name}"), KINDS[name])
    own = {key: value.annotation for key, value in inspect.signature(kind).parameters.items()}
    own.pop("clip")
    shared = {item.name: str(item.type) for item in fields(Clip)}
    for key, value in arguments.items():
        check_choice("argument", key, (*own, *shared))
        _check_type(key, value, {**own, **shared}[key])
    clip = Clip(**{key: arguments.pop(key) for key in list(arguments) if key in shared})
    frontend = kind(**arguments, clip=clip)
    frontend.preset = preset
    return frontend


def _check_type(key: str, value: Any, annotation: str) -> None:
    """JSON and YAML know four scalar types; `annotation` says which of them the argument takes."""
    names = [name.strip() for name in annotation.split("|")]
    found = "None" if value is None else type(value).__name__
    if found in names or (found == "int" and "float" in names):
        return
    from audiossl.frontend.clip import FrontendError

    raise FrontendError(f"frontend {key}: expected {annotation}, got {value!r}")
