"""A model's exported graph: torch's scores without torch, and what happens when it is no good."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from modelfolders import flip
from onnx import StringStringEntryProto, TensorProto, helper
from torch import from_numpy as tensor

import audiossl
from audiossl.audio import reading as audio
from audiossl.errors import InputError, ModelError, UsageError
from audiossl.hub import find as hub
from audiossl.hub.config import read_config
from audiossl.inference import export, graph, network
from audiossl.inference.graph import GRAPH, Graph, NoGraph
from audiossl.inference.tagging import Tagger, TagOptions
from audiossl.model import Model, load, save_model

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]
TAGGER = hub.PRETRAINED / "tagger"


def noise(count: int, batch: int = 1) -> np.ndarray:
    values = np.random.default_rng(count).standard_normal((batch, count))
    return (0.1 * values).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder with a graph, to be changed."""
    return Path(shutil.copytree(TAGGER, tmp_path / "mine"))


# --- the embedded tagger --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def both() -> tuple[Graph, Model]:
    """The embedded tagger: as a graph, and in torch."""
    return graph.load(TAGGER), load("tagger")


@pytest.fixture(scope="module")
def exact() -> Model:
    """The same in float64."""
    return export.in_float64(load("tagger"))


def assert_same(graph: np.ndarray, model: Model, exact: Model, wave: np.ndarray) -> None:
    """Scores of the graph, and of torch in float32, are those of float64 but for rounding.

    Of torch the rounding is judged by float64 alone: by what a last bit of the wave changes there.
    The same few errors in every frame of a pure tone add up, hence the 16.
    """
    wave = np.atleast_2d(wave)
    (right, allowed), _ = export.rounding(export.Whole(model), export.Whole(exact), tensor(wave))
    np.testing.assert_allclose(np.atleast_2d(graph), right, rtol=0, atol=allowed)
    near = [exact.predict(other.double().numpy()) for other in export.neighbours(tensor(wave))]
    moved = max(float(np.abs(other - near[0]).max()) for other in near)
    allowed = 16 * moved + export.FLOOR * float(right.max())
    np.testing.assert_allclose(model.predict(wave), right, rtol=0, atol=allowed)


def test_the_committed_graph_is_fresh() -> None:
    assert graph.state(TAGGER) == "fresh", (
        "the embedded tagger's graph is not of its weights: audiossl models export tagger --onnx"
    )


@pytest.mark.parametrize("count", [1, 399, 400, 401, 560, 15_599, 15_760, 16_001, 80_000, 300_000])
def test_edge_lengths(both: tuple[Graph, Model], exact: Model, count: int) -> None:
    wave = noise(count)
    assert_same(both[0].predict(wave), both[1], exact, wave)


def test_clips(both: tuple[Graph, Model], exact: Model, clips: Path) -> None:
    taggers = [Tagger(network) for network in both]
    for path in sorted(clips.iterdir()):
        if path.suffix == ".md":
            continue
        ours, theirs = ([*tagger.spans(path)] for tagger in taggers)
        places = [(span.start, span.end) for span in ours]
        assert places == [(span.start, span.end) for span in theirs]
        waves = [wave for _, wave in taggers[0].inference.slide(lambda waves: waves, path)]
        for span, wave in zip(ours, waves, strict=True):
            assert_same(span.values, both[1], exact, wave)


@pytest.mark.parametrize("kind", ["silence", "tone", "loud"])
def test_what_is_not_noise(both: tuple[Graph, Model], exact: Model, kind: str) -> None:
    time = np.arange(80_000) / 16_000
    wave = {"silence": 0 * time, "tone": 0.5 * np.sin(2 * np.pi * 440 * time)}.get(
        kind, np.sign(np.sin(2 * np.pi * 100 * time))
    )
    wave = wave.astype(np.float32)[None]
    assert_same(both[0].predict(wave), both[1], exact, wave)


PROGRAM = """
import sys
from audiossl.commands.main import _run
code = _run(sys.argv[1:])
sys.stderr.write(" ".join(sys.modules))
sys.exit(code)
"""


def test_tag_imports_no_torch(cli: Run, clips: Path) -> None:
    arguments = [
        "tag",
        str(clips / "speech.flac"),
        str(clips / "guitar.ogg"),
        "--threshold",
        "0.01",
    ]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, check=True
    )
    modules = set(done.stderr.decode().split())
    assert "onnxruntime" in modules
    assert not modules & {"torch", "onnx", "librosa", "torchaudio"}
    by_torch = cli(*arguments, "--backend", "torch").stdout
    pairs = zip(done.stdout.splitlines(), by_torch.splitlines(), strict=True)
    for ours, theirs in ((json.loads(one), json.loads(other)) for one, other in pairs):
        scores = [[label.pop("score") for label in record["labels"]] for record in (ours, theirs)]
        assert ours == theirs
        assert scores[0] == pytest.approx(scores[1], abs=1e-3)  # exactness: test_clips


def test_one_file_in_python_imports_no_torch(clips: Path) -> None:
    program = (
        "import sys, audiossl; r = audiossl.tag(sys.argv[1]); "
        "assert r[0].labels[0].label == 'Speech'; assert 'torch' not in sys.modules"
    )
    path = str(clips / "speech.flac")
    assert subprocess.run([sys.executable, "-c", program, path], check=False).returncode == 0


# --- how it runs ----------------------------------------------------------------------------------


def test_it_knows_what_the_model_knows(both: tuple[Graph, Model]) -> None:
    facts = [
        (network.name, network.rate, network.labels, network.longest, network.window_seconds)
        for network in both
    ]
    assert facts[0] == facts[1]


def test_results_do_not_depend_on_batches_or_threads(
    both: tuple[Graph, Model], clips: Path
) -> None:
    found, _ = both
    waves = noise(24_000, 5)
    alone = np.concatenate([found.predict(wave[None]) for wave in waves])
    np.testing.assert_array_equal(found.predict(waves), alone)
    path = clips / "drum kit.flac"
    expected = [span.values for span in Tagger(found, 1).spans(path, 0.7, 0.2)]
    with ThreadPoolExecutor(3) as executor:
        got = [span.values for span in Tagger(found, 4, executor).spans(path, 0.7, 0.2)]
    np.testing.assert_array_equal(got, expected)


def test_lengths_beyond_the_graph_go_to_torch(both: tuple[Graph, Model], exact: Model) -> None:
    calls = []

    def otherwise() -> Model:
        calls.append(1)
        return both[1]

    found = graph.load(TAGGER, otherwise)
    longest = noise(found.most)
    assert_same(found.predict(longest), both[1], exact, longest)
    assert not calls
    longer = noise(found.most + 1)
    for _ in range(2):
        np.testing.assert_array_equal(found.predict(longer), both[1].predict(longer))
    assert len(calls) == 1
    with pytest.raises(ValueError, match=f"1 to {found.most}"):
        both[0].predict(longer)


def test_the_graph_alone_refuses_what_it_does_not_take(clips: Path) -> None:
    tagger = Tagger.load(backend="onnx")
    tagger.model.least = 3 * 16_000  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="window of 1 s"):
        list(tagger.tag(clips / "speech.flac", options=TagOptions(window=1)))
    with pytest.raises(InputError, match="too short"):
        list(tagger.tag(clips / "burp.opus", options=TagOptions(window=30)))


def test_backends() -> None:
    assert isinstance(network.load("tagger"), Graph)
    assert isinstance(network.load("tagger", "auto"), Graph)
    assert isinstance(network.load("tagger", backend="onnx"), Graph)
    assert isinstance(network.load("tagger", backend="torch"), Model)
    assert network.load("tagger", backend="torch").backend == "torch"
    with pytest.raises(UsageError, match="on the CPU, not on cuda"):
        network.load("tagger", "cuda", "onnx")
    with pytest.raises(UsageError, match="'tpu9' is not one of auto, torch, onnx"):
        network.load("tagger", backend="tpu9")
    with pytest.raises(UsageError, match="tpu9"):  # a device is torch's affair
        network.load("tagger", "tpu9")


def test_a_model_without_labels_may_have_a_graph_but_does_not_tag() -> None:
    found = graph.load(TAGGER)
    found.config.head = None
    with pytest.raises(UsageError, match="has no labels"):
        Tagger(found)


# --- no graph, or none that is good ---------------------------------------------------------------


def fall_back(folder: Path, caplog: pytest.LogCaptureFixture) -> str:
    """The warning with which torch takes over; with `onnx` asked for, it is the error."""
    with caplog.at_level(logging.WARNING, "audiossl"):
        found = network.load(str(folder))
    assert isinstance(found, Model)
    with pytest.raises(ModelError) as caught:
        network.load(str(folder), backend="onnx")
    if not caplog.messages:
        assert isinstance(caught.value, NoGraph)
        return ""
    (message,) = caplog.messages
    assert message == f"warning: {caught.value}; torch is used instead"
    return message


def test_no_graph_is_no_matter(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / GRAPH).unlink()
    assert graph.state(folder) == "none"
    assert fall_back(folder, caplog) == ""


def test_no_onnxruntime_is_no_matter(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph.importlib.util, "find_spec", lambda name: None)
    assert fall_back(folder, caplog) == ""
    with pytest.raises(NoGraph, match="pip install onnxruntime"):
        network.load(str(folder), backend="onnx")


def test_an_onnxruntime_that_does_not_import_is_no_matter(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert fall_back(folder, caplog) == ""


def test_other_weights_make_it_stale(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = load(str(folder))
    with torch.no_grad():
        next(model.parameters()).add_(0.1)
    save_model(model, folder)
    said = fall_back(folder, caplog)
    assert f"{folder / GRAPH}: stale: made from another model.safetensors" in said
    assert f"run `audiossl models export {folder} --onnx`" in said
    assert "stale" in graph.state(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"frontend": {"preset": "yamnet", "floor": 0.002}},
        {
            "head": {
                "name": "linear",
                "labels": read_config(TAGGER).labels,
                "activation": "softmax",
            }
        },
    ],
)
def test_another_config_makes_it_stale(
    folder: Path, change: dict, caplog: pytest.LogCaptureFixture
) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert "stale: made from another config.json" in fall_back(folder, caplog)


def test_other_names_of_labels_do_not(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"Rain"', '"Regen"'))
    assert "Regen" in graph.load(folder).labels


@pytest.mark.parametrize("place", [0.5, -1])
def test_damage_is_noticed(folder: Path, place: float, caplog: pytest.LogCaptureFixture) -> None:
    data = bytearray((folder / GRAPH).read_bytes())
    data[int(place * len(data)) if place > 0 else -1] ^= 1
    (folder / GRAPH).write_bytes(data)
    assert "damaged" in fall_back(folder, caplog)


@pytest.mark.parametrize("kept", [0, 50, 0.5, -1])
def test_half_a_file_is_noticed(
    folder: Path, kept: float, caplog: pytest.LogCaptureFixture
) -> None:
    data = (folder / GRAPH).read_bytes()
    (folder / GRAPH).write_bytes(data[: int(kept * len(data)) if 0 < kept < 1 else int(kept)])
    assert "damaged" in fall_back(folder, caplog)


def test_what_is_no_graph_of_ours_is_not_run(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = b"not a graph"
    (folder / GRAPH).write_bytes(data + graph.seal(data))
    assert "onnxruntime cannot load it" in fall_back(folder, caplog)
    caplog.clear()
    plain = _foreign()
    (folder / GRAPH).write_bytes(plain + graph.seal(plain))
    assert "not a graph of this program" in fall_back(folder, caplog)


@pytest.mark.parametrize("place", ["secret", "../secret"])
def test_a_graph_reads_no_other_files(
    folder: Path, place: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    secret = (folder / GRAPH).parent.parent / "secret"
    secret.write_bytes(b"1234")
    monkeypatch.chdir(secret.parent)
    data = _foreign(place)
    (folder / GRAPH).write_bytes(data + graph.seal(data))
    assert "onnxruntime cannot load it" in fall_back(folder, caplog)


@pytest.mark.parametrize("fact", [None, "-x"])
def test_a_graph_without_its_facts_is_not_run(folder: Path, fact: str | None) -> None:
    made = onnx.load(folder / GRAPH)
    (entry,) = [entry for entry in made.metadata_props if entry.key == "audiossl.least"]
    made.metadata_props.remove(entry)
    if fact:
        made.metadata_props.add(key="audiossl.least", value=fact)
    data = made.SerializeToString()
    (folder / GRAPH).write_bytes(data + graph.seal(data))
    with pytest.raises(ModelError, match=r"model\.onnx: not a graph of this program"):
        graph.load(folder)


def test_damaged_weights_are_an_error_whatever_computes(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flip(folder / "model.safetensors")
    for backend in network.BACKENDS:
        with pytest.raises(ModelError, match="damaged"):
            network.load(str(folder), backend=backend)
    assert not caplog.messages


def test_the_command_warns_and_goes_on(cli: Run, clips: Path, folder: Path) -> None:
    flip(folder / GRAPH)
    done = cli("tag", clips / "speech.flac", "--model", folder)
    assert done.returncode == 0
    assert json.loads(done.stdout)["labels"][0]["label"] == "Speech"
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith(f"audiossl: warning: {folder / GRAPH}: damaged")
    done = cli("tag", clips / "speech.flac", "--model", folder, "--backend", "onnx")
    assert (done.returncode, done.stdout) == (5, b"")


def test_in_python(both: tuple[Graph, Model], clips: Path) -> None:
    path = clips / "speech.flac"
    records = [audiossl.tag(path, model)[0] for model in ("tagger", *both)]
    assert [record.labels[0].label for record in records] == ["Speech"] * 3
    wave, rate = audio.read(path, 16000)
    assert audiossl.Tagger.load().scores(wave[None, :rate]).shape == (1, len(both[0].labels))


def _foreign(weights: str = "") -> bytes:
    """A sound ONNX file that knows nothing of this program; `weights`: a file that holds them."""
    stored = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    if weights:
        stored = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1])
        stored.data_location = TensorProto.EXTERNAL
        facts = {"location": weights, "length": "4"}
        stored.external_data.extend(
            StringStringEntryProto(key=key, value=value) for key, value in facts.items()
        )
    nodes = [helper.make_node("Mul", ["wave", "w"], ["scores"])]
    shape = ["batch", "samples"]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in ("wave", "scores")]
    made = helper.make_graph(nodes, "g", ends[:1], ends[1:], [stored])
    opset = [helper.make_opsetid("", 18)]
    return helper.make_model(made, opset_imports=opset, ir_version=9).SerializeToString()
