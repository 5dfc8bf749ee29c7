"""Models: what is written loads again, and what is not exactly right is refused with a reason."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import evil
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from audiossl import device, model, models
from audiossl.caches import sha256
from audiossl.errors import AudiosslError, ModelError, OutputError, UsageError
from audiossl.hub.config import ModelConfig, read_config
from audiossl.model import Model, load, save_model

CONFIG: dict[str, Any] = {
    "name": "toy",
    "task": "tag",
    "architecture": {"name": "dscnn", "widths": [8, 8], "strides": [1, 2], "stem": 8},
    "frontend": {"name": "logmel", "rate": 16000, "mels": 16, "n_fft": 512, "hop": 160},
    "head": {"name": "linear", "labels": ["cat", "dog"]},
    "licence": "MIT",
}
SMALL_VIT = {"dim": 32, "depth": 1, "heads": 2, "mel": 16, "frames": 64}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small tagger on disk."""
    torch.manual_seed(0)
    save_model(Model(ModelConfig(**CONFIG)), tmp_path / "toy", card="# toy\n")
    return tmp_path / "toy"


def rewrite(folder: Path, **changes: Any) -> None:
    """Change keys of config.json: `architecture__dim=3` goes inside; None takes a key away."""
    path = folder / "config.json"
    data = json.loads(path.read_text())
    for key, value in changes.items():
        *outer, last = key.split("__")
        place = data
        for part in outer:
            place = place[part]
        place[last] = value
        if value is None:
            del place[last]
    path.write_text(json.dumps(data))


def reweigh(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Other weights, and a config that records no sha256 of the old ones."""
    save_file(tensors, folder / "model.safetensors")
    rewrite(folder, sha256=None)


def test_what_is_saved_loads_with_the_same_answers(folder: Path) -> None:
    torch.manual_seed(0)
    made = Model(ModelConfig(**CONFIG)).eval()
    loaded = load(str(folder))
    wave = torch.randn(2, 8000)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(wave), made(wave), rtol=0, atol=0)
        torch.testing.assert_close(loaded.embed(wave), made.embed(wave), rtol=0, atol=0)
    assert not loaded.training
    assert loaded.labels == ["cat", "dog"]
    assert loaded.rate == 16000
    assert (folder / "README.md").read_text() == "# toy\n"
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]


def test_a_loaded_model_is_ready_to_train(folder: Path) -> None:
    loaded = load(str(folder))
    assert all(value.requires_grad for value in loaded.parameters())
    assert not any(value.is_meta for value in (*loaded.parameters(), *loaded.buffers()))
    loaded(torch.randn(1, 8000)).sum().backward()
    assert loaded.encoder.stages[0][0].conv.weight.grad is not None


def test_weights_keep_the_memory_layout_of_the_architecture(folder: Path) -> None:
    built = dict(Model(ModelConfig(**CONFIG)).named_parameters())
    for name, value in load(str(folder)).named_parameters():
        assert value.stride() == built[name].stride(), name


def test_a_loaded_model_does_not_need_its_file_any_more(folder: Path) -> None:
    loaded = load(str(folder))
    before = loaded.encoder.stages[0][0].conv.weight.clone()
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(8)
    assert torch.equal(loaded.encoder.stages[0][0].conv.weight, before)


@pytest.mark.parametrize("name", models.names())
def test_every_architecture_loads(name: str, tmp_path: Path) -> None:
    """Each must build on the meta device, where there is no data, and come back complete."""
    arguments = {
        "dscnn": CONFIG["architecture"],
        "ast": SMALL_VIT,
        "audio_mae": SMALL_VIT,
        "bird_mae": SMALL_VIT,
        "passt": SMALL_VIT,
        "ssamba": {"dim": 16, "depth": 2, "mel": 16, "frames": 64},
        "ssast": SMALL_VIT,
        "vit": SMALL_VIT,
    }.get(name, {})
    config = ModelConfig(**{**CONFIG, "architecture": {**arguments, "name": name}})
    made = Model(config).eval()
    save_model(made, tmp_path / name)
    loaded = load(str(tmp_path / name))
    assert loaded.state_dict().keys() == made.state_dict().keys()
    for key, value in made.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    spec = torch.randn(1, 16, 64)
    with torch.inference_mode():
        torch.testing.assert_close(loaded.classify(spec), made.classify(spec), rtol=0, atol=0)


def test_computed_tensors_that_are_not_stored_are_computed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Encoder(nn.Module):
        dim = 4

        def __init__(self) -> None:
            super().__init__()
            self.proj = nn.Linear(16, 4)
            self.register_buffer("scale", torch.arange(16.0), persistent=False)

        def embed(self, spec: torch.Tensor) -> torch.Tensor:
            return self.proj(spec.mean(-1) * self.scale)

    monkeypatch.setattr(models, "build", lambda name, **arguments: Encoder())
    save_model(Model(ModelConfig(**CONFIG)), folder)
    loaded = load(str(folder))
    assert torch.equal(loaded.encoder.scale, torch.arange(16.0))
    assert loaded(torch.randn(1, 8000)).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_float_types_load_as_float32(folder: Path, dtype: torch.dtype) -> None:
    tensors = load_file(folder / "model.safetensors")
    half = {k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()}
    reweigh(folder, half)
    loaded = load(str(folder))
    assert loaded.encoder.stages[0][0].conv.weight.dtype == torch.float32
    assert torch.equal(
        loaded.encoder.stages[0][0].conv.weight, half["encoder.stages.0.0.conv.weight"].float()
    )


# Refused: weights


def changed(tensors: dict[str, torch.Tensor], how: str) -> dict[str, torch.Tensor]:
    key = "encoder.stages.0.0.conv.weight"
    if how == "missing":
        return {name: value for name, value in tensors.items() if name != key}
    if how == "unexpected":
        return {**tensors, "encoder.more": torch.zeros(1)}
    if how == "elsewhere":
        return {**tensors, "optimizer.step": torch.zeros(1)}
    other = {
        "shape": tensors[key].flatten(),
        "type": tensors[key].to(torch.int64),
        "nan": tensors[key].index_fill(0, torch.tensor([3]), float("nan")),
        "infinity": tensors[key].index_fill(0, torch.tensor([3]), float("-inf")),
        "empty": tensors[key][:0],
    }[how]
    return {**tensors, key: other}


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("missing", "missing: encoder.stages.0.0.conv.weight"),
        ("unexpected", "unexpected: encoder.more"),
        ("elsewhere", "unexpected: optimizer.step"),
        ("shape", r"wrong shape: encoder.stages.0.0.conv.weight \(72,\) instead of \(8, 1, 3, 3\)"),
        ("empty", "wrong shape"),
        ("type", "wrong type: encoder.stages.0.0.conv.weight I64"),
        ("nan", "encoder.stages.0.0.conv.weight holds NaN or infinity"),
        ("infinity", "encoder.stages.0.0.conv.weight holds NaN or infinity"),
    ],
)
def test_weights_that_do_not_fit_are_named(folder: Path, how: str, says: str) -> None:
    reweigh(folder, changed(load_file(folder / "model.safetensors"), how))
    with pytest.raises(ModelError, match=says):
        load(str(folder))


@pytest.mark.parametrize("kind", evil.malformed())
def test_malformed_safetensors_are_refused(folder: Path, kind: str) -> None:
    (folder / "model.safetensors").write_bytes(evil.malformed()[kind])
    with pytest.raises(ModelError, match="not a safetensors file"):
        load(str(folder))


@pytest.mark.parametrize("where", [9, 400, -1])
def test_one_flipped_bit_is_found(folder: Path, where: int) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[where] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(ModelError):
        load(str(folder))


# Refused: configs


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"architecture__name": "dscn"}, "did you mean 'dscnn'"),
        ({"architecture__name": "../evil"}, "unknown architecture"),
        ({"architecture__name": "layers"}, "unknown architecture"),
        ({"architecture__stm": 8}, "did you mean 'stem'"),
        ({"architecture__dim": "wide"}, "config.json"),
        ({"architecture__dim": -1}, "config.json"),
        ({"architecture__dim": 0}, "config.json|model.safetensors"),
        ({"architecture__widths": []}, "2 strides|config.json"),
        ({"frontend__name": "logmle"}, "logmel"),
        ({"frontend__mles": 16}, "mels"),
        ({"frontend__mels": "many"}, "mels"),
        ({"frontend": {"preset": "asd"}}, "ast"),
        ({"head__name": "liner"}, "linear"),
        ({"head__labels": []}, "labels"),
        ({"head__labels": ["only one"]}, "wrong shape: head.linear"),
        ({"head__colour": 1}, "colour"),
        ({"auto_map": {"AutoModel": "evil.Evil"}}, "code"),
    ],
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_configs_that_do_not_fit_are_explained(
    folder: Path, changes: dict[str, Any], says: str
) -> None:
    rewrite(folder, **changes)
    with pytest.raises(ModelError, match=says) as caught:
        load(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"architecture__dim": 2**24},
        {"architecture__widths": [2**23, 2**23]},
        {"architecture__dim": 10**12},
        {"architecture": {"name": "ast", "dim": 2**20, "depth": 12, "heads": 1}},
        {"architecture": {"name": "ast", "depth": 10**6}},
        {"frontend__mels": 10**9},
        {"frontend__n_fft": 2**40},
        {"head__labels": ["x"] * 99_999},
    ],
)
def test_a_config_cannot_make_a_small_file_take_all_memory(
    folder: Path, changes: dict[str, Any]
) -> None:
    rewrite(folder, **changes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelError):
        load(str(folder))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 500_000, f"{grown} kB"


def test_encoder_and_frontend_must_agree_on_mel_bands(tmp_path: Path) -> None:
    vit = {**SMALL_VIT, "name": "ast", "mel": 32}
    save_model(Model(ModelConfig(**{**CONFIG, "architecture": vit})), tmp_path / "m")
    with pytest.raises(ModelError, match="16 mel bands, encoder takes 32"):
        load(str(tmp_path / "m"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
KEYS = st.sampled_from(
    [
        *CONFIG,
        *(
            f"{part}__{key}"
            for part in ("architecture", "frontend", "head")
            for key in CONFIG[part]
        ),
        "window_seconds",
        "training",
        "sha256",
        "format",
    ]
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(key=KEYS, value=JSON)
def test_any_config_loads_or_is_a_model_error(folder: Path, key: str, value: Any) -> None:
    original = (folder / "config.json").read_text()
    data = json.loads(original)
    *outer, last = key.split("__")
    (data[outer[0]] if outer else data)[last] = value
    message = ""
    try:
        (folder / "config.json").write_text(json.dumps(data))
        load(str(folder))
    except ModelError as error:
        message = str(error)
    finally:
        (folder / "config.json").write_text(original)
    assert "\n" not in message


# Writing


def test_a_folder_that_exists_is_written_over_whole(folder: Path) -> None:
    torch.manual_seed(1)
    other = Model(ModelConfig(**CONFIG))
    save_model(other, folder)
    assert torch.equal(
        load(str(folder)).encoder.stages[0][0].conv.weight, other.encoder.stages[0][0].conv.weight
    )


def test_the_recorded_sha256_is_that_of_the_file(folder: Path) -> None:
    assert read_config(folder).sha256 == sha256(folder / "model.safetensors")


def test_saving_a_loaded_model_again_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    save_model(load(str(folder)), tmp_path / "again")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_no_room_leaves_the_old_model(folder: Path) -> None:
    """In a process that may write no file larger than 1 kB."""
    code = (
        "import resource, sys; from pathlib import Path; from audiossl import model\n"
        "from audiossl.errors import OutputError\n"
        f"made = model.load({str(folder)!r})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))\n"
        "try: model.save_model(made, Path(sys.argv[1]))\n"
        "except OutputError as error: print(error); sys.exit(error.exit_code)\n"
    )
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 6, done.stderr
    assert "model.safetensors" in done.stdout
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_folder_that_cannot_be_made_is_an_output_error(folder: Path) -> None:
    with pytest.raises(OutputError):
        save_model(load(str(folder)), folder / "config.json" / "inside")


def test_an_encoder_alone_embeds_and_says_that_it_does_not_tag(tmp_path: Path) -> None:
    config = ModelConfig(**{**CONFIG, "head": None, "task": "embed"})
    save_model(Model(config), tmp_path / "encoder")
    loaded = load(str(tmp_path / "encoder"))
    assert loaded.embed(torch.randn(2, 8000)).shape == (2, 8)
    with pytest.raises(ModelError, match="does not tag"):
        loaded(torch.randn(2, 8000))


def test_scores_are_independent_or_exclusive() -> None:
    logits = torch.tensor([[0.0, 2.0]])
    sigmoid = Model(ModelConfig(**CONFIG)).scores(logits)
    torch.testing.assert_close(sigmoid, torch.sigmoid(logits))
    head = {**CONFIG["head"], "activation": "softmax"}
    softmax = Model(ModelConfig(**{**CONFIG, "head": head})).scores(logits)
    assert softmax.sum().item() == pytest.approx(1)


def test_devices() -> None:
    assert device.pick_device("cpu") == "cpu"
    assert device.pick_device("auto") in ("cpu", "cuda", "mps")
    with pytest.raises(UsageError, match="--device tpu9"):
        device.pick_device("tpu9")


def test_parameters_are_counted() -> None:
    assert model.parameters(nn.Linear(3, 4)) == 16


def test_errors_are_all_of_one_family() -> None:
    assert issubclass(ModelError, AudiosslError)
    assert ModelError("x").exit_code == 5
