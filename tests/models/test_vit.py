"""The ViT against slow hand-written versions, and against the references' parameter counts."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from audiossl import models
from audiossl.models.parts.layers import DropPath, build_head
from audiossl.models.vit import SIZES, ViT, resize_table, sincos

SMALL = {"dim": 16, "depth": 2, "heads": 2, "mel": 32, "frames": 48}


def vit(**arguments) -> ViT:
    torch.manual_seed(0)
    return ViT("tiny", **{**SMALL, **arguments}).eval()


def spectrogram(frames: int = 48, mel: int = 32, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, mel, frames, generator=torch.Generator().manual_seed(1))


def slow_patches(encoder: ViT, spec: torch.Tensor, patch, stride, order) -> torch.Tensor:
    """Patch by patch: cut it out, take the inner product with each kernel."""
    weight, bias = encoder.patch_embed.weight, encoder.patch_embed.bias
    mel, frames = spec.shape[1:]
    places = [
        (f, t)
        for f in range(0, mel - patch[0] + 1, stride[0])
        for t in range(0, frames - patch[1] + 1, stride[1])
    ]
    if order == "time":
        places.sort(key=lambda place: (place[1], place[0]))
    tokens = []
    for f, t in places:
        cut = spec[:, f : f + patch[0], t : t + patch[1]]
        if order == "time":
            cut = cut.transpose(1, 2)
        tokens.append(cut.flatten(1) @ weight.flatten(1).T + bias)
    return torch.stack(tokens, dim=1)


def slow_blocks(encoder: ViT, x: torch.Tensor) -> torch.Tensor:
    """Attention one head and one query at a time, by its definition."""
    for block in encoder.blocks:
        attention = block.attn
        y = block.norm1(x)
        q, k, v = F.linear(y, attention.qkv.weight, attention.qkv.bias).chunk(3, dim=-1)
        size = encoder.dim // attention.heads
        mixed = torch.zeros_like(y)
        for head in range(attention.heads):
            own = slice(head * size, (head + 1) * size)
            for query in range(y.shape[1]):
                score = (q[:, query, None, own] * k[:, :, own]).sum(-1) / math.sqrt(size)
                share = torch.exp(score) / torch.exp(score).sum(-1, keepdim=True)
                mixed[:, query, own] = (share[..., None] * v[:, :, own]).sum(1)
        x = x + attention.proj(mixed)
        hidden = block.mlp.fc1(block.norm2(x))
        hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
        x = x + block.mlp.fc2(hidden)
    return x


@pytest.mark.parametrize("order", ["frequency", "time"])
@pytest.mark.parametrize(
    ("patch", "stride"), [((16, 16), None), ((16, 16), (10, 7)), ((32, 2), None)]
)
def test_patches_equal_a_loop_over_the_spectrogram(order, patch, stride):
    encoder = vit(order=order, patch=patch, stride=stride)
    spec = spectrogram()
    slow = slow_patches(encoder, spec, patch, stride or patch, order)
    assert torch.allclose(encoder.patches(spec), slow, atol=1e-5)
    pixels = encoder.patch_pixels(spec)
    weight = encoder.patch_embed.weight.flatten(1)
    assert torch.allclose(pixels @ weight.T + encoder.patch_embed.bias, slow, atol=1e-5)


def test_tokens_equal_a_vit_by_definition():
    encoder = vit(class_tokens=2, pooling="cls_dist", stride=(8, 8))
    spec = spectrogram()
    front = torch.cat([encoder.cls_token, encoder.dist_token], dim=1).expand(2, -1, -1)
    x = torch.cat([front, slow_patches(encoder, spec, (16, 16), (8, 8), "frequency")], dim=1)
    expected = encoder.norm(slow_blocks(encoder, x + encoder.pos_embed))
    assert torch.allclose(encoder(spec), expected, atol=1e-5)
    assert torch.allclose(encoder.embed(spec), (expected[:, 0] + expected[:, 1]) / 2, atol=1e-5)


def test_poolings():
    spec = spectrogram()
    cls = vit(pooling="cls")
    assert torch.equal(cls.embed(spec), cls(spec)[:, 0])
    mean = vit(pooling="patches", class_tokens=2)
    assert torch.allclose(mean.embed(spec), mean(spec)[:, 2:].mean(1), atol=1e-6)
    none = vit(pooling="patches", class_tokens=0)
    assert torch.allclose(none.embed(spec), none(spec).mean(1), atol=1e-6)
    last = vit(pooling="fc_norm")
    raw = last.forward_tokens(last.patches(spec) + last.positions(48), normalise=False)
    assert torch.allclose(last.embed(spec), last.fc_norm(raw[:, 1:].mean(1)), atol=1e-6)
    assert not torch.allclose(raw, last(spec))
    bare = vit(pooling="fc_norm", final_norm=False)
    assert "norm.weight" not in bare.state_dict()


def test_masked_tokens_are_simply_not_there():
    encoder = vit()
    spec = spectrogram()
    tokens = encoder.patches(spec) + encoder.positions(48)
    kept = torch.tensor([4, 0, 3])
    some = encoder.forward_tokens(tokens[:, kept])
    front = (encoder.cls_token + encoder.pos_embed[:, :1]).expand(2, -1, -1)
    expected = encoder.norm(slow_blocks(encoder, torch.cat([front, tokens[:, kept]], dim=1)))
    assert torch.allclose(some, expected, atol=1e-5)
    assert torch.allclose(encoder.forward_tokens(tokens), encoder(spec), atol=1e-6)


def slow_sincos(row: int, column: int, dim: int) -> list[float]:
    values = []
    for place in (column, row):
        angles = [place / 10_000 ** (i / (dim // 4)) for i in range(dim // 4)]
        values += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
    return values


def test_sincos_table_by_its_formula():
    table = sincos(12, 4, 16)
    expected = [slow_sincos(index // 4, index % 4, 16) for index in range(12)]
    assert torch.allclose(table[0], torch.tensor(expected), atol=1e-6)
    with pytest.raises(ValueError, match="multiple of 4"):
        sincos(12, 4, 18)


def test_swapped_table_numbers_time_major_tokens_as_if_they_were_frequency_major():
    right = vit(order="time", positions="sincos", frames=96)  # 6 instants x 2 bands
    slip = vit(order="time", positions="sincos_swapped", frames=96)
    for index in range(12):
        time, band = divmod(index, 2)
        assert torch.allclose(
            right.positions(96)[0, index], torch.tensor(slow_sincos(time, band, 16)), atol=1e-6
        )
        row, column = divmod(index, 6)
        assert torch.allclose(
            slip.positions(96)[0, index], torch.tensor(slow_sincos(row, column, 16)), atol=1e-6
        )
    assert "pos_embed" not in slip.state_dict()


@pytest.mark.parametrize("kind", ["sincos", "sincos_swapped"])
def test_time_major_sincos_gives_each_instant_its_place_whatever_the_length(kind):
    encoder = vit(order="time", positions=kind, frames=96)
    table = encoder.positions(96)
    assert torch.equal(encoder.positions(48), table[:, :6])
    assert torch.equal(encoder.positions(160)[:, :12], table)


def slow_bilinear(image: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """(old rows, old columns, dim): a new cell's centre lies between those of four old ones."""
    height, width, dim = image.shape
    out = torch.zeros(rows, columns, dim)
    for r in range(rows):
        for c in range(columns):
            y = max((r + 0.5) * height / rows - 0.5, 0)
            x = max((c + 0.5) * width / columns - 0.5, 0)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            a, b = y - top, x - left
            upper = (1 - b) * image[top, left] + b * image[top, right]
            lower = (1 - b) * image[bottom, left] + b * image[bottom, right]
            out[r, c] = (1 - a) * upper + a * lower
    return out


def table_of(rows: int, columns: int, dim: int = 3) -> torch.Tensor:
    return torch.randn(1, rows * columns, dim, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    ("old", "new"), [((8, 6), (8, 9)), ((8, 6), (12, 11)), ((4, 5), (5, 5)), ((1, 6), (1, 9))]
)
def test_a_growing_table_is_stretched(old, new):
    table = table_of(*old)
    expected = slow_bilinear(table.view(*old, 3), *new).view(1, -1, 3)
    assert torch.allclose(resize_table(table, old, new), expected, atol=1e-5)


@pytest.mark.parametrize(("old", "new"), [((4, 9), (4, 4)), ((4, 9), (3, 5)), ((5, 8), (2, 3))])
def test_a_shrinking_table_keeps_its_middle_or_is_squeezed(old, new):
    table = table_of(*old)
    image = table.view(*old, 3)
    top, left = old[0] // 2 - new[0] // 2, old[1] // 2 - new[1] // 2
    middle = image[top : top + new[0], left : left + new[1]].reshape(1, -1, 3)
    assert torch.equal(resize_table(table, old, new, "cut"), middle)
    squeezed = slow_bilinear(image, *new).view(1, -1, 3)
    assert torch.allclose(resize_table(table, old, new, "interpolate"), squeezed, atol=1e-5)


def test_cut_in_time_and_stretch_in_frequency_as_ssast_fine_tunes():
    """8 x 64 patches without overlap to 12 x 50 with it: the middle 50 columns, then stretched."""
    table = table_of(8, 64)
    middle = table.view(8, 64, 3)[:, 7:57]
    expected = slow_bilinear(middle, 12, 50).view(1, -1, 3)
    assert torch.allclose(resize_table(table, (8, 64), (12, 50)), expected, atol=1e-5)
    assert torch.allclose(
        resize_table(table, (8, 64), (12, 50), ssast_bug=True), expected, atol=1e-5
    )


def test_the_bug_of_ssast_only_on_request():
    table = table_of(16, 6)
    right = resize_table(table, (16, 6), (16, 12))
    assert torch.allclose(
        right, slow_bilinear(table.view(16, 6, 3), 16, 12).view(1, -1, 3), atol=1e-5
    )
    eight = slow_bilinear(table.view(16, 6, 3), 8, 12)  # passes through 8 rows: detail is lost
    wrong = resize_table(table, (16, 6), (16, 12), ssast_bug=True)
    assert torch.allclose(wrong, slow_bilinear(eight, 16, 12).view(1, -1, 3), atol=1e-5)
    assert not torch.allclose(right, wrong, atol=1e-2)
    with pytest.raises(ValueError, match="leave its bug out"):
        resize_table(table_of(8, 6), (8, 6), (4, 6), ssast_bug=True)


def test_another_length_at_run_time_equals_a_refit():
    encoder = vit(class_tokens=2)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    long = spectrogram(frames=80)
    expected = encoder(long)
    assert torch.equal(encoder.pos_embed, before["pos_embed"])
    encoder.refit(80)
    assert encoder.frames == 80
    assert torch.equal(encoder(long), expected)
    assert torch.equal(encoder.pos_embed[:, :2], before["pos_embed"][:, :2])
    assert isinstance(encoder.pos_embed, nn.Parameter)


def test_refit_to_overlapping_patches_keeps_the_weights():
    encoder = vit(class_tokens=2)
    weight = encoder.patch_embed.weight.clone()
    encoder.refit(48, stride=(8, 4))
    assert encoder.grid(48) == (3, 9)
    assert encoder(spectrogram()).shape == (2, 2 + 27, 16)
    assert torch.equal(encoder.patch_embed.weight, weight)
    fresh = vit(class_tokens=2, stride=(8, 4))
    fresh.load_state_dict(encoder.state_dict())
    assert torch.equal(fresh(spectrogram()), encoder(spectrogram()))


@pytest.mark.parametrize("order", ["time", "frequency"])
@pytest.mark.parametrize("positions", ["learned", "sincos"])
def test_only_the_patches_that_are_kept_are_looked_at(order, positions):
    encoder = vit(order=order, positions=positions, pooling="fc_norm", stride=(8, 4))
    spec, kept = spectrogram(), torch.tensor([[4, 0, 3], [1, 5, 2]])
    tokens = encoder.patches(spec) + encoder.positions(48)
    chosen = torch.stack([tokens[0, [4, 0, 3]], tokens[1, [1, 5, 2]]])
    assert_close(encoder(spec, kept), encoder.forward_tokens(chosen))
    raw = encoder.forward_tokens(chosen, normalise=False)
    assert_close(encoder.embed(spec, kept), encoder.pool(raw))
    with pytest.raises(ValueError, match="expected spec"):
        encoder(spec[:, 1:], kept)


def test_drop_path_leaves_out_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    drop = DropPath(0.25)
    ones = torch.ones(4000, 3, 2)
    out = drop(ones)
    values = out[:, 0, 0]
    assert torch.equal(out, values[:, None, None].expand_as(out))
    assert sorted(set(values.tolist())) == pytest.approx([0, 1 / 0.75])
    assert out.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(drop.eval()(ones), ones)
    rates = [block.drop_path.rate for block in vit(depth=3, drop_path=0.2).blocks]
    assert rates == pytest.approx([0, 0.1, 0.2])


def test_checkpointing_changes_no_gradient():
    grads = []
    for checkpointing in (False, True):
        encoder = vit(checkpointing=checkpointing).train()
        encoder(spectrogram()).square().sum().backward()
        grads.append({name: value.grad for name, value in encoder.named_parameters()})
    assert all(torch.equal(grads[0][name], grads[1][name]) for name in grads[0])


def test_every_parameter_gets_a_gradient():
    encoder = vit(class_tokens=2, pooling="cls_dist")
    encoder.embed(spectrogram()).square().sum().backward()
    assert [name for name, value in encoder.named_parameters() if value.grad is None] == []


def count(encoder: nn.Module) -> int:
    return sum(value.numel() for value in encoder.parameters())


@pytest.mark.parametrize(
    ("size", "millions"), [("base", 85.45), ("large", 302.84), ("huge", 630.34)]
)
def test_bird_mae_sizes(size, millions):
    """Parameters of the reference's encoder, its fixed table included (specification, 0.3)."""
    with torch.device("meta"):
        encoder = ViT(size, frames=512, order="time", positions="sincos_swapped")
    table = (1 + 256) * encoder.dim
    assert (count(encoder) + table) / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize(
    ("size", "millions"), [("tiny", 6.046), ("small", 22.854), ("base", 88.763)]
)
def test_ssast_sizes(size, millions):
    """Parameters of the reference's pretraining model, DeiT's two ImageNet heads included."""
    with torch.device("meta"):
        encoder = ViT(size, class_tokens=2)
    dim = encoder.dim
    predictors = 2 * (dim * dim + dim + 256 * dim + 256)
    imagenet, mask = 2 * (1000 * dim + 1000), dim
    total = count(encoder) + predictors + imagenet + mask
    assert total / 1e6 == pytest.approx(millions, abs=0.0006)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"size": "enormous"}, "size"),
        ({"order": "mel"}, "order"),
        ({"positions": "rotary"}, "positions"),
        ({"fit": "crop"}, "fit"),
        ({"class_tokens": 3}, "class_tokens"),
        ({"pooling": "max"}, "pooling"),
        ({"pooling": "cls", "class_tokens": 0}, "needs 1"),
        ({"pooling": "cls_dist"}, "needs 2"),
        ({"positions": "sincos_swapped"}, "time order"),
        ({"heads": 3, "dim": 16}, "multiple of heads"),
        ({"frames": 8}, "one patch"),
        ({"drop_path": 1.0}, "drop_path"),
    ],
)
def test_settings_that_do_not_go_together(arguments, words):
    with pytest.raises(ValueError, match=words):
        models.build("vit", **{**SMALL, **arguments})


@pytest.mark.parametrize("shape", [(2, 31, 48), (2, 32, 15), (32, 48)])
def test_spectrograms_that_do_not_fit(shape):
    with pytest.raises(ValueError, match=r"expected spec|one patch"):
        vit()(torch.zeros(shape))


def test_encoder_protocol_by_name():
    encoder = models.build("vit", size="tiny", depth=1)
    assert encoder.dim == SIZES["tiny"][0]
    head = build_head(encoder.dim, {"name": "linear", "labels": ["a", "b"]})
    assert head(encoder.embed(torch.zeros(3, 128, 1024))).shape == (3, 2)
