"""PaSST against stored outputs of its authors' code; patchout; lengths; released files; recipes."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from test_ast import (
    assert_as_stored,
    assert_spectrogram,
    assert_tokens,
    fixture,
    waves,
)
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import binary_cross_entropy_with_logits, pad
from torch.utils.flop_counter import FlopCounterMode

from audiossl import model as model_folders
from audiossl import models
from audiossl.engine import starting_model, train
from audiossl.errors import ModelError, RecipeError
from audiossl.hub import convert, writing
from audiossl.models.parts.published import Checkpoint
from audiossl.recipe import loading as recipe

RATE = 32000

# The first four losses of `tiny/passt` on the clips below, seed 0.
GOLDEN = [1.087329, 0.710675, 1.030217, 0.565180]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The fixture's released file converted and loaded, what the reference is and what it gave."""
    folder = tmp_path_factory.mktemp("passt")
    facts, stored, tensors = fixture("passt__depth3_d192_s10")
    torch.save(tensors, folder / "passt-s-kd-ap.486.pt")
    done = convert.convert_folder(folder / "passt-s-kd-ap.486.pt", folder / "model")
    assert done.layout == "passt"
    assert set(done.unused) == {"head_dist.weight", "head_dist.bias"}
    return model_folders.load(str(folder / "model")), facts, stored


@pytest.fixture(scope="module")
def spec(reference):
    """(2, 128, 1000): the fixture's waves, the shorter one filled with zeros."""
    model, facts, _ = reference
    sounds = waves(facts)
    longest = max(map(len, sounds))
    return model.frontend(torch.stack([pad(wave, (0, longest - len(wave))) for wave in sounds]))


def test_the_stored_spectrogram(reference, spec):
    model, facts, stored = reference
    assert_spectrogram("mel_T", spec, stored, facts)
    stats = [spec.mean(), spec.std(correction=0), spec.min(), spec.max()]
    difference = np.abs(np.array([float(value) for value in stats]) - stored["mel_T/stats"])
    assert difference.max() <= facts["outputs"]["mel_T/stats"]["tol"]
    ends = [model.frontend.arguments["fmin"], model.frontend.arguments["fmax"]]
    assert ends == stored["mel_fmin_fmax"].tolist()


@pytest.mark.parametrize(("name", "frames"), [("", 998), ("", 1000), ("short/", 400)])
def test_stored_tokens_features_and_logits(reference, spec, name, frames):
    """Also of 1000 frames, which is what 10 s give and fills no further patch."""
    model, facts, stored = reference
    with torch.no_grad():
        tokens = model.encoder(spec[..., :frames])
        features = model.encoder.embed(spec[..., :frames])
        logits = model.classify(spec[..., :frames])
    assert_tokens(f"{name}tokens", tokens, stored, facts)
    assert_as_stored(f"{name}features", features, stored, facts)
    assert_as_stored(f"{name}logits", logits, stored, facts)


def test_stored_patchout_and_its_gradients(reference, spec):
    model, facts, stored = reference
    arguments = {k: v for k, v in model.config.architecture.items() if k != "name"}
    encoder: Any = models.build("passt", **arguments, patchout_time=40, patchout_frequency=4)
    encoder.load_state_dict(model.encoder.state_dict())
    into = watch(encoder)
    torch.manual_seed(facts["spec"]["seed"])
    tokens = encoder.train()(spec[..., :998])
    assert tokens.shape[1] == 474
    assert_tokens("patchout/tokens_into_blocks", into[0], stored, facts)
    assert_tokens("patchout/tokens", tokens, stored, facts)
    logits = model.head(tokens[:, :2].mean(1))
    assert_as_stored("patchout/logits_train_mode", logits, stored, facts)
    labels = torch.from_numpy(stored["patchout/labels"]).float()
    loss = binary_cross_entropy_with_logits(logits, labels)
    assert_as_stored("patchout/loss_bce", loss, stored, facts)
    model.head.zero_grad()
    loss.backward()
    owners = {
        "cls_token": encoder.cls_token,
        "new_pos_embed": encoder.class_pos_embed,
        "time_new_pos_embed": encoder.time_pos_embed,
        "freq_new_pos_embed": encoder.freq_pos_embed,
        "patch_embed.proj.weight": encoder.patch_embed.weight,
        "blocks.0.attn.qkv.weight": encoder.blocks[0].attn.qkv.weight,
        "norm.weight": encoder.norm.weight,
        "head.1.weight": model.head.linear.weight,
    }
    stored_names = {key for key in stored.files if key.startswith("grad_norm/")}
    assert {f"grad_norm/{name}" for name in owners} == stored_names
    for name, parameter in owners.items():
        assert_as_stored(f"grad_norm/{name}", parameter.grad.norm(), stored, facts)
    torch.manual_seed(facts["spec"]["seed"])
    for size, left, axis in ((99, 59, "time"), (12, 8, "freq")):
        kept = torch.randperm(size)[:left].sort().values
        assert kept.tolist() == stored[f"patchout/{axis}_indices_kept"].tolist()


def watch(encoder: Any) -> list[Tensor]:
    """What goes into the blocks, call by call."""
    seen: list[Tensor] = []
    encoder.blocks[0].register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    return seen


# --- patchout -------------------------------------------------------------------------------------


def small(**arguments: Any) -> Any:
    torch.manual_seed(0)
    return models.build("passt", **{"dim": 8, "depth": 1, "heads": 2, **arguments})


def numbered(**patchout: int) -> tuple[Any, list[Tensor]]:
    """An encoder whose patch tokens say in their first value where they stand: 1000 row + column.

    Its second value is the clip's, so that one sees which patches the clips have.
    """
    encoder = small(**patchout).train()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.zero_()
        encoder.time_pos_embed[0, 0, 0] = torch.arange(99.0)
        encoder.freq_pos_embed[0, 0, :, 0] = 1000 * torch.arange(12.0)
    return encoder, watch(encoder)


def places(tokens: Tensor) -> list[tuple[int, int]]:
    """(row, column) of the patches of one clip, in token order."""
    return [divmod(int(value), 1000) for value in tokens[2:, 0].tolist()]


def test_structured_patchout_takes_whole_columns_and_rows_the_same_for_all_clips():
    encoder, seen = numbered(patchout_time=40, patchout_frequency=4)
    for seed in (1, 2):
        torch.manual_seed(seed)
        encoder(torch.zeros(3, 128, 998))
    first, second = seen
    assert first.shape == (3, 2 + 59 * 8, 8)
    assert torch.equal(first[0], first[1])
    assert torch.equal(first[0], first[2])
    found = places(first[0])
    rows, columns = (sorted({place[axis] for place in found}) for axis in (0, 1))
    assert (len(rows), len(columns)) == (8, 59)
    assert found == [(row, column) for row in rows for column in columns]
    assert places(second[0]) != found


def test_unstructured_patchout_takes_single_patches_in_order():
    encoder, seen = numbered(patchout=400)
    encoder(torch.zeros(2, 128, 998))
    assert seen[0].shape == (2, 2 + 12 * 99 - 400, 8)
    found = places(seen[0][0])
    assert found == sorted(set(found))
    assert len({column for _, column in found}) == 99
    both, seen = numbered(patchout_time=90, patchout_frequency=2, patchout=7)
    both(torch.zeros(1, 128, 998))
    assert seen[0].shape[1] == 2 + 9 * 10 - 7


def test_patchout_saves_the_blocks_work():
    """Multiplications of a block are those of so many tokens, quadratic in attention."""
    encoder, dim = small(patchout_time=40, patchout_frequency=4), 8
    spec = torch.randn(1, 128, 998)
    for training, tokens in ((True, 474), (False, 1190)):
        encoder.train(training)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            encoder(spec)
        counted = sum(counter.get_flop_counts()["PaSST.blocks.0"].values())
        assert counted == 2 * tokens * 12 * dim**2 + 4 * tokens**2 * dim


def test_evaluation_uses_every_patch_and_nothing_random():
    encoder = small(patchout_time=40, patchout_frequency=4, patchout=100).eval()
    seen = watch(encoder)
    spec = torch.randn(2, 128, 700)  # shorter than the table: in training, from a random place
    with torch.no_grad():
        first, again = encoder(spec), encoder(spec)
        alone = encoder(spec[:1])
    assert first.shape == (2, 2 + 12 * 69, 8)
    assert seen[0].shape == first.shape
    assert torch.equal(first, again)
    torch.testing.assert_close(alone, first[:1])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"patchout_time": 99}, "patchout_time: columns to leave out: expected 0 to 98 of 99"),
        ({"patchout_frequency": -1}, "patchout_frequency: rows to leave out: expected 0 to 11"),
        ({"patchout": 1188}, "patchout: patches to leave out: expected 0 to 1187 of 1188, got 11"),
    ],
)
def test_patchout_of_everything_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        small(**arguments).train()(torch.zeros(1, 128, 998))


# --- lengths --------------------------------------------------------------------------------------


def test_a_shorter_clip_trains_on_a_random_stretch_of_the_time_table():
    encoder, seen = numbered()
    starts = set()
    for seed in range(30):
        torch.manual_seed(seed)
        encoder(torch.zeros(2, 128, 16 + 10 * 95))  # 96 columns: from 0, 1, 2 or 3
        columns = [column for row, column in places(seen[-1][1]) if row == 0]
        assert columns == list(range(columns[0], columns[0] + 96))
        assert torch.equal(seen[-1][0], seen[-1][1])
        starts.add(columns[0])
    assert starts == {0, 1, 2, 3}
    encoder.eval()(torch.zeros(1, 128, 976))
    assert places(seen[-1][0])[0] == (0, 0)


def test_a_longer_clip_is_embedded_in_pieces_that_cover_it():
    encoder = small(frames=98).eval()  # 9 columns: 96 frames
    spec = torch.randn(1, 128, 311)
    with torch.no_grad():
        pieces = [
            encoder(spec[..., start : start + 96])[:, :2].mean(1) for start in (0, 72, 143, 215)
        ]
        torch.testing.assert_close(encoder.embed(spec), torch.stack(pieces).mean(0))
        assert torch.equal(encoder(spec), encoder(spec[..., :96]))  # tokens are cut
        assert torch.equal(encoder.embed(spec[..., :105]), encoder.embed(spec[..., :96]))
        assert not torch.equal(encoder.embed(spec[..., :106]), encoder.embed(spec[..., :96]))


def test_moments_of_any_length():
    encoder = small(frames=98).eval()
    spec = torch.randn(2, 128, 311)
    with torch.no_grad():
        moments = encoder.timeline(spec)
        second = encoder(spec[..., 90:186])[:, 2:].unflatten(1, (12, 9))
        assert encoder.timeline(spec[..., :5]).shape == (2, 1, 8)
    assert moments.shape == (2, 30, 8)
    torch.testing.assert_close(moments[:, 9:18], second.mean(1))


def test_a_clip_that_fills_no_patch_is_repeated():
    encoder = small().eval()
    spec = torch.randn(2, 128, 5)
    with torch.no_grad():
        assert torch.equal(encoder(spec), encoder(spec.repeat(1, 1, 4)[..., :16]))


def test_nothing_is_printed_and_nothing_warned_of(capfd):
    encoder = small(frames=98, patchout_time=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for frames in (7, 50, 98, 100, 400):
            encoder.eval().embed(torch.zeros(1, 128, frames))
        encoder.train().embed(torch.zeros(1, 128, 400))
    assert capfd.readouterr() == ("", "")


def test_recomputed_blocks_give_the_same_gradient():
    spec, gradients = torch.randn(2, 128, 98), []
    for checkpointing in (False, True):
        encoder = small(frames=98, patchout_time=2, checkpointing=checkpointing).train()
        torch.manual_seed(3)
        encoder.embed(spec).square().sum().backward()
        gradients.append([parameter.grad for parameter in encoder.parameters()])
    torch.testing.assert_close(*gradients)


# --- released files -------------------------------------------------------------------------------


def released(
    depth: int = 2, dim: int = 64, rows: int = 12, columns: int = 99, classes: int = 527
) -> dict[str, Tensor]:
    """A state dict as the authors' class has it, with a smaller network in it."""
    encoder = models.build("passt", dim=dim, depth=depth, heads=1, frames=98)
    tensors = {
        name.replace("patch_embed.", "patch_embed.proj."): value.detach()
        for name, value in encoder.state_dict().items()
        if not name.endswith("pos_embed")
    }
    head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, classes)).state_dict()
    tensors |= {f"head.{name}": value for name, value in head.items()}
    other = nn.Linear(dim, classes).state_dict()
    tensors |= {f"head_dist.{name}": value for name, value in other.items()}
    tensors["new_pos_embed"] = torch.zeros(1, 2, dim)
    tensors["freq_new_pos_embed"] = torch.zeros(1, dim, rows, 1)
    tensors["time_new_pos_embed"] = torch.zeros(1, dim, 1, columns)
    return tensors


def test_the_size_of_the_released_models():
    assert len(released(depth=12)) == 159
    with torch.device("meta"):
        encoder = models.build("passt")
    heads = 2 * 768 + 2 * 527 * (768 + 1)  # both of the reference's
    assert sum(value.numel() for value in encoder.parameters()) + heads == 86_153_758


@pytest.mark.parametrize(
    ("rows", "columns", "frontend", "found"),
    [
        (12, 99, {}, (10, 998, 320, 10.0)),
        (10, 83, {}, (12, 998, 320, 10.0)),
        (9, 71, {}, (14, 998, 320, 10.0)),
        (8, 62, {}, (16, 998, 320, 10.0)),
        (12, 300, {}, (10, 3000, 320, 30.0)),
        (12, 320, {}, (10, 3200, 100, 10.0)),
        (12, 200, {"hop": 320}, (10, 2000, 320, 20.0)),
        (12, 200, {"hop": 160}, (10, 2000, 160, 10.0)),
    ],
)
def test_what_the_shapes_say(rows, columns, frontend, found):
    stride, frames, hop, seconds = found
    tensors = released(rows=rows, columns=columns)
    config = convert.convert(Checkpoint(tensors, overrides={"frontend": frontend})).config
    assert config.architecture["stride"] == [stride, stride]
    assert (config.architecture["frames"], config.architecture["heads"]) == (frames, 1)
    assert (config.frontend["hop"], config.window_seconds) == (hop, seconds)
    assert (config.task, config.labels[0]) == ("tag", "Speech")


@pytest.mark.parametrize(
    ("classes", "activation"), [(527, "sigmoid"), (200, "sigmoid"), (50, "softmax")]
)
def test_the_activation_goes_by_the_data_set(classes, activation):
    head = convert.convert(Checkpoint(released(classes=classes))).config.head
    assert head is not None
    assert head["activation"] == activation


def test_tables_that_leave_it_open_are_refused():
    with pytest.raises(ModelError, match="200 columns: give the frontend's hop"):
        convert.convert(Checkpoint(released(columns=200)))
    with pytest.raises(ModelError, match="freq_new_pos_embed has 7 rows"):
        convert.convert(Checkpoint(released(rows=7)))
    tensors = released()
    del tensors["blocks.1.norm1.bias"]
    with pytest.raises(ModelError, match=r"missing: encoder\.blocks\.1\.norm1\.bias"):
        convert.convert(Checkpoint(tensors))


def test_where_the_released_files_come_from(reference):
    config = reference[0].config
    assert (config.licence, config.data) == ("Apache-2.0", ["ImageNet", "AudioSet"])
    assert config.source == "https://github.com/kkoutini/PaSST/releases"
    names = [item.name for item in convert.published() if item.layout == "passt"]
    assert "passt-s-f128-p16-s10-ap.476-swa.pt" in names
    assert len(names) == len(set(names))


# --- training -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """16 clips of a second: a tone and some noise, two labels."""
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    seconds = np.arange(RATE) / RATE
    for label, pitch in {"high": 4000, "low": 300}.items():
        (folder / label).mkdir()
        for i in range(8):
            tone = np.sin(2 * np.pi * pitch * rng.uniform(0.9, 1.1) * seconds)
            wave = 0.3 * tone + 0.02 * rng.standard_normal(RATE)
            soundfile.write(folder / label / f"{i}.wav", wave, RATE)
    return folder


@pytest.fixture(scope="module")
def run(clips, tmp_path_factory) -> train.Result:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("run") / "passt"
    return train.fit(recipe.load("tiny/passt", [f"data.train={clips}", f"out={out}"]))


def test_the_tiny_recipe_learns(run):
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[:4] == pytest.approx(GOLDEN, rel=1e-4)
    heldout = [row["valid_loss"] for row in rows if "valid_loss" in row]
    assert heldout[-1] < heldout[0] / 3
    assert run.metrics["accuracy"] == 1


def test_the_trained_model_is_complete_and_takes_all_patches(run, clips):
    model = model_folders.load(str(run.folder / "best"))
    seen = watch(model.encoder)
    wave = torch.from_numpy(soundfile.read(clips / "low" / "0.wav", dtype="float32")[0])
    with torch.no_grad():
        assert torch.equal(model(wave[None]), model(wave[None]))
        assert model.labels[int(model(wave[None]).argmax())] == "low"
    assert seen[0].shape[1] == 2 + 8 * 9
    model.train()(wave[None])
    assert seen[-1].shape[1] == 2 + (8 - 2) * (9 - 3)


def test_the_esc50_recipe_starts_from_a_released_file(tmp_path):
    start = convert.convert(Checkpoint(released()))
    writing.write_folder(start.tensors, start.config, tmp_path / "passt")
    given = [f"model.from={tmp_path / 'passt'}", "data.labels=[rain, wind]"]
    model = starting_model.build_model(recipe.load("passt_esc50", given))
    encoder = model.encoder
    assert (encoder.patchout_time, encoder.patchout_frequency) == (10, 5)
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, start.tensors[f"encoder.{name}"]), name
    assert model.labels == ["rain", "wind"]
    seen = watch(encoder)
    model.train()(torch.zeros(1, 5 * RATE))
    assert seen[0].shape[1] == 2 + (12 - 5) * (49 - 10)


def test_the_papers_recipe_leaves_474_tokens():
    arguments = recipe.load("passt").model.architecture or {}
    model = small(**{key: value for key, value in arguments.items() if key not in ("name", "size")})
    assert model.train()(torch.zeros(1, 128, 1000)).shape[1] == 474


def test_wrong_arguments_are_named():
    with pytest.raises(ModelError, match="did you mean 'patchout_time'"):
        models.build("passt", patchout_tme=3)
    with pytest.raises(ValueError, match="size: expected one of tiny"):
        models.build("passt", size="medium")
    given = ["data.labels=[a, b]", "model.architecture.patchout_tme=3"]
    with pytest.raises(RecipeError, match="patchout_tme"):
        starting_model.build_model(recipe.load("tiny/passt", given))
