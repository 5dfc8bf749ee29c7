"""Names of models, their configs, the cache, and what an enemy may put in any of them."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import evil
import numpy as np
import pytest
import soundfile
from safetensors.numpy import save

from audiossl import hub, hub_cache
from audiossl.errors import ModelError, OutputError
from audiossl.hub_cache import HubName, Receipt
from audiossl.model_config import ModelConfig, config_json, parse, read_json

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "0123456ffffffffffffffffffffffffffffffff0"
CONFIG: dict[str, Any] = {
    "name": "toy",
    "task": "tag",
    "architecture": {"name": "dscnn", "widths": [8, 8], "strides": [1, 2], "stem": 8, "dim": 8},
    "frontend": {"name": "logmel", "rate": 16000, "mels": 16, "n_fft": 512, "hop": 160},
    "head": {"name": "linear", "labels": ["cat", "dog"]},
    "licence": "MIT",
    "training": {"data": [{"name": "toys", "licence": "CC0"}, "more toys"]},
}
WEIGHTS = save({"encoder.weight": np.ones((2, 3), dtype=np.float32)})


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own."""
    monkeypatch.setenv("AUDIOSSL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_model(folder: Path, **changes: Any) -> Path:
    """A folder that looks like a model from outside: hub.py does not look at the tensors."""
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    (folder / "config.json").write_text(config_json(ModelConfig(**{**CONFIG, **changes})))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model(tmp_path / "toy")


def put(name: str, commit: str = COMMIT) -> Path:
    """A finished model in the cache, as a download leaves it."""
    parsed = hub_cache.parse(name)
    made = write_model(hub_cache.folder_of(parsed, commit))
    receipt = Receipt(parsed.id, commit, "https://hub.test", "audiossl", "mit")
    hub_cache.write_receipt(made, receipt)
    hub_cache.pin(parsed, commit)
    return made


# Names


def test_embedded_models_resolve_by_name() -> None:
    for name in hub.embedded():
        assert hub.resolve(name) == hub.PRETRAINED / name
        assert hub.verify(hub.resolve(name)) == ["model.safetensors"]


def test_folders_resolve_by_path(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hub.resolve(str(folder)) == folder
    monkeypatch.chdir(tmp_path)
    assert hub.resolve("toy") == Path("toy")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hub.resolve("~/toy") == folder


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "no model ''"),
        ("nothing-like-it", "audiossl models ls"),
        ("MIT/ast", "hf:MIT/ast"),
        ("./a/b", "neither embedded nor a folder"),
        ("\0", "no model"),
        ("x" * 5000, "no model"),
        ("~nobody-here/x", "no model"),
        ("hf:", "expected hf:owner/repo"),
        ("hf:alone", "expected hf:owner/repo"),
        ("hf:../../etc/passwd", "expected hf:owner/repo"),
        ("hf:a/..", "expected hf:owner/repo"),
        ("hf:a/b@", "expected hf:owner/repo"),
        ("hf:a/b c", "expected hf:owner/repo"),
        ("hf:a--b/c", "expected hf:owner/repo"),
        ("hf:a/b\n", "expected hf:owner/repo"),
        ("hf:é/b", "expected hf:owner/repo"),
        ("hf:a/b/c", "expected hf:owner/repo"),
        ("hf:a/b@main@x", "expected hf:owner/repo"),
    ],
)
def test_names_that_lead_nowhere_say_where_to_go(name: str, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        hub.resolve(name)


def test_a_near_miss_is_suggested() -> None:
    if not hub.embedded():
        pytest.skip("no embedded model")
    with pytest.raises(ModelError, match=f"did you mean '{hub.embedded()[0]}'"):
        hub.resolve(hub.embedded()[0][:-1])


def test_files_are_not_folders(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="give the folder it is in"):
        hub.resolve(str(folder / "model.safetensors"))
    (tmp_path / "x.ckpt").write_bytes(b"")
    with pytest.raises(ModelError, match=r"audiossl models convert .*x\.ckpt --out FOLDER"):
        hub.resolve(str(tmp_path / "x.ckpt"))
    with pytest.raises(ModelError, match="not a model folder"):
        hub.resolve(os.devnull)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_half_a_model_is_none(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(ModelError, match=f"holds no {missing}"):
        hub.resolve(str(folder))


@pytest.mark.parametrize("part", ["config.json", "model.safetensors"])
def test_only_regular_files_are_opened(folder: Path, part: str) -> None:
    """A pipe would hang for ever, /dev/zero never ends."""
    (folder / part).unlink()
    os.mkfifo(folder / part)
    with pytest.raises(ModelError, match="holds no"):
        hub.resolve(str(folder))
    (folder / part).unlink()
    (folder / part).symlink_to("/dev/zero")
    with pytest.raises(ModelError, match="holds no"):
        hub.resolve(str(folder))


# Configs


def test_a_config_comes_back_as_it_was_written(folder: Path) -> None:
    assert hub.read_config(folder) == ModelConfig(**CONFIG)
    assert hub.read_config(folder).data == ["toys (CC0)", "more toys"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format": 2}, "format 1 expected"),
        ({"format": None}, "format 1 expected"),
        ({"nmae": "x"}, "unknown key 'nmae'.*'name'"),
        ({"name": 3}, "name: expected text"),
        ({"name": " "}, "name: empty"),
        ({"name": "two\nlines"}, "one line"),
        ({"name": "x" * 2000}, "one line of at most"),
        ({"architecture": "dscnn"}, "architecture: expected an object"),
        ({"architecture": {}}, "architecture: no name"),
        ({"architecture": {"name": "x", "dim": 10**9}}, "architecture.dim"),
        ({"frontend": {}}, "frontend: neither name nor preset"),
        ({"frontend": {"name": "fbank", "mels": 5000}}, "frontend.mels"),
        ({"head": []}, "head: expected an object"),
        ({"head": {"name": "linear"}}, "head.labels"),
        ({"head": {"name": "linear", "labels": ["a", 3]}}, "head.labels: expected text"),
        ({"head": {"name": "linear", "labels": ["a\tb"]}}, "one line"),
        ({"head": {"name": "linear", "labels": ["a"], "activation": "sig"}}, "'sigmoid'"),
        ({"head": None}, "a tagger needs labels"),
        ({"task": "tga"}, "did you mean 'tag'"),
        ({"task": ["tag"]}, "task: unknown value"),
        ({"window_seconds": "10"}, "window_seconds: expected a number"),
        ({"window_seconds": 0}, "between 0 and 3600"),
        ({"window_seconds": True}, "expected a number"),
        ({"training": []}, "training: expected an object"),
        ({"sha256": "abc"}, "64 hex digits"),
        ({"auto_map": {"AutoModel": "m.M"}}, "asks to run code"),
        ({"trust_remote_code": True}, "asks to run code"),
        ({"format": None, "model_type": "audio-spectrogram-transformer"}, "models convert"),
    ],
)
def test_configs_are_strict(changes: dict[str, Any], says: str) -> None:
    data = {**json.loads(config_json(ModelConfig(**CONFIG))), **changes}
    data = {key: value for key, value in data.items() if value is not None or key == "head"}
    with pytest.raises(ModelError, match=says):
        parse(data)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "not valid"),
        (b"[1]", "expected an object"),
        (b'{"a": 1', "not valid"),
        (b'{"a": 1}{', "not valid"),
        (b'{"a": 1, "a": 2}', "given twice"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": -Infinity}', "not JSON"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": ' + b"9" * 5000 + b"}", "too large"),
        (b'{"a": ' + b"[" * 20 + b"]" * 20 + b"}", "nested deeper"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested deeper"),
        (b'{"a": "\\ud800"}', "control character"),
        (b'{"a": "\\u001b[2J"}', "control character"),
        (b'{"\\u0007": 1}', "control character"),
        (b'{"a": "' + b"x" * 200_000 + b'"}', "a text of 200000"),
        (b"\xff\xfe{}", "not valid"),
        (b'{"a": "' + b"x" * 5_000_000 + b'"}', "larger than 4 MB"),
    ],
)
def test_json_is_strict_and_bounded(tmp_path: Path, text: bytes, says: str) -> None:
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(ModelError, match=says) as caught:
        read_json(tmp_path / "config.json")
    assert len(str(caught.value)) < 400


# What is said of a model


def test_facts(folder: Path) -> None:
    facts = hub.describe(str(folder))
    assert facts == {
        "name": str(folder),
        "task": "tag",
        "labels": 2,
        "rate": 16000,
        "megabytes": 0.0,
        "licence": "MIT",
        "data": ["toys (CC0)", "more toys"],
        "sha256": hub.sha256(folder / "model.safetensors"),
    }
    assert hub.describe(str(folder), details=True)["labels"] == ["cat", "dog"]


def test_the_rate_of_a_preset_is_known(tmp_path: Path) -> None:
    made = write_model(tmp_path / "m", frontend={"preset": "ast"})
    assert hub.describe(str(made))["rate"] == 16000


def test_the_digest_changes_with_weights_and_config(tmp_path: Path) -> None:
    plain = write_model(tmp_path / "a")
    first = hub.digest(str(plain))
    (plain / "model.safetensors").write_bytes(save({"x": np.zeros(3, dtype=np.float32)}))
    second = hub.digest(str(plain))
    (plain / "config.json").write_text(config_json(ModelConfig(**{**CONFIG, "name": "b"})))
    assert len({first, second, hub.digest(str(plain))}) == 3


def test_verify_compares_what_was_recorded(folder: Path) -> None:
    assert hub.verify(folder) == []
    recorded = ModelConfig(**CONFIG, sha256=hub.sha256(folder / "model.safetensors"))
    (folder / "config.json").write_text(config_json(recorded))
    assert hub.verify(folder) == ["model.safetensors"]
    flip(folder / "model.safetensors")
    with pytest.raises(ModelError, match="damaged"):
        hub.verify(folder)


def flip(path: Path) -> None:
    """One bit of the last byte."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


# The cache


def test_cached_models_are_found_by_branch_commit_and_part_of_it() -> None:
    made = put("hf:org/m")
    for revision in ("", "@main", f"@{COMMIT}", f"@{COMMIT[:7]}"):
        assert hub.resolve(f"hf:org/m{revision}") == made
    assert hub.here() == [*hub.embedded(), "hf:org/m"]
    facts = hub.describe("hf:org/m")
    assert (facts["name"], facts["commit"]) == ("hf:org/m", COMMIT)
    assert facts["licence"] == "MIT"


def test_names_in_the_cache_lead_back_to_it() -> None:
    put("hf:org/m-1.5_x")
    put("hf:org/m-1.5_x@v1", OTHER)
    put("hf:a/b@refs/pr/3", OTHER)
    put(f"hf:b/b@{COMMIT}")
    names = [name for name in hub.here() if name.startswith("hf:")]
    assert names == [
        "hf:a/b@refs/pr/3",
        f"hf:b/b@{COMMIT}",
        "hf:org/m-1.5_x",
        "hf:org/m-1.5_x@v1",
    ]
    assert len({hub.resolve(name) for name in names}) == 4


@pytest.mark.parametrize("revision", ["@v2", f"@{'f' * 40}", "@fffffff", "@0123456"])
def test_what_is_not_in_the_cache_is_not_guessed(revision: str) -> None:
    put("hf:org/m")
    put("hf:org/m@v1", OTHER)  # begins with the same seven digits
    with pytest.raises(ModelError, match="audiossl models pull hf:org/m@"):
        hub.resolve(f"hf:org/m{revision}", download=False)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_flipped_bit_in_the_cache_is_found(name: str) -> None:
    made = put("hf:org/m")
    assert hub.verify(made) == ["config.json", "model.safetensors"]
    flip(made / name)
    with pytest.raises(ModelError, match=rf"{name}|config") as caught:
        hub.verify(made)
    if name == "model.safetensors":
        assert f"run `audiossl models pull hf:org/m@{COMMIT}`" in str(caught.value)


def test_a_cut_or_lost_file_in_the_cache_is_found() -> None:
    made = put("hf:org/m")
    receipt = hub_cache.read_receipt(made)
    assert receipt
    os.truncate(made / "model.safetensors", 20)
    with pytest.raises(ModelError, match="20 bytes instead of"):
        hub_cache.check_receipt(made, receipt)
    (made / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="No such file"):
        hub_cache.check_receipt(made, receipt)


@pytest.mark.parametrize("text", ["{}", "[]", '{"repo": 1}', "", '{"files": {"../x": {}}}'])
def test_a_broken_receipt_is_no_receipt(text: str) -> None:
    made = put("hf:org/m")
    (made / "receipt.json").write_text(text)
    with pytest.raises(ModelError, match=r"receipt\.json"):
        hub.verify(made)


def test_a_receipt_cannot_point_elsewhere() -> None:
    made = put("hf:org/m")
    data = json.loads((made / "receipt.json").read_text())
    data["files"]["../../pins.json"] = data["files"]["config.json"]
    (made / "receipt.json").write_text(json.dumps(data))
    with pytest.raises(ModelError, match="not a receipt"):
        hub.verify(made)


def test_lost_pins_lose_no_model() -> None:
    made = put("hf:org/m")
    (made.parent / "pins.json").write_text("broken")
    assert hub.resolve(f"hf:org/m@{COMMIT[:8]}") == made
    assert hub.here() == [*hub.embedded(), f"hf:org/m@{COMMIT}"]


def test_rm_takes_one_revision_or_all() -> None:
    first, second = put("hf:org/m"), put("hf:org/m@v1", OTHER)
    assert hub_cache.remove(hub_cache.parse("hf:org/m@v1")) == [second]
    assert first.is_dir()
    assert not second.exists()
    assert hub_cache.pins(HubName("org", "m")) == {"main": COMMIT}
    assert hub_cache.remove(hub_cache.parse("hf:org/m")) == [first]
    assert hub.here() == hub.embedded()
    with pytest.raises(ModelError, match="not in the cache"):
        hub_cache.remove(hub_cache.parse("hf:org/m"))


def test_unfinished_folders_are_not_models(cache: Path) -> None:
    made = put("hf:org/m")
    (made / "receipt.json").unlink()
    (cache / "hub" / "junk").mkdir()
    (cache / "hub" / "file").write_text("x")
    assert hub.here() == hub.embedded()
    with pytest.raises(ModelError, match="not in the cache"):
        hub.resolve("hf:org/m", download=False)


def test_without_a_home_the_cache_is_where_one_says(monkeypatch: pytest.MonkeyPatch) -> None:
    import platformdirs

    monkeypatch.setenv("AUDIOSSL_CACHE", "relative")
    assert hub_cache.root() == Path.cwd() / "relative"
    monkeypatch.delenv("AUDIOSSL_CACHE")
    assert hub_cache.root().name == "audiossl"
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda name: "~/.cache/audiossl")
    with pytest.raises(OutputError, match="AUDIOSSL_CACHE"):
        hub_cache.root()


def test_no_torch_until_a_model_is_loaded(folder: Path) -> None:
    put("hf:org/m")
    code = (
        "import sys; from audiossl import hub, hub_cache, download\n"
        f"hub.describe({str(folder)!r}, details=True); hub.digest({str(folder)!r})\n"
        "hub.verify(hub.resolve('hf:org/m')); hub.here(); hub.embedded()\n"
        "hub_cache.remove(hub_cache.parse('hf:org/m'))\n"
        "heavy = {'torch', 'huggingface_hub', 'rich'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# Evil files, at every place that takes the path of a model


def run_command(*args: str) -> int:
    """The installed command, in this process."""
    (entry,) = metadata.entry_points(group="console_scripts", name="audiossl")
    with pytest.raises(SystemExit) as ended:
        entry.load()([*args])
    return ended.value.code


def through_python(function: Callable[[str], Any]) -> Callable[[str, Path], int]:
    def place(path: str, _tmp: Path) -> int:
        with pytest.raises(ModelError) as caught:
            function(path)
        return caught.value.exit_code

    return place


def load(path: str) -> Any:
    import audiossl

    return audiossl.load(path)


def tagger(path: str) -> Any:
    import audiossl

    return audiossl.Tagger.load(path)


def tag(path: str, tmp: Path) -> int:
    soundfile.write(tmp / "x.wav", np.zeros(1600, dtype=np.float32), 16000)
    return run_command("tag", str(tmp / "x.wav"), "--model", path)


PLACES: dict[str, Callable[[str, Path], int]] = {
    "audiossl.load": through_python(load),
    "Tagger.load": through_python(tagger),
    "hub.resolve": through_python(hub.resolve),
    "hub.describe": through_python(hub.describe),
    "hub.digest": through_python(hub.digest),
    "hub.verify": through_python(lambda path: hub.verify(Path(path))),
    "models show": lambda path, tmp: run_command("models", "show", path),
    "models show --labels": lambda path, tmp: run_command("models", "show", path, "--labels"),
    "models path": lambda path, tmp: run_command("models", "path", path),
    "models verify": lambda path, tmp: run_command("models", "verify", path),
    "models convert": lambda path, tmp: run_command(
        "models", "convert", path, "--out", str(tmp / "converted")
    ),
    "tag --model": tag,
}
KINDS = [
    "auto_map",
    "bin_index",
    "index",
    "joblib",
    "legacy",
    "npy",
    "npz",
    "pickle",
    "tar",
    "template",
    "torchscript",
    "zip",
]


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """A file that exists as soon as code of an evil file has run."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", KINDS)
def test_evil_files_are_refused_everywhere(
    kind: str, place: str, tmp_path: Path, canary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = evil.files(tmp_path / "evil", canary)
    assert sorted(made) == KINDS
    assert PLACES[place](str(made[kind]), tmp_path) == 5
    said = capsys.readouterr()
    assert said.err.count("\n") <= 1
    assert "Traceback" not in said.err
    assert not (tmp_path / "converted").exists()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", KINDS)
def test_evil_files_under_a_good_name_are_refused_everywhere(
    kind: str, place: str, folder: Path, tmp_path: Path, canary: Path
) -> None:
    """The same bytes as the model.safetensors of a good folder."""
    made = evil.files(tmp_path / "evil", canary)[kind]
    source = made if made.is_file() else sorted(made.glob("*.json"))[-1]
    (folder / "model.safetensors").write_bytes(source.read_bytes())
    assert PLACES[place](str(folder), tmp_path) == 5


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", evil.malformed())
def test_malformed_safetensors_are_refused_everywhere(
    kind: str, place: str, folder: Path, tmp_path: Path
) -> None:
    (folder / "model.safetensors").write_bytes(evil.malformed()[kind])
    assert PLACES[place](str(folder), tmp_path) == 5


def test_the_canary_would_sing(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    made = evil.files(tmp_path / "evil", canary)
    with contextlib.suppress(Exception):
        pickle.loads(made["pickle"].read_bytes())
    assert canary.exists()
