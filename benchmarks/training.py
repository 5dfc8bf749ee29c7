"""What hiding and leaving out patches saves in training, on one thread.

    python benchmarks/training.py [--rounds 3] [--batch-size 8]

One update of a ViT-tiny (forward, backward, AdamW) on spectrograms of 10 s, 512 patches:
pretraining as a masked autoencoder with a decoder of 2 blocks of 128, with 75 % of the patches
hidden against as good as none (one of 512, or there would be no loss); and fine-tuning of a
PaSST-tiny with half its patches left out against all. CPU seconds, random input, seed 0.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import measure
import torch
from torch import Tensor, nn

from audiossl import models
from audiossl.data.masking import random_mask
from audiossl.methods.audio_mae import reconstruct
from audiossl.models.decoders import Decoder

MEL, FRAMES, PATCHES, CLASSES = 128, 1024, 512, 50


def updates(parts: list[nn.Module], loss: Callable[[], Tensor]) -> Callable[[], object]:
    optimizer = torch.optim.AdamW(
        [value for part in parts for value in part.parameters()], lr=1e-4, fused=True
    )

    def update() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return update


def autoencoder(hidden: float, batch_size: int) -> Callable[[], object]:
    """Updates of a masked autoencoder that hides this share of the patches."""
    torch.manual_seed(0)
    encoder: Any = models.build("bird_mae", size="tiny", mel=MEL, frames=FRAMES)
    grid = encoder.grid(FRAMES)
    decoder = Decoder(
        encoder.dim, encoder.class_tokens, grid, encoder.table_width(FRAMES), 256,
        kind="standard", dim=128, depth=2, heads=4,
    )  # fmt: skip
    spec = torch.randn(batch_size, MEL, FRAMES)
    config = SimpleNamespace(mask_ratio=hidden, normalise=True)
    kept = random_mask(batch_size, PATCHES, hidden)[1]
    return updates([encoder, decoder], lambda: reconstruct(encoder, decoder, spec, config, kept)[0])


def patchout(left_out: int, batch_size: int) -> Callable[[], object]:
    """Updates of a PaSST that leaves out this many patches."""
    torch.manual_seed(0)
    encoder: Any = models.build(
        "passt", size="tiny", mel=MEL, frames=FRAMES, stride=(16, 16), patchout=left_out
    )
    head = nn.Linear(encoder.dim, CLASSES)
    spec, target = torch.randn(batch_size, MEL, FRAMES), torch.arange(batch_size) % CLASSES
    return updates(
        [encoder.train(), head],
        lambda: nn.functional.cross_entropy(head(encoder.embed(spec)), target),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of training with fewer patches.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=8)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    size = arguments.batch_size
    print(measure.machine("torch"), "\n")
    masked = {
        "75 % hidden": autoencoder(0.75, size),
        "as good as none hidden": autoencoder(1.5 / PATCHES, size),
    }
    seconds = measure.interleaved(masked, arguments.rounds)
    print(measure.table("Masked autoencoder, an update", seconds, "75 % hidden", size, "clip"))
    thinned = {
        "half left out": patchout(PATCHES // 2, size),
        "all patches": patchout(0, size),
    }
    seconds = measure.interleaved(thinned, arguments.rounds)
    print(measure.table("Fine-tuning, an update", seconds, "half left out", size, "clip"))


if __name__ == "__main__":
    main()
