"""JSON from outside: size, depth, digits and text are bounded before anything is made of it."""

from __future__ import annotations

import json
import math
import unicodedata
from pathlib import Path
from typing import Any

from audiossl.errors import ModelError

MAX_BYTES = 4 * 2**20  # the 527 labels of AudioSet take 20 kB
MAX_DEPTH = 16
MAX_DIGITS = 18
MAX_LINE = 1000  # characters of a name, a label, a licence
MAX_TEXT = 100_000  # characters: `training` may hold notes


def read_json(path: Path, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """The object in a JSON file. Raises ModelError on anything but strict JSON of bounded size."""
    try:
        with path.open("rb") as file:
            raw = file.read(max_bytes + 1)
        if len(raw) > max_bytes:
            raise ModelError(f"{path}: larger than {max_bytes // 2**20} MB: not a model's config")
        data = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_number,
            parse_constant=_constant,
        )
        if not isinstance(data, dict):
            raise ValueError("expected an object")
        check_values(data, 1)
    except RecursionError:
        raise ModelError(f"{path}: nested deeper than {MAX_DEPTH} levels") from None
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise ModelError(f"{path}: not valid: {error}") from error
    return data


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {key!r} given twice")
        found[key] = value
    return found


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"number too large: {text[:20]}...")
    return int(text)


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"number too large: {text[:20]}")
    return value


def _constant(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


def check_values(value: Any, depth: int) -> None:
    """Depth, and that every text can be printed: no lone surrogates, no terminal codes."""
    if depth > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, dict):
        for key, item in value.items():
            check_text(key, MAX_LINE)
            check_values(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            check_values(item, depth + 1)
    elif isinstance(value, str):
        check_text(value, MAX_TEXT)


def check_text(text: str, longest: int) -> None:
    if len(text) > longest:
        raise ValueError(f"a text of {len(text)} characters: {text[:20]!r}...")
    for char in text:
        if unicodedata.category(char) in ("Cc", "Cs") and char not in "\n\t":
            raise ValueError(f"a control character in {text[:40]!r}")
