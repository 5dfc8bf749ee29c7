"""Bird-MAE: Audio-MAE's encoder for the sounds of birds, 5 s at 32 kHz.

Paper: Rauch et al., "Can Masked Autoencoders Also Listen to Birds?", arXiv 2504.12880. Parts:
- input: 128 Kaldi mel bands every 10 ms at 32 kHz, 512 frames, padded with the clip's least value
  (frontend `bird_mae`)
- patches of 16x16 side by side, read instant by instant: 32 x 8 = 256, one class token in front
- fixed sin-cos positions, built for the transposed grid (8 x 32) as Audio-MAE's are
- embedding: mean of the patch tokens of the last block, then a norm of its own; the class token
  after the final norm serves prototypical probing
- three sizes: base, large, huge

The ViT itself is in vit.py, the objective in methods/bird_mae.py; here are the settings and the
forms the weights are published in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from audiossl.errors import ModelError
from audiossl.models.audio_mae import ENCODER, MARKS, MEL, PATCH, sizes
from audiossl.models.parts.published import Checkpoint, Layout, Published
from audiossl.models.vit import Pooling, Positions, ViT

SECONDS = 5.0


def build(
    size: str = "base",
    *,
    dim: int | None = None,
    depth: int | None = None,
    heads: int | None = None,
    mel: int = MEL,
    frames: int = 512,
    positions: Positions = "sincos_swapped",
    pooling: Pooling = "fc_norm",
    final_norm: bool = True,
    drop_path: float = 0.0,
    checkpointing: bool = False,
) -> ViT:
    """The encoder: spec (batch, mel, frames) -> tokens (batch, 1 + patches, dim).

    positions: "sincos" is the table without the slip. pooling: "patches" for weights that were
    pretrained and no more, whose `fc_norm` nobody has trained. Others as in ViT.
    """
    return ViT(
        size,
        dim=dim,
        depth=depth,
        heads=heads,
        mel=mel,
        frames=frames,
        patch=(PATCH, PATCH),
        order="time",
        class_tokens=1,
        positions=positions,
        pooling=pooling,
        final_norm=final_norm,
        drop_path=drop_path,
        checkpointing=checkpointing,
    )


# --- published layouts ----------------------------------------------------------------------------

HUB_FIXED = {  # what the Hub's config.json may say in one way only
    "patch_size": PATCH,
    "in_chans": 1,
    "img_size_y": MEL,
    "global_pool": "mean",
    "qk_norm": False,
    "init_values": None,
    "mlp_ratio": 4,
    "qkv_bias": True,
    "norm_layer_eps": 1e-6,
}
FEATURES_FIXED = {  # and its preprocessor_config.json
    "num_mel_bins": MEL,
    "htk_compat": True,
    "window_type": "hanning",
    "use_energy": False,
    "dither": 0.0,
    "frame_shift": 10,
}


def _hub_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """Sizes off the shapes, compared with the JSON, whose `auto_map` nobody follows."""
    theirs = checkpoint.sidecars.get("config.json", {})
    _compare("config.json", theirs, HUB_FIXED)
    found = sizes(checkpoint.tensors)
    own = {"embed_dim": found["dim"], "depth": found["depth"], "img_size_x": found["frames"]}
    _compare("config.json", theirs, own)
    heads = int(theirs.get("num_heads", found["heads"]))
    architecture = {**found, "name": "bird_mae", "heads": heads}
    return _fields(architecture, checkpoint.sidecars.get("preprocessor_config.json", {}))


def _lightning_config(checkpoint: Checkpoint) -> dict[str, Any]:
    found = sizes(checkpoint.tensors, "encoder.")
    return _fields({**found, "name": "bird_mae", "pooling": "patches"}, {})


def _fields(architecture: dict[str, Any], features: Mapping[str, Any]) -> dict[str, Any]:
    own = {**FEATURES_FIXED, "target_length": architecture["frames"]}
    _compare("preprocessor_config.json", features, own)
    frontend: dict[str, Any] = {"preset": "bird_mae", "frames": architecture["frames"]}
    if "mean" in features and "std" in features:
        mean, std = float(features["mean"]), float(features["std"])
        if not (math.isfinite(mean) and 0 < std < math.inf):
            raise ModelError(f"preprocessor_config.json: mean {mean} and std {std} make no sense")
        frontend |= {"mean": mean, "scale": 2 * std}
    if "sampling_rate" in features:
        rate = int(features["sampling_rate"])
        frontend |= {"rate": rate, "samples": round(SECONDS * rate)}
    return {
        "architecture": architecture,
        "frontend": frontend,
        "head": None,
        "task": "embed",
        "window_seconds": SECONDS,
        "method": "bird_mae",
    }


def _compare(file: str, theirs: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    for key, value in own.items():
        if theirs.get(key, value) != value:
            raise ModelError(f"{file}: {key} is {theirs[key]!r}, expected {value!r}")


LAYOUTS = (
    Layout(
        name="bird-mae",
        marks=(*MARKS, r"norm\.weight", r"fc_norm\.weight"),
        rows=ENCODER,
        config=_hub_config,
        absent=(r"head\.weight",),
        ignored=("auto_map",),  # names classes of the Hub's own: this program has the architecture
    ),
    Layout(
        name="bird-mae-lightning",
        marks=(
            r"encoder\.cls_token",
            r"encoder\.patch_embed\.proj\.weight",
            r"decoder\.mask_token",
        ),
        rows=(
            *((rf"encoder\.{pattern}", target) for pattern, target in ENCODER),
            (r"decoder\..+", None),
        ),
        config=_lightning_config,
    ),
)

PUBLISHED = tuple(
    Published(
        name=f"hf:DBD-research-group/Bird-MAE-{size}",
        layout="bird-mae",
        licence="none stated",
        training=("BirdSet XCL",),
        source="https://github.com/DBD-research-group/Bird-MAE",
        notice="its authors state no licence: ask them before you publish or sell what it gives",
    )
    for size in ("Base", "Large", "Huge")
)
