"""Published AST checkpoints from the Hub against transformers itself, on random weights."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hubclient import WEIGHTS, Client
from hubserver import HubServer
from safetensors.torch import load_file, save_file

pytest_plugins = ("hubclient",)


def get_transformers() -> Any:
    if importlib.util.find_spec("torchaudio"):  # transformers imports it, unguarded, where it is
        importlib.import_module("audiossl._torchaudio")
    # ImportError: it is there, and asks for a newer huggingface_hub than the one under test
    return pytest.importorskip("transformers", exc_type=ImportError)


def ast_folder(
    folder: Path, rename: Callable[[str], str] | None = None, classes: int | None = 527
) -> Any:
    """A small random AST as `transformers` saves it, and the model itself."""
    transformers = get_transformers()
    torch.manual_seed(3)
    names = {"num_labels": classes} if classes else {}
    config = transformers.ASTConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=96,
        max_length=256,
        **names,
    )
    kind = transformers.ASTForAudioClassification if classes else transformers.ASTModel
    model = kind(config).eval()
    for value in model.parameters():  # zeros and ones would hide what is swapped
        torch.nn.init.normal_(value, std=0.05)
    model.save_pretrained(folder)
    transformers.ASTFeatureExtractor(max_length=256).save_pretrained(folder)
    if rename:
        renamed = {rename(name): value for name, value in load_file(folder / WEIGHTS).items()}
        save_file(renamed, folder / WEIGHTS, metadata={"format": "pt"})
    return model


def version_5(name: str) -> str:
    """Names that transformers 5 gives the parameters in memory."""
    for old, new in (
        ("encoder.layer.", "layers."),
        ("attention.attention.query", "attention.q_proj"),
        ("attention.attention.key", "attention.k_proj"),
        ("attention.attention.value", "attention.v_proj"),
        ("attention.output.dense", "attention.o_proj"),
        ("intermediate.dense", "mlp.fc1"),
        ("output.dense", "mlp.fc2"),
    ):
        name = name.replace(old, new)
    return name


def version_4(name: str) -> str:
    """Names of transformers 4."""
    for new, old in (
        (".layers.", ".encoder.layer."),
        ("attention.q_proj", "attention.attention.query"),
        ("attention.k_proj", "attention.attention.key"),
        ("attention.v_proj", "attention.attention.value"),
        ("attention.o_proj", "attention.output.dense"),
        ("mlp.fc1", "intermediate.dense"),
        ("mlp.fc2", "output.dense"),
    ):
        name = name.replace(new, old)
    return name


def sound() -> np.ndarray:
    """Two seconds at 16 kHz: a tone that rises over noise."""
    rng = np.random.default_rng(0)
    time_axis = np.arange(32000) / 16000
    wave = 0.3 * np.sin(2 * np.pi * (300 + 400 * time_axis) * time_axis)
    return (wave + 0.05 * rng.standard_normal(32000)).astype(np.float32)


def reference(model: Any, folder: Path, wave: np.ndarray) -> Any:
    """What transformers itself makes of `wave`, from the folder before it was published."""
    features = get_transformers().ASTFeatureExtractor.from_pretrained(folder)(
        wave, sampling_rate=16000, return_tensors="pt"
    )
    with torch.inference_mode():
        return model(**features)


def get_in_child(client: Client, name: str, wave: np.ndarray, tmp_path: Path) -> np.ndarray:
    """`audiossl.load(name)` on `wave` where the Hub is the server: (classes,) or (dim,)."""
    np.save(tmp_path / "wave.npy", wave)
    code = (
        "import sys, numpy, torch, audiossl\n"
        "model = audiossl.load(sys.argv[1])\n"
        "wave = torch.from_numpy(numpy.load(sys.argv[2]))[None]\n"
        "with torch.inference_mode(): out = model(wave) if model.head else model.embed(wave)\n"
        "numpy.save(sys.argv[3], out[0].numpy())\n"
    )
    paths = [str(tmp_path / "wave.npy"), str(tmp_path / "out.npy")]
    done = subprocess.run(
        [sys.executable, "-c", code, name, *paths],
        env=client.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return np.load(tmp_path / "out.npy")


@pytest.mark.parametrize("rename", [version_4, version_5])
def test_ast_from_the_hub_gives_the_logits_of_transformers(
    client: Client, hub: HubServer, tmp_path: Path, rename: Callable[[str], str]
) -> None:
    saved = tmp_path / "saved"
    model = ast_folder(saved, rename)
    stored = load_file(saved / WEIGHTS)
    assert any("q_proj" in name for name in stored) == (rename is version_5)
    commit = hub.publish_folder("org/ast", saved, licence="bsd-3-clause")
    expected = reference(model, saved, sound()).logits[0].numpy()
    found = get_in_child(client, "hf:org/ast", sound(), tmp_path)
    assert found.shape == (527,)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    assert expected.std() > 1e-2  # or the comparison would mean little
    if rename is version_4:
        check_what_is_said_of_ast(client, commit, tmp_path)


def check_what_is_said_of_ast(client: Client, commit: str, tmp_path: Path) -> None:
    facts = json.loads(client.run("models", "show", "hf:org/ast").stdout)
    assert (facts["commit"], facts["rate"], len(facts["labels"])) == (commit, 16000, 527)
    assert facts["licence"] == "bsd-3-clause"
    assert facts["source"].endswith("/org/ast")
    soundfile.write(tmp_path / "x.wav", sound(), 16000)
    arguments = ("--model", "hf:org/ast", "--threshold", "0", "--top-k", "527")
    done = client.run("tag", tmp_path / "x.wav", *arguments, env={"AUDIOSSL_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr
    (record,) = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(record["labels"]) == 527
    assert record["model"] == "org/ast"


def test_ast_without_a_head_embeds(client: Client, hub: HubServer, tmp_path: Path) -> None:
    model = ast_folder(tmp_path / "saved", classes=None)
    hub.publish_folder("org/ast-encoder", tmp_path / "saved")
    expected = reference(model, tmp_path / "saved", sound()).pooler_output[0].numpy()
    found = get_in_child(client, "hf:org/ast-encoder", sound(), tmp_path)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_weights_in_several_files(client: Client, hub: HubServer, tmp_path: Path) -> None:
    model = ast_folder(tmp_path / "saved")
    model.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / "shards" / name).write_bytes((tmp_path / "saved" / name).read_bytes())
    parts = [path.name for path in (tmp_path / "shards").glob("model-*.safetensors")]
    assert len(parts) > 1
    hub.publish_folder("org/shards", tmp_path / "shards")
    expected = reference(model, tmp_path / "saved", sound()).logits[0].numpy()
    found = get_in_child(client, "hf:org/shards", sound(), tmp_path)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
