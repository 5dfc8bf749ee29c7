"""Tensors out of a pickled checkpoint (.pt .pth .ckpt .bin) without running what it may hold.

A pickle is a program. Here it is opened only on request, in a process of its own, by torch's
restricted unpickler (`weights_only=True`) with the few containers of `CONTAINERS` allowed. Should
that wall have a hole, an audit hook keeps the process from opening sockets and starting programs.
It gives back tensors as safetensors, or one line of error. torch before 2.10 has such a hole
(CVE-2026-24747); this program needs a later one.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import load, save_file
from torch import Tensor, nn

from audiossl.errors import ModelError, OutputError, one_line

SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")
CONTAINERS = [argparse.Namespace, OrderedDict]  # what training scripts put around their tensors
STATE_KEYS = ("state_dict", "model", "model_state_dict", "module")  # where they put the tensors
SECONDS = 1800  # the largest checkpoints on a slow disk take a minute or two
BLOCKED = (  # audit events that reading tensors never causes
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "os.spawn",
    "os.system",
    "pty.",
    "socket.",
    "subprocess.",
    "urllib.",
)
NO_SPACE = "No space left"  # of the operating system, as safetensors passes it on
CHILD = (  # -I keeps the environment out; the parent's own path finds this package
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from audiossl.hub.pickles import child; child(*sys.argv[2:])"
)


def read(path: Path) -> dict[str, Tensor]:
    """The tensors in the pickle at `path`. Raises ModelError on anything but plain tensors."""
    search = json.dumps([os.path.abspath(entry) for entry in sys.path])
    with tempfile.TemporaryDirectory(prefix="audiossl-") as folder:
        out = Path(folder, "tensors.safetensors")
        command = [sys.executable, "-I", "-c", CHILD, search, str(path.absolute()), str(out)]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise ModelError(f"{path}: not read within {SECONDS} s") from error
        if done.returncode != 0:
            lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
            said = one_line(lines[-1]) if lines else f"its reader ended with {done.returncode}"
            if NO_SPACE in said:
                raise OutputError(f"{folder}: {said}: set TMPDIR to a folder with more room")
            raise ModelError(f"{path}: {said}")
        return load(out.read_bytes())


def child(path: str, out: str) -> None:
    """In the child: pickle at `path` -> safetensors at `out`, or one line on stderr and exit 1."""
    sys.addaudithook(block)
    try:
        tensors = unpickle(path)
        save_file({name: value.clone() for name, value in tensors.items()}, out)
    except ModelError as error:
        sys.exit(str(error))
    except Exception as error:  # a full disk, or no memory for the copies
        sys.exit(f"{type(error).__name__}: {error}")


def unpickle(path: str) -> dict[str, Tensor]:
    """The plain tensors in the pickle at `path`, read in this process. Raises ModelError."""
    try:
        _check_zip(path)
        with torch.serialization.safe_globals(CONTAINERS):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except ModelError:
        raise
    except Exception as error:  # whatever a hostile file provokes is one line, not a traceback
        raise ModelError(_in_one_line(error)) from error
    return _state_dict(loaded)


def block(event: str, _arguments: tuple[Any, ...]) -> None:
    """Audit hook: raise ModelError on an event of `BLOCKED`."""
    if event.startswith(BLOCKED):
        raise ModelError(f"tried {event}: refused")


def _check_zip(path: str) -> None:
    """torch never compresses what it saves: a compressed entry may be a bomb."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if entry.compress_type != zipfile.ZIP_STORED:
                    raise ModelError(f"{entry.filename!r} is compressed: not a torch checkpoint")


def _state_dict(loaded: Any) -> dict[str, Tensor]:
    """The tensors, by themselves or under one of the usual keys. Raises ModelError."""
    if not isinstance(loaded, Mapping):
        raise ModelError(f"holds a {type(loaded).__name__}, not a table of tensors")
    inner = [loaded[key] for key in STATE_KEYS if isinstance(loaded.get(key), Mapping)]
    state = inner[0] if inner else loaded
    for name, value in state.items():
        if not isinstance(name, str) or not _is_plain(value):
            raise ModelError(f"{name!r} is a {type(value).__name__}, not a plain tensor")
    return {name: value.detach() for name, value in state.items()}


def _is_plain(value: Any) -> bool:
    """A dense tensor backed by all of its own numbers (a stretched view could claim petabytes)."""
    return (
        type(value) in (Tensor, nn.Parameter)
        and value.layout == torch.strided
        and not value.is_quantized
        and not value.is_meta
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )


def _in_one_line(error: Exception) -> str:
    """torch's reason without torch's advice, which is to read the file without the restrictions."""
    text = str(error).strip()
    blocked = re.search(r"GLOBAL ([\w.]+)", text)
    if blocked:
        return f"holds {blocked[1]}, which may be code: refused (tensors and plain containers only)"
    if isinstance(error, UnpicklingError):
        return "not a checkpoint that torch can read without running code: refused"
    return f"{type(error).__name__}: {one_line(text) or 'no reason given'}"
