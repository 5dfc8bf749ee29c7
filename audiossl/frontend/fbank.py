"""Wave to log-mel spectrogram, exactly as each published system does it.

    frontend = build({"preset": "ast"})          # or {"name": "fbank", "rate": 16000, ...}
    spec = frontend(wave)                        # (batch, samples) -> (batch, mel, frames)

`Fbank` is Kaldi's recipe (DC removal and pre-emphasis inside each frame), `LogMel` the STFT's; both
are differentiable and run where the wave is. A frontend is part of a checkpoint: `config()` says
everything, `build(config())` gives it back. `PRESETS` holds the published ones by name.

Each clip is worked on alone, so its spectrogram never depends on its batch: on a CPU clip by clip,
in blocks of frames that stay in the cache (faster than the whole batch at once), elsewhere the
whole batch. Clips of unequal length go in one padded tensor together with `lengths`.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

import torch
from torch import Tensor, nn

from audiossl.errors import InputError
from audiossl.frontend.clip import Clip, FrontendError, check_choice, check_positive, one_by_one
from audiossl.frontend.mel import NORMS, SCALES, WINDOWS, MelProduct, analysis_window, filterbank
from audiossl.frontend.presets import PRESETS
from audiossl.frontend.spectrum import Spectrum, framed

__all__ = ["PRESETS", "Clip", "Fbank", "FrontendError", "LogMel", "build"]

EPSILON = 2.0**-23  # float32's machine epsilon: Kaldi's floor under the logarithm
BLOCK = 200_000  # values of frames worked on at once (CPU): each step's 0.8 MB fit a core's cache

EDGES = ("reflect", "zero", "end", "none")
LOGS = ("clamp", "add", "db")


class Fbank(nn.Module):
    """Kaldi's log-mel filterbank features, as torchaudio.compliance.kaldi.fbank computes them.

    rate: Hz. mels: filters. window, hop: samples (None: 25 ms and 10 ms, rounded down).
    n_fft: points (None: the next power of two). window_type: one of mel.WINDOWS, symmetric.
    fmin, fmax: Hz (fmax None: half the rate). preemphasis: inside each frame; 0 is none.
    remove_dc: subtract each frame's mean. floor: least power before the logarithm.
    snip_edges: only frames that lie inside the wave; False mirrors the wave at its ends and gives
        one frame a hop.
    use_energy: one more row, the frame's log energy (at least log(energy_floor)): the last with
        htk_compat, else the first. raw_energy: taken before pre-emphasis and window.
    There is no dither: noise is an augmentation, not a feature. clip: the stages around it.

    A wave shorter than a window is filled with zeros to one window and gives one frame (without
    snip_edges it is mirrored instead). Raises InputError ("empty") on a wave without samples.
    Attributes: .rate (Hz), .hop_seconds, .mels (rows of the output), .longest (samples it can hear
    of a wave, None: all), .centre (samples from the wave's start to the middle of frame 0),
    .span (samples of a frame).
    """

    analysis: Tensor

    def __init__(
        self,
        *,
        rate: int = 16000,
        mels: int = 128,
        window: int | None = None,
        hop: int | None = None,
        n_fft: int | None = None,
        window_type: str = "povey",
        fmin: float = 20.0,
        fmax: float | None = None,
        preemphasis: float = 0.97,
        remove_dc: bool = True,
        snip_edges: bool = True,
        floor: float = EPSILON,
        use_energy: bool = False,
        htk_compat: bool = False,
        raw_energy: bool = True,
        energy_floor: float = 1.0,
        clip: Clip | None = None,
    ) -> None:
        super().__init__()
        window = rate * 25 // 1000 if window is None else window
        hop = rate * 10 // 1000 if hop is None else hop
        n_fft = 1 << max(window - 1, 0).bit_length() if n_fft is None else n_fft
        fmax = rate / 2 if fmax is None else fmax
        self.arguments = _arguments(locals())
        check_positive(floor=floor, energy_floor=energy_floor)
        _check_spectrum(rate, mels, window, hop, n_fft, window_type, fmin, fmax, nyquist=rate / 2)
        self.clip = clip or Clip()
        self.preset: str | None = None
        self.rate, self.window, self.hop, self.n_fft = rate, window, hop, n_fft
        self.hop_seconds, self.longest = hop / rate, self.clip.longest(hop, window)
        self.centre = window / 2 - (0 if snip_edges else window // 2 - hop // 2)
        self.mels = mels + use_energy
        self.preemphasis, self.remove_dc, self.snip_edges = preemphasis, remove_dc, snip_edges
        self.span = window
        self.floor, self.energy_floor = floor, energy_floor
        self.use_energy, self.htk_compat, self.raw_energy = use_energy, htk_compat, raw_energy
        self.register_buffer("analysis", analysis_window(window_type, window, False), False)
        self.spectrum = Spectrum(n_fft)
        self.product = MelProduct(filterbank(mels, n_fft, rate, fmin, fmax, "kaldi"))

    def forward(self, wave: Tensor, lengths: Sequence[int] | Tensor | None = None) -> Tensor:
        """wave: (batch, samples), float32 in [-1, 1] -> spec (batch, mel, frames), normalised.

        lengths: samples of each clip, where they differ; what lies beyond is not heard, and frames
        that a clip does not fill hold `pad`.
        """
        return _run(self, wave, lengths)

    def config(self) -> dict[str, Any]:
        """Everything `build` needs to make this frontend again."""
        return _config("fbank", self)

    @property
    def tied(self) -> str | None:
        """The argument that ties a frame to more of the wave than its own samples, so that frames
        of a part are not part of the frames. None: frame k is what samples k * hop to k * hop +
        span give, to float32's rounding."""
        if not self.snip_edges:
            return "snip_edges"
        return "remove_mean" if self.clip.remove_mean and not self.remove_dc else None

    def log_mel(self, wave: Tensor) -> Tensor:
        """wave: (batch, samples) -> (batch, mel, frames), before padding and normalisation."""
        return _in_blocks(self._block, framed(self._edged(wave), self.window, self.hop))

    def _edged(self, wave: Tensor) -> Tensor:
        count = wave.shape[-1]
        if self.snip_edges:
            return nn.functional.pad(wave, (0, max(self.window - count, 0)))
        frames = max((count + self.hop // 2) // self.hop, 1)
        before = self.window // 2 - self.hop // 2  # so that frame k is centred on (k + 1/2) hops
        after = (frames - 1) * self.hop + self.window - before
        if (
            torch.compiler.is_exporting()
        ):  # where slices that may end beyond the wave are not for all
            return _mirror(wave, -before, after)
        left, right = _mirror(wave, -before, 0), _mirror(wave, count, after)
        return torch.cat((left, wave[:, max(-before, 0) : after], right), dim=-1)

    def _block(self, frames: Tensor) -> Tensor:
        # Kaldi's order of operations: rounding in it decides the near-empty bins. In place, because
        # fresh memory for each step costs as much as the step.
        frames = frames - frames.mean(-1, keepdim=True) if self.remove_dc else frames.clone()
        raw = frames.clone() if self.use_energy and self.raw_energy else frames
        if self.preemphasis:
            previous = torch.cat((frames[..., :1], frames[..., :-1]), dim=-1)
            frames.sub_(previous.mul_(self.preemphasis))
        frames.mul_(self.analysis.to(frames.dtype))
        spec = self.product(self.spectrum(frames)).clamp_min_(self.floor).log_()
        if not self.use_energy:
            return spec
        energy = raw.square().sum(-1).clamp_min(EPSILON).log()
        energy = energy.clamp_min(math.log(self.energy_floor)).unsqueeze(-2)
        return torch.cat((spec, energy) if self.htk_compat else (energy, spec), dim=-2)


class LogMel(nn.Module):
    """Log-mel spectrogram by STFT, as torchaudio.MelSpectrogram, librosa and torchlibrosa do it.

    rate: Hz. mels: filters. n_fft: points. hop: samples. window: samples (None: n_fft).
    window_type: one of mel.WINDOWS; periodic, or symmetric.
    edges: "reflect" or "zero": frames are centred on multiples of the hop and the wave continues so
        beyond its ends; "none": only frames that lie inside the wave; "end": zeros after the wave,
        so that a frame begins at each hop.
    preemphasis: y[n] = x[n + 1] - preemphasis x[n] over the whole wave, one sample shorter.
    power: 2.0 (power) or 1.0 (magnitude) goes into the filters.
    fmin, fmax: Hz (fmax None: half the rate). mel_scale: one of mel.SCALES. norm: of mel.NORMS.
    filter_rate: Hz the filters were laid out for, where that is not the wave's own rate.
    log: natural logarithm, "clamp": of at least floor, "add": of the value plus floor;
        "db": decibel of at least floor, and of no less than top_db below the clip's loudest.
    clip: the stages around it.

    A wave too short for one frame ("reflect": for the mirror, n_fft // 2 + 1 samples) is filled
    with zeros to that length. Raises InputError ("empty") on a wave without samples.
    Attributes: .rate (Hz), .hop_seconds, .mels (rows of the output), .longest (samples it can hear
    of a wave, None: all), .centre (samples from the wave's start to the middle of frame 0),
    .span (samples of a frame).
    """

    analysis: Tensor

    def __init__(
        self,
        *,
        rate: int = 16000,
        mels: int = 64,
        n_fft: int = 1024,
        hop: int = 160,
        window: int | None = None,
        window_type: str = "hanning",
        periodic: bool = True,
        edges: str = "reflect",
        preemphasis: float = 0.0,
        power: float = 2.0,
        fmin: float = 0.0,
        fmax: float | None = None,
        mel_scale: str = "htk",
        norm: str = "none",
        filter_rate: int | None = None,
        log: str = "clamp",
        floor: float = 1e-10,
        top_db: float | None = None,
        clip: Clip | None = None,
    ) -> None:
        super().__init__()
        window = n_fft if window is None else window
        filter_rate = rate if filter_rate is None else filter_rate
        fmax = filter_rate / 2 if fmax is None else fmax
        self.arguments = _arguments(locals())
        nyquist = filter_rate / 2
        _check_spectrum(rate, mels, window, hop, n_fft, window_type, fmin, fmax, nyquist)
        check_positive(filter_rate=filter_rate, floor=floor, top_db=top_db)
        check_choice("edges", edges, EDGES)
        check_choice("mel_scale", mel_scale, SCALES)
        check_choice("norm", norm, NORMS)
        check_choice("log", log, LOGS)
        check_choice("power", power, (1.0, 2.0))
        self.clip = clip or Clip()
        self.preset: str | None = None
        self.rate, self.mels = rate, mels
        self.window, self.hop, self.n_fft = window, hop, n_fft
        self.hop_seconds, self.longest = hop / rate, self.clip.longest(hop, window)
        self.edges, self.preemphasis, self.power = edges, preemphasis, power
        self.log, self.floor, self.top_db = log, floor, top_db
        self.centre = window / 2
        self.span = window + (preemphasis != 0)
        analysis = analysis_window(window_type, window, periodic)
        if self.edges in ("reflect", "zero"):  # centred: the window in the middle of n_fft points
            before = (n_fft - window) // 2
            self.centre += before - n_fft // 2
            analysis = nn.functional.pad(analysis, (before, n_fft - window - before))
        self.register_buffer("analysis", analysis, False)
        self.spectrum = Spectrum(n_fft, power)
        filters = filterbank(mels, n_fft, filter_rate, fmin, fmax, mel_scale, norm)
        self.product = MelProduct(filters)

    def forward(self, wave: Tensor, lengths: Sequence[int] | Tensor | None = None) -> Tensor:
        """As `Fbank.forward`: wave (batch, samples) -> spec (batch, mel, frames), normalised."""
        return _run(self, wave, lengths)

    def config(self) -> dict[str, Any]:
        """Everything `build` needs to make this frontend again."""
        return _config("logmel", self)

    @property
    def tied(self) -> str | None:
        """As `Fbank.tied`."""
        if self.edges != "none":
            return "edges"
        if self.top_db is not None:
            return "top_db"
        return "remove_mean" if self.clip.remove_mean else None

    def log_mel(self, wave: Tensor) -> Tensor:
        """wave: (batch, samples) -> (batch, mel, frames), before padding and normalisation."""
        if self.preemphasis:
            wave = nn.functional.pad(wave, (0, max(2 - wave.shape[-1], 0)))
            wave = wave[:, 1:] - self.preemphasis * wave[:, :-1]
        spec = _in_blocks(self._block, framed(self._edged(wave), len(self.analysis), self.hop))
        if self.top_db is None:
            return spec
        return torch.maximum(spec, spec.amax((-2, -1), keepdim=True) - self.top_db)

    def _edged(self, wave: Tensor) -> Tensor:
        count, length, half = wave.shape[-1], len(self.analysis), self.n_fft // 2
        if self.edges == "reflect":
            wave = nn.functional.pad(wave, (0, max(half + 1 - count, 0)))
            return nn.functional.pad(wave, (half, half), mode="reflect")
        if self.edges == "zero":
            return nn.functional.pad(wave, (half, half))
        if self.edges == "end":
            length += ((count + self.hop - 1) // self.hop - 1) * self.hop
        return nn.functional.pad(wave, (0, max(length - count, 0)))

    def _block(self, frames: Tensor) -> Tensor:
        mel = self.product(self.spectrum(frames * self.analysis.to(frames.dtype)))
        if self.log == "add":
            return mel.add_(self.floor).log_()
        mel.clamp_min_(self.floor)
        return mel.log_() if self.log == "clamp" else mel.log10_().mul_(20 / self.power)


def build(config: Mapping[str, Any]) -> Fbank | LogMel:
    """Frontend of a config: `{"name": "fbank"|"logmel", **arguments}`, arguments of `Clip` among
    them, or `{"preset": NAME}`, with arguments that differ. Raises FrontendError."""
    arguments = dict(config)
    preset = arguments.pop("preset", None)
    if preset is not None:
        check_choice("preset", preset, tuple(PRESETS))
        arguments = {**PRESETS[preset], **arguments}
    kinds = {"fbank": Fbank, "logmel": LogMel}
    name = arguments.pop("name", None)
    check_choice("name", name, tuple(kinds))
    kind = kinds[name]
    own = {key: value.annotation for key, value in inspect.signature(kind).parameters.items()}
    own.pop("clip")
    shared = {item.name: str(item.type) for item in fields(Clip)}
    for key, value in arguments.items():
        check_choice("argument", key, (*own, *shared))
        _check_type(key, value, {**own, **shared}[key])
    clip = Clip(**{key: arguments.pop(key) for key in list(arguments) if key in shared})
    frontend = kind(**arguments, clip=clip)
    frontend.preset = preset
    return frontend


def _config(name: str, frontend: Fbank | LogMel) -> dict[str, Any]:
    preset = {"preset": frontend.preset} if frontend.preset else {}
    return {**preset, "name": name, **frontend.arguments, **asdict(frontend.clip)}


def _arguments(names: dict[str, Any]) -> dict[str, Any]:
    """Out of a constructor's `locals()`: its own arguments, defaults resolved."""
    return {key: value for key, value in names.items() if key not in ("self", "clip", "__class__")}


def _run(frontend: Fbank | LogMel, wave: Tensor, lengths: Sequence[int] | Tensor | None) -> Tensor:
    if wave.dim() != 2 or wave.shape[0] == 0 or not wave.is_floating_point():
        shape = tuple(wave.shape)
        raise ValueError(f"wave: expected floats (batch, samples), got {wave.dtype} {shape}")
    if lengths is not None:
        lengths = [int(length) for length in lengths]
        if len(lengths) != len(wave) or max(lengths, default=0) > wave.shape[-1]:
            raise ValueError(f"lengths: {lengths} do not fit a wave {tuple(wave.shape)}")
    if min(lengths or [wave.shape[-1]]) < 1:
        raise InputError("no samples: nothing to compute a spectrogram of", code="empty")
    if wave.dtype not in (torch.float32, torch.float64):
        wave = wave.float()
    kind = wave.device.type
    autocast = torch.amp.is_autocast_available(kind)  # half precision is too coarse for a spectrum
    with torch.autocast(kind, enabled=False) if autocast else contextlib.nullcontext():
        return frontend.clip.spectrograms(frontend.log_mel, wave, lengths)


def _in_blocks(function: Callable[[Tensor], Tensor], frames: Tensor) -> Tensor:
    """frames: (batch, frames, window) -> (batch, mel, frames)."""
    rows = max(BLOCK // frames.shape[-1], 1)
    if not one_by_one(frames) or frames.shape[-2] <= rows:
        return function(frames)
    return torch.cat([function(block) for block in frames.split(rows, dim=-2)], dim=-1)


def _mirror(wave: Tensor, start: int, stop: int) -> Tensor:
    """Samples start..stop of the wave continued by mirrors at both ends, the ends doubled
    (... 1 0 | 0 1 ... n-1 | n-1 n-2 ...), as far as it takes, as Kaldi does."""
    count = wave.shape[-1]
    index = torch.arange(start, max(start, stop), device=wave.device)
    index = index.remainder(torch.full_like(index, 2 * count))
    return wave[:, torch.minimum(index, 2 * count - 1 - index)]


def _check_spectrum(
    rate: int,
    mels: int,
    window: int,
    hop: int,
    n_fft: int,
    window_type: str,
    fmin: float,
    fmax: float,
    nyquist: float,
) -> None:
    check_positive(rate=rate, mels=mels, window=window, hop=hop, n_fft=n_fft)
    check_choice("window_type", window_type, WINDOWS)
    if n_fft < window:
        raise FrontendError(f"frontend n_fft: at least the window ({window}), got {n_fft}")
    if not 0 <= fmin < fmax <= nyquist:
        raise FrontendError(
            f"frontend fmin, fmax: need 0 <= fmin < fmax <= {nyquist:g} Hz (half the rate), "
            f"got {fmin:g} and {fmax:g}"
        )


def _check_type(key: str, value: Any, annotation: str) -> None:
    """JSON and YAML know four scalar types; `annotation` says which of them the argument takes."""
    names = [name.strip() for name in annotation.split("|")]
    found = "None" if value is None else type(value).__name__
    if found in names or (found == "int" and "float" in names):
        return
    raise FrontendError(f"frontend {key}: expected {annotation}, got {value!r}")
