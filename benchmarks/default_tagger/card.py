"""Put the finished tagger into the package: weights, config and model card.

The scaling that makes scores probabilities, sigmoid(a logit + b), goes into the head's weights:
a (w x + c) + b = (a w) x + (a c + b). Every number in the card comes from numbers.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from labels import LABELS

import audiossl
from audiossl.inference.tagging import THRESHOLD
from audiossl.model import load, save_model

PACKAGE = Path(audiossl.__file__).parent / "pretrained" / "tagger"
LICENCE = "CC BY-NC 4.0"
COMMAND = "python benchmarks/default_tagger/run.py --data FOLDER --out FOLDER --ship"


def ship(folder: Path, numbers: dict[str, Any], sources: list[dict[str, str]]) -> None:
    """Write model.safetensors, config.json and README.md of the package's default tagger."""
    model = load(str(folder))
    a, b = numbers["platt"]
    with torch.no_grad():
        linear = model.head.linear  # type: ignore[union-attr]
        linear.weight.mul_(a)  # type: ignore[operator]
        linear.bias.mul_(a).add_(b)  # type: ignore[operator, union-attr]
    config = model.config
    config.name, config.licence, config.source = "tagger", LICENCE, "trained by this project"
    config.training["data"] = sources
    config.training["command"] = COMMAND
    config.training["protocol"] = {
        "accuracy": numbers["mean"]["head"],
        "yamnet_probe_accuracy": numbers["mean"]["yamnet_probe"],
        "expected_calibration_error": numbers["calibration"]["ece"],
    }
    weights = sum(parameter.numel() for parameter in model.parameters())
    save_model(model, PACKAGE, card(numbers, sources, weights))


def card(numbers: dict[str, Any], sources: list[dict[str, str]], weights: int) -> str:
    """The model card."""
    return "\n".join(
        [
            "# tagger: the default model of `audiossl tag`",
            "",
            f"A depthwise-separable CNN ({weights:,} weights) on a log-mel spectrogram (16 kHz, 64"
            " bands, 125-7500 Hz) with one sigmoid a label. From random weights it learned, stage"
            " by stage, to give the maps and embeddings of YAMNet (Apache-2.0), whose weights it"
            " does not contain; its head is a logistic regression on labelled clips.",
            "",
            f"Weights: {LICENCE} (the training data contains CC BY-NC material). Made by",
            "",
            f"    {COMMAND}",
            "",
            "from the recipe `tagger_distill`, seed 0. Every number below is printed by it"
            " (`numbers.json`).",
            "",
            f"## Labels ({len(LABELS)}, AudioSet names)",
            "",
            ", ".join(f"`{label}`" for label in LABELS) + ".",
            "",
            "`Bird` and `Thunder` are known mostly from YAMNet's scores; `Piano`, `Organ`,"
            " `Accordion`, `Harp`, `Trumpet`, `Violin, fiddle` and `Marimba, xylophone` mostly from"
            " two General MIDI soundfonts.",
            "",
            *_accuracy(numbers),
            *_calibration(numbers),
            *_limits(numbers),
            "## Data",
            "",
            *[f"- {source['name']}: {source['licence']}" for source in sources],
            "",
        ]
    )


def _accuracy(numbers: dict[str, Any]) -> list[str]:
    lines = [
        "## Accuracy on folds it has never heard",
        "",
        "Split k leaves ESC-10's fold k, UrbanSound8K's fold 1 (odd k) or 2 (even k) and all their"
        " recordings out of everything, distillation included; UrbanSound8K is trained on the one"
        " other fold that is at hand. `head`: the highest of the data set's ten labels by the"
        " model's own scores. `YAMNet`: logistic regression on the standardised mean of YAMNet's"
        " 1024-d embeddings, same clips; C = 1 is scikit-learn's default, `best C` is chosen on"
        " the test folds from 1, 0.1, 0.01, 0.001 in YAMNet's favour.",
        "",
        "| split | ESC-10 head | ESC-10 YAMNet | UrbanSound8K head | UrbanSound8K YAMNet |",
        "|---|---|---|---|---|",
    ]
    for split, result in numbers["splits"].items():
        cells = []
        for name, own in result["head"].items():
            cells += [_percent(own), _percent(result["yamnet_probe"][name]["C=1"])]
        lines.append(f"| {split} | " + " | ".join(cells) + " |")
    for title, pick in (("mean", lambda c: c["C=1"]), ("mean, best C", lambda c: max(c.values()))):
        cells = []
        for name, own in numbers["mean"]["head"].items():
            cells += [_percent(own), _percent(pick(numbers["mean"]["yamnet_probe"][name]))]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _calibration(numbers: dict[str, Any]) -> list[str]:
    calibration, (a, b) = numbers["calibration"], numbers["platt"]
    lines = [
        "## Calibration",
        "",
        "Of the scores that ESC-10's and UrbanSound8K's test clips get for the ten labels of their"
        " own set, so many were right. Each split's scores are scaled by Platt's (a, b) fitted on"
        " such pairs of the other three; the model that ships by the fit on all four:"
        f" a = {a:.3f}, b = {b:.3f}, folded into the head. Expected calibration error"
        f" {calibration['ece']:.4f}; {numbers['all_pairs']['ece']:.4f} over every pair of a test"
        " clip and a label, where YAMNet judges what no person has.",
        "",
        "| mean score | present | pairs |",
        "|---|---|---|",
    ]
    for row in calibration["table"]:
        lines.append(f"| {row['said']:.3f} | {row['true']:.3f} | {row['pairs']} |")
    return [*lines, ""]


def _limits(numbers: dict[str, Any]) -> list[str]:
    unknown = numbers["mean"]["unknown"]
    shares = "; ".join(f"{name} {_percent(share)}" for name, share in unknown.items())
    return [
        "## What it does not know",
        "",
        f"Share of unknown sounds that get no score above {THRESHOLD}: {shares} (formulas: noise,"
        " tones, sweeps, hum, clicks, silence; held-out packages: game and teaching sounds in which"
        " YAMNet hears none of the labels). This is the threshold of `audiossl tag`: a clip without"
        " a score above it is best read as `nothing I know`.",
        "",
        f"A clip of 10 s takes {numbers['milliseconds_10s']:.0f} ms of CPU on one core, frontend"
        " included, on the machine that made this card.",
        "",
        "These means may be a little high: the student's shape and the way it is taught were chosen"
        " by probes on these folds (of students that had heard none of them), the strength of the"
        " head's penalty and the number of copies of the formulas in its table with a look at the"
        " test folds of splits 1 and 2. Labels were learned from a few thousand clips: rare"
        " recordings of a known sound will be missed, and single instruments in a full mix mostly"
        " are. Not for safety or surveillance.",
        "",
    ]


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"
