"""What a split's model and YAMNet's probe give on the clips that neither has heard.

The model answers by its own head: the highest of the data set's ten labels. The probe is a logistic
regression on the standardised mean of YAMNet's 1024-d embeddings, trained on the same clips.
"""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import protocol
import soundfile
import torch
from labels import LABELS, judge
from protocol import MEASURED
from sounds import HELD_OUT
from teacher import classes

from audiossl.data import rows as tables
from audiossl.data.rows import Row
from audiossl.inference.tagging import THRESHOLD
from audiossl.model import load

REGULARISATION = (1.0, 0.1, 0.01, 0.001)  # C of the probe; 1 is scikit-learn's default
BINS = 10  # of the reliability table


def answers(
    model_folder: Path, out: Path, clips: list[dict[str, str]], rows: list[int]
) -> np.ndarray:
    """Logits (clips, labels) of whole clips; NaN for those that are not among `rows`."""
    torch.set_num_threads(1)  # clips are short: processes help, threads do not
    model = load(str(model_folder))
    logits = np.full((len(clips), len(LABELS)), np.nan, np.float32)
    with torch.inference_mode():
        for row in rows:
            wave = soundfile.read(out / clips[row]["path"], dtype="float32")[0]
            wave = np.pad(wave, (0, max(0, 400 - len(wave))))  # one frame at least
            logits[row] = model(torch.from_numpy(wave)[None])[0].numpy()
    return logits


def accuracy(logits: np.ndarray, clips: list[dict[str, str]], split: int) -> dict[str, float]:
    """Accuracy on the split's test fold of each measured set, by the model's own head."""
    result = {}
    for measured in MEASURED:
        columns = [LABELS.index(label) for label in measured.labels.values()]
        names = list(measured.labels)
        rows = [i for i, clip in enumerate(clips) if clip["source"] == measured.name]
        tested = [i for i in rows if protocol.is_test(clips[i], split)]
        best = logits[np.ix_(tested, columns)].argmax(axis=1)
        right = [names[b] == clips[i]["category"] for b, i in zip(best, tested, strict=True)]
        result[measured.name] = float(np.mean(right))
    return result


def probe(
    embedding: np.ndarray, clips: list[dict[str, str]], split: int
) -> dict[str, dict[str, float]]:
    """Accuracy of logistic regression on `embedding` (clips, dim) under the same split, by C."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    result: dict[str, dict[str, float]] = {}
    for measured in MEASURED:
        train, tested = protocol.sides(measured.name, clips, split)
        names = np.array([clip["category"] for clip in clips])
        for c in REGULARISATION:
            fit = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=300))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # 300 rounds are enough, converged or not
                fit.fit(embedding[train], names[train])
            right = fit.predict(embedding[tested]) == names[tested]
            result.setdefault(measured.name, {})[f"C={c:g}"] = float(right.mean())
    return result


def truth(out: Path, data: Path, clips: list[dict[str, str]]) -> np.ndarray:
    """(clips, labels): 1 present, 0 absent, -1 unknown, as labels.judge has it."""
    scores = np.load(out / "heard.npz")["scores"]
    names = classes(data / "teachers")
    columns = {label: names.index(label) for label in LABELS if label in names}
    rows = []
    for clip, heard in zip(clips, scores, strict=True):
        told = {label: float(heard[column]) for label, column in columns.items()}
        present, judged = judge(clip["source"], clip["category"], told)
        rows.append(Row(Path(clip["path"]), labels=tuple(present), known=tuple(judged) or ("?",)))
    return tables.targets(rows, LABELS)


def by_hand(targets: np.ndarray, clips: list[dict[str, str]]) -> np.ndarray:
    """Only what people judged: ESC-10's and UrbanSound8K's own ten labels on their own clips."""
    result = np.full_like(targets, -1)
    for measured in MEASURED:
        columns = [LABELS.index(label) for label in measured.labels.values()]
        place = np.ix_([i for i, c in enumerate(clips) if c["source"] == measured.name], columns)
        result[place] = targets[place]
    return result


def reliability(scores: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
    """Of all judged (clip, label) pairs: how often a score of s is right; the table and the ECE."""
    known = targets >= 0
    score, target = scores[known], targets[known]
    place = np.minimum((score * BINS).astype(int), BINS - 1)
    table, error = [], 0.0
    for number in range(BINS):
        chosen = place == number
        if chosen.any():
            said, true = float(score[chosen].mean()), float(target[chosen].mean())
            error += chosen.mean() * abs(said - true)
            table.append({"pairs": int(chosen.sum()), "said": said, "true": true})
    top = score >= 0.5
    return {
        "ece": float(error),
        "ece_above_half": float(abs(score[top].mean() - target[top].mean())) if top.any() else None,
        "table": table,
    }


def unknown(
    scores: np.ndarray, targets: np.ndarray, clips: list[dict[str, str]], split: int
) -> dict[str, float]:
    """Share of unknown sounds with no score above `audiossl tag`'s threshold: "nothing I know"."""
    formulas = [
        i for i, c in enumerate(clips) if c["source"] == "silence" and protocol.is_test(c, split)
    ]
    games = [i for i, c in enumerate(clips) if c["source"] in HELD_OUT and (targets[i] == 0).all()]
    named = {"formulas": formulas, "held-out packages": games}
    return {k: float((scores[v].max(axis=1) < THRESHOLD).mean()) for k, v in named.items() if v}


def platt(logits: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """(a, b) such that sigmoid(a logit + b) is likeliest on the judged pairs (Platt 1999)."""
    known = torch.from_numpy(targets >= 0)
    x, y = torch.from_numpy(logits)[known].double(), torch.from_numpy(targets)[known].double()
    scale = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([scale], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        z = scale[0] * x + scale[1]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(z, y)
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    return float(scale[0].detach()), float(scale[1].detach())


def milliseconds(model_folder: Path, seconds: float = 10.0, runs: int = 20) -> float:
    """Median CPU time of a clip, frontend included, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = load(str(model_folder))
    wave = torch.randn(1, round(seconds * model.rate), generator=torch.manual_seed(0)) * 0.1
    times = []
    with torch.inference_mode():
        for _ in range(runs + 3):
            start = time.process_time()
            model(wave)
            times.append(time.process_time() - start)
    torch.set_num_threads(threads)
    return 1000 * float(np.median(times[3:]))
