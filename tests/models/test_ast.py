"""AST against stored outputs of its authors' code, and against transformers on random weights."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parity_fill import fill, wave
from safetensors.torch import load_file, save_file
from torch import Tensor

from audiossl import model as model_folders
from audiossl import models
from audiossl.errors import ModelError
from audiossl.hub import convert
from audiossl.models.parts.published import Checkpoint

PARITY = Path(__file__).parents[1] / "data" / "parity"
TOLERANCE = 1e-4


def fixture(name: str) -> tuple[dict[str, Any], Any, dict[str, Tensor]]:
    """What the reference is (JSON), what it gave (arrays), and its filled weights."""
    facts = json.loads((PARITY / f"{name}.json").read_text())
    tensors = {
        key: torch.from_numpy(fill(key, shape, dtype, facts["salt"]))
        for key, shape, dtype, kind, *_ in facts["keys"][""]
        if kind == "filled"
    }
    return facts, np.load(PARITY / f"{name}.npz"), tensors


def waves(facts: dict[str, Any]) -> list[Tensor]:
    return [torch.from_numpy(wave(*arguments)) for arguments in facts["spec"]["waves"]]


def spectrograms(model: model_folders.Model, facts: dict[str, Any]) -> Tensor:
    return torch.cat([model.frontend(wave[None]) for wave in waves(facts)])


def assert_as_stored(name: str, value: Tensor, stored: Any, facts: dict[str, Any]) -> None:
    """Within the fixture's own tolerance, and within 1e-4 of the largest stored value."""
    limit = facts["outputs"][name]
    difference = np.abs(value.detach().numpy() - stored[name]).max()
    assert difference <= limit["tol"], name
    assert difference <= TOLERANCE * max(1, limit["absmax"]), name


def assert_tokens(name: str, tokens: Tensor, stored: Any, facts: dict[str, Any]) -> None:
    assert list(tokens.shape) == stored[f"{name}/shape"].tolist()
    assert_as_stored(f"{name}/first", tokens[:, :8], stored, facts)
    assert_as_stored(f"{name}/last", tokens[:, -8:], stored, facts)
    exact = tokens.double()
    assert_as_stored(f"{name}/mean", exact.mean(1), stored, facts)
    assert_as_stored(f"{name}/std", exact.std(1, correction=0), stored, facts)


def assert_spectrogram(name: str, spec: Tensor, stored: Any, facts: dict[str, Any]) -> None:
    frames = spec.transpose(1, 2)
    assert list(frames.shape) == stored[f"{name}/shape"].tolist()
    middle = frames.shape[1] // 2
    for part, own in (("head", frames[:, :6]), ("middle", frames[:, middle : middle + 6])):
        key = f"{name}/{part}"
        assert np.abs(own.numpy() - stored[key]).max() <= facts["outputs"][key]["tol"], key


def test_the_authors_model(tmp_path):
    facts, stored, tensors = fixture("ast__orig_tiny224_t512")
    prefix = facts["container"]["files"][0]["prefix"]
    torch.save({prefix + key: value for key, value in tensors.items()}, tmp_path / "ast.pth")
    convert.convert_folder(tmp_path / "ast.pth", tmp_path / "model")
    model = model_folders.load(str(tmp_path / "model"))
    spec = spectrograms(model, facts)
    assert_spectrogram("input", spec, stored, facts)
    with torch.no_grad():
        assert_tokens("tokens", model.encoder(spec), stored, facts)
        assert_as_stored("pooled", model.encoder.embed(spec), stored, facts)
        assert_as_stored("logits", model.classify(spec), stored, facts)


@pytest.fixture(scope="module")
def hub_model(tmp_path_factory):
    """The fixture's Hub folder, converted. Its stored outputs are of waves without their mean."""
    folder = tmp_path_factory.mktemp("hub")
    facts, stored, tensors = fixture("ast__hf_2layer")
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(facts["info"]["config_json"]))
    overrides = {"frontend": {"remove_mean": True}}
    convert.convert_folder(folder, folder / "ours", overrides=overrides)
    return model_folders.load(str(folder / "ours")), facts, stored, folder


def test_the_hub_layout(hub_model):
    model, facts, stored, _ = hub_model
    assert model.labels[:2] == ["LABEL_0", "LABEL_1"]
    spec = spectrograms(model, facts)
    assert_spectrogram("input", spec, stored, facts)
    with torch.no_grad():
        assert_tokens("tokens", model.encoder(spec), stored, facts)
        assert_as_stored("pooled", model.encoder.embed(spec), stored, facts)
        assert_as_stored("logits", model.classify(spec), stored, facts)


def test_gradients_of_the_hub_layout(hub_model):
    model, facts, stored, _ = hub_model
    model.zero_grad()
    logits = model.classify(spectrograms(model, facts))
    target = torch.from_numpy(stored["labels"]).float()
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, target)
    assert_as_stored("loss_bce", loss, stored, facts)
    loss.backward()
    encoder, root = model.encoder, "grad_norm/audio_spectrogram_transformer."
    owners = {
        root + "embeddings.position_embeddings": encoder.pos_embed,
        root + "embeddings.patch_embeddings.projection.weight": encoder.patch_embed.weight,
        root + "encoder.layer.0.output.dense.weight": encoder.blocks[0].mlp.fc2.weight,
        root + "encoder.layer.1.output.dense.weight": encoder.blocks[1].mlp.fc2.weight,
        root + "layernorm.weight": encoder.norm.weight,
        "grad_norm/classifier.layernorm.weight": model.head.norm.weight,
    }
    assert set(owners) == {key for key in facts["outputs"] if key.startswith("grad_norm/")}
    for name, parameter in owners.items():
        assert_as_stored(name, parameter.grad.norm(), stored, facts)


def test_frontend_of_the_hub_layout_is_transformers_own(hub_model, tmp_path):
    _, facts, stored, folder = hub_model
    convert.convert_folder(folder, tmp_path / "model")
    model = model_folders.load(str(tmp_path / "model"))
    assert_spectrogram("hf_feature_extractor", spectrograms(model, facts), stored, facts)


# --- transformers itself --------------------------------------------------------------------------

SETTINGS = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "max_length": 120,
    "num_mel_bins": 64,
    "frequency_stride": 12,
    "time_stride": 9,
    "layer_norm_eps": 1e-5,
}
LABELS = ["rain", "wind", "thunder", "sea", "fire"]


@pytest.fixture(scope="module")
def transformers():
    if importlib.util.find_spec("torchaudio"):  # transformers imports it, unguarded, where it is
        importlib.import_module("audiossl._torchaudio")
    return pytest.importorskip("transformers")


def random_reference(
    transformers: Any, kind: str = "ASTForAudioClassification", **more: Any
) -> Any:
    config = transformers.ASTConfig(**{**SETTINGS, "id2label": dict(enumerate(LABELS)), **more})
    reference = getattr(transformers, kind)(config).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return reference


def save_as(reference: Any, folder: Path, version: int) -> None:
    """As transformers 4 and 5 write it; version 5: the names its modules have in memory."""
    reference.save_pretrained(folder)
    if version == 5:
        save_file(dict(reference.state_dict()), folder / "model.safetensors")
    names = load_file(folder / "model.safetensors")
    assert any(".q_proj." in name for name in names) == (version == 5)
    assert any(".attention.query." in name for name in names) == (version == 4)


def spectrogram() -> Tensor:
    return torch.randn(2, 64, 120, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("version", [4, 5])
def test_equal_to_transformers(transformers, tmp_path, version, qkv_bias):
    reference = random_reference(transformers, qkv_bias=qkv_bias)
    save_as(reference, tmp_path, version)
    extractor = transformers.ASTFeatureExtractor(num_mel_bins=64, max_length=120, mean=-3, std=2)
    extractor.save_pretrained(tmp_path)
    done = convert.convert_folder(tmp_path, tmp_path / "ours")
    assert (done.layout, done.unused) == ("ast-transformers", ())
    model = model_folders.load(str(tmp_path / "ours"))
    assert model.labels == LABELS
    with torch.no_grad():
        expected = reference(spectrogram().transpose(1, 2)).logits
        assert (model.classify(spectrogram()) - expected).abs().max() < TOLERANCE
        sound = torch.from_numpy(wave(5, 1.1, 16000))
        features = extractor(sound.numpy(), sampling_rate=16000, return_tensors="pt")
        expected = reference(**features).logits
        assert (model(sound[None]) - expected).abs().max() < 5 * TOLERANCE  # front end included


@pytest.mark.parametrize("version", [4, 5])
def test_the_bare_encoder_of_transformers(transformers, tmp_path, version):
    reference = random_reference(transformers, "ASTModel")
    save_as(reference, tmp_path, version)
    done = convert.convert_folder(tmp_path, tmp_path / "ours")
    assert (done.config.task, done.config.head) == ("embed", None)
    model = model_folders.load(str(tmp_path / "ours"))
    with torch.no_grad():
        expected = reference(spectrogram().transpose(1, 2))
        tokens = model.encoder(spectrogram())
        embedding = model.encoder.embed(spectrogram())
    assert (tokens - expected.last_hidden_state).abs().max() < TOLERANCE
    assert (embedding - expected.pooler_output).abs().max() < TOLERANCE


# --- configs --------------------------------------------------------------------------------------


def sizes() -> dict[str, Any]:
    """The fixture's config.json without its labels."""
    config = fixture("ast__hf_2layer")[0]["info"]["config_json"]
    return {key: value for key, value in config.items() if "label" not in key}


def hub_checkpoint(**changes: Any) -> Checkpoint:
    facts, _, tensors = fixture("ast__hf_2layer")
    config = {**facts["info"]["config_json"], **changes}
    return Checkpoint(tensors, {"config.json": {k: v for k, v in config.items() if v != "absent"}})


@pytest.mark.parametrize(
    ("changes", "activation"),
    [
        ({}, "sigmoid"),  # 527 classes: AudioSet, several at once
        ({"problem_type": "single_label_classification"}, "softmax"),
        ({"problem_type": "multi_label_classification"}, "sigmoid"),
    ],
)
def test_activation(changes, activation):
    config = convert.convert(hub_checkpoint(**changes)).config
    assert config.head is not None
    assert config.head["activation"] == activation


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": 12}, "num_hidden_layers is 12, expected 2"),
        ({"num_hidden_layers": "absent"}, "num_hidden_layers is 12, expected 2"),
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"patch_size": 8}, "patch_size"),
        ({"hidden_size": 768}, "wrong shape"),
        ({"hidden_size": 10**9}, "is more than"),
        ({"max_length": 10**12}, "is more than"),
        ({"max_length": 10**5}, "wrong shape"),
        ({"max_length": 3}, "config"),
        ({"frequency_stride": 0}, "config"),
        ({"num_attention_heads": 5}, "config"),
        ({"num_attention_heads": "many"}, "config"),
        ({"qkv_bias": False}, "unexpected"),
        ({"layer_norm_eps": None}, "config"),
        ({"id2label": {"0": "a"}}, "wrong shape"),
        ({"id2label": {"1": "a", "2": "b"}}, "config"),
        ({"id2label": ["a"]}, "config"),
        ({"intermediate_size": "x"}, "config"),
    ],
)
def test_configs_that_do_not_fit_the_weights(changes, words):
    with pytest.raises(ModelError, match=words):
        convert.convert(hub_checkpoint(**changes))


@pytest.mark.parametrize(
    "features",
    [
        {"mean": "x", "std": 1},
        {"mean": 0, "std": 0},
        {"mean": float("nan"), "std": 1},
        {"num_mel_bins": 64},
        {"sampling_rate": -1},
    ],
)
def test_frontends_that_make_no_sense(features):
    checkpoint = hub_checkpoint()
    checkpoint.sidecars["preprocessor_config.json"] = features
    with pytest.raises(ModelError, match="config"):
        convert.convert(checkpoint)


def test_audioset_without_a_config():
    config = convert.convert(Checkpoint(hub_checkpoint().tensors, {"config.json": sizes()})).config
    assert config.labels[0] == "Speech"


def test_normalisation_switched_off():
    checkpoint = hub_checkpoint()
    checkpoint.sidecars["preprocessor_config.json"] = {"do_normalize": False, "mean": 3, "std": 4}
    frontend = convert.convert(checkpoint).config.frontend
    assert (frontend["mean"], frontend["scale"]) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("frames", "stride", "patches"),
    [(1024, 10, 1212), (512, 10, 600), (128, 10, 144), (1024, 16, 512)],
)
def test_patch_counts_of_the_paper(frames, stride, patches):
    with torch.device("meta"):
        encoder = models.build("ast", size="tiny", frames=frames, stride=(stride, stride))
    assert encoder.pos_embed.shape == (1, patches + 2, 192)
