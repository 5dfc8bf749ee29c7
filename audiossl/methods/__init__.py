"""Learning objectives, one paper per file: the file's name is the method's name.

Each file defines a dataclass `Config` and `class Method(nn.Module)`: `__init__(model, config)`,
`loss(batch) -> (loss, {name: value})`, optionally `after_step(step)`; `.model` is what is kept.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from audiossl.errors import RecipeError, near


def names() -> list[str]:
    """Methods in this package, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.ispkg)


def load(name: str) -> ModuleType:
    """The module of method `name`, with its `Config` and `Method`."""
    if name not in names():
        raise RecipeError(f"unknown method {name!r}{near(name, names())}")
    return importlib.import_module(f"{__name__}.{name}")
