"""Distillation: the loss by hand, stage by stage and on its own, what is kept, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from audiossl import methods
from audiossl.errors import RecipeError
from audiossl.hub.config import ModelConfig
from audiossl.methods.distill import FEWEST, FLOOR, Config, Method
from audiossl.model import Model, load, save_model
from audiossl.recipe import loading as recipes

TEACHER = {"name": "dscnn", "widths": [6, 6, 8], "strides": [2, 1, 2], "stem": 4}
STUDENT = {"name": "dscnn", "widths": [6, 8], "strides": [2, 2], "stem": 4}
VIT = {"name": "vit", "dim": 8, "depth": 1, "heads": 2, "mel": 64, "frames": 96, "class_tokens": 0}
SAMPLES = 160 * 95 + 400  # 96 frames, 12 tokens of these encoders


def made(architecture: dict[str, Any], seed: int = 0, preset: str = "yamnet") -> Model:
    torch.manual_seed(seed)
    config = ModelConfig(name="m", architecture=architecture, frontend={"preset": preset})
    return Model(config)


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    model = made(TEACHER, seed=5)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
            torch.nn.init.uniform_(module.bias, 0, 2)
    save_model(model, tmp_path / "teacher")
    return tmp_path / "teacher"


def batch(clips: int = 8) -> dict[str, torch.Tensor]:
    wave = torch.randn(clips, SAMPLES, generator=torch.manual_seed(1)) * 0.1
    return {"wave": wave * torch.linspace(0.1, 1, clips)[:, None]}


def slow_distance(given: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """One channel at a time; (batch, channels, ...)."""
    per_channel = []
    for c in range(wanted.shape[1]):
        g, w = given[:, c].flatten().double(), wanted[:, c].flatten().double()
        variance = ((w - w.mean()) ** 2).sum() / len(w)
        per_channel.append(((g - w) ** 2).sum() / len(w) / (variance + FLOOR))
    return sum(per_channel) / len(per_channel)  # type: ignore[return-value]


def maps_of(model: Model, spec: torch.Tensor) -> list[torch.Tensor]:
    encoder: Any = model.encoder
    maps = [encoder.image(spec)]
    for stage in encoder.stages:
        maps.append(stage(maps[-1]))
    return maps


def slow_loss(method: Method, teacher: Model, spec: torch.Tensor) -> float:
    """The student on its own."""
    own, wanted = maps_of(method.model, spec), maps_of(teacher, spec)
    stages = [slow_distance(o, w) for o, w in zip(own[1:], wanted[1:], strict=True)]
    tokens, others = (m[-1].mean(2).transpose(1, 2) for m in (own, wanted))  # (clip, token, dim)
    angles = []
    for clip in range(len(tokens)):
        for token in range(tokens.shape[1]):
            e, t = tokens[clip, token], others[clip, token]
            angles.append(1 - (e @ t) / (e.norm() * t.norm()))
    regress = slow_distance(tokens.transpose(1, 2), others.transpose(1, 2))
    config = method.config
    loss = regress + config.cosine * torch.stack(angles).mean()
    return float(loss + stages[-1] + config.stages * sum(stages[:-1]))


def test_loss_equals_the_slow_version(teacher: Path) -> None:
    method = Method(made(STUDENT), Config(str(teacher), cosine=1.5, stages=0.4)).eval()
    with torch.no_grad():
        loss, parts = method.loss(batch())
        spec = method.model.frontend(batch()["wave"])
        assert float(loss) == pytest.approx(slow_loss(method, load(str(teacher)), spec), rel=1e-4)
    assert set(parts) == {"regress", "angle", "stages"}


def test_a_forced_stage_reads_the_teachers_map_and_half_the_clips_of_the_next(
    teacher: Path,
) -> None:
    method = Method(made(STUDENT), Config(str(teacher), forced=1)).eval()
    encoder: Any = method.model.encoder
    with torch.no_grad():
        loss, parts = method.loss(batch())
        maps = maps_of(load(str(teacher)), method.model.frontend(batch()["wave"]))
        clips = [max(FEWEST, 2), 4, 8]
        expected = [
            slow_distance(stage(maps[n][: clips[n]]), maps[n + 1][: clips[n]])
            for n, stage in enumerate(encoder.stages)
        ]
    assert float(loss) == pytest.approx(float(sum(expected)), rel=1e-4)
    assert [float(parts[f"stage{n}"]) for n in (1, 2, 3)] == pytest.approx(
        [float(e) for e in expected], rel=1e-4
    )


def test_after_the_forced_updates_the_student_is_on_its_own(teacher: Path) -> None:
    method = Method(made(STUDENT), Config(str(teacher), forced=2))
    seen = []
    for step in range(4):
        seen.append("angle" in method.loss(batch())[1])
        method.after_step(step)
    assert seen == [False, False, True, True]
    again = Method(made(STUDENT), Config(str(teacher), forced=2))
    again.load_state_dict(method.state_dict())
    assert "angle" in again.loss(batch())[1], "a resumed run knows how far it was"


def test_a_student_that_says_the_same_loses_nothing(teacher: Path) -> None:
    method = Method(load(str(teacher)), Config(str(teacher), forced=1)).eval()
    for step in range(2):
        with torch.no_grad():
            assert float(method.loss(batch())[0]) == pytest.approx(0, abs=1e-5)
        method.after_step(step)


def test_an_encoder_without_stages_is_compared_by_its_tokens(tmp_path: Path) -> None:
    save_model(made(VIT, seed=3), tmp_path / "vit")
    method = Method(made(VIT), Config(str(tmp_path / "vit"), cosine=0)).eval()
    with torch.no_grad():
        loss, parts = method.loss(batch())
        spec = method.model.frontend(batch()["wave"])
        own, wanted = (m.encoder(spec).transpose(1, 2) for m in (method.model, made(VIT, seed=3)))
    assert float(loss) == pytest.approx(float(slow_distance(own, wanted)), rel=1e-3)
    assert set(parts) == {"regress", "angle"}


def test_gradient_reaches_the_encoder_and_nothing_of_the_teacher_is_kept(teacher: Path) -> None:
    for forced in (0, 1):
        model = made(STUDENT)
        method = Method(model, Config(str(teacher), forced=forced))
        method.loss(batch())[0].backward()
        assert all(p.grad is not None for p in method.parameters())
        assert method.model is model
        assert method.state_dict().keys() - {"updates"} == {
            f"model.{n}" for n in model.state_dict()
        }


def test_batch_norms_settle(teacher: Path) -> None:
    method = Method(made(STUDENT), Config(str(teacher), norm_steps=1)).train()
    norm = next(m for m in method.model.modules() if isinstance(m, torch.nn.BatchNorm2d))
    assert norm.running_mean is not None
    before = norm.running_mean.clone()
    method.loss(batch())
    moved = norm.running_mean.clone()
    assert not torch.equal(before, moved)
    method.after_step(0)
    method.train().loss(batch())
    assert torch.equal(norm.running_mean, moved)


@pytest.mark.parametrize("forced", [0, 1000])
def test_the_loss_falls(teacher: Path, forced: int) -> None:
    method = Method(made(STUDENT), Config(str(teacher), forced=forced))
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss, _ = method.loss(batch())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_a_teacher_that_does_not_fit_is_refused(teacher: Path, tmp_path: Path) -> None:
    save_model(made(STUDENT, preset="beats"), tmp_path / "other")
    with pytest.raises(RecipeError, match=r"its frontend is .*beats.*, the student's .*yamnet"):
        Method(made(STUDENT), Config(str(tmp_path / "other")))
    wide = {**STUDENT, "widths": [6, 9]}
    with pytest.raises(RecipeError, match="8 dimensions, but the encoder gives 9"):
        Method(made(wide), Config(str(teacher)))
    flat = {"name": "dscnn", "widths": [8], "strides": [2], "stem": 4}
    with pytest.raises(RecipeError, match=r"method\.forced: .* have not the same stages"):
        Method(made(flat), Config(str(teacher), forced=1))
    other = {**STUDENT, "widths": [7, 8]}
    with pytest.raises(
        RecipeError, match=r"gives \[6, 16, 24\] where the student gives \[7, 16, 24\]"
    ):
        Method(made(other), Config(str(teacher))).loss(batch())
    with pytest.raises(RecipeError, match=r"gives \[8, 12\] where the student gives \[8, 24\]"):
        Method(made(flat), Config(str(teacher))).loss(batch())


def test_a_spectrogram_may_stand_for_the_wave(teacher: Path) -> None:
    method = Method(made(STUDENT), Config(str(teacher))).eval()
    with torch.no_grad():
        spec = method.model.frontend(batch()["wave"])
        assert float(method.loss({"spec": spec})[0]) == float(method.loss(batch())[0])


def test_the_recipe_reads_it() -> None:
    recipe = recipes.load("tagger_distill")
    assert recipe.method == "distill"
    assert "distill" in methods.names()
    assert recipe.config.forced == 3500
    assert recipe.config.norm_steps == 300
