"""SSAMBA, the Self-Supervised Audio Mamba: Vision Mamba over the patches of a spectrogram.

    spec -> patches (read frequency by frequency) + positions, a class token in front
      -> pairs of blocks -> norm -> tokens (batch, 1 + patches, dim)

  block    residual += what came in; out = mixer(norm(residual))
  pair     one block reads the tokens in order, the other in reverse, both from the same input;
           outputs are added, and so are residuals
  mixer    x, z = in_proj(tokens); for each direction, with weights of its own:
             u = silu(causal convolution of x); delta, B, C from u; scan gated by z
           out = out_proj(mean of both)

So each pair reads its input four times: the mixer goes both ways ("bimamba v2"), and the second
block swaps the two. Adding both residuals doubles the sum so far in every pair, and the authors'
code puts the final norm on twice. Their weights need both; `clean` leaves both out: the residual is
then the mean of the two, which are equal but for drop path.

Papers: Shams, Dindar, Jiang, Mesgarani, "SSAMBA: Self-Supervised Audio Representation Learning with
Mamba State Space Model", SLT 2024 (arXiv:2405.11831); Zhu et al., "Vision Mamba", ICML 2024
(arXiv:2401.09417); Gu & Dao, "Mamba" (arXiv:2312.00752). First weights as in the code of all three.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from audiossl.errors import ModelError
from audiossl.kernels import native
from audiossl.models.parts.layers import DropPath, Timing
from audiossl.models.parts.mamba import Mixer
from audiossl.models.parts.patches import Fit, PatchEmbed, resize_table, resize_tail
from audiossl.models.parts.published import Checkpoint, Layout, Published

Pooling = Literal["cls", "patches"]

SIZES = {"tiny": 192, "small": 384, "base": 768}  # dim
FRAME_SECONDS = 0.01


class Block(nn.Module):
    """Add, norm, mixer: what came in goes into the residual first."""

    def __init__(self, dim: int, mixer: Mixer, eps: float, drop_path: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.mixer = mixer
        self.drop_path = DropPath(drop_path)

    def forward(self, hidden: Tensor, residual: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
        """hidden, residual: (batch, tokens, dim) -> new hidden and residual."""
        residual = residual + self.drop_path(hidden)
        return self.mixer(self.norm(residual), reverse), residual


class SSAMBA(nn.Module):
    """Encoder: `encoder(spec)` gives all tokens, `encoder.embed(spec)` one vector a clip.

    size: "tiny", "small" or "base" gives dim, which may be given itself; depth: of blocks, even.
    mel, frames: size of the spectrogram the position table is made for; other numbers of frames are
        taken too (`fit` says how the table follows; `refit` makes the change lasting).
    patch, stride: (frequency, time), in mel bands and frames; stride None = patches side by side.
    pooling: "patches", the mean of the patch tokens, or "cls", the class token.
    states, expand, kernel: of Mamba: state size, width of the mixer over dim, taps of the
        convolution.
    drop_path: rate before the final norm, to which those of the blocks rise linearly from 0.
    clean: residuals that do not double and one final norm; unfit for the released weights.
    checkpointing: recompute each pair in the backward pass: less memory, more time.
    Raises ValueError on settings that do not go together.
    """

    class_tokens = 1

    def __init__(
        self,
        size: str = "base",
        *,
        dim: int | None = None,
        depth: int = 24,
        mel: int = 128,
        frames: int = 1024,
        patch: Sequence[int] = (16, 16),
        stride: Sequence[int] | None = None,
        fit: Fit = "cut",
        pooling: Pooling = "patches",
        states: int = 16,
        expand: int = 2,
        kernel: int = 4,
        eps: float = 1e-5,
        drop_path: float = 0.1,
        clean: bool = False,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if size not in SIZES:
            raise ValueError(f"size: expected one of {', '.join(SIZES)}, got {size!r}")
        if depth < 2 or depth % 2:
            raise ValueError(f"depth: blocks come in pairs, got {depth}")
        if fit not in ("cut", "interpolate"):
            raise ValueError(f"fit: expected 'cut' or 'interpolate', got {fit!r}")
        if pooling not in ("cls", "patches"):
            raise ValueError(f"pooling: expected 'cls' or 'patches', got {pooling!r}")
        self.dim = dim = dim or SIZES[size]
        self.mel, self.frames = mel, frames
        self.fit: Fit = fit
        self.pooling: Pooling = pooling
        self.clean, self.checkpointing = clean, checkpointing
        self.patch_embed = PatchEmbed(dim, mel, patch, stride)
        rows, columns = self.grid(frames)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + rows * columns, dim))
        # Both blocks of the first pair add the tokens themselves, which must never be left out.
        rates = [drop_path * max(index - 1, 0) / (depth - 1) for index in range(depth)]
        self.blocks = nn.ModuleList(
            Block(dim, Mixer(dim, states, expand, kernel), eps, rate) for rate in rates
        )
        self.drop_path = DropPath(drop_path)
        self.norm = nn.LayerNorm(dim, eps=eps)
        self._initialise()

    def forward(self, spec: Tensor) -> Tensor:
        """spec: (batch, mel, frames) -> tokens (batch, 1 + patches, dim), normalised."""
        return self.forward_tokens(self.patches(spec) + self.positions(spec.shape[-1]))

    def embed(self, spec: Tensor) -> Tensor:
        """spec: (batch, mel, frames) -> (batch, dim), pooled as `pooling` says."""
        return self.pool(self(spec))

    def patches(self, spec: Tensor) -> Tensor:
        """spec: (batch, mel, frames) -> embedded patches (batch, patches, dim), no positions yet.

        Raises ValueError when mel is not the model's or the frames do not fill one patch.
        """
        return self.patch_embed(spec)

    def patch_pixels(self, spec: Tensor) -> Tensor:
        """spec: (batch, mel, frames) -> its values in each patch, (batch, patches, pixels)."""
        return self.patch_embed.pixels(spec)

    def positions(self, frames: int) -> Tensor:
        """Position of each patch of a spectrogram of `frames` frames: (1, patches, dim)."""
        table = self.pos_embed[:, self.class_tokens :]
        return resize_table(table, self.grid(self.frames), self.grid(frames), self.fit)

    def forward_tokens(self, tokens: Tensor, normalise: bool = True) -> Tensor:
        """Patch tokens with their positions, all or only those that are not masked.

        tokens: (batch, n, dim) -> (batch, 1 + n, dim), after the final norm or, with
        `normalise=False`, the sum of the residual and the last blocks' output.
        """
        front = self.cls_token + self.pos_embed[:, : self.class_tokens]
        x = torch.cat([front.expand(len(tokens), -1, -1), tokens], dim=1)
        quick = not self.training and native.can_mix(x) and not self._in_shards()
        x = self._infer(x) if quick else self._learn(x)
        if not normalise:
            return x
        return self.norm(x) if self.clean else self.norm(self.norm(x))

    def pool(self, tokens: Tensor) -> Tensor:
        """tokens: (batch, 1 + n, dim), normalised -> (batch, dim)."""
        return tokens[:, 0] if self.pooling == "cls" else tokens[:, self.class_tokens :].mean(1)

    def timeline(self, spec: Tensor) -> Tensor:
        """spec: (batch, mel, frames) -> (batch, moments, dim): patch tokens, normalised, averaged
        over the frequencies of a moment; `timing` says when they are."""
        return self.patch_embed.over_time(self(spec)[:, self.class_tokens :], spec.shape[-1])

    @property
    def timing(self) -> Timing:
        return self.patch_embed.timing

    def grid(self, frames: int) -> tuple[int, int]:
        """(rows, columns) of patches in a spectrogram of `frames` frames; ValueError on 0."""
        return self.patch_embed.grid(frames)

    def refit(
        self, frames: int, stride: Sequence[int] | None = None, ssast_bug: bool = False
    ) -> None:
        """Change the number of frames and the (frequency, time) stride, keeping what is learned.

        `ssast_bug`: see `patches.resize_table`; SSAMBA's code has it from SSAST's.
        """
        old = self.grid(self.frames)
        self.frames = frames
        if stride is not None:
            self.patch_embed.restride(stride)
        new = self.grid(frames)
        table = resize_tail(self.pos_embed, self.class_tokens, old, new, self.fit, ssast_bug)
        self.pos_embed = nn.Parameter(table.detach())

    def _in_shards(self) -> bool:
        """Whether weights lie in several processes (FSDP): a block's own forward gathers them."""
        return any(type(value) is not nn.Parameter for value in self.blocks.parameters())

    def _learn(self, hidden: Tensor) -> Tensor:
        """All blocks: the sum before the final norm, (batch, tokens, dim)."""
        residual = torch.zeros_like(hidden)
        for pair in self._pairs():
            if self.checkpointing and self.training:
                hidden, residual = checkpoint(  # type: ignore[misc]
                    self._pair, *pair, hidden, residual, use_reentrant=False
                )
            else:
                hidden, residual = self._pair(*pair, hidden, residual)
        return residual + self.drop_path(hidden)

    def _infer(self, residual: Tensor) -> Tensor:
        """The same without gradients and drop path, where both residuals of a pair are equal.

        Overwrites `residual`.
        """
        scratch, weight = native.Scratch(), 1 if self.clean else 2
        for ahead, back in self._pairs():
            hidden = ahead.mixer.infer(ahead.norm(residual), False, scratch)
            back.mixer.infer(back.norm(residual), True, scratch, out=hidden)
            torch.add(hidden, residual, alpha=weight, out=residual)
        return residual

    def _pairs(self) -> list[tuple[Block, Block]]:
        blocks: list[Any] = list(self.blocks)
        return list(zip(blocks[::2], blocks[1::2], strict=True))

    def _pair(
        self, ahead: Block, back: Block, hidden: Tensor, residual: Tensor
    ) -> tuple[Tensor, Tensor]:
        hidden_ahead, residual_ahead = ahead(hidden, residual, False)
        hidden_back, residual_back = back(hidden, residual, True)
        residual = residual_ahead + residual_back
        return hidden_ahead + hidden_back, residual / 2 if self.clean else residual

    @torch.no_grad()
    def _initialise(self) -> None:
        for table in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(table, std=0.02)
        for module in self.modules():  # the more blocks add to the residual, the less each (GPT-2)
            if isinstance(module, Mixer):
                weight = module.out_proj.weight
                bound = (weight.shape[1] * len(self.blocks)) ** -0.5
                nn.init.uniform_(weight, -bound, bound)


build = SSAMBA


# --- published layouts ----------------------------------------------------------------------------

AUDIOSET_CLASSES = 527
MEL = 128
FRAMES = (1024, 512, 128)  # input lengths of the paper's tasks
STRIDES = (16, 10)  # pretraining, fine-tuning


def _pretrained_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """The files name their input size; all else is read off the shapes."""
    mel, frames = (_whole(checkpoint, f"p_input_{axis}dim") for axis in "ft")
    return _fields({**_sizes(checkpoint), "mel": mel, "frames": frames}, None)


def _fine_tuned_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """These files say neither stride nor length; the number of positions does."""
    sizes = {**_sizes(checkpoint), "mel": MEL}
    given = {**sizes, **checkpoint.overrides.get("architecture", {})}
    patches = checkpoint.tensors["v.pos_embed"].shape[1] - SSAMBA.class_tokens
    classes = len(checkpoint.tensors["mlp_head.1.weight"])
    activation = "sigmoid" if classes == AUDIOSET_CLASSES else "softmax"
    head = {"name": "layernorm_linear", "activation": activation}
    return _fields({**sizes, **_stride_and_frames(patches, given)}, head)


def _sizes(checkpoint: Checkpoint) -> dict[str, Any]:
    tensors = checkpoint.tensors
    dim = tensors["v.cls_token"].shape[-1]
    width, states = tensors["v.layers.0.mixer.A_log"].shape
    found = (re.match(r"v\.layers\.(\d+)\.", name) for name in tensors)
    return {
        "name": "ssamba",
        "dim": dim,
        "depth": 1 + max(int(match[1]) for match in found if match),
        "patch": list(tensors["v.patch_embed.proj.weight"].shape[2:]),
        "states": states,
        "expand": width // dim,
        "kernel": tensors["v.layers.0.mixer.conv1d.weight"].shape[-1],
    }


def _whole(checkpoint: Checkpoint, name: str) -> int:
    value = checkpoint.tensors[name].tolist()
    if not isinstance(value, int):
        raise ModelError(f"{name}: expected one whole number")
    return value


def _stride_and_frames(patches: int, given: dict[str, Any]) -> dict[str, Any]:
    if "stride" in given and "frames" in given:
        return {key: given[key] for key in ("stride", "frames")}
    (height, width), mel = given["patch"], given["mel"]
    for stride in STRIDES:
        for frames in FRAMES:
            if patches == ((mel - height) // stride + 1) * ((frames - width) // stride + 1):
                return {"stride": [stride, stride], "frames": frames}
    raise ModelError(
        f"{patches} positions fit none of SSAMBA's own settings: give stride and frames"
    )


def _fields(architecture: dict[str, Any], head: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "architecture": architecture,
        "frontend": {
            "preset": "ssamba",
            "mels": architecture["mel"],
            "frames": architecture["frames"],
        },
        "head": head,
        "task": "tag" if head else "embed",
        "window_seconds": round(architecture["frames"] * FRAME_SECONDS, 2),
        "method": "supervised" if head else "ssamba",
    }


LAYER = r"v\.layers\.(\d+)\."
BLOCK = r"encoder.blocks.\1."
ENCODER: tuple[tuple[str, str | None], ...] = (
    (r"v\.patch_embed\.proj\.(weight|bias)", r"encoder.patch_embed.\1"),
    (r"v\.(cls_token|pos_embed)", r"encoder.\1"),
    (r"v\.norm_f\.(weight|bias)", r"encoder.norm.\1"),
    (LAYER + r"norm\.(weight|bias)", BLOCK + r"norm.\2"),
    (LAYER + r"mixer\.(in_proj|out_proj)\.weight", BLOCK + r"mixer.\2.weight"),
    (LAYER + r"mixer\.(A_log|D)", BLOCK + r"mixer.ahead.\2"),
    (LAYER + r"mixer\.A_b_log", BLOCK + r"mixer.back.A_log"),
    (LAYER + r"mixer\.D_b", BLOCK + r"mixer.back.D"),
    (LAYER + r"mixer\.conv1d\.(weight|bias)", BLOCK + r"mixer.ahead.conv.\2"),
    (LAYER + r"mixer\.conv1d_b\.(weight|bias)", BLOCK + r"mixer.back.conv.\2"),
    (LAYER + r"mixer\.(x_proj|dt_proj)\.(weight|bias)", BLOCK + r"mixer.ahead.\2.\3"),
    (LAYER + r"mixer\.(x_proj|dt_proj)_b\.(weight|bias)", BLOCK + r"mixer.back.\2.\3"),
    (r"v\.head\.(weight|bias)", None),  # Vision Mamba's ImageNet head: never used
)
TWO_WAYS = r"v\.layers\.0\.mixer\.A_b_log"

LAYOUTS = (
    Layout(
        name="ssamba",
        marks=(TWO_WAYS, r"cpredlayer\.0\.weight"),
        rows=(
            *ENCODER,
            (r"p_input_[ft]dim|mask_embed|[cg]predlayer\.[02]\.(weight|bias)", None),
        ),
        config=_pretrained_config,
    ),
    Layout(
        name="ssamba-finetuned",
        marks=(TWO_WAYS, r"mlp_head\.1\.weight"),
        rows=(
            *ENCODER,
            (r"mlp_head\.0\.(weight|bias)", r"head.norm.\1"),
            (r"mlp_head\.1\.(weight|bias)", r"head.linear.\1"),
        ),
        config=_fine_tuned_config,
    ),
)

PUBLISHED = tuple(
    Published(
        name=f"ssamba_{size}_{hidden}.pth",
        layout="ssamba",
        licence="none stated for the weights (the code is BSD-3-Clause)",
        training=("AudioSet", "LibriSpeech"),
        source="https://huggingface.co/attentionisallyouneed369/ssamba",
    )
    for size in SIZES
    for hidden in (250, 300, 400)
)
