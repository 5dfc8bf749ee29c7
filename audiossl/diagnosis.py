"""What this installation can do: versions, formats, devices. Says, never changes."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

import audiossl

# Distribution, what it is for, how to get it.
PARTS = (
    ("torch", "networks", "pip install torch"),
    ("numpy", "arrays", "pip install numpy"),
    ("soundfile", "decoding wav flac ogg opus mp3 aiff au caf", "pip install soundfile"),
    ("soxr", "resampling", "pip install soxr"),
    ("safetensors", "weights", "pip install safetensors"),
    ("onnxruntime", "tag without torch: exported graphs", "pip install onnxruntime"),
    ("huggingface-hub", "published checkpoints", "pip install huggingface-hub"),
    ("av", "m4a, aac and the sound of videos", "pip install 'audiossl-toolkit[video]'"),
    ("matplotlib", "pictures: tag --plot", "pip install 'audiossl-toolkit[plot]'"),
    ("webdataset", "shards: tar files of clips", "pip install 'audiossl-toolkit[webdataset]'"),
    ("pyarrow", "embeddings as parquet", "pip install 'audiossl-toolkit[parquet]'"),
    ("tensorboard", "curves of training", "pip install 'audiossl-toolkit[tensorboard]'"),
    ("datasets", "BirdSet", "pip install 'audiossl-toolkit[birdset]'"),
    ("onnx", "models export --onnx", "pip install 'audiossl-toolkit[export]'"),
    ("onnxscript", "models export --onnx", "pip install 'audiossl-toolkit[export]'"),
    ("librosa", "comparison in benchmarks", "pip install 'audiossl-toolkit[librosa]'"),
    ("torchaudio", "comparison in benchmarks", "pip install 'audiossl-toolkit[torchaudio]'"),
    ("mamba-ssm", "fast SSAMBA on CUDA", "pip install mamba-ssm --no-build-isolation"),
)


def facts() -> dict[str, Any]:
    """Machine, devices, and the state of each part this program can use."""
    return {"machine": _machine(), "parts": [_part(*part) for part in PARTS]}


def version(distribution: str) -> str:
    """Installed version, or an empty string."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def _part(name: str, purpose: str, advice: str) -> dict[str, str]:
    return {"name": name, "version": version(name), "purpose": purpose, "advice": advice}


def _machine() -> dict[str, str]:
    return {
        "audiossl": audiossl.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": str(os.cpu_count()),
        "devices": ", ".join(_devices()),
        "selective scan": _scan(),
    }


def _scan() -> str:
    """What SSAMBA computes with on a CPU."""
    try:
        from audiossl.kernels import native
    except ImportError:
        return "none: torch does not import"
    if native.loaded() is not None:
        return f"compiled ({native.instructions()})"
    return f"torch, many times slower: no C++ compiler at install, or {native.SWITCH}=torch"


def _devices() -> list[str]:
    try:
        import torch
    except ImportError as error:
        return [f"none: torch does not import ({error})"]
    found = ["cpu"]
    found += [
        f"cuda:{index} ({torch.cuda.get_device_name(index)})"
        for index in range(torch.cuda.device_count())
    ]
    if torch.backends.mps.is_available():
        found.append("mps")
    return found
