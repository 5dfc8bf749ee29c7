"""The embedded tagger: its graph (onnxruntime) against torch, and against YAMNet (LiteRT).

Three tables, one core: tag 10 s with the model loaded, tag a folder with the model loaded, and
`audiossl tag CLIP` from nothing, also against a script that uses torch and librosa.
YAMNet's model file is not part of this project: --yamnet yamnet_spectra_in.tflite (a TensorFlow
Lite YAMNet with spectrogram input). Its log-mel is computed by audiossl's frontend for both.

python benchmarks/tagging.py [--yamnet FILE] [--folder FOLDER] [--rounds 9]
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import measure
import numpy as np
import torch

from audiossl import frontend
from audiossl.inference.tagging import Tagger
from audiossl.pipeline.inputs import expand

RATE, SECONDS = 16000, 10
CLIPS = Path(__file__).parents[1] / "tests" / "data" / "clips"
GRAPH, TORCH = "audiossl tag (graph)", "audiossl tag --backend torch"
LIBROSA = """
import sys, librosa, torch, audiossl
model = audiossl.load("tagger")
wave, _ = librosa.load(sys.argv[1], sr=16000)
with torch.inference_mode():
    scores = model.scores(model(torch.from_numpy(wave)[None]))[0]
print(*sorted(zip(scores.tolist(), model.labels))[-5:])
"""
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


def loaded(args: argparse.Namespace) -> None:
    """10 s of noise, the models loaded."""
    random = np.random.default_rng(0)
    wave = (0.1 * random.standard_normal((1, RATE * SECONDS))).astype(np.float32)
    by_graph, by_torch = Tagger.load(backend="onnx"), Tagger.load(backend="torch")
    candidates: measure.Candidates = {
        GRAPH: lambda: by_graph.scores(wave),
        TORCH: lambda: by_torch.scores(wave),
    }
    if args.yamnet:
        mel, network = frontend.build({"preset": "yamnet"}), yamnet(args.yamnet)

        def run_yamnet() -> np.ndarray:
            with torch.inference_mode():
                return network(mel(torch.from_numpy(wave)))

        candidates["YAMNet, LiteRT"] = run_yamnet
    else:
        print("(no --yamnet FILE: measured without its peer)\n")
    seconds = measure.interleaved(candidates, args.rounds)
    title = "Tag 10 s of audio, model loaded, one core, CPU time"
    print(measure.table(title, seconds, GRAPH, 1, "clip"))


def folder(args: argparse.Namespace) -> None:
    """A folder of files, the models loaded: decoding and resampling are part of it."""
    files = [Path(os.fsdecode(item.path)) for item in expand([str(args.folder)], None, False, "-")]
    taggers = {GRAPH: Tagger.load(backend="onnx"), TORCH: Tagger.load(backend="torch")}

    def run(tagger: Tagger) -> None:
        for file in files:
            list(tagger.tag(file))

    candidates: measure.Candidates = {
        name: lambda tagger=tagger: run(tagger) for name, tagger in taggers.items()
    }
    seconds = measure.interleaved(candidates, args.rounds)
    title = f"Tag a folder of {len(files)} files, model loaded, one core, CPU time"
    print(measure.table(title, seconds, GRAPH, len(files), "file"))


def cold(args: argparse.Namespace) -> None:
    """One short file, from the start of the process to its end."""
    command, clip = str(Path(sys.executable).parent / "audiossl"), str(CLIPS / "speech.flac")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(*words: str) -> Callable[[], object]:
        return lambda: subprocess.run(words, env=environment, capture_output=True, check=True)

    candidates: measure.Candidates = {
        GRAPH: start(command, "tag", clip),
        TORCH: start(command, "tag", clip, "--backend", "torch"),
        "a script with torch and librosa": start(sys.executable, "-c", LIBROSA, clip),
    }
    for name, clock in (("CPU time", children), ("wall time", time.perf_counter)):
        seconds = measure.interleaved(candidates, max(args.rounds // 2, 3), clock)
        print(measure.table(f"Tag one clip from nothing, {name}", seconds, GRAPH, 1, "run"))


def children() -> float:
    """CPU seconds of the processes that this one has started and waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--yamnet", default=os.environ.get("AUDIOSSL_YAMNET"), metavar="FILE")
    parser.add_argument("--folder", default=CLIPS, metavar="FOLDER", help="of sounds to tag")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(measure.machine("torch", "onnxruntime", "librosa"), "\n")
    loaded(args)
    folder(args)
    cold(args)


if __name__ == "__main__":
    main()
