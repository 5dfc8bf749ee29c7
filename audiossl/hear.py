"""The HEAR 2021 interface over any model of this program.

    from audiossl import hear
    model = hear.load_model("tagger")
    embeddings, times = hear.get_timestamp_embeddings(audio, model)    one every 50 ms
    embedding = hear.get_scene_embeddings(audio, model)                one a sound

HEAR (Turian et al. 2022, arXiv 2203.03022; hearbenchmark.com/hear-api.html) compares models through
these functions alone, so `audiossl.hear` is a module that its evaluation kit takes.

A sound no longer than the model's window is embedded whole, a longer one is the mean of windows
that lie a quarter of a window apart. A timestamp's embedding is that of a window around it. Beyond
the ends a sound goes on as its mirror image, and one shorter than a timestamp's window is mirrored
to that length. This is how PaSST's own package (kkoutini/passt_hear21) does it, whose modules are
the modes `base`, `base2level` and `2lvlmel`; what differs is that nothing depends on how many
windows are computed at a time, and that any length will do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import soxr
import torch
from torch import Tensor, nn

from audiossl.audio.reading import QUALITY
from audiossl.device import pick_device
from audiossl.errors import InputError, UsageError
from audiossl.hub import find as hub
from audiossl.hub import folder
from audiossl.model import Model, load

RATES = (16000, 22050, 32000, 44100, 48000)  # Hz: HEAR's tasks come at these
HOP = Fraction(1, 20)  # seconds between timestamps: HEAR's onsets have a tolerance of 50 ms
WINDOW_SECONDS = 10.0  # of a scene, where a model names no window of its own
SCENE_HOPS = 4  # to a window: PaSST's 2.5 s to 10 s
TIMESTAMP_SECONDS = {"passt": 0.16}  # the windows around a timestamp, by architecture
TIMESTAMP_DEFAULT = 1.0  # seconds: recognition gains from more, the place in time from less
BATCH = 16  # windows at a time, whatever the length of a sound


@dataclass(frozen=True)
class Mode:
    """What an embedding is made of.

    logits: the head's logits stand before the encoder's embedding. levels: lengths of the windows
    around a timestamp, in multiples of the shortest. mel_frames: so many frames of the spectrogram
    around a timestamp stand at its end, band by band.
    """

    logits: bool = False
    levels: tuple[int, ...] = (1,)
    mel_frames: int = 0


MODES = {
    "embed": Mode(),
    "base": Mode(logits=True),  # PaSST: 1295 = 527 + 768
    "base2level": Mode(logits=True, levels=(1, 5)),  # 2590
    "2lvlmel": Mode(logits=True, levels=(1, 4), mel_frames=6),  # 3358 = 2590 + 128 * 6
}


class HearModel(nn.Module):
    """A model with HEAR's attributes `.sample_rate` (Hz), `.scene_embedding_size` and
    `.timestamp_embedding_size`.

    mode: one of MODES; None: "base" for a PaSST with labels, "embed" for all others. A model whose
    rate HEAR does not know gets its sounds at the next rate above and resamples them itself.
    Raises UsageError on a mode that is unknown or that the model has no head or frontend for.
    """

    def __init__(self, model: Model, mode: str | None = None) -> None:
        super().__init__()
        name = str(model.config.architecture["name"])
        if mode is None:
            mode = "base" if name == "passt" and model.head is not None else "embed"
        if mode not in MODES:
            raise UsageError(f"mode: expected one of {', '.join(MODES)}, got {mode!r}")
        self.model, self.mode = model, MODES[mode]
        if self.mode.logits and model.head is None:
            raise UsageError(f"mode {mode!r} needs logits, and {model.config.name} has no labels")
        self.sample_rate = next((rate for rate in RATES if rate >= model.rate), RATES[-1])
        seconds = model.config.window_seconds or WINDOW_SECONDS
        self.window = round(seconds * model.rate)  # samples at the model's own rate
        shortest = min(TIMESTAMP_SECONDS.get(name, TIMESTAMP_DEFAULT), seconds)
        self.timestamp_window = round(shortest * model.rate)
        self.scene_embedding_size = int(model.encoder.dim)  # type: ignore[arg-type]
        if self.mode.logits:
            self.scene_embedding_size += len(model.labels)
        self.timestamp_embedding_size = len(self.mode.levels) * self.scene_embedding_size
        if self.mode.mel_frames:
            self.mel_window = self.mode.mel_frames * model.frontend.hop
            mel = model.frontend(torch.zeros(1, self.mel_window, device=self.device))
            if mel.shape[-1] != self.mode.mel_frames:
                raise UsageError(f"mode {mode!r} needs PaSST's frontend (preset passt)")
            self.timestamp_embedding_size += mel[0].numel()

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(self, wave: Tensor) -> Tensor:
        """wave: (batch, samples) at the model's own rate -> (batch, scene_embedding_size)."""
        embedding = self.model.embed(wave)
        if self.mode.logits and self.model.head is not None:
            embedding = torch.cat([self.model.head(embedding), embedding], dim=1)
        return embedding.float()

    def mel(self, wave: Tensor) -> Tensor:
        """wave: (batch, samples) -> its spectrogram band by band, (batch, mel * frames)."""
        return self.model.frontend(wave).flatten(1).float()

    def scenes(self, audio: Tensor) -> Tensor:
        """audio: (sounds, samples) at `sample_rate` -> (sounds, scene_embedding_size)."""
        wave = self._wave(audio)
        if wave.shape[1] < self.timestamp_window:
            wave = wave[:, _mirrored(torch.arange(self.timestamp_window), wave.shape[1])]
        if wave.shape[1] <= self.window:
            return torch.cat([self(group) for group in wave.split(BATCH)])
        places = _places(wave.shape[1], Fraction(self.window, SCENE_HOPS))
        return self._around(places, wave, self.window).mean(1)

    def timestamps(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        """audio: (sounds, samples) at `sample_rate` -> embeddings (sounds, timestamps,
        timestamp_embedding_size) and (timestamps,) ms, the first 0, none after the sound's end."""
        times = torch.arange(int(audio.shape[1] / (HOP * self.sample_rate)) + 1)
        wave = self._wave(audio)
        places = _places(wave.shape[1], HOP * self.model.rate, len(times))
        sizes = [level * self.timestamp_window for level in self.mode.levels]
        parts = [self._around(places, wave, size) for size in sizes]
        if self.mode.mel_frames:
            parts.append(self._around(places, wave, self.mel_window, mel=True))
        return torch.cat(parts, dim=2), times * float(1000 * HOP)

    def _wave(self, audio: Tensor) -> Tensor:
        """At the model's rate and on its device."""
        wave = audio.detach().float()
        if self.sample_rate != self.model.rate:
            wave = _resampled(wave, self.sample_rate, self.model.rate)
        return wave.to(self.device)

    def _around(self, places: Tensor, wave: Tensor, size: int, mel: bool = False) -> Tensor:
        """places: (n,) samples; windows of `size` around them -> (sounds, n, values)."""
        inside = torch.arange(size) - size // 2
        rows = []
        for sound in wave:
            for group in places.split(BATCH):
                windows = sound[_mirrored(group[:, None] + inside, len(sound)).to(sound.device)]
                rows.append(self.mel(windows) if mel else self(windows))
        return torch.cat(rows).unflatten(0, (len(wave), len(places)))


def load_model(
    model_file_path: str = "", *, mode: str | None = None, device: str = "auto"
) -> HearModel:
    """The model at `model_file_path`: a model folder (or the model.safetensors in one), an embedded
    model, or `hf:owner/repo[@revision]`; empty: the embedded default.

    mode: see HearModel. Raises ModelError on a model that cannot be loaded, UsageError.
    """
    name = str(model_file_path) or hub.DEFAULTS["embed"]
    if Path(name).name == folder.WEIGHTS:
        name = str(Path(name).parent)
    return HearModel(load(name, pick_device(device)), mode).eval()


@torch.no_grad()
def get_timestamp_embeddings(audio: Tensor, model: HearModel) -> tuple[Tensor, Tensor]:
    """One embedding every 50 ms, and when: in milliseconds, the first at 0.

    audio: (sounds, samples), floats in [-1, 1] at `model.sample_rate` -> embeddings (sounds,
    timestamps, model.timestamp_embedding_size), float32, and times (sounds, timestamps), float32;
    both on the device of `audio`. Raises UsageError on another shape, InputError on no samples or
    a value that is not finite.
    """
    _check(audio)
    embeddings, times = model.eval().timestamps(audio)
    times = times.expand(len(audio), -1)
    return embeddings.to(audio.device), times.to(audio.device)


@torch.no_grad()
def get_scene_embeddings(audio: Tensor | Sequence[Tensor], model: HearModel) -> Tensor:
    """One embedding a sound.

    audio: as for `get_timestamp_embeddings`, or a list of (samples,) of different lengths, which
    HEAR does not ask for -> (sounds, model.scene_embedding_size), float32. Errors as there.
    """
    if not isinstance(audio, Tensor):
        return torch.cat([get_scene_embeddings(sound[None], model) for sound in audio])
    _check(audio)
    return model.eval().scenes(audio).to(audio.device)


def _check(audio: Tensor) -> None:
    if audio.ndim != 2 or len(audio) == 0 or not audio.is_floating_point():
        found = f"{audio.dtype} {tuple(audio.shape)}"
        raise UsageError(f"audio: expected floats (sounds, samples), got {found}")
    if audio.shape[1] == 0:
        raise InputError("audio: no samples", code="empty")
    if not audio.isfinite().all():
        raise InputError("audio: a sample is not a finite number", code="not-finite")


def _places(samples: int, hop: Fraction, count: int | None = None) -> Tensor:
    """Samples nearest to 0, hop, 2 hop ...: all in a sound, or `count`. Exact, so nothing drifts
    where a hop is no whole number of samples (50 ms at 22.05 kHz: 1102.5)."""
    count = int(samples / hop) + 1 if count is None else count
    index = torch.arange(count)
    return (2 * index * hop.numerator + hop.denominator) // (2 * hop.denominator)


def _mirrored(index: Tensor, length: int) -> Tensor:
    """Indices into a sound of `length` samples that goes on as its mirror image at both ends, the
    first and the last sample not doubled."""
    last = length - 1
    if last == 0:
        return torch.zeros_like(index)
    index = index.remainder(2 * last)
    return torch.minimum(index, 2 * last - index)


def _resampled(wave: Tensor, rate: int, target: int) -> Tensor:
    """wave: (sounds, samples) at `rate` -> at `target`, at least one sample."""
    sounds = [soxr.resample(sound, rate, target, quality=QUALITY) for sound in wave.cpu().numpy()]
    found = torch.stack([torch.from_numpy(sound) for sound in sounds])
    return found if found.shape[1] else wave[:, :1]
