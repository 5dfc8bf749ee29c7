"""Conversion is all or nothing, and nothing that it reads can run."""

import argparse
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from audiossl import models
from audiossl.errors import ModelError
from audiossl.hub import checkpoint_files, convert, pickles
from audiossl.models.parts.layers import build_head
from audiossl.models.parts.published import Checkpoint

SIZE = {"dim": 64, "depth": 2, "heads": 1, "frames": 128}  # an AST whose strides its shapes tell


def original(classes: int = 3) -> dict[str, torch.Tensor]:
    """A checkpoint in the authors' layout, from our own model turned round by hand."""
    torch.manual_seed(0)
    encoder = models.build("ast", **SIZE)
    tensors = {}
    for name, value in encoder.state_dict().items():
        tensors["v." + name.replace("patch_embed.", "patch_embed.proj.")] = value
    tensors |= {f"v.head.{part}": torch.zeros(5) for part in ("weight", "bias")}
    tensors["mlp_head.0.weight"] = torch.rand(64)
    tensors["mlp_head.0.bias"] = torch.rand(64)
    tensors["mlp_head.1.weight"] = torch.rand(classes, 64)
    tensors["mlp_head.1.bias"] = torch.rand(classes)
    return tensors


def parallel(tensors: dict) -> dict:
    return {f"module.{name}": value for name, value in tensors.items()}


# --- renaming and checking ------------------------------------------------------------------------


def test_the_authors_layout_becomes_ours():
    done = convert.convert(Checkpoint(original()))
    assert done.layout == "ast"
    assert done.unused == ("v.head.weight", "v.head.bias")
    architecture = done.config.architecture
    assert architecture["stride"] == [10, 10]
    assert {key: architecture[key] for key in SIZE} == SIZE
    assert done.config.labels == ["class 0", "class 1", "class 2"]
    encoder = models.build("ast", **SIZE)
    head = build_head(64, done.config.head)
    parts = torch.nn.ModuleDict({"encoder": encoder, "head": head})
    parts.load_state_dict(done.tensors)  # strict
    assert torch.equal(head.linear.bias, original()["mlp_head.1.bias"])


def without(tensors: dict, *names: str) -> dict:
    return {name: value for name, value in tensors.items() if name not in names}


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (lambda t: without(t, "v.norm.bias"), "1 missing: encoder.norm.bias"),
        (
            lambda t: {k: v for k, v in t.items() if "blocks.1." not in k or "norm" in k},
            "8 missing: encoder.blocks.1.attn.proj.bias, .* and 4 more",
        ),
        (lambda t: {**t, "v.extra": torch.zeros(1)}, "1 unexpected: v.extra"),
        (
            lambda t: {**t, "v.norm.bias": torch.zeros(63)},
            r"1 wrong shape: encoder.norm.bias \(63,\) instead of \(64,\)",
        ),
        (lambda t: {**t, "v.norm.bias": torch.zeros(64, 1)}, "wrong shape"),
        (lambda t: without(t, "mlp_head.1.bias"), "missing: head.linear.bias"),
        (lambda t: without(t, "mlp_head.1.weight"), "no known layout"),
        (lambda t: {**t, "v.pos_embed": t["v.pos_embed"][:, :-1]}, "give stride and frames"),
        (lambda t: {**t, "v.cls_token": torch.zeros(())}, "config: IndexError"),
        (lambda t: {"weight": torch.zeros(2)}, "no known layout .* has weight"),
        (
            lambda t: {**t, "v.norm.bias": torch.zeros(64, dtype=torch.int32)},
            "1 wrong type: encoder.norm.bias torch.int32",
        ),
        (lambda t: {**t, "\x1b[31m": torch.zeros(1)}, r"unexpected: \?\[31m$"),
    ],
)
def test_nothing_is_loaded_in_part(broken, words):
    with pytest.raises(ModelError, match=words):
        convert.convert(Checkpoint(broken(original())))


def test_one_tensor_under_two_names_is_refused():
    tensors = original() | {"v.patch_embed.proj.weight": torch.zeros(64, 1, 16, 16)}
    layout = convert.layouts()["ast"]
    twice = (r"v\.twin", "encoder.norm.bias")
    both = type(layout)(layout.name, layout.marks, (twice, *layout.rows), layout.config)
    with pytest.raises(ModelError, match="1 twice"):
        convert._rename({**tensors, "v.twin": torch.zeros(64)}, both)


def test_layout_by_name():
    assert convert.convert(Checkpoint(original()), layout="ast").layout == "ast"
    with pytest.raises(ModelError, match=r"unknown layout 'beast': one of ast, ast-transformers"):
        convert.convert(Checkpoint(original()), layout="beast")
    with pytest.raises(ModelError, match=r"ast-transformers: 37 unexpected: v.cls_token"):
        convert.convert(Checkpoint(original()), layout="ast-transformers")


def test_the_user_may_know_better():
    overrides = {
        "labels": ["rain", "wind", "sea"],
        "architecture": {"stride": [10, 10], "frames": 130, "drop_path": 0.1},
        "frontend": {"mean": -6.6},
        "licence": "CC0",
    }
    config = convert.convert(Checkpoint(original(), overrides=overrides)).config
    assert config.labels == ["rain", "wind", "sea"]
    assert config.architecture["frames"] == 130
    assert config.architecture["drop_path"] == 0.1
    assert config.frontend["mean"] == -6.6
    assert config.frontend["frames"] == 130
    assert config.licence == "CC0"
    for wrong, words in (
        ({"labels": ["rain"]}, r"head.linear.weight \(3, 64\) instead of \(1, 64\)"),
        ({"architecture": {"colour": 1}}, "unknown argument 'colour'"),
        ({"frontend": {"preset": "cat"}}, "config"),
        ({"label": ["rain"]}, "unknown override 'label'"),
    ):
        with pytest.raises(ModelError, match=words):
            convert.convert(Checkpoint(original(), overrides=wrong))


def test_audioset_labels_for_527_classes():
    config = convert.convert(Checkpoint(original(527))).config
    assert config.labels[:2] == ["Speech", "Male speech, man speaking"]
    assert config.head is not None
    assert config.head["activation"] == "sigmoid"


def test_origins():
    name = "ast-finetuned-audioset-10-10-0.4593"
    known = convert.origin(f"hf:MIT/{name}")
    assert known is not None
    assert known is convert.origin(name)
    assert convert.origin("hf:someone/else") is None


def test_tables_are_consistent():
    for name, layout in convert.layouts().items():
        assert name == layout.name
        assert all(
            target is None or target.startswith(("encoder.", "head.")) for _, target in layout.rows
        )
    for item in convert.published():
        assert item.layout in convert.layouts()
        assert item.licence
        assert item.training


# --- files and folders ----------------------------------------------------------------------------


def test_folder_written_and_read_back(tmp_path):
    source = tmp_path / "audioset_10_10_0.4593.pth"
    torch.save(parallel(original()), source)
    done = convert.convert_folder(source, tmp_path / "deep" / "model")
    out = tmp_path / "deep" / "model"
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "model.safetensors"]
    written = load_file(out / "model.safetensors")
    assert set(written) == set(done.tensors)
    assert all(torch.equal(written[name], value) for name, value in done.tensors.items())
    config = json.loads((out / "config.json").read_text())
    assert config["format"] == 1
    assert config["name"] == "audioset_10_10_0.4593"
    assert config["licence"] == "BSD-3-Clause"
    assert config["training"] == {"data": ["ImageNet", "AudioSet"]}
    with pytest.raises(ModelError, match="already a model folder"):
        convert.convert_folder(out, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_failed_conversion_writes_nothing(tmp_path):
    save_file(without(original(), "v.norm.bias"), tmp_path / "some.safetensors")
    with pytest.raises(ModelError, match="missing"):
        convert.convert_folder(tmp_path / "some.safetensors", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda t: t,
        lambda t: OrderedDict(parallel(t)),
        lambda t: {"state_dict": t, "epoch": 3, "optimizer": {"lr": 0.1}},
        lambda t: {"model": parallel(t), "args": argparse.Namespace(lr=0.1), "scaler": None},
        lambda t: {name: torch.nn.Parameter(value) for name, value in t.items()},
        lambda t: {name: value.double() for name, value in t.items()},
        lambda t: {name: value.T.contiguous().T for name, value in t.items()},
    ],
)
@pytest.mark.filterwarnings("ignore:The use of `x.T`")
@pytest.mark.parametrize("new", [True, False])
def test_containers_of_training_scripts(tmp_path, monkeypatch, wrap, new):
    monkeypatch.setattr(pickles, "read", lambda path: pickles.unpickle(str(path)))
    path = tmp_path / "last.ckpt"
    torch.save(wrap(original()), path, _use_new_zipfile_serialization=new)
    tensors = checkpoint_files.read(path, allow_pickles=True).tensors
    assert list(tensors) == list(original())
    assert all(value.dtype == torch.float32 for value in tensors.values())
    assert all(torch.equal(value, original()[name]) for name, value in tensors.items())


def shards(folder: Path) -> None:
    tensors = list(original().items())
    parts = {"a.safetensors": dict(tensors[:20]), "b.safetensors": dict(tensors[20:])}
    table = {name: part for part, held in parts.items() for name in held}
    for part, held in parts.items():
        save_file(held, folder / part)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))


def test_shards_and_their_order_of_preference(tmp_path):
    shards(tmp_path)
    assert set(checkpoint_files.read(tmp_path).tensors) == set(original())
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(ModelError, match=r"b.safetensors: missing"):
        checkpoint_files.read(tmp_path)
    save_file({"only": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert list(checkpoint_files.read(tmp_path).tensors) == ["only"]


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    shards(tmp_path)
    save_file(original(), tmp_path / "b.safetensors")
    with pytest.raises(ModelError, match="also in another part"):
        checkpoint_files.read(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "../x.safetensors",
        "/etc/x.safetensors",
        "a/../../x.safetensors",
        "..\\x.safetensors",
        "..",
        "",
        "x.json",
        "http://host/x.safetensors",
        "../x.bin",
        7,
        None,
    ],
)
@pytest.mark.parametrize("index", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
def test_an_index_cannot_name_a_file_elsewhere(tmp_path, name, index):
    folder = tmp_path / "model"
    folder.mkdir()
    for suffix in ("safetensors", "bin"):
        save_file({"secret": torch.zeros(1)}, tmp_path / f"x.{suffix}")
    (folder / index).write_text(json.dumps({"weight_map": {"secret": name}}))
    with pytest.raises(ModelError, match="refused"):
        checkpoint_files.read(folder, allow_pickles=True)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"weight_map": []}',
        '{"weight_map": {}}',
        "[" * 100_000,
        "\xff",
    ],
)
def test_a_broken_index(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text, encoding="latin-1")
    with pytest.raises(ModelError):
        checkpoint_files.read(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_a_checkpoint_that_asks_for_code_of_its_own(tmp_path, name):
    save_file(original(), tmp_path / "model.safetensors")
    (tmp_path / name).write_text(json.dumps({"auto_map": {"AutoModel": "modeling.Evil"}}))
    with pytest.raises(ModelError, match="run code"):
        convert.convert_folder(tmp_path, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_what_is_no_checkpoint(tmp_path):
    with pytest.raises(ModelError, match="no such"):
        checkpoint_files.read(tmp_path / "absent")
    with pytest.raises(ModelError, match="no weights"):
        checkpoint_files.read(tmp_path)
    (tmp_path / "readme.txt").write_text("hello")
    with pytest.raises(ModelError, match="not a checkpoint"):
        checkpoint_files.read(tmp_path / "readme.txt")
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(ModelError, match="no such"):
        checkpoint_files.read(tmp_path / "pipe.safetensors")
    (tmp_path / "pipe.safetensors").unlink()
    for name in ("a.pth", "b.ckpt"):
        torch.save(original(), tmp_path / name)
    with pytest.raises(ModelError, match="2 weight files"):
        checkpoint_files.read(tmp_path)
    save_file({}, tmp_path / "empty.safetensors")
    with pytest.raises(ModelError, match="no tensors"):
        checkpoint_files.read(tmp_path / "empty.safetensors")


def test_pickles_only_on_request(tmp_path):
    torch.save(original(), tmp_path / "a.pth")
    with pytest.raises(ModelError, match="audiossl models convert"):
        checkpoint_files.read(tmp_path / "a.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_must_be_finite(tmp_path, value):
    tensors = original()
    tensors["v.norm.bias"][3] = value
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(ModelError, match=r"v.norm.bias holds NaN or infinity"):
        checkpoint_files.read(tmp_path / "a.safetensors")


# --- malformed safetensors ------------------------------------------------------------------------


def safetensors_file(header: object, data: bytes = bytes(8), length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape=(2,), offsets=(0, 8), dtype="F32") -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


GOOD = safetensors_file({"a": entry()})
MALFORMED = {
    "overlap": safetensors_file({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12)),
    "hole": safetensors_file({"a": entry(), "b": entry(offsets=(12, 20))}, bytes(20)),
    "hole at the start": safetensors_file({"a": entry(offsets=(4, 12))}, bytes(12)),
    "negative offset": safetensors_file({"a": entry(offsets=(-8, 0))}),
    "negative shape": safetensors_file({"a": entry(shape=(-2,))}),
    "end before start": safetensors_file({"a": entry(offsets=(8, 0))}),
    "overflow": safetensors_file({"a": entry(shape=(2**33, 2**33))}),
    "offsets beyond 2^64": safetensors_file({"a": entry(offsets=(0, 2**65))}),
    "header of 2^63 bytes": safetensors_file({"a": entry()}, length=2**63),
    "header of 2^64-1 bytes": safetensors_file({"a": entry()}, length=2**64 - 1),
    "huge header": safetensors_file({"a": entry()}, length=100_000_001),
    "header longer than the file": safetensors_file({"a": entry()}, length=4000),
    "truncated data": GOOD[:-1],
    "truncated header": GOOD[:20],
    "truncated length": GOOD[:5],
    "empty": b"",
    "junk at the end": GOOD + b"junk",
    "huge header that is there": safetensors_file(b"{" + b" " * (33 * 2**20) + b"}", b""),
    "bad json": safetensors_file(b'{"a": {"dtype": "F32", '),
    "not utf-8": safetensors_file(b'{"\xff": {}}'),
    "a list": safetensors_file([entry()]),
    "unknown dtype": safetensors_file({"a": entry(dtype="F33")}),
    "no dtype": safetensors_file({"a": {"shape": [2], "data_offsets": [0, 8]}}),
    "shape larger than data": safetensors_file({"a": entry(shape=(3,))}),
    "shape smaller than data": safetensors_file({"a": entry(shape=(1,))}),
    "duplicate key": safetensors_file(
        b'{"a": %b, "a": %b}'
        % (json.dumps(entry()).encode(), json.dumps(entry(offsets=(8, 16))).encode()),
        bytes(16),
    ),
    "duplicate key, same place": safetensors_file(
        b'{"a": %b, "a": %b}' % (json.dumps(entry()).encode(), json.dumps(entry()).encode())
    ),
    "a pickle": pickle.dumps({"a": 1}),
}


def test_the_generator_of_malformed_files_can_make_a_good_one(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(GOOD)
    assert torch.equal(checkpoint_files.read(tmp_path).tensors["a"], torch.zeros(2))


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_safetensors(tmp_path, kind):
    (tmp_path / "model.safetensors").write_bytes(MALFORMED[kind])
    with pytest.raises(ModelError, match=r"model.safetensors: "):
        convert.convert_folder(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- evil pickles ---------------------------------------------------------------------------------


class Evil:
    """Calls `function` when it is unpickled."""

    def __init__(self, function, *arguments) -> None:
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def evil(canary: Path, kind: str) -> object:
    command = f"touch {canary}"
    return {
        "system": Evil(os.system, command),
        "popen": Evil(subprocess.Popen, ["touch", str(canary)]),
        "exec": Evil(exec, f"open({str(canary)!r}, 'w')"),
        "eval": Evil(eval, f"open({str(canary)!r}, 'w')"),
        "open": Evil(open, str(canary), "w"),
        "getattr": Evil(getattr, os, "system"),
        "torch.load": Evil(torch.load, str(canary)),
        "compile": Evil(torch.compile, command),
    }[kind]


KINDS = ["system", "popen", "exec", "eval", "open", "torch.load", "compile"]


def write_zip(value, path):
    torch.save({"v.norm.bias": torch.zeros(1), "x": value}, path)


def write_legacy(value, path):
    torch.save({"x": value}, path, _use_new_zipfile_serialization=False)


def write_pickle(value, path):
    path.write_bytes(pickle.dumps(value))


def write_joblib(value, path):
    joblib.dump({"x": value, "w": np.zeros(3)}, path)


def write_npz(value, path):
    with path.open("wb") as file:
        np.savez(file, x=np.array([value], dtype=object))


def write_npy(value, path):
    with path.open("wb") as file:
        np.save(file, np.array([value], dtype=object), allow_pickle=True)


WRITERS = [write_zip, write_legacy, write_pickle, write_joblib, write_npz, write_npy]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.filterwarnings("ignore")
def test_evil_pickles_are_refused_by_the_unpickler(tmp_path, write, kind):
    canary, path = tmp_path / "canary", tmp_path / "model.pt"
    write(evil(canary, kind), path)
    with pytest.raises(ModelError) as caught:
        pickles.unpickle(str(path))
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)  # torch's advice to lower the wall
    assert not canary.exists()


def test_the_canary_of_these_tests_would_sing(tmp_path):
    for kind in ("system", "exec", "open"):
        canary = tmp_path / kind
        pickle.loads(pickle.dumps(evil(canary, kind)))
        assert canary.exists()


@pytest.mark.parametrize(("write", "suffix"), [(write_zip, ".pt"), (write_legacy, ".bin")])
def test_evil_pickles_from_end_to_end(tmp_path, write, suffix):
    canary, path = tmp_path / "canary", tmp_path / f"model{suffix}"
    write(evil(canary, "system"), path)
    with pytest.raises(ModelError, match=r"posix.system, which may be code: refused"):
        convert.convert_folder(path, tmp_path / "out")
    assert not canary.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".joblib", ".pkl", ".h5", ""])
def test_other_containers_are_not_even_opened(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    write_pickle(evil(tmp_path / "canary", "system"), path)
    with pytest.raises(ModelError, match="not a checkpoint"):
        convert.convert_folder(path, tmp_path / "out")


@pytest.mark.parametrize(
    "make",
    [
        lambda: [torch.zeros(1)],
        lambda: {"a": {"b": torch.zeros(1)}},
        lambda: {"a": "text"},
        lambda: {1: torch.zeros(1)},
        lambda: {"a": torch.zeros(1).expand(10**15)},
        lambda: {"a": torch.zeros(2, 2).to_sparse()},
        lambda: {"a": torch.zeros(2, device="meta")},
        lambda: {"a": torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.qint8)},
        lambda: {"state_dict": {"a": 1}},
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_tables_of_anything_but_plain_tensors(tmp_path, make):
    torch.save(make(), tmp_path / "a.pt")
    with pytest.raises(ModelError):
        pickles.unpickle(str(tmp_path / "a.pt"))


def test_torchscript_is_code(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "a.pt")
    with pytest.raises(ModelError):
        pickles.unpickle(str(tmp_path / "a.pt"))


def test_compressed_archives_are_bombs(tmp_path):
    torch.save({"a": torch.zeros(1_000_000)}, tmp_path / "a.pt")
    with (
        zipfile.ZipFile(tmp_path / "a.pt") as old,
        zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert (tmp_path / "b.pt").stat().st_size < 20_000
    with pytest.raises(ModelError, match="compressed"):
        pickles.unpickle(str(tmp_path / "b.pt"))


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"x" * 500]
)
def test_broken_pickles(tmp_path, damage):
    torch.save(original(), tmp_path / "a.pt")
    (tmp_path / "a.pt").write_bytes(damage((tmp_path / "a.pt").read_bytes()))
    with pytest.raises(ModelError):
        pickles.unpickle(str(tmp_path / "a.pt"))


def test_the_second_wall_stops_what_the_first_might_let_through(tmp_path):
    """With the audit hook in place an unrestricted unpickler cannot start programs either."""
    canary = tmp_path / "canary"
    attacks = [evil(canary, "system"), evil(canary, "popen")]
    code = (
        "import sys, pickle, socket\n"
        "from audiossl.hub import pickles\n"
        "sys.addaudithook(pickles.block)\n"
        f"attacks = {[pickle.dumps(attack) for attack in attacks]!r}\n"
        "calls = [lambda a=a: pickle.loads(a) for a in attacks] + [socket.socket]\n"
        "for call in calls:\n"
        "    try: call()\n"
        "    except Exception as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == [
        "tried os.system",
        "tried subprocess.Popen",
        "tried socket.__new__",
    ]
    assert not canary.exists()


def test_the_reader_leaves_nothing_behind(tmp_path, monkeypatch):
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    torch.save(original(), tmp_path / "a.pth")
    assert set(pickles.read(tmp_path / "a.pth")) == set(original())
    assert list(temporary.iterdir()) == []
