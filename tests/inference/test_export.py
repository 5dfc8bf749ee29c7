"""Models written as graphs: what they are, what is refused, and that nothing is left when it fails.

Every frontend is exported by the slow tests; test_spectrum.py has all in the exported form.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import numpy_helper

from audiossl import diagnosis
from audiossl.audio import reading as audio
from audiossl.caches import sha256
from audiossl.commands.models import command
from audiossl.errors import ModelError, OutputError, UsageError
from audiossl.frontend.presets import PRESETS
from audiossl.hub.config import ModelConfig, read_config
from audiossl.inference import export, graph
from audiossl.inference.graph import GRAPH
from audiossl.model import Model, load, save_model

VIT = {"name": "ast", "dim": 16, "depth": 1, "heads": 2, "frames": 128}
DISTINCT = {str(sorted(preset.items())): name for name, preset in PRESETS.items()}.values()
CONV = {"name": "dscnn", "widths": [8, 16], "strides": [2, 2], "stem": 4}


def saved(folder: Path, **changes: Any) -> Path:
    """A folder with a small model; its weights are drawn wide, so that scores differ."""
    torch.manual_seed(0)
    config: dict[str, Any] = {
        "name": "small",
        "task": "tag",
        "architecture": CONV,
        "frontend": {"preset": "yamnet"},
        "head": {"name": "linear", "labels": ["Speech", "Dog", "Rain"]},
        "window_seconds": 1.5,
    }
    model = Model(ModelConfig(**{**config, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5)
    save_model(model, folder)
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformer on Kaldi's features, and its graph. One for all: tracing takes seconds."""
    folder = tmp_path_factory.mktemp("graph") / "small"
    saved(folder, architecture=VIT, frontend={"preset": "ast_speechcommands"}, window_seconds=1.2)
    assert export.export(str(folder)) == (folder / GRAPH, "batch and length")
    return folder


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return saved(tmp_path / "plain")


def test_a_graph_is_sound_and_says_what_it_is(exported: Path) -> None:
    made = onnx.load(exported / GRAPH)
    onnx.checker.check_model(made)
    facts = {entry.key: entry.value for entry in made.metadata_props}
    config = read_config(exported)
    assert facts["audiossl.format"] == "1"
    assert facts["audiossl.model"] == "small"
    assert facts["audiossl.rate"] == "16000"
    assert facts["audiossl.weights"] == config.sha256 == sha256(exported / "model.safetensors")
    data = (exported / GRAPH).read_bytes()
    assert facts["audiossl.sha256"] == hashlib.sha256(data[: -graph.SEAL_BYTES]).hexdigest()
    assert [value.name for value in made.graph.input] == ["wave"]
    assert [value.name for value in made.graph.output] == ["scores", "embedding"]
    sizes = made.graph.input[0].type.tensor_type.shape.dim
    assert [size.dim_param for size in sizes] == ["batch", "samples"]


def test_a_graph_does_not_say_where_it_was_made(exported: Path) -> None:
    data = (exported / GRAPH).read_bytes()
    for trace in (b"stack_trace", b"site-packages", str(Path(export.__file__).parent).encode()):
        assert trace not in data


def same(found: list[np.ndarray], model: Model, wave: np.ndarray) -> None:
    """A graph's outputs are those of the model in float64, but for rounding."""
    whole = export.Whole(model)
    bounds = export.rounding(whole, export.in_float64(whole), torch.from_numpy(wave))
    for value, (right, allowed) in zip(found, bounds, strict=False):
        np.testing.assert_allclose(value, right, rtol=0, atol=allowed)


@pytest.mark.parametrize("seconds", [0.02, 0.5, 1.0, 1.2])
def test_the_graph_is_the_model(exported: Path, clips: Path, seconds: float) -> None:
    model, path = load(str(exported)), exported / GRAPH
    wave, _ = audio.read(clips / "speech.flac", model.rate)
    waves = wave[: 2 * int(seconds * model.rate)].reshape(2, -1)
    session = graph.open_session(path.read_bytes(), path)
    same(session.run(["scores", "embedding"], {"wave": waves}), model, waves)


def test_it_is_good_for_all_that_the_frontend_hears(exported: Path) -> None:
    found = graph.load(exported)
    assert (found.least, found.most) == (1, found.longest)


@pytest.mark.slow
def test_a_model_without_labels_gives_its_embedding(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", head=None, task="embed")
    out, _ = export.export(str(folder), tmp_path / "graph.onnx")
    assert out == tmp_path / "graph.onnx"
    assert not (folder / GRAPH).exists()
    session = graph.open_session(out.read_bytes(), out)
    assert [output.name for output in session.get_outputs()] == ["embedding"]
    wave = 0.1 * torch.randn(1, 20_000, generator=torch.Generator().manual_seed(0))
    same(session.run(None, {"wave": wave.numpy()}), load(str(folder)), wave.numpy())


@pytest.mark.slow
@pytest.mark.parametrize("preset", DISTINCT)
def test_every_preset(tmp_path: Path, preset: str) -> None:
    folder = saved(tmp_path / "model", frontend={"preset": preset})
    assert export.export(str(folder))[1] == "batch and length"
    found, model = graph.load(folder), load(str(folder))
    for count in (found.least, model.rate // 2, min(model.rate, found.most), found.most):
        wave = (0.1 * np.random.default_rng(0).standard_normal((1, count))).astype(np.float32)
        same([found.predict(wave)], model, wave)


def test_the_command(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def write(name: str, out: Path | None) -> tuple[Path, str]:
        asked.append((name, out))
        return plain / "model.safetensors", "batch and length"

    monkeypatch.setattr(export, "export", write)
    run = CliRunner().invoke
    done = run(command, ["export", str(plain), "--onnx"])
    assert (done.exit_code, done.stdout) == (0, f"{plain / 'model.safetensors'}\n")
    assert done.stderr.endswith("MB; its input may vary in batch and length\n")
    assert not run(command, ["export", str(plain), "--onnx", "--out", "a.onnx", "-q"]).stderr
    assert asked == [(str(plain), None), (str(plain), Path("a.onnx"))]
    done = run(command, ["export", str(plain)])
    assert (done.exit_code, len(asked)) == (2, 2)
    assert "--onnx" in done.stderr


def test_doctor_names_what_runs_and_what_makes_graphs() -> None:
    parts = {part["name"]: part for part in diagnosis.facts()["parts"]}
    assert parts["onnxruntime"]["version"]
    assert {parts[name]["advice"] for name in ("onnx", "onnxscript")} == {
        "pip install 'audiossl-toolkit[export]'"
    }


# --- what is not written --------------------------------------------------------------------------


def refused(folder: Path, kind: type[Exception], words: str, **arguments: Any) -> None:
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(kind, match=words) as caught:
        export.export(str(folder), **arguments)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in folder.iterdir()) == before


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_what_exports_is_not_installed(
    plain: Path, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = export.importlib.util.find_spec
    monkeypatch.setattr(
        export.importlib.util, "find_spec", lambda name: None if name == package else found(name)
    )
    words = re.escape(f"needs {package}: pip install 'audiossl-toolkit[export]'")
    refused(plain, UsageError, words)


def test_a_scan_is_refused_at_once(tmp_path: Path) -> None:
    scan = {"name": "ssamba", "dim": 16, "depth": 2, "frames": 96, "states": 4}
    folder = saved(tmp_path / "scan", architecture=scan, frontend={"preset": "ssamba"})
    refused(folder, ModelError, "cannot be exported: its selective scan")


def test_what_torch_cannot_trace(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no(*_arguments: Any, **_options: Any) -> None:
        raise RuntimeError("data-dependent\nand more of it")

    monkeypatch.setattr(torch.export, "export", no)
    refused(plain, ModelError, "small cannot be exported: data-dependent$")


def test_what_onnxruntime_does_not_load(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no(data: bytes, path: Path) -> None:
        raise ModelError(f"{path}: onnxruntime cannot load it: why")

    monkeypatch.setattr(export, "_traced", lambda model, size: (onnx.ModelProto(), "nothing"))
    monkeypatch.setattr(export.graph, "open_session", no)
    refused(plain, ModelError, "cannot load it: why")


class Off:
    """A session whose scores are all zero."""

    def get_outputs(self) -> list[Any]:
        return [onnx.ValueInfoProto(name="scores"), onnx.ValueInfoProto(name="embedding")]

    def run(self, names: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        return [np.zeros((1, 3), np.float32), np.zeros((1, 16), np.float32)]


def test_a_graph_that_differs_is_not_written(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_traced", lambda model, size: (onnx.ModelProto(), "nothing"))
    monkeypatch.setattr(export.graph, "open_session", lambda data, path: Off())
    words = (
        r"on 24000 samples of noise the graph is 0\.\d+ off torch's scores, more than the \S+ of "
    )
    refused(plain, ModelError, words)


def weight_off_by_a_hundredth(made: onnx.ModelProto) -> None:
    weights = [tensor for tensor in made.graph.initializer if len(tensor.dims) == 4]
    values = numpy_helper.to_array(weights[0]).copy()
    values.flat[np.abs(values).argmax()] *= 1.01
    weights[0].CopyFrom(numpy_helper.from_array(values, weights[0].name))


def bias_off_by_a_thousandth(made: onnx.ModelProto) -> None:
    (bias,) = [tensor for tensor in made.graph.initializer if "head.linear.bias" in tensor.name]
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + 1e-3, bias.name))


@pytest.mark.parametrize("spoil", [weight_off_by_a_hundredth, bias_off_by_a_thousandth])
def test_a_slightly_wrong_graph_is_not_written(
    plain: Path, spoil: Callable[[onnx.ModelProto], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    traced = export._traced

    def spoilt(model: Model, size: int) -> tuple[onnx.ModelProto, str]:
        made, varying = traced(model, size)
        spoil(made)
        return made, varying

    monkeypatch.setattr(export, "_traced", spoilt)
    refused(plain, ModelError, "of noise the graph is .* off torch's")


def test_what_cannot_be_written(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_traced", lambda model, size: (onnx.ModelProto(), "nothing"))
    monkeypatch.setattr(export.graph, "open_session", lambda data, path: Off())
    monkeypatch.setattr(export, "_compare", lambda *arguments: None)
    refused(plain, OutputError, "No such file", out=plain / "none" / "graph.onnx")


def test_more_than_one_file_can_hold(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "MOST_BYTES", 100)
    refused(plain, ModelError, "at most 2 GB")
