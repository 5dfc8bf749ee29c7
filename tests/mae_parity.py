"""What the tests of Audio-MAE and Bird-MAE share: released files made of fills, and comparisons."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from parity_fill import fill
from safetensors.torch import save_file
from test_ast import PARITY, assert_as_stored, assert_tokens, waves
from torch import Tensor

from audiossl import model as model_folders
from audiossl.hub import convert
from audiossl.models.parts.patches import sincos

BIRD_MAE = "bird_mae__d192_depth4"
BIRD_GRID = (32, 8)
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


def released(namespace: str, name: str, grid: tuple[int, int]) -> dict[str, Tensor]:
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


def converted(source: Path, **overrides: Any) -> model_folders.Model:
    convert.convert_folder(source, source.parent / "ours", overrides=overrides)
    return model_folders.load(str(source.parent / "ours"))


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


def assert_sampled(own: Tensor, sample: Any) -> None:
    """`sample`: evenly strided values of the flattened table."""
    flat = own.flatten().numpy()
    strided = flat[:: -(-len(flat) // len(sample))]
    assert len(strided) == len(sample)
    assert np.abs(strided - sample).max() < 1e-6


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


def bird_tensors(namespace: str = "hub_encoder") -> dict[str, Tensor]:
    return released(namespace, BIRD_MAE, BIRD_GRID)


def write_hub(folder: Path, **changes: Any) -> Path:
    """A folder as the Hub has it, code and all; the code would write a file if it ever ran."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(bird_tensors(), folder / "model.safetensors")
    config = {**HUB_CONFIG, **changes}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(FEATURES))
    for name in ("configuration_bird_mae.py", "modeling.py", "feature_extractor.py"):
        (folder / name).write_text(f"open({str(folder / 'ran')!r}, 'w')\n")
    return folder
