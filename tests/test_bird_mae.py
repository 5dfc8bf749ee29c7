"""Bird-MAE against stored outputs of its authors' code, by its definition, and its files."""

from __future__ import annotations

import functools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from parity_fill import fill
from safetensors.torch import save_file
from test_ast import PARITY, assert_as_stored, assert_tokens, waves
from torch import Tensor

from audiossl import convert
from audiossl import frontend as frontends
from audiossl import model as model_folders
from audiossl.data.masking import random_mask
from audiossl.errors import ModelError, RecipeError
from audiossl.layout import Checkpoint
from audiossl.methods.audio_mae import normalised
from audiossl.methods.bird_mae import Config, Method
from audiossl.model import Model
from audiossl.model_config import ModelConfig
from audiossl.models.patches import sincos

NAME = "bird_mae__d192_depth4"
GRID = (32, 8)
AUTO_MAP = {"AutoConfig": "configuration_bird_mae.BirdMAEConfig", "AutoModel": "modeling.BirdMAE"}
HUB_CONFIG = {
    "architectures": ["BirdMAEModel"],
    "auto_map": AUTO_MAP,
    "embed_dim": 192,
    "depth": 4,
    "num_heads": 3,
    "img_size_x": 512,
    "img_size_y": 128,
    "patch_size": 16,
    "in_chans": 1,
    "mlp_ratio": 4,
    "qkv_bias": True,
    "norm_layer_eps": 1e-06,
    "global_pool": "mean",
    "num_patches_x": 32,
    "model_type": "bird_mae",
}
FEATURES = {
    "auto_map": {"AutoFeatureExtractor": "feature_extractor.BirdMAEFeatureExtractor"},
    "mean": -7.2,
    "std": 4.43,
    "sampling_rate": 32000,
    "target_length": 512,
    "num_mel_bins": 128,
    "htk_compat": True,
    "window_type": "hanning",
    "use_energy": False,
    "dither": 0.0,
    "frame_shift": 10,
}


def table(dim: int, grid: tuple[int, int]) -> Tensor:
    """The fixed table as the files hold it: for the transposed grid, zeros for the class token."""
    rows, columns = grid
    return torch.cat([torch.zeros(1, 1, dim), sincos(rows * columns, rows, dim)], dim=1)


def reference(name: str) -> tuple[dict[str, Any], Any]:
    """What the reference is (JSON), and what it gave (arrays)."""
    return json.loads((PARITY / f"{name}.json").read_text()), np.load(PARITY / f"{name}.npz")


def released(namespace: str, name: str = NAME, grid: tuple[int, int] = GRID) -> dict[str, Tensor]:
    """All tensors of a released file, filled; position tables computed."""
    return dict(_filled(namespace, name, grid))


@functools.cache
def _filled(namespace: str, name: str, grid: tuple[int, int]) -> dict[str, Tensor]:
    facts, _ = reference(name)
    return {
        key: torch.from_numpy(fill(key, shape, dtype, facts["salt"]))
        if kind == "filled"
        else table(shape[-1], grid)
        for key, shape, dtype, kind, *_ in facts["keys"][namespace]
    }


def write_hub(folder: Path, **changes: Any) -> Path:
    """A folder as the Hub has it, code and all; the code would write a file if it ever ran."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(released("hub_encoder"), folder / "model.safetensors")
    config = {**HUB_CONFIG, **changes}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(FEATURES))
    for name in ("configuration_bird_mae.py", "modeling.py", "feature_extractor.py"):
        (folder / name).write_text(f"open({str(folder / 'ran')!r}, 'w')\n")
    return folder


@pytest.fixture(scope="module")
def facts() -> tuple[dict[str, Any], Any]:
    return reference(NAME)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> model_folders.Model:
    folder = tmp_path_factory.mktemp("hub")
    return converted(write_hub(folder / "theirs"))


def converted(source: Path, **overrides: Any) -> model_folders.Model:
    convert.convert_folder(source, source.parent / "ours", overrides=overrides)
    return model_folders.load(str(source.parent / "ours"))


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory, facts: Any) -> Method:
    """The Lightning checkpoint, its encoder converted, its decoder put into the method.

    The reference pads a batch with its least value, here each clip has its own: the model is told
    the batch's.
    """
    path = tmp_path_factory.mktemp("lightning") / "bird.ckpt"
    state = released("")
    torch.save({"state_dict": state, "epoch": 149, "global_step": 1}, path)
    frontend = frontends.build({"preset": "bird_mae", "frames": 498})
    specs = [frontend(wave[None]) for wave in waves(facts[0])]
    least = min(float(spec.min()) for spec in specs) * frontend.clip.scale + frontend.clip.mean
    model = converted(path, frontend={"pad": least})
    method = Method(model, Config(decoder_dim=128, decoder_depth=2, decoder_heads=4))
    load_decoder(method.decoder, state)
    return method.eval()


def load_decoder(decoder: Any, state: dict[str, Tensor]) -> None:
    """A decoder by its authors' names, Bird-MAE's (`decoder.`) or Audio-MAE's (`decoder_`)."""
    ours = {}
    for name, value in state.items():
        if name.startswith(("decoder", "mask_token")):
            name = name.removeprefix("decoder.").removeprefix("decoder_")
            name = name.replace("meta_mlp.fc1", "bias_hidden").replace("meta_mlp.fc2", "bias_out")
            ours[name.replace("pred.", "predict.")] = value
    assert torch.equal(ours.pop("pos_embed")[:, 1:], decoder.positions)
    decoder.load_state_dict(ours)


def padded(facts: dict[str, Any], samples: int) -> Tensor:
    """The fixture's waves as a batch: zeros after the shorter."""
    return torch.stack([F.pad(wave, (0, samples - len(wave))) for wave in waves(facts)])


@dataclass
class Step:
    """What came of one forward and backward pass through a method."""

    spec: Tensor
    latent: Tensor
    predicted: Tensor
    loss: Tensor
    weight: Tensor
    gradients: dict[str, Tensor]


def step_of(method: Any, wave: Tensor, stored: Any, visible: int) -> Step:
    """`method.loss` under the stored order of patches, of which the first `visible` are kept."""
    kept = torch.from_numpy(stored["pretrain/ids_shuffle"].astype(np.int64))[:, :visible]
    outputs: dict[str, Tensor] = {}
    parts = {
        "spec": method.model.frontend,
        "latent": method.model.encoder,
        "predicted": method.decoder,
    }
    for name, part in parts.items():
        part.register_forward_hook(
            lambda _, __, output, name=name: outputs.update({name: output.detach()})
        )
    loss, values = method.loss({"wave": wave, "kept": kept})
    loss.backward()
    gradients = {n: p.grad for n, p in method.named_parameters() if p.grad is not None}
    return Step(**outputs, loss=loss.detach(), weight=values["weight"], gradients=gradients)


@pytest.fixture(scope="module")
def step(pretrained: Method, facts: Any) -> Step:
    return step_of(pretrained, padded(facts[0], 160000), facts[1], 64)


# --- parity ---------------------------------------------------------------------------------------


def test_every_stored_output_has_a_test(facts: Any) -> None:
    here, of_the_probes = ("input/", "pretrain/", "grad_norm/", "hub/"), ("ppnet/", "attentive/")
    assert all(name.startswith((*here, *of_the_probes)) for name in facts[0]["outputs"])


@pytest.mark.parametrize(
    ("namespace", "key"),
    [("", "encoder.pos_embed"), ("", "decoder.decoder_pos_embed"), ("hub_encoder", "pos_embed")],
)
def test_position_tables(facts: Any, namespace: str, key: str) -> None:
    known, stored = facts
    shape = next(entry[1] for entry in known["keys"][namespace] if entry[0] == key)
    assert_sampled(
        table(shape[-1], GRID), stored["/".join(filter(None, ["fixed_sample", namespace, key]))]
    )


def assert_sampled(own: Tensor, sample: Any) -> None:
    """`sample`: evenly strided values of the flattened table."""
    flat = own.flatten().numpy()
    strided = flat[:: -(-len(flat) // len(sample))]
    assert len(strided) == len(sample)
    assert np.abs(strided - sample).max() < 1e-6


def test_input(step: Step, facts: Any) -> None:
    known, stored = facts
    one_channel = {name: stored[name][:, 0] for name in ("input/head", "input/middle")}
    assert_input(step.spec, {**stored, **one_channel}, known)


def assert_input(spec: Tensor, stored: Any, facts: dict[str, Any]) -> None:
    """Head, middle and statistics of the spectrogram."""
    for part, start in (("head", 0), ("middle", spec.shape[2] // 2)):
        own = spec.transpose(1, 2)[:, start : start + 6].numpy()
        difference = np.abs(own - stored[f"input/{part}"]).max()
        assert difference <= facts["outputs"][f"input/{part}"]["tol"], part
    exact = spec.double()
    statistics = [exact.mean(), exact.std(correction=0), exact.min(), exact.max()]
    difference = np.abs(np.array(statistics) - stored["input/stats"]).max()
    assert difference <= facts["outputs"]["input/stats"]["tol"]


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


def assert_step(
    step: Step,
    gradients: dict[str, str],
    stored: Any,
    facts: dict[str, Any],
    assert_close: Any = assert_as_stored,
) -> None:
    """assert_close: of predictions and gradients; latent and loss are held to their tolerance."""
    assert_tokens("pretrain/latent", step.latent, stored, facts)
    assert list(step.predicted.shape) == stored["pretrain/pred/shape"].tolist()
    assert_close("pretrain/pred/first", step.predicted[:, :8], stored, facts)
    assert_close("pretrain/pred/last", step.predicted[:, -8:], stored, facts)
    exact = step.predicted.double()
    assert_close("pretrain/pred/mean", exact.mean(1), stored, facts)
    assert_close("pretrain/pred/std", exact.std(1, correction=0), stored, facts)
    assert step.weight == stored["pretrain/mask"].sum()
    assert_as_stored("pretrain/loss", step.loss, stored, facts)
    names = {name for name in facts["outputs"] if name.startswith("grad_norm/")}
    assert names == {f"grad_norm/{name}" for name in gradients}
    for theirs, ours in gradients.items():
        assert_close(f"grad_norm/{theirs}", step.gradients[ours].norm(), stored, facts)


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


# --- published files ------------------------------------------------------------------------------


def test_no_code_of_the_hub_runs_and_none_is_taken_over(tmp_path: Path) -> None:
    folder = write_hub(tmp_path / "theirs")
    done = convert.convert_folder(folder, tmp_path / "ours")
    assert not (folder / "ran").exists()
    assert sorted(path.name for path in (tmp_path / "ours").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    assert "auto_map" not in (tmp_path / "ours" / "config.json").read_text()
    assert (done.layout, done.unused) == ("bird-mae", ("pos_embed",))
    assert done.config.architecture["positions"] == "sincos_swapped"


@pytest.mark.parametrize("key", ["trust_remote_code", "custom_pipelines"])
def test_no_other_key_that_asks_for_code_is_taken(tmp_path: Path, key: str) -> None:
    with pytest.raises(ModelError, match=f"{key!r} asks to run code"):
        convert.convert_folder(write_hub(tmp_path / "theirs", **{key: {"a": "b"}}), tmp_path / "x")


def test_a_folder_that_asks_for_code_is_never_loaded(tmp_path: Path) -> None:
    folder = write_hub(tmp_path / "theirs")
    with pytest.raises(ModelError, match="run code"):
        model_folders.load(str(folder))
    convert.convert_folder(folder, tmp_path / "ours")
    config = tmp_path / "ours" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "auto_map": AUTO_MAP}))
    with pytest.raises(ModelError, match="run code"):
        model_folders.load(str(tmp_path / "ours"))
    assert not (folder / "ran").exists()


def hub_checkpoint(**changes: Any) -> Checkpoint:
    return Checkpoint(
        released("hub_encoder"),
        {"config.json": {**HUB_CONFIG, **changes}, "preprocessor_config.json": dict(FEATURES)},
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"embed_dim": 768}, "embed_dim is 768, expected 192"),
        ({"depth": 12}, "depth is 12, expected 4"),
        ({"img_size_x": 1024}, "img_size_x is 1024, expected 512"),
        ({"global_pool": "cls"}, "global_pool is 'cls', expected 'mean'"),
        ({"patch_size": 8}, "patch_size"),
        ({"qkv_bias": False}, "qkv_bias"),
        ({"num_heads": 5}, "config"),
        ({"num_heads": None}, "config"),
    ],
)
def test_a_config_that_does_not_fit_the_weights(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        convert.convert(hub_checkpoint(**changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"window_type": "povey"}, "window_type"),
        ({"target_length": 1024}, "target_length"),
        ({"std": 0}, "make no sense"),
        ({"mean": "loud"}, "config"),
        ({"sampling_rate": -1}, "config"),
    ],
)
def test_a_frontend_that_makes_no_sense(changes: dict[str, Any], words: str) -> None:
    checkpoint = hub_checkpoint()
    checkpoint.sidecars["preprocessor_config.json"].update(changes)
    with pytest.raises(ModelError, match=words):
        convert.convert(checkpoint)


def test_the_frontend_is_the_presets(hub: model_folders.Model) -> None:
    assert hub.frontend.config() == frontends.build({"preset": "bird_mae"}).config()
    assert hub.config.window_seconds == 5.0


def test_positions_are_told_by_their_table(tmp_path: Path) -> None:
    checkpoint = hub_checkpoint()
    straight = sincos(256, 8, 192)
    checkpoint.tensors["pos_embed"] = torch.cat([torch.zeros(1, 1, 192), straight], dim=1)
    assert convert.convert(checkpoint).config.architecture["positions"] == "sincos"
    checkpoint.tensors["pos_embed"] = checkpoint.tensors["pos_embed"].bfloat16().float()
    assert convert.convert(checkpoint).config.architecture["positions"] == "sincos"
    checkpoint.tensors["pos_embed"] = torch.randn(1, 257, 192) * 0.02
    with pytest.raises(ModelError, match="not the fixed table of 32 x 8 patches"):
        convert.convert(checkpoint)


@pytest.mark.parametrize("namespace", ["hub_encoder", ""])
def test_missing_and_unexpected_tensors_are_named(namespace: str) -> None:
    prefix = "" if namespace else "encoder."
    tensors = released(namespace)
    del tensors[f"{prefix}blocks.1.attn.proj.bias"]
    with pytest.raises(ModelError, match=r"1 missing: encoder\.blocks\.1\.attn\.proj\.bias"):
        convert.convert(Checkpoint(tensors))
    tensors = {**released(namespace), f"{prefix}lora.weight": torch.zeros(2)}
    with pytest.raises(ModelError, match=rf"1 unexpected: {prefix}lora\.weight"):
        convert.convert(Checkpoint(tensors))


def test_the_decoder_is_known_and_left_out(tmp_path: Path) -> None:
    done = convert.convert(Checkpoint(released("")))
    assert done.layout == "bird-mae-lightning"
    left = {name for name in released("") if name.startswith("decoder.")} | {"encoder.pos_embed"}
    assert set(done.unused) == left
    assert done.config.architecture["pooling"] == "patches"


def test_licences_are_told(caplog: pytest.LogCaptureFixture) -> None:
    origin = convert.origin("hf:DBD-research-group/Bird-MAE-Base")
    done = convert.convert(hub_checkpoint(), name="Bird-MAE-Base", origin=origin)
    assert done.config.licence == "none stated"
    assert "state no licence" in caplog.text
