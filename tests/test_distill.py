"""Distillation: the loss by hand, what is trained and what is kept, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from audiossl import methods
from audiossl import recipe as recipes
from audiossl.errors import RecipeError
from audiossl.methods.distill import FLOOR, Config, Method
from audiossl.model import Model
from audiossl.model_config import ModelConfig

ROWS, WINDOWS, CLASSES, DIM = 9, 3, 5, 8
ARCHITECTURE = {"name": "dscnn", "widths": [6, 8], "strides": [2, 2], "stem": 4}
SAMPLES = 160 * 95 + 400  # 96 frames, 12 tokens of this encoder: 3 windows of 6, 3 apart


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    frontend = {"preset": "yamnet"}
    return Model(ModelConfig(name="student", architecture=ARCHITECTURE, frontend=frontend))


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    embedding = np.abs(rng.normal(size=(ROWS, WINDOWS, DIM)))
    np.save(tmp_path / "embedding.npy", embedding.astype(np.float16))
    np.save(tmp_path / "scores.npy", rng.random((ROWS, WINDOWS, CLASSES)).astype(np.float16))
    return tmp_path


def batch(clips: int = 4) -> dict[str, torch.Tensor]:
    generator = torch.manual_seed(1)
    wave = torch.randn(clips, SAMPLES, generator=generator) * 0.1
    return {"wave": wave, "index": torch.tensor([7, 0, 3, 3])[:clips]}


def slow_loss(method: Method, batch: dict[str, torch.Tensor], teacher: Path) -> float:
    """One window and one number at a time."""
    embedding = np.load(teacher / "embedding.npy").astype(np.float64)
    scores = np.load(teacher / "scores.npy").astype(np.float64)
    spread = [math.sqrt(embedding[:, :, d].var() + FLOOR**2) for d in range(embedding.shape[2])]
    tokens = method.model.encoder(method.model.frontend(batch["wave"])).double()
    weight, bias = method.classify.weight.double(), method.classify.bias.double()
    regress, angle, entropy = [], [], []
    for clip, row in enumerate(batch["index"].tolist()):
        for window in range(WINDOWS):
            e = tokens[clip, 3 * window : 3 * window + 6].mean(0)
            t = torch.from_numpy(embedding[row, window])
            regress += [((e[d] - t[d]) / spread[d]) ** 2 for d in range(DIM)]
            angle.append(1 - (e @ t) / (e.norm() * t.norm()))
            total = torch.zeros((), dtype=torch.float64)
            for c in range(CLASSES):
                p = torch.sigmoid(weight[c] @ e + bias[c])
                s = scores[row, window, c]
                total -= s * p.log() + (1 - s) * (1 - p).log()
            entropy.append(total)
    means = [torch.stack(part).mean() for part in (regress, angle, entropy)]
    return float(means[0] + method.config.cosine * means[1] + method.config.scores * means[2])


def test_loss_equals_the_slow_version(model: Model, teacher: Path) -> None:
    method = Method(model, Config(teacher=str(teacher), cosine=1.5, scores=0.3)).eval()
    with torch.no_grad():
        loss, parts = method.loss(batch())
        assert float(loss) == pytest.approx(slow_loss(method, batch(), teacher), rel=1e-4)
    assert set(parts) == {"regress", "angle", "scores"}
    whole = parts["regress"] + 1.5 * parts["angle"] + 0.3 * parts["scores"]
    assert float(whole) == pytest.approx(float(loss), rel=1e-5)


def test_a_spectrogram_may_stand_for_the_wave(model: Model, teacher: Path) -> None:
    method = Method(model, Config(teacher=str(teacher))).eval()
    spec = {"spec": model.frontend(batch()["wave"]), "index": batch()["index"]}
    assert method.loss(spec)[0] == method.loss(batch())[0]


def test_a_student_that_says_the_same_loses_nothing(model: Model, teacher: Path) -> None:
    with torch.no_grad():
        tokens = model.eval().encoder(model.frontend(batch()["wave"]))
    said = tokens.unfold(1, 6, 3).mean(-1).numpy()
    embedding = np.load(teacher / "embedding.npy").astype(np.float32)
    embedding[[7, 0, 3]] = said[:3]
    np.save(teacher / "embedding.npy", embedding)
    method = Method(model, Config(teacher=str(teacher), scores=0)).eval()
    with torch.no_grad():
        loss, parts = method.loss(batch(3))
    assert float(loss) == pytest.approx(0, abs=1e-5)
    assert set(parts) == {"regress", "angle"}


def test_gradient_reaches_the_encoder_and_only_the_model_is_kept(
    model: Model, teacher: Path
) -> None:
    method = Method(model, Config(teacher=str(teacher)))
    method.loss(batch())[0].backward()
    assert all(p.grad is not None for p in method.parameters())
    assert method.model is model
    assert not any("classify" in name for name in model.state_dict())


def test_the_loss_falls(model: Model, teacher: Path) -> None:
    torch.manual_seed(0)
    method = Method(model, Config(teacher=str(teacher)))
    optimizer = torch.optim.AdamW(method.parameters(), lr=5e-3)
    losses = []
    for _ in range(60):
        loss, _ = method.loss(batch())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]


def test_wrong_arrays_are_refused(model: Model, teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"embedding\.npy"):
        Method(model, Config(teacher=str(tmp_path / "nowhere")))
    np.save(teacher / "scores.npy", np.zeros((ROWS + 1, WINDOWS, CLASSES), np.float16))
    with pytest.raises(RecipeError, match="differ in rows"):
        Method(model, Config(teacher=str(teacher)))
    np.save(teacher / "embedding.npy", np.zeros((ROWS, DIM), np.float16))
    with pytest.raises(RecipeError, match="rows, windows, values"):
        Method(model, Config(teacher=str(teacher)))
    np.save(teacher / "embedding.npy", np.zeros((ROWS, WINDOWS, DIM + 1), np.float16))
    with pytest.raises(RecipeError, match=f"{DIM + 1} dimensions, but the encoder gives {DIM}"):
        Method(model, Config(teacher=str(teacher)))


def test_another_number_of_windows_is_refused(model: Model, teacher: Path) -> None:
    method = Method(model, Config(teacher=str(teacher)))
    longer = {**batch(), "wave": torch.zeros(4, 3 * SAMPLES)}
    with pytest.raises(RecipeError, match="3 windows a clip, but the student has"):
        method.loss(longer)


def test_the_recipe_reads_it() -> None:
    recipe = recipes.load("tagger_distill")
    assert recipe.method == "distill"
    assert "distill" in methods.names()
    assert recipe.config.window_tokens == 6
    assert recipe.config.hop_tokens == 3
