"""How published checkpoints are described: each architecture's file ends with its own layouts.

    LAYOUTS: tuple[Layout, ...]         the ways its weights have been published
    PUBLISHED: tuple[Published, ...]    where they can be had, and on what terms

`convert.py` reads both; it is the only reader.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Checkpoint:
    """A published checkpoint, read but not yet understood.

    tensors: under their published names, without the `module.` of DataParallel.
    sidecars: the JSON files beside it, by file name (`config.json`, `preprocessor_config.json`).
    overrides: what the user knows better: `labels`, `licence`, `source`, and keys of `architecture`
        and `frontend`.
    """

    tensors: dict[str, Tensor]
    sidecars: dict[str, dict[str, Any]] = field(default_factory=dict)
    overrides: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """One published form of an architecture's weights.

    marks: patterns; the layout is recognised when each of them matches a whole name.
    rows: (pattern, target): a published name that matches the whole pattern is ours under target
        (`\\1` is the first group). Target None: known and of no use to us. A target that ends in
        `@0`, `@1`, ... is that part of a tensor stored in pieces, joined along its first axis.
    config: checkpoint -> the fields of `config.json` that the checkpoint settles (architecture,
        frontend, head, task, window_seconds, method). Raises ModelError on what it cannot settle.
    absent: patterns; the layout is not recognised when one of them matches a whole name.
    ignored: keys of the JSON beside the weights that ask for code, are known to be there and are
        left alone. With any other such key a checkpoint is refused.
    """

    name: str
    marks: tuple[str, ...]
    rows: tuple[tuple[str, str | None], ...]
    config: Callable[[Checkpoint], dict[str, Any]]
    absent: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class Published:
    """A checkpoint that can be had: `name` is `hf:owner/repo`, or a file name with its page.

    notice: what its user should be told.
    """

    name: str
    layout: str
    licence: str
    training: tuple[str, ...]
    source: str
    notice: str = ""
