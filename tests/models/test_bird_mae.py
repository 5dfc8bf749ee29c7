"""Bird-MAE against stored outputs of its authors' code, and by its definition."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from mae_parity import (
    BIRD_GRID,
    BIRD_MAE,
    Step,
    assert_input,
    assert_sampled,
    assert_step,
    bird_tensors,
    converted,
    load_decoder,
    padded,
    reference,
    step_of,
    table,
    write_hub,
)
from test_ast import assert_as_stored, assert_tokens, waves
from torch import Tensor

from audiossl import frontend as frontends
from audiossl import model as model_folders
from audiossl.errors import RecipeError
from audiossl.hub.config import ModelConfig
from audiossl.methods.audio_mae import normalised
from audiossl.methods.bird_mae import Config, Method
from audiossl.methods.parts.masking import random_mask
from audiossl.model import Model


@pytest.fixture(scope="module")
def facts() -> tuple[dict[str, Any], Any]:
    return reference(BIRD_MAE)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> model_folders.Model:
    folder = tmp_path_factory.mktemp("hub")
    return converted(write_hub(folder / "theirs"))


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory, facts: Any) -> Method:
    """The Lightning checkpoint, its encoder converted, its decoder put into the method.

    The reference pads a batch with its least value, here each clip has its own: the model is told
    the batch's.
    """
    path = tmp_path_factory.mktemp("lightning") / "bird.ckpt"
    state = bird_tensors("")
    torch.save({"state_dict": state, "epoch": 149, "global_step": 1}, path)
    frontend = frontends.build({"preset": "bird_mae", "frames": 498})
    specs = [frontend(wave[None]) for wave in waves(facts[0])]
    least = min(float(spec.min()) for spec in specs) * frontend.clip.scale + frontend.clip.mean
    model = converted(path, frontend={"pad": least})
    method = Method(model, Config(decoder_dim=128, decoder_depth=2, decoder_heads=4))
    load_decoder(method.decoder, state)
    return method.eval()


@pytest.fixture(scope="module")
def step(pretrained: Method, facts: Any) -> Step:
    return step_of(pretrained, padded(facts[0], 160000), facts[1], 64)


# --- parity ---------------------------------------------------------------------------------------


def test_every_stored_output_has_a_test(facts: Any) -> None:
    here, of_the_probes = ("input/", "pretrain/", "grad_norm/", "hub/"), ("ppnet/", "attentive/")
    assert all(name.startswith((*here, *of_the_probes)) for name in facts[0]["outputs"])


@pytest.mark.parametrize(
    ("namespace", "key", "sample"),
    [
        ("", "encoder.pos_embed", "encoder.pos_embed"),
        ("", "decoder.decoder_pos_embed", "decoder.decoder_pos_embed"),
        ("hub_encoder", "pos_embed", "hub_encoder/pos_embed"),
    ],
)
def test_position_tables(facts: Any, namespace: str, key: str, sample: str) -> None:
    known, stored = facts
    shape = next(entry[1] for entry in known["keys"][namespace] if entry[0] == key)
    assert_sampled(table(shape[-1], BIRD_GRID), stored[f"fixed_sample/{sample}"])


def test_input(step: Step, facts: Any) -> None:
    known, stored = facts
    one_channel = {name: stored[name][:, 0] for name in ("input/head", "input/middle")}
    assert_input(step.spec, {**stored, **one_channel}, known)


def test_the_hub_model(hub: model_folders.Model, step: Step, facts: Any) -> None:
    known, stored = facts
    encoder: Any = hub.encoder
    spec = step.spec
    with torch.no_grad():
        tokens = encoder.patches(spec) + encoder.positions(spec.shape[2])
        last = encoder.forward_tokens(tokens, normalise=False)
        assert_tokens("hub/block_out", last, stored, known)
        assert_as_stored("hub/embedding", encoder.pool(last), stored, known)
        assert_as_stored("hub/norm_cls", encoder.norm(last)[:, 0], stored, known)


def test_a_clip_is_heard_alone_as_in_a_batch(hub: model_folders.Model, facts: Any) -> None:
    """Not so in the reference, whose padding is the least value of the whole batch."""
    batch = padded(facts[0], 160000)
    alone = torch.cat([hub.frontend(clip[None]) for clip in batch])
    assert torch.equal(hub.frontend(batch), alone)


def test_the_mask(facts: Any) -> None:
    _, stored = facts
    torch.manual_seed(3)
    mask, kept = random_mask(2, 256, 0.75)
    assert np.array_equal(kept, stored["pretrain/ids_shuffle"][:, :64])
    assert np.array_equal(mask, stored["pretrain/mask"])


GRADIENTS = {  # by the authors' names
    "encoder.cls_token": "model.encoder.cls_token",
    "encoder.patch_embed.proj.weight": "model.encoder.patch_embed.weight",
    "encoder.blocks.0.attn.qkv.weight": "model.encoder.blocks.0.attn.qkv.weight",
    "encoder.blocks.3.mlp.fc2.weight": "model.encoder.blocks.3.mlp.fc2.weight",
    "encoder.norm.weight": "model.encoder.norm.weight",
    "decoder.mask_token": "decoder.mask_token",
    "decoder.decoder_embed.weight": "decoder.embed.weight",
    "decoder.blocks.0.mlp.fc1.weight": "decoder.blocks.0.mlp.fc1.weight",
    "decoder.decoder_pred.weight": "decoder.predict.weight",
}


def test_pretraining(step: Step, facts: Any) -> None:
    """Loss, latent, prediction and gradients under the stored order of patches."""
    known, stored = facts
    assert_step(step, GRADIENTS, stored, known)


# --- the objective --------------------------------------------------------------------------------

SMALL = {"name": "bird_mae", "dim": 16, "depth": 2, "heads": 2, "mel": 32, "frames": 64}
FRONTEND = {"preset": "bird_mae", "rate": 16000, "samples": 10000, "mels": 32, "frames": 64}


def small(**config: Any) -> Method:
    """A method over 4 x 2 patches of about half a second."""
    torch.manual_seed(0)
    model = Model(ModelConfig(name="small", architecture=SMALL, frontend=FRONTEND))
    return Method(model, Config(decoder_dim=8, decoder_depth=2, decoder_heads=2, **config))


def noise(clips: int = 3) -> Tensor:
    return torch.randn(clips, 10000, generator=torch.Generator().manual_seed(1)) * 0.1


def slow_loss(method: Any, wave: Tensor, kept: list[list[int]]) -> float:
    """One patch and one pixel at a time."""
    spec = method.model.frontend(wave)
    encoder = method.model.encoder
    predicted = method.decoder(encoder(spec, torch.tensor(kept)), torch.tensor(kept)).double()
    losses = []
    for clip in range(len(wave)):
        for patch in range(8):
            if patch in kept[clip]:
                continue
            time, band = divmod(patch, 2)  # read instant by instant
            pixels = [
                float(spec[clip, 16 * band + column, 16 * time + row])
                for row in range(16)
                for column in range(16)
            ]
            mean = sum(pixels) / 256
            variance = sum((pixel - mean) ** 2 for pixel in pixels) / 255
            target = [(pixel - mean) / math.sqrt(variance + 1e-6) for pixel in pixels]
            if not method.config.normalise:
                target = pixels
            pairs = zip(predicted[clip, patch].tolist(), target, strict=True)
            losses.append(sum((ours - wanted) ** 2 for ours, wanted in pairs) / 256)
    return sum(losses) / len(losses)


KEPT = [[5, 2], [0, 7], [3, 1]]


@pytest.mark.parametrize("decoder", ["standard", "swin"])
@pytest.mark.parametrize("normalise", [True, False])
def test_loss_equals_the_slow_version(decoder: Any, normalise: bool) -> None:
    method = small(decoder=decoder, normalise=normalise).eval()
    with torch.no_grad():
        loss, values = method.loss({"wave": noise(), "kept": torch.tensor(KEPT)})
        assert float(loss) == pytest.approx(slow_loss(method, noise(), KEPT), rel=1e-4)
    assert values["weight"] == 3 * 6


def test_a_perfect_guess_costs_nothing_and_the_kept_patches_do_not_count() -> None:
    method = small().eval()
    spec = method.model.frontend(noise())
    right = normalised(method.model.encoder.patch_pixels(spec))  # type: ignore[operator]
    kept = torch.tensor(KEPT)
    wrong = right.scatter(1, kept[..., None].expand(-1, -1, 256), 99.0)
    method.decoder.forward = lambda latent, kept: wrong  # type: ignore[method-assign]
    assert method.loss({"wave": noise(), "kept": kept})[0] == 0


def test_gradient_reaches_the_encoder() -> None:
    method = small(mixup=1.0).train()
    method.loss({"wave": noise()})[0].backward()
    without = {name for name, value in method.named_parameters() if value.grad is None}
    assert without == {"model.encoder.fc_norm.weight", "model.encoder.fc_norm.bias"}
    assert all(value.grad.any() for value in method.parameters() if value.grad is not None)


def test_hidden_patches_are_never_computed() -> None:
    """The blocks get the kept ones and the class token, and nothing else changes the latent."""
    method = small().eval()
    encoder: Any = method.model.encoder
    seen = []
    encoder.blocks[0].register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape))
    spec, kept = method.model.frontend(noise()), torch.tensor(KEPT)
    latent = encoder(spec, kept)
    assert seen == [(3, 3, 16)]
    changed = spec.clone()
    changed[0, 16:, 32:48] += 1  # patch 5 of clip 0 is kept
    changed[1, :16, 16:32] += 1  # patch 2 of clip 1 is hidden
    difference = (encoder(changed, kept) - latent).abs().amax((1, 2))
    assert difference[0] > 1e-4
    assert difference[1] == difference[2] == 0


def test_waves_are_mixed_in_training_alone() -> None:
    method, batch = small(mixup=1.0), {"wave": noise(), "kept": torch.tensor(KEPT)}
    plain = small(mixup=0.0)

    def loss(of: Method) -> float:
        torch.manual_seed(5)
        return float(of.loss(batch)[0].detach())

    assert loss(method.eval()) == loss(plain.eval()) == loss(plain.train())
    assert loss(method.train()) != loss(plain)


def test_what_does_not_go_together() -> None:
    fixed = {"preset": "bird_mae", "samples": 16000, "mels": 32}
    model = Model(ModelConfig(name="x", architecture=SMALL, frontend={**fixed, "frames": 80}))
    with pytest.raises(RecipeError, match="gives 80 frames, the encoder is made for 64"):
        Method(model, Config(decoder_dim=8, decoder_heads=2)).loss({"wave": noise()})
    with pytest.raises(RecipeError, match=r"method\.decoder: dim 8 is not a multiple of heads 16"):
        Method(model, Config(decoder_dim=8))
    frames = {**SMALL, "frames": 96}
    model = Model(ModelConfig(name="x", architecture=frames, frontend={**fixed, "frames": 96}))
    with pytest.raises(RecipeError, match=r"a grid of \(6, 2\) patches is not made of windows"):
        Method(model, Config(decoder="swin", decoder_dim=16))
    model = Model(ModelConfig(name="x", architecture={"name": "dscnn"}, frontend=fixed))
    with pytest.raises(RecipeError, match="dscnn has no patches"):
        Method(model, Config())
