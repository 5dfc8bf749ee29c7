"""The sections of a recipe: what each key is, its type, its default and its bounds.

Only names and numbers: audiossl/recipe/ reads them from YAML. Imports no torch.
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
    """A model by name or folder: its frontend and encoder, and its head if the labels are equal."""
    change: dict[str, Any] | None = None
    """With `from`: arguments of its architecture that shall differ, such as {drop_path: 0.1} or
    {frames: 512, stride: [10, 10]}; the position table follows, as SSAST's code has it with
    `ssast_bug: true`, and the frontend's frames do."""
    architecture: dict[str, Any] | None = None
    """{name: dscnn, ...arguments of the model file's build()}."""
    frontend: dict[str, Any] | None = None
    """{name: logmel | fbank, ...arguments} or {preset: ast}."""
    head: dict[str, Any] | None = None
    """{name: linear, activation: sigmoid | softmax}; the labels come from the data."""
    window_seconds: Annotated[float, Range(above=0, high=3600)] | None = None
    """Length of input the model is made for; default: data.crop_seconds."""
    licence: str = ""
    """Licence of the trained weights, for config.json."""


@dataclass
class Augment:
    """Changes to each clip's wave, drawn from (seed, epoch, position); all off by default."""

    gain_db: tuple[float, float] | None = None
    """Range of a random gain, dB."""
    gain: Fraction = 1.0
    """Probability of the gain."""
    volume: Fraction = 0.0
    """Probability of a factor drawn from 0.5 + Beta(10, 10), as Audio-MAE and Bird-MAE have it."""
    roll: Fraction = 0.0
    """Probability of a cyclic shift in time by any amount."""
    background: str | None = None
    """A folder (or manifest) of recordings with none of the classes, for the next three."""
    background_noise: Fraction = 0.0
    """Probability that one of them is added."""
    background_snr_db: tuple[float, float] = (3.0, 30.0)
    """Range of the signal-to-noise ratio, dB."""
    no_call: Fraction = 0.0
    """Probability that one of them stands in for the clip, without any label; never mixed up."""
    noise: Fraction = 0.0
    """Probability of coloured noise."""
    noise_snr_db: tuple[float, float] = (3.0, 30.0)
    """Range of the signal-to-noise ratio, dB."""
    noise_exponent: tuple[float, float] = (0.0, 2.0)
    """Range of a in the noise's power spectrum 1/f^a: 0 white, 1 pink, 2 brown, -2 violet."""
    invert: Fraction = 0.0
    """Probability of a change of sign."""

    @property
    def active(self) -> list[str]:
        """The keys that change waves as they are set."""
        chances = ("volume", "roll", "background_noise", "no_call", "noise", "invert")
        gain = ["gain_db"] if self.gain_db is not None and self.gain else []
        return gain + [key for key in chances if getattr(self, key)]


@dataclass
class DataSection:
    """What is learned from. Paths are relative to where the command runs."""

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
    """Folder that the manifests' paths start from, default: the manifest's own; or the folder of
    the data set, default: by its usual name in a folder that AUDIOSSL_DATA names."""
    train_folds: list[str] = field(default_factory=list)
    """Folds to train on; default: all that are not evaluated."""
    valid_folds: list[str] = field(default_factory=list)
    """Folds that are kept for evaluation."""
    valid_fraction: Annotated[float, Range(low=0, high=0.9)] = 0.0
    """Fraction of the groups kept for evaluation, by a hash of the group's name."""
    valid_split: Literal["valid", "test"] = "valid"
    """Rows of this `split` are evaluated, where neither folds nor a fraction are given."""
    crossing: Literal["error", "drop", "keep"] = "error"
    """Groups (a speaker, a source) that are in training and in evaluation: an error; drop: left
    out of training; keep: left as they are, where a published protocol has it so."""
    labels: list[str] | None = None
    """Classes in order; default: all labels of the training rows, sorted."""
    crop_seconds: Annotated[float, Range(above=0, high=3600)] | None = None
    """Length of a training crop and of an evaluation window; default: the model's window, or 5."""
    short: Literal["repeat", "zero"] = "repeat"
    """How a clip shorter than the crop is filled."""
    balanced: bool = False
    """Draw clips with weights by inverse label frequency, with replacement (AST's way)."""
    cache: Literal["none", "memory", "features"] = "none"
    """memory: decode every clip once and keep it as float16, for small sets. features: keep its
    spectrogram as float16 on disk, for any later epoch and run; a crop begins at a whole frame, and
    nothing can be done to waves (`augment`, mixing them). A frontend with centred frames (`edges`,
    `snip_edges: false`) takes clips no longer than a crop."""
    cache_folder: str | None = None
    """Where features are kept, which may be removed at any time; default: `features` in the cache
    folder of this user, or in the one that AUDIOSSL_CACHE names."""
    workers: Annotated[int, Range(low=0, high=256)] = 0
    """Processes that load data; results do not depend on it."""
    max_bad_fraction: Fraction = 0.05
    """Unreadable files are skipped and counted; above this fraction the run stops."""
    augment: Augment = field(default_factory=Augment)
    """Changes to the training waves."""
    sources: list[dict[str, str]] = field(default_factory=list)
    """[{name: ..., licence: ...}] of the data, for the model's config.json; that of `dataset` is
    added."""


@dataclass
class TrainSection:
    """How the loop runs. One step is one update of the weights."""

    steps: Count | None = None
    """Length in updates; or give `epochs`."""
    epochs: Annotated[float, Range(above=0)] | None = None
    """Length in passes over the training data."""
    batch_size: Count = 32
    """Clips of one forward pass."""
    accumulate: Count = 1
    """Forward passes of one update."""
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    """sgd: momentum is betas[0]."""
    lr: Annotated[float, Range(above=0, high=100)] = 1e-3
    """Peak learning rate."""
    min_lr: Annotated[float, Range(low=0, high=100)] = 0.0
    """Learning rate at the end of a cosine or linear schedule."""
    weight_decay: Annotated[float, Range(low=0, high=10)] = 0.0
    """Not applied to biases, norms, tokens and position tables."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Of Adam."""
    eps: Annotated[float, Range(above=0, high=1)] = 1e-8
    """Of Adam."""
    schedule: Literal["cosine", "constant", "linear", "step"] = "cosine"
    """After the warm-up."""
    step_every: Count | None = None
    """step schedule: updates between two cuts."""
    step_start: Count | None = None
    """step schedule: updates before the first cut; default: warm-up and step_every."""
    step_factor: Fraction = 0.85
    """step schedule: what the rate is multiplied by."""
    warmup: Annotated[float, Range(low=0)] = 0.0
    """Linear warm-up: updates if 1 or more, a fraction of all updates below 1."""
    layer_decay: Annotated[float, Range(above=0, high=1)] = 1.0
    """Learning rate of block i of n is multiplied by this to the power n - i (fine-tuning)."""
    clip: Annotated[float, Range(low=0)] = 0.0
    """Largest norm of the gradient; 0: no clipping."""
    ema: Annotated[float, Range(low=0, high=0.999999)] = 0.0
    """Decay of the weights' moving average, which is then evaluated and kept; 0: none."""
    seed: Annotated[int, Range(low=0, high=2**32 - 1)] = 0
    """Of the weights, the order of clips, crops and every augmentation."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Mixed precision is used only when asked for."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """With several processes (torchrun): ddp: each has the whole model; fsdp: a part of it."""
    checkpointing: bool = False
    """Recompute the encoder's blocks in the backward pass: less memory, more time."""
    compile: bool = False
    """torch.compile the network's blocks: faster after a while; needs a compiler."""
    threads: Annotated[int, Range(low=1, high=1024)] | None = None
    """CPU threads of torch; the last bits of the weights depend on it."""
    max_bad_steps: Count = 3
    """Updates in a row with a loss or gradient that is no number: each is left out, then the run
    ends."""
    log_every: Count = 50
    """Updates between two training lines of metrics.jsonl."""
    eval_every: Count | None = None
    """Updates between two evaluations, and states saved to resume from; default: once an epoch,
    but no more than 50 in all."""
    monitor: Literal["loss", "map", "auroc", "dprime", "ece", "top_ece", "accuracy"] | None = None
    """What `best/` is best in; default: map with labels, else loss."""
    keep_checkpoints: Annotated[int, Range(low=2, high=1000)] = 2
    """Full states kept for --resume."""
    tracker: Literal["tensorboard"] | None = None
    """Who else gets the numbers of metrics.jsonl; needs the extra of this name."""


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
