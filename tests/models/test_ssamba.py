"""SSAMBA against stored outputs of its authors' code, and against its definition token by token."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from parity_fill import fill, rng
from test_ast import assert_as_stored, assert_spectrogram, assert_tokens, fixture, spectrograms
from torch import Tensor

from audiossl import model as model_folders
from audiossl import models
from audiossl.errors import ModelError
from audiossl.hub import convert
from audiossl.kernels import native
from audiossl.methods.parts.masking import ssast_masks
from audiossl.methods.ssamba import Config, Method
from audiossl.methods.ssast import JointObjective
from audiossl.models.parts.published import Checkpoint

SMALL: dict[str, Any] = {"dim": 8, "depth": 4, "mel": 32, "frames": 64, "states": 3}
TINY = "ssamba__tiny_depth4_t256"
FULL = "ssamba__tiny_full"  # 24 blocks, 513 tokens


def released(name: str) -> tuple[dict[str, Any], Any, dict[str, Tensor]]:
    """Facts, stored outputs, and all tensors of the released file: two whole numbers among them."""
    facts, stored, tensors = fixture(name)
    for size in ("p_input_fdim", "p_input_tdim"):
        tensors[size] = torch.tensor(int(stored[f"fixed/{size}"]))
    assert set(tensors) == {key for key, *_ in facts["keys"][""]}
    return facts, stored, tensors


def converted(tensors: dict[str, Tensor], folder: Any, name: str) -> model_folders.Model:
    """Saved as the authors save it, converted and loaded."""
    torch.save({f"module.{key}": value for key, value in tensors.items()}, folder / name)
    convert.convert_folder(folder / name, folder / "model")
    return model_folders.load(str(folder / "model"))


@pytest.fixture(scope="module")
def reference():
    return released(TINY)


@pytest.fixture(scope="module")
def pretrained(reference, tmp_path_factory):
    return converted(reference[2], tmp_path_factory.mktemp("pre"), "ssamba_tiny_400.pth")


def theirs(encoder: Any) -> dict[str, Tensor]:
    """The names of the authors' code for the tensors of an encoder of ours."""
    swap = [
        ("patch_embed.", "patch_embed.proj."),
        ("blocks.", "layers."),
        ("ahead.conv.", "conv1d."),
        ("back.conv.", "conv1d_b."),
        ("back.x_proj.", "x_proj_b."),
        ("back.dt_proj.", "dt_proj_b."),
        ("back.A_log", "A_b_log"),
        ("back.D", "D_b"),
        ("ahead.", ""),
    ]
    tensors = {}
    for name, value in encoder.state_dict().items():
        for own, other in swap:
            name = name.replace(own, other)
        name = "norm_f" + name.removeprefix("norm") if name.startswith("norm") else name
        tensors[f"v.{name}"] = value
    return tensors


@pytest.fixture(scope="module")
def fine_tuned(reference, pretrained, tmp_path_factory):
    """The same weights for 160 frames, with a head, as the authors' fine-tuning saves them."""
    facts = reference[0]
    encoder: Any = models.build("ssamba", size="tiny", depth=4, frames=256)
    encoder.load_state_dict(pretrained.encoder.state_dict())
    encoder.refit(facts["variant"]["finetune"]["input_tdim"], ssast_bug=True)
    tensors = theirs(encoder)
    for name, shape, dtype, _ in facts["keys"]["mlp_head"]:
        tensors[f"mlp_head.{name}"] = torch.from_numpy(fill(name, shape, dtype, facts["salt"]))
    checkpoint = Checkpoint(
        tensors, overrides={"architecture": {"stride": [16, 16], "frames": 160}}
    )
    done = convert.convert(checkpoint)
    assert done.layout == "ssamba-finetuned"
    model = model_folders.Model(done.config).eval()
    model.load_state_dict(done.tensors, strict=False)
    return model


# --- stored outputs -------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "scan"), [(TINY, "torch"), (TINY, "avx512"), (FULL, "avx512")])
def test_the_released_layout(name, scan, tmp_path, monkeypatch):
    monkeypatch.setenv(native.SWITCH, scan)
    facts, stored, tensors = released(name)
    model = converted(tensors, tmp_path, "ssamba_tiny_400.pth")
    config = model.config
    depth, frames = len(model.encoder.blocks), facts["spec"]["ctor"]["input_tdim"]
    sizes = {"dim": 192, "depth": depth, "mel": 128, "frames": frames, "patch": [16, 16]}
    mamba = {"states": 16, "expand": 2, "kernel": 4}
    assert config.architecture == {"name": "ssamba", **sizes, **mamba}
    assert (config.task, config.method) == ("embed", "ssamba")
    assert config.licence.startswith("none stated")
    spec = spectrograms(model, facts)
    assert_spectrogram("input", spec, stored, facts)
    encoder = model.encoder
    with torch.no_grad():
        norms: list[Tensor] = []
        hook = encoder.norm.register_forward_hook(lambda *call: norms.append(call[-1]))
        tokens = encoder(spec)
        hook.remove()
        assert_tokens("norm_f_once", norms[0], stored, facts)
        assert_tokens("tokens", tokens, stored, facts)
        assert_as_stored("pooled_avgtok", encoder.pool(tokens), stored, facts)
        losses, accuracy = stored_loss(model, tensors, facts, stored)
    assert_as_stored("pretrain/loss_nce_mse_total", losses, stored, facts)
    assert_as_stored("pretrain/acc", accuracy, stored, facts)


def objective_of(encoder: Any, tensors: dict[str, Tensor]) -> JointObjective:
    objective = JointObjective(encoder)
    names = {"discriminative": "cpredlayer", "generative": "gpredlayer", "mask_embed": "mask_embed"}
    objective.load_state_dict(
        {
            name: tensors[name.replace(name.split(".")[0], names[name.split(".")[0]])]
            for name in objective.state_dict()
        }
    )
    return objective


def stored_masks(facts: dict[str, Any], stored: Any) -> tuple[Tensor, Tensor]:
    seed = facts["spec"]["mask_seeds"][0]
    mpc, mpg = (stored[f"mask_seed{seed}/{task}"].astype(np.int64) for task in ("mpc", "mpg"))
    return torch.from_numpy(mpc), torch.from_numpy(mpg)


def stored_loss(model: Any, tensors: dict[str, Tensor], facts: Any, stored: Any) -> Any:
    objective = objective_of(model.encoder, tensors)
    spec = spectrograms(model, facts)
    loss, parts = objective(model.encoder, spec, stored_masks(facts, stored))
    return torch.stack([parts["nce"], parts["mse"], loss]), parts["accuracy"]


def test_gradients_of_the_stored_masks(reference, pretrained):
    facts, stored, tensors = reference
    encoder = pretrained.encoder
    objective = objective_of(encoder, tensors)
    pretrained.zero_grad()
    loss, _ = objective(encoder, spectrograms(pretrained, facts), stored_masks(facts, stored))
    loss.backward()
    first, second, last = (encoder.blocks[index].mixer for index in (0, 1, 3))
    owners = {
        "mask_embed": objective.mask_embed,
        "v.pos_embed": encoder.pos_embed,
        "v.cls_token": encoder.cls_token,
        "v.patch_embed.proj.weight": encoder.patch_embed.weight,
        "v.layers.0.mixer.A_log": first.ahead.A_log,
        "v.layers.0.mixer.A_b_log": first.back.A_log,
        "v.layers.0.mixer.conv1d_b.weight": first.back.conv.weight,
        "v.layers.0.mixer.dt_proj.bias": first.ahead.dt_proj.bias,
        "v.layers.1.mixer.in_proj.weight": second.in_proj.weight,
        "v.layers.3.mixer.D_b": last.back.D,
        "v.layers.3.mixer.x_proj.weight": last.ahead.x_proj.weight,
        "v.layers.3.norm.weight": encoder.blocks[3].norm.weight,
        "v.norm_f.weight": encoder.norm.weight,
        "cpredlayer.2.weight": objective.discriminative[2].weight,
        "gpredlayer.0.bias": objective.generative[0].bias,
    }
    stored_norms = {name for name in facts["outputs"] if name.startswith("grad_norm/")}
    assert stored_norms == {f"grad_norm/{name}" for name in owners}
    for name, parameter in owners.items():
        assert_as_stored(f"grad_norm/{name}", parameter.grad.norm(), stored, facts)


@pytest.mark.parametrize("name", [TINY, FULL])
def test_masks_are_those_of_the_reference(name):
    facts, stored, _ = fixture(name)
    spec = facts["spec"]
    for seed in spec["mask_seeds"]:
        random.seed(seed)
        for task in ("mpc", "mpg"):
            grid = (8, spec["ctor"]["input_tdim"] // 16)
            drawn = ssast_masks(len(spec["waves"]), grid, spec["mask_patch"])
            assert drawn.tolist() == stored[f"mask_seed{seed}/{task}"].tolist()


def test_one_mixer_both_ways(reference, pretrained):
    facts, stored, _ = reference
    mixer = pretrained.encoder.blocks[0].mixer
    tokens = torch.from_numpy(rng("mixer-in").standard_normal((1, 33, 192)).astype(np.float32))
    with torch.no_grad():
        assert_as_stored("mixer0/out", mixer(tokens), stored, facts)
        flipped = mixer(tokens.flip(1))
        assert_as_stored("mixer0/out_flipped_input", flipped, stored, facts)
        torch.testing.assert_close(mixer(tokens, reverse=True), flipped.flip(1))


def test_the_fine_tuned_layout(reference, fine_tuned):
    facts, stored, _ = reference
    spec = spectrograms(fine_tuned, facts)
    assert (fine_tuned.config.task, len(fine_tuned.labels)) == ("tag", 35)
    with torch.no_grad():
        assert_tokens("ft/pos_embed", fine_tuned.encoder.pos_embed, stored, facts)
        assert_tokens("ft/tokens", fine_tuned.encoder(spec), stored, facts)
        assert_as_stored("ft/logits_avgtok", fine_tuned.classify(spec), stored, facts)


def test_every_stored_output_is_compared(reference):
    kinds = {name.split("/")[0] for name in reference[0]["outputs"]}
    assert kinds == {
        *("input", "mask_seed1", "mask_seed2", "pretrain", "grad_norm", "norm_f_once", "tokens"),
        *("pooled_avgtok", "mixer0", "ft"),
    }
    kinds = {name.split("/")[0] for name in fixture(FULL)[0]["outputs"]}
    assert kinds == {
        *("input", "mask_seed3", "mask_seed4", "pretrain", "norm_f_once", "tokens"),
        "pooled_avgtok",
    }


# --- small checkpoints ----------------------------------------------------------------------------


def original(**more: Tensor) -> dict[str, Tensor]:
    torch.manual_seed(0)
    tensors = theirs(models.build("ssamba", **{**SMALL, "mel": 128}))
    for head in ("v.head", "cpredlayer.0", "cpredlayer.2", "gpredlayer.0"):
        tensors |= {f"{head}.{part}": torch.zeros(3) for part in ("weight", "bias")}
    sizes = {"p_input_fdim": torch.tensor(128), "p_input_tdim": torch.tensor(64)}
    return tensors | {"mask_embed": torch.zeros(1, 1, 8)} | sizes | more


def fine(stride: int, frames: int, classes: int = 527) -> dict[str, Tensor]:
    settings = {**SMALL, "mel": 128, "frames": frames, "stride": (stride, stride)}
    tensors = theirs(models.build("ssamba", **settings))
    head = {"0.weight": (8,), "0.bias": (8,), "1.weight": (classes, 8), "1.bias": (classes,)}
    return tensors | {f"mlp_head.{name}": torch.rand(shape) for name, shape in head.items()}


@pytest.mark.parametrize(
    ("stride", "frames"), [(10, 1024), (16, 1024), (10, 512), (16, 512), (10, 128), (16, 128)]
)
def test_stride_and_length_of_fine_tuned_files(stride, frames):
    done = convert.convert(Checkpoint(fine(stride, frames)))
    assert done.layout == "ssamba-finetuned"
    architecture, head = done.config.architecture, done.config.head
    assert (architecture["stride"], architecture["frames"]) == ([stride, stride], frames)
    assert head is not None
    assert (head["activation"], head["labels"][0]) == ("sigmoid", "Speech")
    assert done.config.frontend == {"preset": "ssamba", "mels": 128, "frames": frames}


def test_one_label_a_clip_unless_it_is_audioset():
    head = convert.convert(Checkpoint(fine(16, 128, 50))).config.head
    assert head is not None
    assert head["activation"] == "softmax"


def test_other_strides_must_be_given():
    odd = fine(9, 200)
    with pytest.raises(ModelError, match="positions fit none of SSAMBA's own settings"):
        convert.convert(Checkpoint(odd))
    given = {"architecture": {"stride": [9, 9], "frames": 200}}
    convert.convert(Checkpoint(odd, overrides=given))


def test_every_published_file_is_known():
    names = [item.name for item in convert.published() if item.layout == "ssamba"]
    assert len(names) == 9
    origin = convert.origin("ssamba_base_300.pth")
    assert origin is not None
    assert origin.licence.startswith("none stated for the weights")


def without(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: value for key, value in tensors.items() if key != name}


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (lambda t: without(t, "v.norm_f.bias"), "1 missing: encoder.norm.bias"),
        (
            lambda t: without(t, "v.layers.2.mixer.D_b"),
            "1 missing: encoder.blocks.2.mixer.back.D",
        ),
        (lambda t: {**t, "v.extra": torch.zeros(1)}, "1 unexpected: v.extra"),
        (
            lambda t: {**t, "v.layers.1.mixer.x_proj_c.weight": torch.zeros(1)},
            "1 unexpected: v.layers.1",
        ),
        (lambda t: {**t, "v.norm_f.bias": torch.zeros(7)}, "1 wrong shape: encoder.norm.bias"),
        (lambda t: {**t, "p_input_tdim": torch.tensor(80)}, "wrong shape: encoder.pos_embed"),
        (lambda t: without(t, "p_input_tdim"), "KeyError 'p_input_tdim'"),
        (lambda t: {**t, "p_input_tdim": torch.tensor([64, 64])}, "expected one whole number"),
        (lambda t: {**t, "p_input_tdim": torch.tensor(10**12)}, "is more than"),
        (lambda t: {**t, "v.layers.0.mixer.A_log": torch.zeros(16)}, "config"),
        (lambda t: without(t, "v.layers.0.mixer.A_b_log"), "no known layout"),
    ],
)
def test_nothing_is_loaded_in_part(broken, words):
    assert convert.convert(Checkpoint(original())).layout == "ssamba"
    with pytest.raises(ModelError, match=words):
        convert.convert(Checkpoint(broken(original())))


# --- the encoder ----------------------------------------------------------------------------------


def ssamba(**arguments: Any) -> Any:
    """In float64, with every weight moved away from where it starts."""
    torch.manual_seed(0)
    encoder = models.build("ssamba", **{**SMALL, **arguments}).double().eval()
    with torch.no_grad():
        for value in encoder.parameters():
            value.add_(torch.randn_like(value) * 0.1)
    return encoder


def spectrogram(frames: int = 64, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 32, frames, generator=generator).double()


def slow_direction(way: Any, x: Tensor, z: Tensor) -> Tensor:
    """Of one clip, x and z: (tokens, width), from the first token to the last."""
    weight, bias = way.conv.weight[:, 0], way.conv.bias
    rank, states = way.dt_proj.in_features, way.A_log.shape[1]
    h, out = torch.zeros_like(way.A_log), []
    for t in range(len(x)):
        u = bias.clone()
        for back in range(4):
            if t - back >= 0:
                u = u + weight[:, 3 - back] * x[t - back]
        u = u / (1 + torch.exp(-u))
        numbers = way.x_proj.weight @ u
        low, b, c = numbers[:rank], numbers[rank : rank + states], numbers[rank + states :]
        step = torch.log(1 + torch.exp(way.dt_proj.weight @ low + way.dt_proj.bias))
        h = torch.exp(-step[:, None] * torch.exp(way.A_log)) * h + (step * u)[:, None] * b
        out.append((h @ c + way.D * u) * z[t] / (1 + torch.exp(-z[t])))
    return torch.stack(out)


def slow_mixer(mixer: Any, tokens: Tensor) -> Tensor:
    x, z = (tokens @ mixer.in_proj.weight.T).tensor_split(2, dim=1)
    ahead = slow_direction(mixer.ahead, x, z)
    back = slow_direction(mixer.back, x.flip(0), z.flip(0)).flip(0)
    return (ahead + back) / 2 @ mixer.out_proj.weight.T


def slow_tokens(encoder: Any, spec: Tensor) -> Tensor:
    """Of one clip, (mel, frames): blocks in pairs, one of them over flipped tokens."""
    patches = [
        encoder.patch_embed.weight.flatten(1) @ spec[f : f + 16, t : t + 16].flatten()
        + encoder.patch_embed.bias
        for f in range(0, 32, 16)
        for t in range(0, 64, 16)
    ]
    hidden = torch.stack([encoder.cls_token[0, 0], *patches]) + encoder.pos_embed[0]
    residual = torch.zeros_like(hidden)
    for ahead, back in zip(encoder.blocks[::2], encoder.blocks[1::2], strict=True):
        residual = residual + hidden
        forward = slow_mixer(ahead.mixer, ahead.norm(residual))
        backward = slow_mixer(back.mixer, back.norm(residual.flip(0))).flip(0)
        hidden = forward + backward
        if not encoder.clean:
            residual = residual + residual.flip(0).flip(0)
    once = encoder.norm(residual + hidden)
    return once if encoder.clean else encoder.norm(once)


@pytest.mark.parametrize("clean", [False, True])
@torch.no_grad()
def test_tokens_equal_the_definition(clean):
    encoder = ssamba(clean=clean)
    tokens = encoder(spectrogram())
    for clip in range(2):
        slow = slow_tokens(encoder, spectrogram()[clip])
        torch.testing.assert_close(tokens[clip], slow, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(encoder.embed(spectrogram()), tokens[:, 1:].mean(1))
    cls = ssamba(clean=clean, pooling="cls")
    assert torch.equal(cls.embed(spectrogram()), cls(spectrogram())[:, 0])


@pytest.fixture(params=list(native.LANES))
def compiled(request, monkeypatch):
    """The library with each set of instructions that the processor has."""
    monkeypatch.setenv(native.SWITCH, request.param)
    if native.instructions() != request.param:
        pytest.skip("not built here, or not for this processor")
    return request.param


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("frames", [16, 80, 560])  # 2, 10, 70 patches
@pytest.mark.parametrize(
    "sizes", [{"dim": 40, "states": 17}, {"dim": 8, "states": 3, "kernel": 3}, {"clean": True}]
)
@torch.no_grad()
def test_inference_in_one_go_equals_the_layers(sizes, frames, batch, monkeypatch):
    """Also for widths that fill no register, and lengths that fill no chunk."""
    encoder = ssamba(**sizes).float()
    spec = spectrogram(frames, batch).float()
    quick = encoder(spec)
    monkeypatch.setattr(native, "can_mix", lambda tokens: False)
    torch.testing.assert_close(quick, encoder(spec), rtol=0, atol=1e-5)


@pytest.mark.usefixtures("compiled")
@torch.no_grad()
def test_threads_change_nothing():
    encoder = ssamba(dim=96).float()
    spec = spectrogram(1600, 3).float()
    before = torch.get_num_threads()
    try:
        tokens = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            tokens.append(encoder(spec))
    finally:
        torch.set_num_threads(before)
    # torch's own layers, here the patches and norms, may differ in the last bit
    torch.testing.assert_close(tokens[1], tokens[0], rtol=0, atol=2e-6)
    torch.testing.assert_close(tokens[2], tokens[0], rtol=0, atol=2e-6)


def test_only_plain_inference_is_done_in_one_go(monkeypatch):
    monkeypatch.delenv(native.SWITCH, raising=False)
    tokens = torch.zeros(1, 2, 3)
    built = native.loaded() is not None
    assert not native.can_mix(tokens)  # gradients are wanted
    with torch.no_grad():
        assert native.can_mix(tokens) == built
        assert not native.can_mix(tokens.double())
        with torch.autocast("cpu", torch.bfloat16):
            assert not native.can_mix(tokens)
        monkeypatch.setenv(native.SWITCH, "torch")
        assert not native.can_mix(tokens)


@torch.no_grad()
def test_the_residual_doubles_unless_clean():
    """With mixers that say nothing, 2 to the power of the pairs: 1, 2, 4."""
    for clean, factor in ((False, 4), (True, 1)):
        encoder = ssamba(clean=clean)
        for block in encoder.blocks:
            block.mixer.out_proj.weight.zero_()
        patches = encoder.patches(spectrogram()) + encoder.positions(64)
        sums = encoder.forward_tokens(patches, normalise=False)
        torch.testing.assert_close(sums[:, 1:], factor * patches)


def test_drop_path_never_leaves_the_tokens_out():
    encoder = models.build("ssamba", **{**SMALL, "depth": 6}, drop_path=0.5)
    rates = [block.drop_path.rate for block in encoder.blocks]
    assert rates == pytest.approx([0, 0, 0.1, 0.2, 0.3, 0.4])
    assert encoder.drop_path.rate == 0.5
    encoder.train()
    torch.manual_seed(0)
    dropped = encoder(spectrogram().float())
    assert not torch.allclose(dropped, encoder(spectrogram().float()))


@torch.no_grad()
def test_other_lengths_and_strides():
    encoder = ssamba()
    assert encoder(spectrogram(40)).shape == (2, 1 + 2 * 2, 8)
    fitted = ssamba()
    fitted.refit(40)
    assert torch.equal(fitted.pos_embed[0, 1:3], encoder.pos_embed[0, 2:4])  # the middle in time
    assert torch.equal(fitted.pos_embed[:, :1], encoder.pos_embed[:, :1])
    torch.testing.assert_close(fitted(spectrogram(40)), encoder(spectrogram(40)))
    fitted = ssamba()
    fitted.refit(64, (8, 8))
    assert fitted(spectrogram()).shape == (2, 1 + 3 * 7, 8)
    stretched = F.interpolate(
        encoder.pos_embed[:, 1:].mT.unflatten(2, (2, 4)), size=(3, 7), mode="bilinear"
    )
    torch.testing.assert_close(fitted.pos_embed[:, 1:], stretched.flatten(2).mT)


@torch.no_grad()
def test_moments_are_means_over_frequencies():
    encoder, spec = ssamba().eval(), spectrogram()
    patches = encoder(spec)[:, 1:].unflatten(1, encoder.grid(spec.shape[-1]))
    moments = encoder.timeline(spec)
    for moment in range(moments.shape[1]):
        expected = sum(row[:, moment] for row in patches.unbind(1)) / patches.shape[1]
        torch.testing.assert_close(moments[:, moment], expected)
    assert encoder.timing == encoder.patch_embed.timing


def test_checkpointing_changes_nothing():
    grads = []
    for checkpointing in (False, True):
        encoder = ssamba(checkpointing=checkpointing, drop_path=0.0).train()
        encoder.embed(spectrogram()).square().sum().backward()
        grads.append([value.grad for value in encoder.parameters()])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


def test_first_weights_are_mambas():
    torch.manual_seed(0)
    encoder = models.build("ssamba", size="tiny", depth=2)
    mixer: Any = encoder.blocks[0].mixer
    step = F.softplus(mixer.ahead.dt_proj.bias)
    assert 1e-3 <= step.min().item() < 1.5e-3
    assert 0.07 < step.max().item() <= 0.1 + 1e-6
    assert torch.equal(mixer.back.D, torch.ones(384))
    torch.testing.assert_close(mixer.back.A_log.exp(), torch.arange(1.0, 17).repeat(384, 1))
    bound = 1 / np.sqrt(384) / np.sqrt(2)  # a linear layer's default over the root of the depth
    assert mixer.out_proj.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
    assert mixer.ahead.dt_proj.weight.abs().max().item() == pytest.approx(12**-0.5, rel=0.01)
    assert encoder.pos_embed.std().item() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize(
    ("size", "millions"), [("tiny", 6.922), ("small", 25.346), ("base", 96.698)]
)
def test_sizes_are_the_papers(size, millions):
    """Counted in the authors' own class, without its unused head of 1000 classes."""
    with torch.device("meta"):
        encoder = models.build("ssamba", size=size)
    count = sum(value.numel() for value in encoder.parameters())
    assert count / 1e6 == pytest.approx(millions, abs=5e-4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"size": "huge"}, "size: expected one of tiny, small, base"),
        ({"depth": 3}, "blocks come in pairs"),
        ({"depth": 0}, "blocks come in pairs"),
        ({"fit": "best"}, "fit: expected"),
        ({"pooling": "fc_norm"}, "pooling: expected"),
        ({"frames": 8}, "do not fill one patch"),
    ],
)
def test_settings_that_do_not_go_together(arguments, words):
    with pytest.raises(ValueError, match=words):
        models.build("ssamba", **{**SMALL, **arguments})


# --- pretraining ----------------------------------------------------------------------------------


def small_model() -> model_folders.Model:
    torch.manual_seed(0)
    return model_folders.Model(
        convert.ModelConfig(
            "small", {"name": "ssamba", **SMALL}, {"preset": "ssamba", "mels": 32, "frames": 64}
        )
    )


def test_gradient_reaches_everything_and_only_the_encoder_is_kept():
    method = Method(small_model(), Config(hidden=5)).train()
    wave = torch.randn(2, 10_000, generator=torch.Generator().manual_seed(3)) * 0.1
    loss, values = method.loss({"wave": wave})
    assert set(values) == {"nce", "mse", "accuracy", "weight"}
    loss.backward()
    assert [n for n, p in method.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert not any("objective" in name for name in method.model.state_dict())
    assert Config().hidden == 300


def test_mamba_ssms_own_layers_get_no_weight_decay():
    from audiossl.engine.optim import parameter_groups

    encoder = models.build("ssamba", **SMALL)
    groups = parameter_groups(encoder.named_parameters(), 0.1)
    plain = {
        id(value) for group in groups if not group["weight_decay"] for value in group["params"]
    }
    for name, value in encoder.named_parameters():
        free = value.ndim == 1 or name.endswith(("A_log", "pos_embed", "cls_token"))
        assert (id(value) in plain) == free, name
