"""Names of models, what is said of them, and the cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from modelfolders import COMMIT, CONFIG, OTHER, flip, put, write_model
from safetensors.numpy import save

from audiossl import caches
from audiossl.caches import sha256
from audiossl.errors import ModelError, OutputError
from audiossl.hub import cache as hub_cache
from audiossl.hub import find as hub
from audiossl.hub.cache import HubName
from audiossl.hub.config import ModelConfig, config_json
from audiossl.hub.facts import describe, digest
from audiossl.hub.folder import verify

pytest_plugins = ("modelfolders",)
pytestmark = pytest.mark.usefixtures("cache")

# Names


def test_embedded_models_resolve_by_name() -> None:
    for name in hub.embedded():
        assert hub.resolve(name) == hub.PRETRAINED / name
        assert verify(hub.resolve(name)) == ["model.safetensors"]


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


# What is said of a model


def test_facts(folder: Path) -> None:
    facts = describe(str(folder))
    assert facts == {
        "name": str(folder),
        "task": "tag",
        "labels": 2,
        "rate": 16000,
        "megabytes": 0.0,
        "licence": "MIT",
        "data": ["toys (CC0)", "more toys"],
        "sha256": sha256(folder / "model.safetensors"),
    }
    assert describe(str(folder), details=True)["labels"] == ["cat", "dog"]


def test_the_rate_of_a_preset_is_known(tmp_path: Path) -> None:
    made = write_model(tmp_path / "m", frontend={"preset": "ast"})
    assert describe(str(made))["rate"] == 16000


def test_the_digest_changes_with_weights_and_config(tmp_path: Path) -> None:
    plain = write_model(tmp_path / "a")
    first = digest(str(plain))
    (plain / "model.safetensors").write_bytes(save({"x": np.zeros(3, dtype=np.float32)}))
    second = digest(str(plain))
    (plain / "config.json").write_text(config_json(ModelConfig(**{**CONFIG, "name": "b"})))
    assert len({first, second, digest(str(plain))}) == 3


def test_verify_compares_what_was_recorded(folder: Path) -> None:
    assert verify(folder) == []
    recorded = ModelConfig(**CONFIG, sha256=sha256(folder / "model.safetensors"))
    (folder / "config.json").write_text(config_json(recorded))
    assert verify(folder) == ["model.safetensors"]
    flip(folder / "model.safetensors")
    with pytest.raises(ModelError, match="damaged"):
        verify(folder)


# The cache


def test_cached_models_are_found_by_branch_commit_and_part_of_it() -> None:
    made = put("hf:org/m")
    for revision in ("", "@main", f"@{COMMIT}", f"@{COMMIT[:7]}"):
        assert hub.resolve(f"hf:org/m{revision}") == made
    assert hub.here() == [*hub.embedded(), "hf:org/m"]
    facts = describe("hf:org/m")
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
    assert verify(made) == ["config.json", "model.safetensors"]
    flip(made / name)
    with pytest.raises(ModelError, match=rf"{name}|config") as caught:
        verify(made)
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
        verify(made)


def test_a_receipt_cannot_point_elsewhere() -> None:
    made = put("hf:org/m")
    data = json.loads((made / "receipt.json").read_text())
    data["files"]["../../pins.json"] = data["files"]["config.json"]
    (made / "receipt.json").write_text(json.dumps(data))
    with pytest.raises(ModelError, match="not a receipt"):
        verify(made)


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
    assert caches.root() == Path.cwd() / "relative"
    monkeypatch.delenv("AUDIOSSL_CACHE")
    assert caches.root().name == "audiossl"
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda name: "~/.cache/audiossl")
    with pytest.raises(OutputError, match="AUDIOSSL_CACHE"):
        caches.root()


def test_no_torch_until_a_model_is_loaded(folder: Path) -> None:
    put("hf:org/m")
    code = (
        "import sys; from audiossl.hub import cache, download, facts, find\n"
        "from audiossl.hub.folder import verify\n"
        f"facts.describe({str(folder)!r}, details=True); facts.digest({str(folder)!r})\n"
        "verify(find.resolve('hf:org/m')); find.here(); find.embedded()\n"
        "cache.remove(cache.parse('hf:org/m'))\n"
        "heavy = {'torch', 'huggingface_hub', 'rich'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
