"""The nouns of the road: frozen records without I/O.

Units are part of each name or said beside it: latency in ms (of the whole batch), throughput in
images/s, memory in MiB, accuracy in % top-1, durations in s. Shapes: B batch, C channels, H W pixels,
D width, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

Implementation = Literal["vitrail", "timm"]
Precision = Literal["fp32", "bf16", "fp16", "int8"]
Scope = Literal["request", "model"]
Layout = Literal["class", "split/class", "class/split"]
Objective = Literal["accuracy", "latency", "throughput", "memory"]
TaskName = Literal["classify", "embed"]
Provenance = Literal["published", "declared", "measured", "estimated"]
Answer = Literal["pass", "fail", "undecided", "not assessed"]
Status = Literal["selected", "meets", "undecided", "not measured", "rejected", "reference"]
WeightsSource = Literal["hub", "package", "file"]
Interpolation = Literal["bicubic", "bilinear"]


# --- what is needed -----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Requirements:
    """Limits, each optional, and the objective to optimise among the variants that meet them all."""

    max_latency_ms: float | None = None
    min_accuracy: float | None = None
    max_memory_mib: float | None = None
    min_throughput: float | None = None
    min_recall: tuple[tuple[str, float], ...] = ()
    """(class, least recall in %) on the user's labelled images; needs `Workload.data`."""
    license: tuple[str, ...] = ("permissive",)
    """`("any",)`, or license classes and names of which the weights' license must match one."""
    objective: Objective = "accuracy"


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Under what load latency is judged. Part of the key of every measurement."""

    batch_size: int = 1
    threads: int | None = None
    """None: all usable cores (affinity and cgroup quota)."""
    device: str = "cpu"
    latency_scope: Scope = "request"
    percentile: float = 95.0
    image_size: int | None = None
    """None: the size the candidate's published accuracy belongs to."""
    images: str | None = None
    """Folder of the user's photos; None: the named sample set, which is weaker evidence."""
    data: str | None = None
    """The user's labelled images (data/), on which candidates are probed and accuracy is measured."""


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """Where to search and for how long; nothing here changes what a measurement means."""

    models: tuple[str, ...] = ()
    """Globs over candidate names; empty: all."""
    runtimes: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()
    implementations: tuple[str, ...] = ()
    """Whose code runs the weights; empty: ours where we have the architecture, else timm's."""
    budget_s: float = 300.0
    """Wall time, exports included, downloads not."""
    max_download_mib: float | None = None
    """Of all downloads together; None: 2 GiB."""
    offline: bool = False
    fresh: bool = False
    """Ignore recorded measurements and measure all again."""
    layout: Layout | None = None
    """What the folders of `Workload.data` are; None: what they are recognised as."""
    task: TaskName = "classify"
    """What the winner is for."""
    exhaustive: bool = False
    """Measure whatever facts do not rule out, also what can no longer win."""


# --- candidates and variants --------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How a photo becomes the model's input; carried by the weights, never guessed.

    Resize so that the short side is `floor(image_size / crop)`, centre-crop `image_size`, scale to
    [0, 1], subtract `mean`, divide by `std` (timm's evaluation transform, `crop_mode="center"`);
    `"squash"` resizes both sides to `floor(image_size / crop)` instead.
    """

    image_size: int
    crop: float = 0.875
    crop_mode: Literal["center", "squash"] = "center"
    interpolation: Interpolation = "bicubic"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Top-1 accuracy in % with where it comes from; a figure belongs to its resolution."""

    value: float
    provenance: Provenance
    source: str = ""
    images: int | None = None
    """Number of images behind a `measured` value."""
    interval: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Weights:
    """One set of trained weights.

    `reference` is the hub id, the installed package's name or the file's path, after `source`.
    `revision` is None until the first download, then locked; `sha256` is None until read.
    """

    source: WeightsSource
    reference: str
    tag: str = ""
    revision: str | None = None
    sha256: str | None = None
    license: str = "unknown"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Architecture + weights + preprocess + labels; `name` is timm's `architecture.tag`."""

    name: str
    architecture: str
    family: str
    weights: Weights
    preprocess: Preprocess
    accuracy: Accuracy | None
    parameters: int
    """Number of parameters."""
    macs: int
    """Multiply-accumulates of one image at `preprocess.image_size`."""
    activations: int = 0
    """Elements written by convolutions and linear layers for one image; orders the search only."""
    public_weights: int = 0
    """How many public weights timm lists for this architecture."""
    labels: str = "imagenet-1k"
    """Name of a label set, or path of a file with one label a line."""
    note: str = ""
    task: str = "classify"
    """What goes in and what comes out: a name of `tasks.TASKS`."""
    trained_with: Implementation | None = None
    """Whose code made the weights or their head here, and so alone runs them; None: whoever has the
    architecture."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A candidate in the one form that is exported, measured and judged."""

    candidate: Candidate
    image_size: int
    runtime: str
    precision: Precision
    implementation: Implementation = "timm"
    passes: tuple[str, ...] = ()
    settings: tuple[tuple[str, str], ...] = ()
    """Engine settings beyond threads and precision, as sorted (name, value) pairs."""
    reference: bool = False
    """Measured and shown, never shipped (eager and compiled PyTorch)."""

    @property
    def preprocess(self) -> Preprocess:
        """The candidate's preprocess at this image size."""
        return replace(self.candidate.preprocess, image_size=self.image_size)

    def on(self, device: str) -> Target:
        """What its export is loaded for on a device."""
        return Target(runtime=self.runtime, precision=self.precision, device=device)

    @property
    def name(self) -> str:
        """`architecture.tag@size runtime precision`, unique within one selection.

        A hand-written record may not say size (0), runtime or precision (""): they are left out.
        """
        size = f"@{self.image_size}" if self.image_size else ""
        parts = [self.candidate.name + size, self.runtime, self.precision, *self.passes]
        if self.implementation != "timm":
            parts.insert(1, self.implementation)
        return " ".join(part for part in parts if part)


@dataclass(frozen=True, kw_only=True)
class Target:
    """What an export is built and loaded for."""

    runtime: str
    precision: str
    device: str = "cpu"


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One named input or output of a graph."""

    name: str
    shape: tuple[int | str, ...]
    """Letters stand for sizes that are chosen when the graph is loaded: `("B", 3, 224, 224)`."""
    dtype: str = "float32"


@dataclass(frozen=True, kw_only=True)
class Graph:
    """One computation of a model. Most models have one; a promptable one has an encoder and a decoder."""

    name: str = "model"
    entry: str = ""
    """The file (or the reference runner's description) that the runtime loads."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, kw_only=True)
class Export:
    """A variant's files, made with torch and run without; `files` are relative to `folder`."""

    folder: str
    files: tuple[str, ...]
    graphs: tuple[Graph, ...]
    seconds: float = 0.0
    random_weights: bool = False
    toolchain: tuple[tuple[str, str], ...] = ()
    """(library, version) of everything that took part in making the files."""


# --- evidence -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RunnerFacts:
    """What the engine says it really does, read back after loading."""

    runtime: str
    version: str
    precision: str
    threads: int
    device: str = "cpu"
    graphs: tuple[Graph, ...]
    """What was loaded, with numbers for all sizes."""
    details: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Where a figure was taken. Figures of different environments never meet in one verdict."""

    hardware: str
    """Fingerprint of the hardware facts (hardware.py), no measured peaks in it."""
    engine: str
    """Runtime name and version."""
    vitrail: str
    """Version of Vitrail's method of measuring."""
    photos: str
    """Digest of the photo set."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """Consecutive calls of one launch in one scope, bracketed by the reference workload."""

    launch: int
    scope: Scope
    samples_ms: tuple[float, ...]
    speed_before_ms: float
    speed_after_ms: float
    """Duration of the fixed reference workload just before and after the block."""
    steal_s: float = 0.0
    involuntary_switches: int = 0


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Memory of the measuring process in MiB; the pool of input photos is not in it."""

    peak: float
    """Absolute peak (VmHWM), load included."""
    steady: float | None = None
    """Resident after the last call; None: a hand-written record does not say."""
    above_baseline: float | None = None
    """Peak less what the interpreter and libraries held before the export was loaded."""


@dataclass(frozen=True, kw_only=True)
class Parity:
    """An export's outputs against the fp32 eager reference on the same photos.

    Photos are counted, not crops: a photo is decided if any of its crops is (reference top-1 leads
    top-2 by >= 0.1 in probability), and agrees if all its decided crops keep their top-1.
    """

    answer: Answer
    cosine: float
    """Smallest cosine similarity of the logits over all crops."""
    relative_error: float
    """Largest ||variant - reference|| / ||reference|| over all crops."""
    photos: int
    decided: int
    agreeing: int
    loss: float | None
    """Mean over photos of p_ref(reference's top-1) - p_ref(variant's top-1), in points (%)."""
    loss_bound: float | None
    """One-sided 95 % upper bound of `loss`; None below the number of photos that supports one."""
    reason: str = ""
    worst: str = ""
    """The photo that differs most, by `relative_error`."""


@dataclass(frozen=True, kw_only=True)
class Recall:
    """The share of one class's images that are called by its name, in %."""

    label: str
    value: float
    images: int


@dataclass(frozen=True, kw_only=True)
class Classification:
    """How an export does on labelled images of the user's that no fit has seen; shares in %."""

    split: str
    """`validation` (choices were made on it) or `test` (no choice has looked at it)."""
    data: str
    """Digest of the labelled images and their splits."""
    images: int
    accuracy: float
    interval: tuple[float, float]
    """95 % (Wilson) of the accuracy on images like these."""
    balanced_accuracy: float
    """Mean of the classes' recalls."""
    recalls: tuple[Recall, ...]
    confusion: tuple[tuple[int, ...], ...]
    """Counts; a row for each true class, a column for each class that was named."""
    calibration_error: float
    """Expected calibration error in points, 15 bins of equal width (Guo et al. 2017, eq. 3)."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What was observed of one export under one workload."""

    variant: str
    """`Variant.name`."""
    workload: Workload
    environment: Environment
    facts: RunnerFacts
    blocks: tuple[Block, ...]
    memory: Memory
    parity: Parity | None
    load_s: float
    warm_up_calls: int
    random_weights: bool = False
    flags: tuple[str, ...] = ()
    """Doubts about the figure, e.g. drift; nothing is deleted because of one."""
    classification: Classification | None = None
    """On the validation split of the user's labelled images, where there are any."""


@dataclass(frozen=True, kw_only=True)
class JudgedLatency:
    """The percentile the requirement asks about, with its interval (None: too few calls)."""

    percentile: float
    value: float
    interval: tuple[float, float] | None


@dataclass(frozen=True, kw_only=True)
class LatencyFigures:
    """Percentiles in ms of all calls of one scope."""

    p50: float
    p95: float
    p99: float
    judged: JudgedLatency
    calls: int


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One requirement's answer for one variant; only `pass` lets a variant win."""

    requirement: str
    """`max_latency`, `min_accuracy`, `min_recall`, `max_memory`, `min_throughput`, `license` or `parity`."""
    answer: Answer
    observed: float | str | None
    limit: float | str | None
    margin: float | None
    """Room left in the requirement's unit; negative: missing."""
    reason: str
    admit: str | None = None
    """The option that would admit this variant, e.g. `--max-latency 62ms`."""


@dataclass(frozen=True, kw_only=True)
class Observation:
    """All that is known of one variant when it is judged: recorded, measured just now, or nothing.

    Live figures are derived from `measurement`; figures read from a document come without one.
    """

    variant: Variant
    accuracy: Accuracy | None = None
    request: LatencyFigures | None = None
    model: LatencyFigures | None = None
    latency_answer: Answer | None = None
    """What the sequential test said against the limit; None: judge by the interval shown."""
    throughput: float | None = None
    throughput_answer: Answer | None = None
    """An answer that overrides the one from the calls; None: judge by the calls or the number."""
    memory: Memory | None = None
    parity: Parity | None = None
    classification: Classification | None = None
    facts: RunnerFacts | None = None
    measurement: Measurement | None = None
    confirmed: bool = True
    """False: a live search screened it but spent no finals on it, so it cannot win."""
    environment: Environment | None = None
    """Where recorded figures were taken; live ones say it in `measurement`."""
    random_weights: bool = False
    """Timed with random weights (live: `measurement.random_weights`); such a variant cannot win."""
    weights_at_hand: bool = True
    failure: str | None = None
    """Why exporting or measuring ended without figures, e.g. `export timed out after 120 s`."""
    pruned: str | None = None
    """Why the variant was not measured, e.g. `cannot beat the winner: at most 76.4 % top-1`."""
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LedgerEntry:
    """A variant's place in the ledger: what was observed, verdicts, status and the reasons for it."""

    observation: Observation
    status: Status
    verdicts: tuple[Verdict, ...]
    reasons: tuple[str, ...]
    would_win: bool = False
    """Would be selected if its weights were at hand: every verdict but parity is `pass`."""
    tie: bool = False
    """It meets all, and the objective cannot tell it from the winner; the more accurate was taken."""

    @property
    def variant(self) -> Variant:
        """The variant this entry is about."""
        return self.observation.variant


@dataclass(frozen=True, kw_only=True)
class TrainingEpoch:
    """Where a training run stood at the end of one epoch (counted from 1); None: not taken."""

    epoch: int
    step: int
    """Optimiser steps since the run began."""
    seconds: float
    """Wall time since the run began."""
    learning_rate: float | None
    train_loss: float | None
    validation_loss: float | None
    accuracy: float | None
    """Top-1 in % on the validation split."""
    averaged: bool = False
    """Whether the validation figures are of the averaged weights (EMA)."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a candidate's weights came about, where they were trained here."""

    candidate: str
    """`Candidate.name`."""
    recipe: str
    start: str
    """`random`, or the reference of the weights that training began with."""
    epochs: int
    """Epochs done."""
    finished: bool
    history: tuple[TrainingEpoch, ...]


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The winner (None: nothing meets all), the ledger of all variants considered, and the Pareto front."""

    requirements: Requirements
    workload: Workload
    hardware: dict[str, object]
    ledger: tuple[LedgerEntry, ...]
    selected: str | None
    """`Variant.name` of the winner."""
    front: tuple[str, ...] = ()
    """Names of the variants that no other beats in accuracy, judged latency and memory at once."""
    nearest: tuple[str, ...] = ()
    """When nothing meets all: names of the variants that miss by the least."""
    provisional: str | None = None
    """Without a winner: `Variant.name` of the best by the objective whose weights are at hand and of which no
    verdict fails and no fact is missing. What it lacks (launches, finals, parity) are its entry's reasons."""
    lacks: tuple[str, ...] = ()
    """Evidence that was never taken and could change the winner, one sentence each."""
    seconds: float = 0.0
    created: str = ""
    """UTC time, ISO 8601."""
    notes: tuple[str, ...] = ()
    method: dict[str, object] = field(default_factory=dict)
    test: Classification | None = None
    """The winner on the test split of the user's labelled images, which no choice has looked at."""
    expected_test: tuple[float, float] | None = None
    """95 % prediction interval in % for `test.accuracy`, from the winner's validation images alone."""
    trainings: tuple[Training, ...] = ()
    """Of the candidates that were trained here."""
    settings: SearchSettings | None = None
    """Where was searched and for how long; None: not known."""
    arguments: tuple[str, ...] = ()
    """What the command line needs beside requirements, workload and settings to consider the same candidates,
    e.g. `("--trained", "run")`."""

    @property
    def winner(self) -> LedgerEntry | None:
        """The selected entry, or None when nothing meets all."""
        return next((e for e in self.ledger if e.variant.name == self.selected), None)

    @property
    def leader(self) -> LedgerEntry | None:
        """The provisional best's entry; None where there is a winner, or nothing leads."""
        return next((e for e in self.ledger if e.variant.name == self.provisional), None)
