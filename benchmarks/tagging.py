"""Tag a 10 s clip, model loaded, one core: the embedded tagger against YAMNet (LiteRT).

YAMNet's model file is not part of this project: --yamnet yamnet_spectra_in.tflite (a TensorFlow
Lite YAMNet with spectrogram input). Its log-mel is computed by audiossl's frontend for both.

python benchmarks/tagging.py --yamnet FILE [--rounds 9]
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable

import measure
import numpy as np
import torch

from audiossl import frontend
from audiossl.tagging import Tagger

RATE, SECONDS = 16000, 10
PATCH, HOP = 96, 48  # frames: 0.96 s every 0.48 s, as YAMNet was published


def yamnet(path: str) -> Callable[[torch.Tensor], np.ndarray]:
    """(96 x 64 patches of one clip) -> mean scores over its patches."""
    from ai_edge_litert.interpreter import Interpreter  # pyright: ignore[reportMissingImports]

    network = Interpreter(model_path=path, num_threads=1)
    network.allocate_tensors()
    entry, exit_ = network.get_input_details()[0], network.get_output_details()[0]

    def scale(values: np.ndarray) -> np.ndarray:
        step, zero = entry["quantization"]
        if not step:
            return values.astype(entry["dtype"])
        limits = np.iinfo(entry["dtype"])
        return np.clip(np.round(values / step + zero), limits.min, limits.max).astype(
            entry["dtype"]
        )

    def score(spec: torch.Tensor) -> np.ndarray:
        frames = spec[0].T.numpy()
        total = []
        for start in range(0, len(frames) - PATCH + 1, HOP):
            patch = frames[start : start + PATCH].reshape(entry["shape"])
            network.set_tensor(entry["index"], scale(patch))
            network.invoke()
            total.append(network.get_tensor(exit_["index"])[0])
        return np.mean(total, axis=0)

    return score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--yamnet", default=os.environ.get("AUDIOSSL_YAMNET"), metavar="FILE")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(measure.machine("torch"), "\n")
    random = np.random.default_rng(0)
    wave = (0.1 * random.standard_normal((1, RATE * SECONDS))).astype(np.float32)
    tagger = Tagger.load()
    name = f"audiossl {tagger.model.config.name}"
    candidates: measure.Candidates = {name: lambda: tagger.scores(wave)}
    if args.yamnet:
        mel, network = frontend.build({"preset": "yamnet"}), yamnet(args.yamnet)

        def run_yamnet() -> np.ndarray:
            with torch.inference_mode():
                return network(mel(torch.from_numpy(wave)))

        candidates["YAMNet, LiteRT"] = run_yamnet
    else:
        print("(no --yamnet FILE: measured without its peer)\n")
    seconds = measure.interleaved(candidates, args.rounds)
    print(measure.table("Tag 10 s of audio, one core, CPU time", seconds, name, 1, "clip"))


if __name__ == "__main__":
    main()
