"""SSAST's objective against loops over patches and pixels, and its recipes as they run."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from audiossl import models
from audiossl.engine import train
from audiossl.errors import RecipeError
from audiossl.hub.config import ModelConfig
from audiossl.methods.ssast import Config, JointObjective, Method, info_nce
from audiossl.model import Model, load
from audiossl.recipe import loading as recipe

SMALL = {"dim": 8, "depth": 1, "heads": 2, "mel": 32, "frames": 64}  # 2 x 4 patches
HIDDEN = 5
MASKS = (torch.tensor([[1, 2, 5, 6, 3], [7, 4, 3, 2, 1]]), torch.tensor([[3, 2, 6, 7, 5]] * 2))


def encoder(**arguments: Any) -> Any:
    torch.manual_seed(0)
    return models.build("ssast", **{**SMALL, **arguments})


def objective(encoder: Any, **arguments: Any) -> JointObjective:
    torch.manual_seed(1)
    made = JointObjective(encoder, hidden=HIDDEN, **arguments)
    with torch.no_grad():
        for value in made.parameters():
            value.normal_(std=0.3)
    return made


def spectrogram() -> Tensor:
    return torch.randn(2, 32, 64, generator=torch.Generator().manual_seed(2))


def slow_patches(spec: Tensor) -> list[Tensor]:
    """Of one clip: the lowest row of bands first, from left to right."""
    return [
        torch.stack([spec[16 * row + f, 16 * column + t] for f in range(16) for t in range(16)])
        for row in range(2)
        for column in range(4)
    ]


def slow_outputs(encoder: Any, objective: JointObjective, spec: Tensor, hidden: list[int]) -> Any:
    """What the encoder says of one clip's hidden patches, in the order of `hidden`."""
    weight, bias = encoder.patch_embed.weight.flatten(1), encoder.patch_embed.bias
    tokens = [
        (objective.mask_embed[0, 0] if place in hidden else weight @ patch + bias)
        + encoder.pos_embed[0, 2 + place]
        for place, patch in enumerate(slow_patches(spec))
    ]
    out = encoder.forward_tokens(torch.stack(tokens)[None])[0, 2:]
    return [out[place] for place in hidden]


def slow_loss(encoder: Any, objective: JointObjective, spec: Tensor, over: str) -> list[float]:
    """NCE and MSE, one pair of patches and one pixel at a time."""
    terms, squares = [], []
    for clip in range(len(spec)):
        patches = slow_patches(spec[clip])
        hidden = MASKS[0][clip].tolist()
        out = slow_outputs(encoder, objective, spec[clip], hidden)
        predictions = [objective.discriminative(o) for o in out]
        for i, place in enumerate(hidden):
            if over == "predictions":
                others = [float(patches[place] @ c) for c in predictions]
            else:
                others = [float(patches[p] @ predictions[i]) for p in hidden]
            own = float(patches[place] @ predictions[i])
            terms.append(own - math.log(sum(math.exp(other) for other in others)))
        hidden = MASKS[1][clip].tolist()
        out = slow_outputs(encoder, objective, spec[clip], hidden)
        for o, place in zip(out, hidden, strict=True):
            drawn = objective.generative(o).tolist()
            squares += [(a - b) ** 2 for a, b in zip(drawn, patches[place].tolist(), strict=True)]
    return [-sum(terms) / len(terms), sum(squares) / len(squares)]


@pytest.mark.parametrize("over", ["predictions", "patches"])
@torch.no_grad()
def test_the_loss_equals_a_loop_over_patches_and_pixels(over: Any) -> None:
    vit = encoder().double()
    joint = objective(vit, generative=3.0, contrast=over).double()
    spec = spectrogram().double()
    loss, parts = joint(vit, spec, MASKS)
    nce, mse = slow_loss(vit, joint, spec, over)
    assert float(parts["nce"]) == pytest.approx(nce, rel=1e-9)
    assert float(parts["mse"]) == pytest.approx(mse, rel=1e-9)
    assert float(loss) == pytest.approx(nce + 3 * mse, rel=1e-9)


def test_accuracy_counts_predictions_that_find_their_patch() -> None:
    patches = torch.eye(4).unsqueeze(0) * 5
    order = torch.tensor([0, 1, 3, 2])  # the last two predictions take each other's patch
    loss, accuracy = info_nce(patches[:, order], patches)
    assert float(accuracy) == 0.5
    assert float(loss) > float(info_nce(patches, patches)[0])
    assert float(info_nce(patches, patches)[1]) == 1


def test_negatives_come_from_the_same_clip() -> None:
    torch.manual_seed(0)
    predictions, patches = torch.randn(2, 3, 5, 7)
    both = info_nce(predictions, patches)[0]
    alone = [info_nce(predictions[i : i + 1], patches[i : i + 1])[0] for i in range(3)]
    torch.testing.assert_close(both, torch.stack(alone).mean())


def test_the_encoder_does_not_see_what_is_hidden() -> None:
    vit = encoder()
    joint = objective(vit)
    spec = spectrogram()
    shown = spec.clone()
    for patch in MASKS[0][0].tolist():
        row, column = divmod(patch, 4)
        shown[0, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16] = 9.0
    out = joint._encode(vit, spec, MASKS[0])
    assert torch.equal(out, joint._encode(vit, shown, MASKS[0]))
    shown[0, :16, :16] = 9.0  # patch 0 is not hidden
    changed = (out - joint._encode(vit, shown, MASKS[0])).abs().amax((1, 2))
    assert changed[0] > 1e-4
    assert changed[1] == 0


def model(architecture: dict[str, Any] | None = None) -> Model:
    torch.manual_seed(0)
    architecture = {"name": "ssast", **SMALL, **(architecture or {})}
    frontend = {"preset": "ssast", "mels": 32, "frames": 64}
    return Model(ModelConfig(name="small", architecture=architecture, frontend=frontend))


def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {"wave": torch.randn(2, 10_000, generator=generator) * 0.1}


@pytest.mark.parametrize("patch", [(16, 16), (32, 4)])
def test_gradient_reaches_everything_and_only_the_encoder_is_kept(patch: tuple[int, int]) -> None:
    made = model({"patch": patch})
    method = Method(made, Config(hidden=HIDDEN)).train()
    loss, values = method.loss(batch())
    assert set(values) == {"nce", "mse", "accuracy", "weight"}
    assert values["weight"] == 2
    loss.backward()
    assert [n for n, p in method.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert method.model is made
    assert not any("objective" in name or "mask" in name for name in made.state_dict())


def test_masks_are_drawn_for_each_task_and_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    method = Method(model(), Config(hidden=HIDDEN))
    seen: list[Tensor] = []
    encode = method.objective._encode
    monkeypatch.setattr(
        method.objective, "_encode", lambda *args: (seen.append(args[-1]), encode(*args))[1]
    )
    random.seed(0)
    first = method.loss(batch())[0]
    again = method.loss(batch())[0]
    random.seed(0)
    assert torch.equal(first, method.loss(batch())[0])
    assert not torch.equal(first, again)
    assert len(seen) == 6
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[4])


def test_half_precision_keeps_the_losses_exact() -> None:
    vit = encoder()
    joint = objective(vit)
    full = joint(vit, spectrogram(), MASKS)[0]
    with torch.autocast("cpu", torch.bfloat16):
        half = joint(vit, spectrogram(), MASKS)[0]
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(full.item(), rel=0.03)


def test_what_cannot_be_pretrained() -> None:
    with pytest.raises(RecipeError, match=r"method\.hidden: 7 of 8 patches cannot be hidden"):
        Method(model(), Config(hidden=7)).loss(batch())
    with pytest.raises(RecipeError, match=r"architecture\.stride: patches that overlap"):
        Method(model({"stride": [10, 10]}), Config())
    cnn = Model(ModelConfig("cnn", {"name": "dscnn"}, {"preset": "yamnet"}))
    with pytest.raises(RecipeError, match="hides patches"):
        Method(cnn, Config())


# --- recipes --------------------------------------------------------------------------------------

# The first four losses of `tiny/ssast` on the clips below, seed 0.
GOLDEN = [5.352818, 5.148578, 4.792684, 4.642464]
RATE = 16000
PITCH = {"high": 2500, "low": 300, "mid": 900}  # Hz


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 clips of a second: a trembling tone and some noise, three labels."""
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    time = np.arange(RATE) / RATE
    for label, pitch in PITCH.items():
        (folder / label).mkdir()
        for i in range(8):
            tone = np.sin(2 * np.pi * pitch * rng.uniform(0.9, 1.1) * time)
            tone *= 0.6 + 0.4 * np.sin(2 * np.pi * rng.uniform(1, 9) * time)
            wave = 0.3 * tone + 0.02 * rng.standard_normal(RATE)
            soundfile.write(folder / label / f"{i}.wav", wave, RATE)
    return folder


@pytest.fixture(scope="module")
def pretrained(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of tiny/ssast."""
    return run("tiny/ssast", clips, tmp_path_factory.mktemp("runs") / "ssast")


def run(name: str, clips: Path, out: Path, *overrides: str, **options: Any) -> Path:
    torch.set_num_threads(1)
    given = [f"data.folder={clips}", f"out={out}", "train.log_every=1", *overrides]
    return train.fit(recipe.load(name, given), **options).folder


def logged(folder: Path, name: str) -> list[float]:
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [row[name] for row in rows if name in row]


def test_the_tiny_recipe_learns(pretrained: Path) -> None:
    losses = logged(pretrained, "loss")
    assert losses[:4] == pytest.approx(GOLDEN, rel=1e-4)
    for name in ("loss", "nce", "mse"):
        values = logged(pretrained, name)
        assert sum(values[-10:]) < 0.75 * sum(values[:10]), name
    assert sum(logged(pretrained, "accuracy")[-10:]) / 10 > 4 / 32  # by chance 1 of 32


def test_an_interrupted_run_draws_the_same_masks(clips: Path, tmp_path: Path) -> None:
    whole = run("tiny/ssast", clips, tmp_path / "whole", "train.steps=5")
    parts = tmp_path / "parts"
    run("tiny/ssast", clips, parts, "train.steps=5", max_steps=2)
    run("tiny/ssast", clips, parts, "train.steps=5", resume=True)
    assert logged(parts, "loss") == logged(whole, "loss")
    ends = [folder / "last" / "model.safetensors" for folder in (whole, parts)]
    assert ends[0].read_bytes() == ends[1].read_bytes()


def test_the_frame_variant_learns(clips: Path, tmp_path: Path) -> None:
    frames = ["model.architecture.patch=[128,2]", "method.hidden=36", "train.steps=30"]
    losses = logged(run("tiny/ssast", clips, tmp_path / "frames", *frames), "loss")
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_fine_tuning_goes_on_from_it(pretrained: Path, clips: Path, tmp_path: Path) -> None:
    start = f"model.from={pretrained / 'best'}"
    folder = run("tiny/ssast_finetune", clips, tmp_path / "tuned", start)
    losses = logged(folder, "loss")
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    tuned: Any = load(str(folder / "best"))
    assert tuned.encoder.grid(96) == (12, 9)
    assert tuned.encoder.pos_embed.shape == (1, 2 + 12 * 9, 32)
    assert tuned.labels == sorted(PITCH)
    hits = 0
    for label in PITCH:
        wave = torch.from_numpy(soundfile.read(clips / label / "0.wav", dtype="float32")[0])
        hits += tuned.labels[int(tuned(wave[None, : int(0.97 * RATE)]).argmax())] == label
    assert hits == 3


def test_recipes_of_the_paper() -> None:
    """What the authors' scripts say."""
    pretraining = recipe.load("ssast")
    assert pretraining.train.betas == (0.95, 0.999)
    frame = recipe.load("ssast_frame")
    assert frame.model.architecture == {"name": "ssast", "size": "base", "patch": [128, 2]}
    assert frame.train == pretraining.train
    esc, audioset, commands = (
        recipe.load(f"ssast_finetune{name}") for name in ("", "_audioset", "_speechcommands")
    )
    assert [r.train.lr for r in (esc, audioset, commands)] == [1e-4, 5e-5, 2.5e-4]
    assert [r.train.batch_size for r in (esc, audioset, commands)] == [48, 12, 128]
    assert [r.config.mixup for r in (esc, audioset, commands)] == [0, 0.5, 0.6]
    assert audioset.model.frontend == {"preset": "ssast"}
