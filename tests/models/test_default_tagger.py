"""The default tagger as it ships: whole, small, named by AudioSet's ontology, and of sound mind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from audiossl.audio import reading as audio
from audiossl.hub import find as hub
from audiossl.inference.tagging import THRESHOLD, Tagger
from audiossl.labels import ontology
from audiossl.model import Model, load

CLIPS = Path(__file__).parents[1] / "data" / "clips"
ESC10 = {"Dog", "Rain", "Waves, surf", "Baby cry, infant cry", "Tick-tock", "Sneeze"} | {
    *("Helicopter", "Chainsaw", "Chicken, rooster", "Fire")
}
URBANSOUND8K = {"Air conditioning", "Vehicle horn, car horn, honking", "Children playing"} | {
    *("Dog", "Drill", "Idling", "Gunshot, gunfire", "Jackhammer", "Siren", "Music")
}
MUSIC = {"Guitar", "Piano", "Violin, fiddle", "Flute", "Trumpet", "Saxophone", "Organ", "Drum"}
MOST_BYTES = 20_000_000


@pytest.fixture(scope="module")
def model() -> Model:
    return load("tagger")


def scores(model: Model, wave: np.ndarray) -> dict[str, float]:
    with torch.inference_mode():
        values = model.scores(model(torch.from_numpy(wave)[None]))[0].tolist()
    return dict(zip(model.labels, values, strict=True))


def clip(model: Model, name: str) -> dict[str, float]:
    wave, _ = audio.read(CLIPS / name, model.rate)
    return scores(model, wave)


def best(said: dict[str, float]) -> str:
    return max(said, key=lambda label: said[label])


def test_the_folder_is_small_and_tells_where_it_comes_from() -> None:
    folder = hub.resolve("tagger")
    assert sum(path.stat().st_size for path in folder.iterdir()) < MOST_BYTES
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["licence"] == "CC BY-NC 4.0"
    assert all(source["name"] and source["licence"] for source in config["training"]["data"])
    assert "UrbanSound8K" in {source["name"] for source in config["training"]["data"]}
    card = (folder / "README.md").read_text(encoding="utf-8")
    for number in config["training"]["protocol"]["accuracy"].values():
        assert f"{100 * number:.1f} %" in card


def test_labels_are_those_of_the_ontology(model: Model) -> None:
    assert set(model.labels) >= {"Speech", *ESC10, *URBANSOUND8K, *MUSIC}
    assert len(model.labels) == len(set(model.labels)) >= 35
    known = set(ontology.names())
    assert set(model.labels) <= known


def test_speech_is_speech(model: Model) -> None:
    said = clip(model, "speech.flac")
    assert best(said) == "Speech"
    assert said["Speech"] > 0.5


@pytest.mark.parametrize("name", ["guitar.ogg", "drum kit.flac", "tabla.ogg"])
def test_music_is_music(model: Model, name: str) -> None:
    said = clip(model, name)
    assert said["Music"] > THRESHOLD
    assert said["Speech"] < THRESHOLD


@pytest.mark.parametrize("kind", ["silence", "tone", "noise", "hiss"])
def test_what_it_does_not_know_scores_low(model: Model, kind: str) -> None:
    time = np.arange(5 * model.rate) / model.rate
    wave = {
        "silence": np.zeros(len(time)),
        "tone": 0.3 * np.sin(2 * np.pi * 440 * time),
        "noise": 0.05 * np.random.default_rng(0).normal(size=len(time)),
        "hiss": 0.005 * np.random.default_rng(0).normal(size=len(time)),
    }[kind]
    assert Tagger(model).scores(wave.astype(np.float32)[None]).max() < THRESHOLD


@pytest.mark.parametrize("samples", [400, 1_000, 16_000, 600_000])
def test_any_length(model: Model, samples: int) -> None:
    noise = np.random.default_rng(0).normal(size=samples).astype(np.float32) * 0.1
    assert np.isfinite(list(scores(model, noise).values())).all()


def test_a_longer_clip_of_the_same_says_the_same(model: Model) -> None:
    wave, _ = audio.read(CLIPS / "speech.flac", model.rate)
    once, thrice = scores(model, wave), scores(model, np.tile(wave, 3))
    assert best(once) == best(thrice)
    assert abs(once["Speech"] - thrice["Speech"]) < 0.2
