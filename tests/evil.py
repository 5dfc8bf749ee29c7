"""Files that an enemy might hand over as a model: made here, never shipped.

`files(folder, canary)` writes twelve that would run code or read what is not theirs if they were
opened carelessly: each creates the file `canary` when its code runs. `malformed()` gives broken
safetensors files as bytes.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shlex
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

GOOD = save({"encoder.weight": np.arange(6, dtype=np.float32).reshape(2, 3)})
ZIP_ROOT = "archive"  # what torch.save calls the folder inside its zip


class Bomb:
    """Unpickling it runs a shell command that creates `canary`."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {shlex.quote(str(self.canary))}",)


def files(folder: Path, canary: Path) -> dict[str, Path]:
    """The twelve, by what they are; a path is the file, or the folder where it takes several."""
    bomb = pickle.dumps({"encoder.weight": Bomb(canary)}, protocol=2)
    objects = np.array([Bomb(canary)], dtype=object)
    made = {
        "zip": _write(folder / "zip.pt", _torch_zip(bomb)),
        "legacy": _write(folder / "legacy.pth", _torch_legacy(bomb)),
        "pickle": _write(folder / "pickle.ckpt", bomb),
        "joblib": _write(folder / "model.joblib", _joblib(bomb)),
        "npz": _write(folder / "weights.npz", _numpy(np.savez, objects)),
        "npy": _write(folder / "weights.npy", _numpy(np.save, objects)),
        "torchscript": _write(folder / "script.pt", _torchscript(bomb, canary)),
        "tar": _write(folder / "old.tar", _tar(bomb)),
    }
    _write(folder / "elsewhere.bin", bomb)
    for name, kind in (("bin_index", "pytorch_model.bin"), ("index", "model.safetensors")):
        index = {"metadata": {}, "weight_map": {"encoder.weight": "../elsewhere.bin"}}
        made[name] = folder / name
        _write(folder / name / f"{kind}.index.json", _json(index))
        _write(
            folder / name / "config.json", _json({"model_type": "audio-spectrogram-transformer"})
        )
    made["auto_map"] = folder / "auto_map"
    code = {"AutoModel": "modeling_evil.Evil", "AutoConfig": "modeling_evil.Evil"}
    _write(folder / "auto_map" / "config.json", _json({"model_type": "evil", "auto_map": code}))
    _write(folder / "auto_map" / "model.safetensors", GOOD)
    _write(folder / "auto_map" / "modeling_evil.py", f"open({str(canary)!r}, 'w')\n".encode())
    made["template"] = folder / "template"
    template = "{{ cycler.__init__.__globals__.os.system('touch " + str(canary) + "') }}"
    tokenizer = {"chat_template": template, "tokenizer_class": "PreTrainedTokenizerFast"}
    _write(folder / "template" / "tokenizer_config.json", _json(tokenizer))
    _write(folder / "template" / "config.json", _json({"model_type": "bert"}))
    _write(folder / "template" / "model.safetensors", GOOD)
    return made


def malformed() -> dict[str, bytes]:
    """Broken safetensors files, by what is wrong with them."""
    two = {"a": _tensor([0, 8], [2]), "b": _tensor([8, 16], [2])}
    body = bytes(16)
    return {
        "empty": b"",
        "cut in the header": GOOD[:20],
        "cut in the data": GOOD[:-4],
        "junk after the data": GOOD + b"junk",
        "header longer than the file": struct.pack("<Q", 10**6) + b"{}",
        "header of 2^63 bytes": struct.pack("<Q", 2**63) + b"{}",
        "header not UTF-8": _file(b"\xff\xfe" * 8, body),
        "header not JSON": _file(b"{'a': 1}       ", body),
        "header a list": _file(b"[1, 2, 3]", body),
        "overlap": _file({**two, "b": _tensor([4, 12], [2])}, body),
        "hole": _file({**two, "b": _tensor([12, 16], [1])}, body),
        "negative offset": _file({"a": _tensor([-8, 8], [4])}, body),
        "backwards": _file({"a": _tensor([8, 0], [2])}, body),
        "beyond the end": _file({"a": _tensor([0, 4000], [1000])}, body),
        "shape overflows": _file({"a": _tensor([0, 16], [2**62, 2**62])}, body),
        "shape against offsets": _file({"a": _tensor([0, 16], [3])}, body),
        "unknown type": _file({"a": {**_tensor([0, 16], [4]), "dtype": "EVIL"}}, body),
    }


def _tensor(offsets: list[int], shape: list[int]) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": offsets}


def _file(header: bytes | dict[str, Any], body: bytes) -> bytes:
    text = header if isinstance(header, bytes) else _json(header)
    return struct.pack("<Q", len(text)) + text + body


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def _torch_zip(bomb: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(f"{ZIP_ROOT}/data.pkl", bomb)
        archive.writestr(f"{ZIP_ROOT}/version", b"3\n")
        archive.writestr(f"{ZIP_ROOT}/data/0", bytes(24))
    return buffer.getvalue()


def _torch_legacy(bomb: bytes) -> bytes:
    """Magic number, protocol and system as torch wrote them before 1.6, then the object."""
    head = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    return b"".join(pickle.dumps(part, protocol=2) for part in head) + bomb


def _torchscript(bomb: bytes, canary: Path) -> bytes:
    buffer = io.BytesIO(_torch_zip(bomb))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(f"{ZIP_ROOT}/code/__torch__.py", f"open({str(canary)!r}, 'w')\n")
        archive.writestr(f"{ZIP_ROOT}/constants.pkl", bomb)
    return buffer.getvalue()


def _tar(bomb: bytes) -> bytes:
    """torch's oldest format, with a member that points out of the archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("pickle", "storages", "tensors"):
            member = tarfile.TarInfo(name)
            member.size = len(bomb)
            archive.addfile(member, io.BytesIO(bomb))
        link = tarfile.TarInfo("model.safetensors")
        link.type, link.linkname = tarfile.SYMTYPE, "../../elsewhere.bin"
        archive.addfile(link)
    return buffer.getvalue()


def _joblib(bomb: bytes) -> bytes:
    """joblib's compressed files are pickles in zlib's format."""
    return zlib.compress(bomb)


def _numpy(writer: Any, objects: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    writer(buffer, objects, allow_pickle=True)
    return buffer.getvalue()
