"""Pick the device that a network runs on."""

from __future__ import annotations

import torch

from audiossl.errors import UsageError


def pick_device(name: str, threads: int | None = None) -> str:
    """`auto`, or a device by name -> one that is there. Raises UsageError.

    `threads`: of torch inside one operation (CPU); results do not depend on the number of workers
    only when this does not either.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    if name == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:  # with pages about the insides of torch
        raise UsageError(f"--device {name}: not here: there is {', '.join(_devices())}") from error
    return name


def _devices() -> list[str]:
    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return ["cpu", *gpus, *(["mps"] if torch.backends.mps.is_available() else [])]
