"""What hiding and leaving out patches saves in training, and what data takes of it, on one thread.

    python benchmarks/training.py [--rounds 3] [--batch-size 16] [--clips 64]

One update of a ViT-tiny (forward, backward, AdamW) on spectrograms of 10 s, 512 patches:
pretraining as a masked autoencoder with a decoder of 2 blocks of 128, with 75 % of the patches
hidden against as good as none (one of 512, or there would be no loss); and fine-tuning of a
PaSST-tiny with half its patches left out against all. CPU seconds, random input, seed 0.

And what share of such a pretraining step the data takes in the second epoch, by `data.cache`: FLAC
files of 12 s of noise at 44.1 kHz, crops of 10 s at 16 kHz, no workers. Data is all until there is
a spectrogram.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import measure
import numpy as np
import soundfile
import torch
from torch import Tensor, nn

from audiossl import frontend as frontends
from audiossl import models
from audiossl.data import reading
from audiossl.data.clips import Clips
from audiossl.data.draws import Stream
from audiossl.data.loader import train_loader
from audiossl.data.rows import Row
from audiossl.data.spectrogram_cache import SpectrogramCache
from audiossl.methods.audio_mae import reconstruct
from audiossl.methods.parts.masking import random_mask
from audiossl.models.parts.decoders import Decoder

MEL, FRAMES, PATCHES, CLASSES = 128, 1024, 512, 50
RATE, CROP_SECONDS = 16000, 10.0
CACHES = ("none", "memory", "features")


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
    learn = pretraining(hidden, batch_size)
    spec = torch.randn(batch_size, MEL, FRAMES)
    return lambda: learn(spec)


def pretraining(hidden: float, batch_size: int) -> Callable[[Tensor], object]:
    """An update of that autoencoder on any spectrograms."""
    torch.manual_seed(0)
    encoder: Any = models.build("bird_mae", size="tiny", mel=MEL, frames=FRAMES)
    grid = encoder.grid(FRAMES)
    decoder = Decoder(
        encoder.dim, encoder.class_tokens, grid, encoder.table_width(FRAMES), 256,
        kind="standard", dim=128, depth=2, heads=4,
    )  # fmt: skip
    config = SimpleNamespace(mask_ratio=hidden, normalise=True)
    kept = random_mask(batch_size, PATCHES, hidden)[1]
    given: list[Tensor] = []
    update = updates(
        [encoder, decoder], lambda: reconstruct(encoder, decoder, given.pop(), config, kept)[0]
    )

    def learn(spec: Tensor) -> None:
        given.append(spec)
        update()

    return learn


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


def write_noise(folder: Path, clips: int) -> list[Row]:
    random = np.random.default_rng(0)
    for number in range(clips):
        wave = 0.1 * random.standard_normal(12 * 44100)
        soundfile.write(folder / f"{number}.flac", wave, 44100)
    return reading.read(folder)


def data_seconds(
    rows: list[Row], cache: str, folder: Path, batch_size: int
) -> list[tuple[float, float]]:
    """CPU seconds (data, whole) of each step of the second epoch."""
    frontend = frontends.build({"preset": "audiomae"})
    kept = None
    if cache == "features":
        kept = SpectrogramCache(
            frontend.config(), round(CROP_SECONDS * RATE), "repeat", str(folder)
        )
    items = Clips(rows, (), RATE, CROP_SECONDS, features=kept)
    if cache == "memory":
        items.fill_cache()
    batches = train_loader(items, Stream(len(rows), batch_size, seed=0))
    learn = pretraining(0.75, batch_size)
    steps = len(rows) // batch_size
    seconds = []
    for _ in range(2 * steps):
        start = time.process_time()
        batch = next(batches)
        spec = batch["spec"] if kept is not None else frontend(batch["wave"])
        ready = time.process_time()
        learn(spec)
        seconds.append((ready - start, time.process_time() - start))
    return seconds[steps:]


def data_table(clips: int, batch_size: int) -> str:
    lines = ["### Data in a pretraining step, second epoch", ""]
    lines += [
        "| `data.cache` | data, ms per clip (median) | of a step | min-max |",
        "|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as name:
        sounds, kept = Path(name, "sounds"), Path(name, "kept")
        sounds.mkdir()
        rows = write_noise(sounds, clips)
        for cache in CACHES:
            seconds = data_seconds(rows, cache, kept, batch_size)
            each = 1e3 * statistics.median(data for data, _ in seconds) / batch_size
            shares = [100 * data / whole for data, whole in seconds]
            lines.append(
                f"| {cache} | {each:.2f} | **{statistics.median(shares):.1f} %** |"
                f" {min(shares):.1f}-{max(shares):.1f} % |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of training with fewer patches.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--clips", type=int, default=64, help="of noise, at least a batch")
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
    print(data_table(arguments.clips, size))


if __name__ == "__main__":
    main()
