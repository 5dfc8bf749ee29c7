"""Attentive and prototypical probes against slow loops and Bird-MAE's stored outputs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from parity_fill import fill, wave
from torch import Tensor

from audiossl import frontend
from audiossl.evaluate import probes, tokens
from audiossl.evaluate.probes import Goal, Settings, attentive, prototypical
from audiossl.evaluate.probes.attentive import AttentivePooling
from audiossl.evaluate.probes.prototypical import Prototypical
from audiossl.evaluate.tokens import Tokens, TokenWriter
from audiossl.methods import supervised
from audiossl.models.vit import ViT

PARITY = Path(__file__).parents[1] / "data" / "parity" / "bird_mae__d192_depth4"
DIM = 16


@pytest.fixture
def clips(tmp_path: Path) -> Tokens:
    """Two clips of one window, one of three; grids of 2 x 3, one of 2 x 2; one class token."""
    rng = np.random.default_rng(0)
    with TokenWriter(tmp_path) as writer:
        for place, grids in enumerate([[(2, 3)], [(2, 3), (2, 2), (2, 3)], [(2, 3)]]):
            for rows, columns in grids:
                values = rng.normal(size=(1 + rows * columns, DIM)).astype(np.float16)
                writer.add(place, values, (rows, columns))
        writer.finish([0, 1, 2], class_tokens=1)
    return tokens.load(tmp_path)


def test_tokens_come_back_as_they_were_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    written = {place: [] for place in range(4)}
    with TokenWriter(tmp_path) as writer:
        for place in (0, 1, 1, 2, 3):
            values = rng.normal(size=(2 + 6, DIM)).astype(np.float16)
            written[place].append(values)
            writer.add(place, values, (3, 2))
        writer.finish([0, 1, 3], class_tokens=2)
    kept = tokens.load(tmp_path)
    assert isinstance(kept.values, np.memmap)
    assert (len(kept), kept.dim, kept.class_tokens) == (3, DIM, 2)
    taken = kept.take(np.array([2, 1]))
    for position, place in enumerate((3, 1)):
        expected = np.concatenate([own[2:] for own in written[place]])
        np.testing.assert_array_equal(taken.patches(position).numpy(), expected)
    ((grid, numbers, owners),) = taken.by_grid(np.array([1, 0]))
    assert (grid, numbers, owners) == ((3, 2), [1, 2, 4], [0, 0, 1])
    with TokenWriter(tmp_path) as writer:
        writer.finish([], class_tokens=0)
    assert len(tokens.load(tmp_path)) == 0


def slow_attention(pooling: AttentivePooling, clip: Tensor) -> Tensor:
    """By its definition: keys and values of every token, one head at a time."""
    keys, values = pooling.k(clip), pooling.v(clip)
    size = clip.shape[1] // pooling.heads
    parts = []
    for head in range(pooling.heads):
        own = slice(head * size, (head + 1) * size)
        scores = keys[:, own] @ pooling.cls_token[0, 0, own] / math.sqrt(size)
        shares = torch.exp(scores) / torch.exp(scores).sum()
        parts.append(sum(s * v for s, v in zip(shares, values[:, own], strict=True)))
    return torch.cat(parts)


@pytest.mark.parametrize("heads", [1, 4])
def test_attentive_pooling_is_attention_by_definition(clips: Tokens, heads: int) -> None:
    torch.manual_seed(0)
    pooling = AttentivePooling(DIM, heads)
    torch.nn.init.normal_(pooling.cls_token)
    found = pooling(*attentive.padded(clips, np.arange(3)))
    for place in range(3):
        expected = slow_attention(pooling, clips.patches(place))
        assert torch.allclose(found[place], expected, atol=1e-5)
    alike, mask = attentive.padded(clips, np.array([0, 2]))
    assert mask is None
    assert torch.allclose(pooling(alike), found[[0, 2]], atol=1e-6)


@pytest.mark.parametrize(("dim", "heads"), [(768, 12), (1024, 16), (192, 3), (100, 1), (16, 1)])
def test_heads_have_64_dimensions_or_what_divides(dim: int, heads: int) -> None:
    assert attentive.heads_for(dim) == heads


def slow_activations(net: Prototypical, focal: Tensor, grid: tuple[int, int]) -> Tensor:
    """One window: place by place and prototype by prototype, as the spec's words have it."""
    image = focal.T.unflatten(1, grid)[None]
    up = F.interpolate(image, scale_factor=2, mode="bilinear")[0].flatten(1).T
    found = []
    for prototype in net.prototype_vectors.detach().flatten(1):
        p = torch.cat([prototype, torch.full((2,), 1e-4)])
        p = p / (math.sqrt(float(p.square().sum()) + 1e-4) + 1e-4)
        best = 0.0
        for place in up:
            x = torch.cat([place, torch.full((2,), 1e-4)])
            x = 64 * x / math.sqrt(float(x.square().sum()) + 1e-4)
            best = max(best, float(x @ p) / (64 * 1.01))
        found.append(best)
    return torch.tensor(found)


def test_prototypes_are_compared_in_every_place_of_every_window(clips: Tokens) -> None:
    torch.manual_seed(0)
    net = Prototypical(DIM, classes=3, prototypes=2)
    torch.nn.init.normal_(net.prototype_vectors)
    net.last_layer.weight.data = torch.tensor([[1.0, 2.0], [-1.0, 0.5], [0.3, -2.0]])
    kept: dict[int, Tensor] = {}
    found = prototypical.clip_activations(net, clips, np.array([2, 1]), kept)
    for position, place in enumerate((2, 1)):
        windows = []
        for number in clips.clips[place]:
            window = clips.window(int(number))
            grid = (int(clips.grids[number][0]), int(clips.grids[number][1]))
            windows.append(slow_activations(net, window[1:] - window[0], grid))
        expected = torch.stack(windows).amax(0)
        assert torch.allclose(found[position], expected, atol=1e-5)
        logits = net.last_layer(found)[position]
        for label in range(3):
            own = expected[2 * label : 2 * label + 2]
            by_hand = (own * net.last_layer.weight[label].clamp(min=0)).sum() - 2.0
            assert torch.allclose(logits[label], by_hand, atol=1e-5)
    again = prototypical.clip_activations(net, clips, np.array([2, 1]), kept)
    assert torch.equal(again, found)
    assert sorted(kept) == [1, 2, 3, 4]


def test_a_row_of_tokens_is_upsampled_along_itself() -> None:
    torch.manual_seed(0)
    net = Prototypical(DIM, classes=2, prototypes=2)
    torch.nn.init.normal_(net.prototype_vectors)
    focal = torch.randn(1, 7, DIM)
    expected = slow_activations(net, focal[0], (1, 7))
    assert torch.allclose(net.activations(focal, (1, 7))[0], expected, atol=1e-5)


def test_focal_tokens_have_lost_what_stands_for_the_whole() -> None:
    window = torch.randn(8, DIM)
    assert torch.equal(prototypical.focal(window, 1), window[1:] - window[0])
    assert torch.allclose(prototypical.focal(window, 2), window[2:] - window[:2].mean(0))
    assert torch.allclose(prototypical.focal(window, 0).mean(0), torch.zeros(DIM), atol=1e-6)


def test_orthogonality_is_nothing_for_orthonormal_prototypes_and_grows_with_their_likeness() -> (
    None
):
    net = Prototypical(4, classes=2, prototypes=2)
    net.prototype_vectors.data = torch.eye(4)[:, :, None, None] * 10
    assert net.orthogonality().item() == pytest.approx(0, abs=1e-4)
    net.prototype_vectors.data = torch.ones(4, 4, 1, 1)
    # in each of 2 classes [[0, 1], [1, 0]]: a norm of 2 over 8 elements
    assert net.orthogonality().item() == pytest.approx(2 / 8, abs=1e-3)


def test_the_probe_begins_as_published() -> None:
    net = Prototypical(768, classes=21)
    assert net.prototype_vectors.shape == (420, 768, 1, 1)
    assert sum(value.numel() for value in net.parameters()) == 420 * 768 + 420 + 21
    assert (net.prototype_vectors >= 0).all()
    assert (net.prototype_vectors < 1).all()
    assert (net.last_layer.weight == 1).all()
    assert (net.last_layer.bias == -2).all()


def found_places(rng: np.random.Generator, folder: Path, clips: int) -> tuple[Tokens, Goal]:
    """A clip's class shows in one token only, anywhere in its 4 x 5; the others are background."""
    background, *signs = np.random.default_rng(5).normal(size=(4, DIM))
    with TokenWriter(folder) as writer:
        for clip in range(clips):
            values = 0.4 * rng.normal(size=(21, DIM)) + background
            values[0] = 0
            values[1 + rng.integers(20)] += signs[clip % 3] - background
            writer.add(clip, values.astype(np.float16), (4, 5))
        writer.finish(range(clips), class_tokens=1)
    targets = np.eye(3, dtype=np.float32)[np.arange(clips) % 3]
    return tokens.load(folder), Goal(targets, np.arange(clips), single=True)


@pytest.mark.parametrize("name", ["attentive", "prototypical"])
@pytest.mark.parametrize("single", [True, False])
def test_token_probes_find_a_place_in_the_whole(name: str, single: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for side in ("train", "test"):
        (tmp_path / side).mkdir()
    train, goal = found_places(rng, tmp_path / "train", 90)
    test, wanted = found_places(rng, tmp_path / "test", 70)
    goal = Goal(goal.targets, goal.groups, single)
    settings = Settings(epochs=60, batch_size=32, prototypes=10)
    fit = probes.load(name).fit
    scores = fit(train, goal, settings, 1)(test)
    assert scores.shape == (70, 3)
    least = {"attentive": 0.7, "prototypical": 0.9}[name]  # by chance 0.33
    assert (scores.argmax(1) == wanted.targets.argmax(1)).mean() > least
    torch.manual_seed(5)
    np.testing.assert_array_equal(fit(train, goal, settings, 1)(test), scores)


def test_an_unknown_label_changes_nothing(tmp_path: Path) -> None:
    """The loss of a pair that nobody judged is the same whatever stands there."""
    train, goal = found_places(np.random.default_rng(0), tmp_path, 12)
    goal.targets[4:, 2] = -1
    settings = Settings(epochs=2, prototypes=2)
    for name in ("attentive", "prototypical"):
        fit = probes.load(name).fit
        scores = []
        for unknown in (-1, -5):
            targets = np.where(goal.targets < 0, unknown, goal.targets).astype(np.float32)
            scores.append(fit(train, Goal(targets, goal.groups, single=False), settings, 0)(train))
        np.testing.assert_array_equal(scores[0], scores[1])


# Stored outputs of Bird-MAE's public code


@pytest.fixture(scope="module")
def stored() -> tuple[dict[str, Any], Any]:
    return json.loads(PARITY.with_suffix(".json").read_text()), np.load(PARITY.with_suffix(".npz"))


def filled(facts: dict[str, Any], namespace: str) -> dict[str, Tensor]:
    return {
        key: torch.from_numpy(fill(key, shape, "float32", facts["salt"]))
        for key, shape, _, kind, *_ in facts["keys"][namespace]
        if kind == "filled"
    }


@pytest.fixture(scope="module")
def encoded(stored: tuple[dict[str, Any], Any]) -> tuple[Tensor, Tensor]:
    """Tokens of the fixture's two waves, as the last block gives them and after the final norm."""
    facts, _ = stored
    encoder = ViT(
        dim=192, depth=4, heads=3, mel=128, frames=512, order="time",
        positions="sincos_swapped", pooling="fc_norm",
    ).eval()  # fmt: skip
    weights = filled(facts, "hub_encoder")
    names = set(encoder.state_dict())
    encoder.load_state_dict(
        {(k if k in names else k.replace("patch_embed.proj", "patch_embed")): v
         for k, v in weights.items()}
    )  # fmt: skip
    bird = frontend.build({"preset": "bird_mae"})
    waves = [torch.from_numpy(wave(*arguments))[None] for arguments in facts["spec"]["waves"]]
    with torch.no_grad():
        spec = torch.cat([bird(one) for one in waves])
        places = encoder.patches(spec) + encoder.positions(spec.shape[-1])
        raw = encoder.forward_tokens(places, normalise=False)
        return raw, encoder.norm(raw)


def assert_stored(name: str, value: Tensor, stored: tuple[dict[str, Any], Any]) -> None:
    facts, arrays = stored
    difference = np.abs(value.detach().numpy() - arrays[name]).max()
    assert difference <= facts["outputs"][name]["tol"], name


def test_prototypes_give_the_published_codes_numbers(
    stored: tuple[dict[str, Any], Any], encoded: tuple[Tensor, Tensor]
) -> None:
    """With its reading of the tokens as 8 x 32; weights under their published names."""
    facts, arrays = stored
    focal = torch.stack([prototypical.focal(window, 1) for window in encoded[1]])
    image = focal.transpose(1, 2).unflatten(2, (8, 32))[:, :16]
    assert_stored("ppnet/focal_map_first16ch/head", image[:, :, :6], stored)
    assert_stored("ppnet/focal_map_first16ch/middle", image[:, :, 4:8], stored)
    net = Prototypical(192, classes=21, prototypes=5)
    net.load_state_dict(filled(facts, "ppnet"))
    activations = net.activations(focal, (8, 32))
    assert_stored("ppnet/prototype_activations", activations, stored)
    logits = net(focal, (8, 32))
    assert_stored("ppnet/logits", logits, stored)
    target = torch.from_numpy(arrays["ppnet/labels"]).float()
    loss, apart = supervised.asymmetric(logits, target).mean(), net.orthogonality()
    assert_stored("ppnet/loss_asl_orth_total", torch.stack([loss, apart, loss + apart]), stored)
    (loss + apart).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None
        assert_stored(f"ppnet/grad_norm/{name}", parameter.grad.double().norm(), stored)


def test_attentive_pooling_gives_the_published_codes_numbers(
    stored: tuple[dict[str, Any], Any], encoded: tuple[Tensor, Tensor]
) -> None:
    """On tokens before the final norm, with the encoder's three heads, as there."""
    pooling = AttentivePooling(192, heads=3)
    pooling.load_state_dict(filled(stored[0], "attentive"))
    assert_stored("attentive/pooled", pooling(encoded[0][:, 1:]), stored)
