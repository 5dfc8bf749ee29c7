"""SSAST against stored outputs of its authors' code, and its published files."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from parity_fill import fill
from test_ast import (
    assert_as_stored,
    assert_spectrogram,
    assert_tokens,
    fixture,
    spectrograms,
    waves,
)
from torch import Tensor

from audiossl import model as model_folders
from audiossl import models
from audiossl.engine.starting_model import build_model
from audiossl.errors import ModelError
from audiossl.hub import convert
from audiossl.methods.ssast import JointObjective
from audiossl.models.parts.published import Checkpoint
from audiossl.recipe import loading as recipe


def encoder_of(**arguments: Any) -> Any:
    torch.manual_seed(0)
    return models.build("ssast", **arguments)


def parallel(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"module.{name}": value for name, value in tensors.items()}


@pytest.fixture(scope="module")
def reference():
    """Facts, stored outputs, and all tensors of the released file: two whole numbers among them."""
    facts, stored, tensors = fixture("ssast__tiny_patch")
    for name in ("p_input_fdim", "p_input_tdim"):
        tensors[name] = torch.tensor(int(stored[f"fixed/{name}"]))
    assert set(tensors) == {key for key, *_ in facts["keys"][""]}
    return facts, stored, tensors


@pytest.fixture(scope="module")
def converted(reference, tmp_path_factory):
    """The released file as a model folder."""
    folder = tmp_path_factory.mktemp("ssast")
    torch.save(parallel(reference[2]), folder / "SSAST-Tiny-Patch-400.pth")
    done = convert.convert_folder(folder / "SSAST-Tiny-Patch-400.pth", folder / "model")
    assert done.layout == "ssast"
    assert len(done.unused) == 2 + 1 + 2 * 4 + 2 * 2  # sizes, mask_embed, both heads, DeiT's heads
    return folder / "model"


@pytest.fixture(scope="module")
def pretrained(converted):
    return model_folders.load(str(converted))


@pytest.fixture(scope="module")
def fine_tuned(reference, pretrained, tmp_path_factory):
    """The same weights fitted to 512 frames and stride 10, as the authors' fine-tuning saves them,
    converted and loaded."""
    facts = reference[0]
    settings = facts["variant"]["finetune"]
    encoder = encoder_of(size="tiny")
    encoder.load_state_dict(pretrained.encoder.state_dict())
    stride = (settings["fstride"], settings["tstride"])
    encoder.refit(settings["input_tdim"], stride, ssast_bug=True)
    tensors = {
        f"v.{name.replace('patch_embed.', 'patch_embed.proj.')}": value
        for name, value in encoder.state_dict().items()
    }
    for name, shape, dtype, _ in facts["keys"]["mlp_head"]:
        tensors[f"mlp_head.{name}"] = torch.from_numpy(fill(name, shape, dtype, facts["salt"]))
    folder = tmp_path_factory.mktemp("fine")
    torch.save(parallel(tensors), folder / "best.pth")
    convert.convert_folder(folder / "best.pth", folder / "model", layout="ssast-finetuned")
    return model_folders.load(str(folder / "model"))


def test_the_released_layout(reference, pretrained):
    facts, stored, _ = reference
    config = pretrained.config
    sizes = {"dim": 192, "depth": 12, "heads": 3, "patch": [16, 16], "mel": 128, "frames": 1024}
    assert config.architecture == {"name": "ssast", **sizes}
    assert (config.task, config.method, config.window_seconds) == ("embed", "ssast", 10.24)
    assert (config.licence, config.data) == ("BSD-3-Clause", ["AudioSet", "LibriSpeech"])
    assert_spectrogram("input", spectrograms(pretrained, facts), stored, facts)


def test_losses_and_gradients_of_the_stored_masks(reference, pretrained):
    facts, stored, tensors = reference
    encoder: Any = pretrained.encoder
    objective: Any = JointObjective(encoder)
    objective.load_state_dict(
        {
            name: tensors[name.replace("discriminative", "cpredlayer").replace(*GPRED)]
            for name in objective.state_dict()
        }
    )
    mpc, mpg = (torch.from_numpy(stored[f"mask_seed1/{task}"]).long() for task in ("mpc", "mpg"))
    loss, parts = objective(encoder, spectrograms(pretrained, facts), (mpc, mpg))
    losses = torch.stack([parts["nce"], parts["mse"], loss])
    assert_as_stored("pretrain/loss_nce_mse_total", losses, stored, facts)
    assert_as_stored("pretrain/acc", parts["accuracy"], stored, facts)
    pretrained.zero_grad()
    loss.backward()
    owners = {
        "mask_embed": objective.mask_embed,
        "v.pos_embed": encoder.pos_embed,
        "v.cls_token": encoder.cls_token,
        "v.patch_embed.proj.weight": encoder.patch_embed.weight,
        "v.blocks.0.attn.qkv.weight": encoder.blocks[0].attn.qkv.weight,
        "v.blocks.11.mlp.fc2.weight": encoder.blocks[11].mlp.fc2.weight,
        "v.norm.weight": encoder.norm.weight,
        "cpredlayer.2.weight": objective.discriminative[2].weight,
        "gpredlayer.0.bias": objective.generative[0].bias,
    }
    stored_norms = {name for name in facts["outputs"] if name.startswith("grad_norm/")}
    assert stored_norms == {f"grad_norm/{name}" for name in owners}
    for name, parameter in owners.items():
        assert_as_stored(f"grad_norm/{name}", parameter.grad.norm(), stored, facts)


GPRED = ("generative", "gpredlayer")


def test_the_fine_tuned_layout(reference, fine_tuned):
    facts, stored, _ = reference
    encoder, frames = fine_tuned.encoder, facts["variant"]["finetune"]["input_tdim"]
    assert (encoder.grid(frames), fine_tuned.config.task) == ((12, 50), "tag")
    spec = spectrograms(fine_tuned, facts)
    with torch.no_grad():
        assert_tokens("ft/pos_embed", encoder.pos_embed, stored, facts)
        tokens = encoder(spec)
        assert_tokens("ft/tokens", tokens, stored, facts)
        assert_as_stored("ft/pooled_avgtok", encoder.pool(tokens), stored, facts)
        assert_as_stored("ft/logits_avgtok", fine_tuned.classify(spec), stored, facts)
        encoder.pooling = "cls_dist"
        assert_as_stored("ft/logits_cls", fine_tuned.classify(spec), stored, facts)


def test_the_recipe_makes_what_the_authors_fine_tuned(reference, converted):
    facts, stored, _ = reference
    given = [f"model.from={converted}", "data.labels=[dog, rain]"]
    model = build_model(recipe.load("ssast_finetune", given))
    encoder: Any = model.encoder
    assert_tokens("ft/pos_embed", encoder.pos_embed, stored, facts)
    assert model.config.frontend == {"preset": "ast_esc50"}
    assert model(waves(facts)[0][None, :80_000]).shape == (1, 2)


def test_every_stored_output_is_compared(reference):
    """What the three tests above and test_masking.py take, and nothing more, is in the fixture."""
    kinds = {name.split("/")[0] for name in reference[0]["outputs"]}
    assert kinds == {
        "input", "mask_seed1", "mask_seed2", "mask_seed3", "pretrain", "grad_norm", "ft"
    }  # fmt: skip


# --- small checkpoints ----------------------------------------------------------------------------

SIZE = {"dim": 64, "depth": 2, "heads": 1, "frames": 128}


def original(patch: tuple[int, int] = (16, 16), **more: Any) -> dict[str, Tensor]:
    """A pretraining checkpoint in the authors' layout, from our own model turned round by hand."""
    encoder = encoder_of(**SIZE, patch=patch)
    tensors = {
        f"v.{name.replace('patch_embed.', 'patch_embed.proj.')}": value
        for name, value in encoder.state_dict().items()
    }
    for head in ("v.head", "v.head_dist", "cpredlayer.0", "cpredlayer.2", "gpredlayer.0"):
        tensors |= {f"{head}.{part}": torch.zeros(3) for part in ("weight", "bias")}
    tensors["mask_embed"] = torch.zeros(1, 1, 64)
    sizes = {"p_input_fdim": torch.tensor(128), "p_input_tdim": torch.tensor(128)}
    return tensors | sizes | more


def fine(patch: tuple[int, int], stride: tuple[int, int], frames: int) -> dict[str, Tensor]:
    encoder = encoder_of(**{**SIZE, "frames": frames}, patch=patch, stride=stride)
    tensors = {
        f"v.{name.replace('patch_embed.', 'patch_embed.proj.')}": value
        for name, value in encoder.state_dict().items()
    }
    head = {"0.weight": 64, "0.bias": 64, "1.weight": (527, 64), "1.bias": 527}
    return tensors | {f"mlp_head.{name}": torch.rand(shape) for name, shape in head.items()}


def test_the_frame_variant_is_told_by_its_shapes():
    config = convert.convert(Checkpoint(original((128, 2)))).config
    assert config.architecture["patch"] == [128, 2]
    assert config.frontend == {"preset": "ssast", "mels": 128, "frames": 128}


@pytest.mark.parametrize(
    ("patch", "stride", "frames"),
    [
        ((16, 16), (10, 10), 1024),
        ((16, 16), (16, 16), 512),
        ((16, 16), (10, 10), 128),
        ((128, 2), (128, 1), 512),
        ((128, 2), (128, 2), 1024),
    ],
)
def test_stride_and_length_of_fine_tuned_files(patch, stride, frames):
    done = convert.convert(Checkpoint(fine(patch, stride, frames)), layout="ssast-finetuned")
    architecture = done.config.architecture
    assert (architecture["stride"], architecture["frames"]) == (list(stride), frames)
    assert done.config.head is not None
    assert done.config.head["activation"] == "sigmoid"
    assert done.config.labels[0] == "Speech"


def test_other_strides_must_be_given():
    odd = fine((16, 16), (9, 9), 200)
    with pytest.raises(ModelError, match="positions fit none of SSAST's own settings"):
        convert.convert(Checkpoint(odd), layout="ssast-finetuned")
    given = {"architecture": {"stride": [9, 9], "frames": 200}}
    convert.convert(Checkpoint(odd, overrides=given), layout="ssast-finetuned")


def test_marks_tell_it_from_ast():
    """A fine-tuned file has AST's names: it is taken for AST's unless it is asked for."""
    assert convert.convert(Checkpoint(original())).layout == "ssast"
    assert convert.convert(Checkpoint(fine((16, 16), (10, 10), 128))).layout == "ast"
    with pytest.raises(ModelError, match=r"patches of 128x2, .* --layout ssast-finetuned"):
        convert.convert(Checkpoint(fine((128, 2), (128, 1), 128)))


def without(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: value for key, value in tensors.items() if key != name}


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (lambda t: without(t, "v.norm.bias"), "1 missing: encoder.norm.bias"),
        (lambda t: {**t, "v.extra": torch.zeros(1)}, "1 unexpected: v.extra"),
        (lambda t: {**t, "cpredlayer.4.bias": torch.zeros(1)}, "1 unexpected: cpredlayer.4.bias"),
        (lambda t: {**t, "v.norm.bias": torch.zeros(63)}, "1 wrong shape: encoder.norm.bias"),
        (lambda t: {**t, "p_input_tdim": torch.tensor(144)}, "wrong shape: encoder.pos_embed"),
        (lambda t: without(t, "p_input_tdim"), "KeyError 'p_input_tdim'"),
        (lambda t: {**t, "p_input_tdim": torch.tensor([64, 64])}, "expected one whole number"),
        (lambda t: {**t, "p_input_fdim": torch.tensor(128.0)}, "expected one whole number"),
        (lambda t: {**t, "p_input_tdim": torch.tensor(10**12)}, "is more than"),
        (lambda t: {**t, "p_input_tdim": torch.tensor(8)}, "do not fill one patch"),
        (lambda t: {**t, "v.patch_embed.proj.weight": torch.zeros(64)}, "config"),
        (lambda t: without(t, "cpredlayer.0.weight"), "no known layout"),
    ],
)
def test_nothing_is_loaded_in_part(broken, words):
    with pytest.raises(ModelError, match=words):
        convert.convert(Checkpoint(broken(original())))


# --- the encoder ----------------------------------------------------------------------------------


def test_first_weights_are_deits():
    encoder = encoder_of(size="tiny", depth=1)
    assert encoder.blocks[0].attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not encoder.blocks[0].attn.qkv.bias.any()
    bound = 1 / 16  # a convolution's default: uniform to 1 / sqrt(inputs), 16 x 16
    assert encoder.patch_embed.weight.abs().max().item() == pytest.approx(bound, rel=0.01)


@pytest.mark.parametrize(
    ("patch", "stride", "frames", "grid"),
    [
        ((16, 16), (10, 10), 512, (12, 50)),  # ESC-50: the middle of time, frequency stretched
        ((16, 16), (10, 10), 1024, (12, 101)),  # AudioSet: both stretched
        ((128, 2), (128, 1), 512, (1, 511)),  # ESC-50, frames: stretched, though shorter
        ((128, 2), (128, 1), 128, (1, 127)),  # Speech Commands, frames: the middle
    ],
)
def test_position_tables_of_the_papers_tasks(patch, stride, frames, grid):
    """The corrected way and the reference's agree for every released weight and task of the
    paper."""
    right, bug = (encoder_of(dim=8, depth=1, heads=1, patch=patch) for _ in range(2))
    bug.load_state_dict(right.state_dict())
    right.refit(frames, stride)
    bug.refit(frames, stride, ssast_bug=True)
    assert right.grid(frames) == grid
    assert right.pos_embed.shape == (1, 2 + grid[0] * grid[1], 8)
    assert torch.allclose(right.pos_embed, bug.pos_embed, atol=1e-6)
    spec = torch.zeros(1, 128, frames)
    assert torch.allclose(right.embed(spec), bug.embed(spec), atol=1e-5)
