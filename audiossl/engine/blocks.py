"""The repeated blocks of a network: what is compiled, recomputed and sharded one by one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from audiossl.errors import RecipeError
from audiossl.model import Model

CONTAINERS = ("blocks", "layers")  # what names of containers of blocks end with
RECOMPILED = 4  # times at most that a block is compiled anew: for training, evaluation, odd batches


def blocks_of(module: nn.Module) -> Iterator[nn.Module]:
    """The children of containers named `blocks` or `layers`, not those within another block."""
    for name, child in module.named_children():
        if name.endswith(CONTAINERS) and isinstance(child, nn.ModuleList | nn.Sequential):
            yield from child
        else:
            yield from blocks_of(child)


def set_checkpointing(model: Model) -> None:
    """Have the encoder recompute its blocks in the backward pass: less memory, more time."""
    encoder: Any = model.encoder
    if not hasattr(encoder, "checkpointing"):
        name = model.config.architecture.get("name")
        raise RecipeError(f"recipe train.checkpointing: the encoder {name} cannot recompute")
    encoder.checkpointing = True


def compile_blocks(method: Any) -> None:
    """torch.compile each block (of a network without blocks, the encoder); names stay as they are.

    Not the loss as a whole: equal blocks are compiled once, and what draws random masks or mixes
    clips stays outside, where it draws the same as without compiling.
    """
    import torch._dynamo

    blocks = list(blocks_of(method)) or [method.model.encoder]
    limit = RECOMPILED * len(blocks)
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, limit)
    for block in blocks:
        block.compile(dynamic=False)


def compiler_error(error: RuntimeError) -> RecipeError | None:
    """What to say when the compiler is missing or fails; None for any other error."""
    import torch._dynamo.exc

    if not isinstance(error, torch._dynamo.exc.TorchDynamoException):
        return None
    lines = [line for line in str(error).splitlines() if line]
    reason = lines[0] if lines else type(error).__name__
    return RecipeError(
        f"recipe train.compile: {reason}"
        " (torch.compile needs a C++ compiler, on GPUs Triton: leave it out, or install them)"
    )
