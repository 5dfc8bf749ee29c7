"""`config.json` of a model: what is not exactly right is refused with a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from modelfolders import CONFIG

from audiossl.errors import ModelError
from audiossl.hub.config import ModelConfig, config_json, parse, read_config
from audiossl.hub.strict_json import read_json

pytest_plugins = ("modelfolders",)


def test_a_config_comes_back_as_it_was_written(folder: Path) -> None:
    assert read_config(folder) == ModelConfig(**CONFIG)
    assert read_config(folder).data == ["toys (CC0)", "more toys"]


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
