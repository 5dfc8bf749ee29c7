"""The sections of a recipe: the meaning, type, default and bounds of each key.

audiossl/recipe/ reads them from YAML. Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from audiossl.config.typed_yaml import Range

Fraction = Annotated[float, Range(low=0, high=1)]
Count = Annotated[int, Range(low=1)]
Natural = Annotated[int, Range(low=0)]


@dataclass
class ModelSection:
    """What is trained: `from` a model, or `architecture` + `frontend` with random weights."""

    from_: str | None = None
    """Model (name or folder) to start from: its frontend and encoder are taken, and its head if the
    labels are equal."""
    change: dict[str, Any] | None = None
    """With `from`: arguments of the loaded architecture to change, such as {drop_path: 0.1} or
    {frames: 512, stride: [10, 10]}. The position table is resized to match, and the
    frontend's `frames` is changed too."""
    ssast_positions: bool | None = None
    """With `change`: resize the position table as SSAST's public code does, with its two slips."""
    architecture: dict[str, Any] | None = None
    """{name: dscnn, ...arguments of the model file's build()}."""
    frontend: dict[str, Any] | None = None
    """{name: logmel | fbank, ...arguments} or {preset: ast}."""
    head: dict[str, Any] | None = None
    """{name: linear, activation: sigmoid | softmax}; the labels come from the data."""
    window_seconds: Annotated[float, Range(above=0, high=3600)] | None = None
    """Length of the model's input, seconds; default: data.crop_seconds."""
    licence: str = ""
    """Licence of the trained weights, recorded in config.json."""


@dataclass
class Augment:
    """Random changes to each clip's wave, seeded by (seed, epoch, position); all off by default."""

    gain_db: tuple[float, float] | None = None
    """Range of a random gain, dB."""
    gain: Fraction = 1.0
    """Probability of the gain."""
    volume: Fraction = 0.0
    """Probability of a factor drawn from 0.5 + Beta(10, 10), as in Audio-MAE and Bird-MAE."""
    roll: Fraction = 0.0
    """Probability of a cyclic shift in time by any amount."""
    background: str | None = None
    """Folder or manifest of recordings without any of the classes, for the next three keys."""
    background_noise: Fraction = 0.0
    """Probability that a background recording is added to a clip."""
    background_snr_db: tuple[float, float] = (3.0, 30.0)
    """Range of the signal-to-noise ratio, dB; lower: louder noise."""
    no_call: Fraction = 0.0
    """Probability that a background recording replaces the clip, without labels; it is not used in
    mixup."""
    noise: Fraction = 0.0
    """Probability of coloured noise."""
    noise_snr_db: tuple[float, float] = (3.0, 30.0)
    """Range of the signal-to-noise ratio, dB; lower: louder noise."""
    noise_exponent: tuple[float, float] = (0.0, 2.0)
    """Range of a in the noise's power spectrum 1/f^a: 0 white, 1 pink, 2 brown, -2 violet."""
    invert: Fraction = 0.0
    """Probability that the wave's sign is changed."""

    @property
    def active(self) -> list[str]:
        """The keys that, with their present values, change waves."""
        chances = ("volume", "roll", "background_noise", "no_call", "noise", "invert")
        gain = ["gain_db"] if self.gain_db is not None and self.gain else []
        return gain + [key for key in chances if getattr(self, key)]


@dataclass
class DataSection:
    """Training and evaluation data. Paths are relative to the current folder of the command."""

    train: str | None = None
    """A manifest (.csv), a folder of audio files (a subfolder's name is its files' label), or
    shards: a folder of .tar files, or their names in braces, `set-{000000..000041}.tar`."""
    folder: str | None = None
    """A folder of audio files, in place of `train`."""
    dataset: str | None = None
    """A data set by name (`audiossl data ls`), in place of `train`."""
    valid: str | None = None
    """A manifest, folder or shards to evaluate on."""
    root: str | None = None
    """Folder that the manifests' paths start from (default: the manifest's own), or folder of the
    data set (default: found by its usual name in AUDIOSSL_DATA)."""
    train_folds: list[str] = field(default_factory=list)
    """Folds to train on; default: all folds that are not evaluated."""
    valid_folds: list[str] = field(default_factory=list)
    """Folds kept for evaluation."""
    valid_fraction: Annotated[float, Range(low=0, high=0.9)] = 0.0
    """Fraction of the groups kept for evaluation, by a hash of the group's name."""
    valid_split: Literal["valid", "test"] = "valid"
    """Rows of this `split` are evaluated if neither folds nor a fraction are given."""
    crossing: Literal["error", "drop", "keep"] = "error"
    """What to do with groups (a speaker, a source) that are in training and in evaluation. error:
    stop; drop: leave them out of training; keep: allow it, for published protocols that do."""
    labels: list[str] | None = None
    """Classes in order; default: all labels of the training rows, sorted."""
    crop_seconds: Annotated[float, Range(above=0, high=3600)] | None = None
    """Length of a training crop and of an evaluation window, seconds; longer costs memory and time.
    Default: the model's window, or 5."""
    short: Literal["repeat", "zero"] = "repeat"
    """How a clip shorter than the crop is filled: by repeating it, or with zeros."""
    balanced: bool = False
    """Draw clips with weights by inverse label frequency, with replacement (AST's way)."""
    cache: Literal["none", "memory", "features"] = "none"
    """memory: decode every clip once and keep it as float16, for small sets. features: keep its
    spectrogram as float16 on disk, for any later epoch and run; a crop begins at a whole frame, and
    nothing can be done to waves (`augment`, mixing them). A frontend with centred frames (`edges`,
    `snip_edges: false`) takes clips no longer than a crop."""
    cache_folder: str | None = None
    """Folder for `cache: features`; it may be deleted at any time. Default: `features` in the
    user's cache folder, or in AUDIOSSL_CACHE."""
    workers: Annotated[int, Range(low=0, high=256)] = 0
    """Number of processes that load data; does not change the results. 0: the main process."""
    max_bad_fraction: Fraction = 0.05
    """Unreadable files are skipped and counted; above this fraction the run stops."""
    augment: Augment = field(default_factory=Augment)
    """Changes to the training waves."""
    sources: list[dict[str, str]] = field(default_factory=list)
    """[{name: ..., licence: ...}] of the data, recorded in the model's config.json; the source of
    `dataset` is added."""


@dataclass
class TrainSection:
    """How the loop runs. One step is one update of the weights."""

    steps: Count | None = None
    """Length of the training, updates; or give `epochs`."""
    epochs: Annotated[float, Range(above=0)] | None = None
    """Length of the training, passes over the data."""
    batch_size: Count = 32
    """Clips per forward pass; larger costs memory."""
    accumulate: Count = 1
    """Forward passes per update: a larger batch without more memory."""
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    """sgd takes betas[0] as its momentum."""
    lr: Annotated[float, Range(above=0, high=100)] = 1e-3
    """Peak learning rate."""
    min_lr: Annotated[float, Range(low=0, high=100)] = 0.0
    """Learning rate at the end of a cosine or linear schedule."""
    weight_decay: Annotated[float, Range(low=0, high=10)] = 0.0
    """Not applied to biases, norms, tokens and position tables."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's beta1, beta2."""
    eps: Annotated[float, Range(above=0, high=1)] = 1e-8
    """Adam's epsilon."""
    schedule: Literal["cosine", "constant", "linear", "step"] = "cosine"
    """Course of the learning rate after the warm-up."""
    step_every: Count | None = None
    """step schedule: updates between two cuts."""
    step_start: Count | None = None
    """step schedule: updates before the first cut; default: warm-up plus step_every."""
    step_factor: Fraction = 0.85
    """step schedule: factor of each cut."""
    warmup: Annotated[float, Range(low=0)] = 0.0
    """Length of the linear warm-up: updates if 1 or more, a fraction of all updates if below 1."""
    layer_decay: Annotated[float, Range(above=0, high=1)] = 1.0
    """Learning rate of block i of n is multiplied by this to the power n - i (fine-tuning)."""
    clip: Annotated[float, Range(low=0)] = 0.0
    """Largest norm of the gradient; larger gradients are scaled down. 0: no clipping."""
    ema: Annotated[float, Range(low=0, high=0.999999)] = 0.0
    """Decay of the weights' moving average, which is then evaluated and kept; 0: none."""
    seed: Annotated[int, Range(low=0, high=2**32 - 1)] = 0
    """Seed of the weights, the order of clips, the crops and every augmentation."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Number type of the computation; bf16 and fp16 (mixed precision) save memory on a GPU."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """With several processes (torchrun), ddp: each holds the whole model; fsdp: a part of it."""
    checkpointing: bool = False
    """Recompute the encoder's blocks in the backward pass: less memory, more time."""
    compile: bool = False
    """Compile the network's blocks (torch.compile): slow start, then faster; needs a compiler."""
    threads: Annotated[int, Range(low=1, high=1024)] | None = None
    """Number of torch's CPU threads; the last bits of the weights depend on it."""
    max_bad_steps: Count = 3
    """Updates with a loss or gradient that is not finite are left out; after this number of them in
    a row the run ends."""
    log_every: Count = 50
    """Updates between two training lines of metrics.jsonl."""
    eval_every: Count | None = None
    """Updates between two evaluations; a state to resume from is saved each time. Default: one
    epoch, but at most 50 evaluations in all."""
    monitor: Literal["loss", "map", "auroc", "dprime", "ece", "top_ece", "accuracy"] | None = None
    """Metric that selects `best/`; default: map with labels, else loss."""
    keep_checkpoints: Annotated[int, Range(low=2, high=1000)] = 2
    """Number of full states kept for --resume."""
    tracker: Literal["tensorboard"] | None = None
    """A second logger for the numbers in metrics.jsonl; needs the extra of this name."""


@dataclass
class Recipe:
    """A whole run. `method` is the name in methods/, `config` that method's own section."""

    name: str
    method: str
    config: Any
    model: ModelSection
    data: DataSection
    train: TrainSection
    out: str
    description: str = ""


SECTIONS = {"model": ModelSection, "data": DataSection, "train": TrainSection}
