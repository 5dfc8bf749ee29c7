"""`model.change` of a recipe: what a model is fine-tuned as, beside what it was trained as."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from audiossl.engine.starting_model import build_model
from audiossl.errors import RecipeError
from audiossl.hub.config import ModelConfig
from audiossl.model import Model, save_model
from audiossl.models.vit import ViT
from audiossl.recipe import loading as recipe

SMALL = {"dim": 16, "depth": 2, "heads": 2, "mel": 16, "frames": 64}
FRONTEND = {"preset": "ast", "mels": 16, "frames": 64}

Build = Callable[..., Model]


@pytest.fixture
def start(tmp_path: Path) -> Model:
    """A small AST of 4 patches of 16 frames, saved as tmp_path/start."""
    torch.manual_seed(0)
    architecture = {"name": "ast", **SMALL, "stride": [16, 16]}
    model = Model(ModelConfig(name="start", architecture=architecture, frontend=FRONTEND))
    save_model(model, tmp_path / "start")
    return model.eval()


@pytest.fixture
def build(start: Model, tmp_path: Path) -> Build:
    """build("frames: 32", "frontend: {...}"): the model of a recipe that starts from `start`."""

    def made(change: str, more: str = "") -> Model:
        section = f"from: {tmp_path / 'start'}, change: {{{change}}}{more}"
        text = f"method: {{name: supervised}}\nmodel: {{{section}}}\ntrain: {{steps: 1}}\n"
        return build_model(recipe.loads(text)).eval()

    return made


def test_drop_path_leaves_the_weights_as_they_are(start: Model, build: Build) -> None:
    model = build("drop_path: 0.2")
    assert [block.drop_path.rate for block in model.encoder.blocks] == [0, 0.2]  # type: ignore[union-attr]
    spec = torch.randn(2, 16, 64)
    assert torch.equal(model.encoder(spec), start.encoder(spec))
    assert model.config.architecture == {**start.config.architecture, "drop_path": 0.2}
    assert model.config.training["from"] == "start"


def test_another_length_and_overlapping_patches(start: Model, build: Build) -> None:
    model = build("frames: 32, stride: [16, 8]")
    assert model.encoder.pos_embed.shape == (1, 2 + 3, 16)  # type: ignore[union-attr]
    assert model.config.frontend == {**FRONTEND, "frames": 32}
    assert model.frontend(torch.randn(1, 16000)).shape == (1, 16, 32)
    assert model.embed(torch.randn(1, 16000)).shape == (1, 16)
    torch.testing.assert_close(
        model.encoder.pos_embed[:, 2:],  # type: ignore[index]
        start.encoder.pos_embed[:, 3:6],  # type: ignore[index] # the middle of four
    )


def test_a_frontend_of_the_recipe_is_the_recipes_own(build: Build) -> None:
    model = build("frames: 32", ", frontend: {preset: ast_esc50, mels: 16, frames: 48}")
    assert model.config.frontend == {"preset": "ast_esc50", "mels": 16, "frames": 48}


def test_positions_as_ssast_resizes_them_are_no_argument_of_the_architecture(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    refit = ViT.refit
    monkeypatch.setattr(ViT, "refit", lambda *given: asked.append(given[1:]) or refit(*given))
    right = build("frames: 32, stride: [16, 8]")
    bug = build("frames: 32, stride: [16, 8]", ", ssast_positions: true")
    assert asked == [(32, [16, 8], False), (32, [16, 8], True)]
    assert bug.config.architecture == right.config.architecture


def test_another_pooling_has_a_norm_of_its_own(tmp_path: Path) -> None:
    text = "method: {{name: supervised}}\nmodel: {{{}}}\ntrain: {{steps: 1}}\n"
    vit = "{name: vit, " + ", ".join(f"{k}: {v}" for k, v in SMALL.items()) + "}"
    one = f"architecture: {vit}, frontend: {{preset: ast, mels: 16, frames: 64}}"
    start = build_model(recipe.loads(text.format(one)))
    torch.nn.init.constant_(start.encoder.norm.weight, 3)  # type: ignore[union-attr,arg-type]
    save_model(start, tmp_path / "start")
    change = "{pooling: fc_norm, final_norm: false}"
    model = build_model(recipe.loads(text.format(f"from: {tmp_path / 'start'}, change: {change}")))
    own, theirs = model.encoder.state_dict(), start.encoder.state_dict()
    assert {name.split(".")[0] for name in own.keys() ^ theirs.keys()} == {"norm", "fc_norm"}
    assert torch.equal(own["fc_norm.weight"], torch.ones(16))
    assert all(torch.equal(own[name], theirs[name]) for name in own if name in theirs)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("drop_pth: 0.1", r"unknown argument 'drop_pth' \(did you mean 'drop_path'"),
        ("drop_path: 2", "drop_path: expected"),
        ("ssast_bug: true", "give `model.ssast_positions` instead"),
        ("depth: 3", "do not fit the weights there are"),
        ("name: vit", "stays the one of `from`"),
    ],
)
def test_what_cannot_be_changed(build: Build, change: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        build(change)


def test_an_encoder_without_a_table_keeps_its_sizes() -> None:
    section = "from: tagger, change: {stem: 16}"
    text = f"method: {{name: supervised}}\nmodel: {{{section}}}\ntrain: {{steps: 1}}\n"
    with pytest.raises(RecipeError, match=r"recipe model\.change: 5 of its tensors do not fit"):
        build_model(recipe.loads(text))


def test_only_a_model_can_be_changed() -> None:
    text = "method: {name: supervised}\nmodel: {change: {depth: 2}, architecture: {name: dscnn}}\n"
    with pytest.raises(RecipeError, match=r"model\.change: only a model given by `from`"):
        recipe.loads(text + "train: {steps: 1}\n")


def test_overrides_of_from_change_and_architecture() -> None:
    """What each puts out of force: an architecture a change, but a frontend not the model."""
    text = "base: supervised\nmodel: {from: a, change: {drop_path: 0.1}, frontend: {preset: ast}}\n"
    base = recipe.loads(text).model
    assert (base.from_, base.change, base.frontend) == ("a", {"drop_path": 0.1}, {"preset": "ast"})
    root = recipe.parse(text, "a recipe")
    new = recipe.parse("model: {architecture: {name: dscnn}}", "another")
    model = recipe.merge(root, new).keys["model"]  # type: ignore[index]
    assert set(model.keys or {}) == {"architecture", "frontend"}
    new = recipe.parse("model: {from: b}", "another")
    model = recipe.merge(root, new).keys["model"]  # type: ignore[index]
    assert set(model.keys or {}) == {"from", "change", "frontend"}  # the recipe's, as before
    root = recipe.parse("model: {architecture: {name: dscnn}, frontend: {preset: ast}}", "a third")
    model = recipe.merge(root, new).keys["model"]  # type: ignore[index]
    assert set(model.keys or {}) == {"from"}


def test_ssast_positions_without_a_change_are_refused() -> None:
    text = "method: {name: supervised}\nmodel: {from: x, ssast_positions: true}\ntrain: {steps: 1}"
    with pytest.raises(RecipeError, match="give `change` as well"):
        recipe.loads(text)
