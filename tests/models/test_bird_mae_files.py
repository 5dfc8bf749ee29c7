"""Bird-MAE's published files: converted whole or not at all, and never any code of theirs run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hubclient import Client
from hubserver import HubServer
from mae_parity import AUTO_MAP, FEATURES, HUB_CONFIG, bird_tensors, write_hub

from audiossl import frontend as frontends
from audiossl import model as model_folders
from audiossl.errors import ModelError
from audiossl.hub import convert
from audiossl.models.parts.patches import sincos
from audiossl.models.parts.published import Checkpoint

pytest_plugins = ("hubclient",)


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
        bird_tensors(),
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


def test_the_frontend_is_the_presets() -> None:
    config = convert.convert(hub_checkpoint()).config
    preset = frontends.build({"preset": "bird_mae"}).config()
    assert frontends.build(config.frontend).config() == preset
    assert config.window_seconds == 5.0


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
    tensors = bird_tensors(namespace)
    del tensors[f"{prefix}blocks.1.attn.proj.bias"]
    with pytest.raises(ModelError, match=r"1 missing: encoder\.blocks\.1\.attn\.proj\.bias"):
        convert.convert(Checkpoint(tensors))
    tensors = {**bird_tensors(namespace), f"{prefix}lora.weight": torch.zeros(2)}
    with pytest.raises(ModelError, match=rf"1 unexpected: {prefix}lora\.weight"):
        convert.convert(Checkpoint(tensors))


def test_the_decoder_is_known_and_left_out(tmp_path: Path) -> None:
    done = convert.convert(Checkpoint(bird_tensors("")))
    assert done.layout == "bird-mae-lightning"
    left = {name for name in bird_tensors("") if name.startswith("decoder.")} | {
        "encoder.pos_embed"
    }
    assert set(done.unused) == left
    assert done.config.architecture["pooling"] == "patches"


def test_licences_are_told(caplog: pytest.LogCaptureFixture) -> None:
    origin = convert.origin("hf:DBD-research-group/Bird-MAE-Base")
    done = convert.convert(hub_checkpoint(), name="Bird-MAE-Base", origin=origin)
    assert done.config.licence == "none stated"
    assert "state no licence" in caplog.text


def test_from_the_hub(client: Client, hub: HubServer, tmp_path: Path) -> None:
    """The published repository comes, without its code; a copy of it that nobody knows does not."""
    files = {path.name: path.read_bytes() for path in write_hub(tmp_path / "theirs").iterdir()}
    hub.publish("DBD-research-group/Bird-MAE-Base", files)
    hub.publish("org/copy", files)
    names = ["hf:DBD-research-group/Bird-MAE-Base", "hf:org/copy"]
    (code, folder), (refused, message) = client.attempts(names).values()
    assert code == 0
    config = json.loads((Path(folder) / "config.json").read_text())
    assert config["architecture"]["name"] == "bird_mae"
    assert config["licence"] == "none stated"
    assert refused == 5
    assert "'auto_map' asks to run code" in message
    asked = [request.path for request in hub.requests]
    assert not any(path.endswith(".py") for path in asked)
    assert not any("org/copy" in path and path.endswith(".safetensors") for path in asked)
    assert not any(path.endswith(("ran", ".py")) for path in client.left)
