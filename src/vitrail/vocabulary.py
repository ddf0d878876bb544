"""The nouns of the road: frozen records without I/O.

Units are part of each name or said beside it: latency in ms (of the whole batch), throughput in
images/s, memory in MiB, accuracy in % (of what, the task says), durations in s. Shapes: B batch,
C channels, H W pixels, D width, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Literal, TypeAlias

from msgspec import Meta

Percent: TypeAlias = Annotated[float, Meta(ge=0, le=100)]
NonNegative: TypeAlias = Annotated[float, Meta(ge=0)]
Count: TypeAlias = Annotated[int, Meta(ge=0)]
"""Ranges are checked where a record is read from JSON: a document or an artifact's manifest."""

Implementation = Literal["vitrail", "timm", "onnx"]
"""Whose graph a variant is: ours, timm's, or that of a person's own ONNX file."""
Precision = Literal["fp32", "tf32", "bf16", "fp16", "int8"]
Scope = Literal["request", "model"]
"""What a limit of the latency may be about where it names no stage."""
Stage: TypeAlias = str
"""What is timed by itself: `request`, `model`, and whatever else a measurement names."""
STAGES: dict[Stage, str] = {
    "encode": "decode, preprocess, encoder",
    "prompt": "one prompt on a kept embedding, mask at the photo's size",
}
"""The steps of a request that some tasks do by themselves (`Task.stages`), in this order: name -> what is
timed. Each is of one photo, and may have a limit of its own."""
Layout = Literal["class", "split/class", "class/split"]
Objective = Literal["accuracy", "latency", "throughput", "memory"]
Provenance = Literal["published", "declared", "measured", "estimated"]
Answer = Literal["pass", "fail", "undecided", "not assessed"]
Status = Literal["selected", "meets", "undecided", "not measured", "rejected", "reference"]
WeightsSource = Literal["hub", "package", "file"]
Interpolation = Literal["bicubic", "bilinear"]
Pixels = Literal["normalised", "uint8"]

TASKS: dict[str, str] = {
    "classify": "vitrail.tasks.classify:Classify",
    "embed": "vitrail.tasks.embed:Embed",
    "segment": "vitrail.tasks.segment:Segment",
    "promptable": "vitrail.tasks.promptable:Promptable",
}
"""What a model can be for: name -> `module:class`, imported only when the task is used."""

UINT8 = "uint8"
"""The pass after which a graph takes pixels as they are decoded: the one pass that changes an input."""

MERGE = "merge"
"""The pass that merges tokens, with a number: it changes answers."""

SIZE = "size"
"""With a number: the same weights on images of this size, which changes answers as well."""


# --- what is needed -----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Requirements:
    """Limits, each optional, and the objective to optimise among the variants that meet them all."""

    max_latency_ms: NonNegative | None = None
    min_accuracy: Percent | None = None
    max_memory_mib: NonNegative | None = None
    min_throughput: NonNegative | None = None
    min_recall: tuple[tuple[str, Percent], ...] = ()
    """(class, least recall in %) on the user's labelled images; needs `Workload.data`."""
    min_iou: tuple[tuple[str, Percent], ...] = ()
    """(class, least IoU in %) on the user's photos with masks; of the class "": the mean IoU."""
    max_stage_latency_ms: tuple[tuple[Stage, NonNegative], ...] = ()
    """(name of `STAGES`, limit) of the steps of a request that have one of their own."""
    license: tuple[str, ...] = ("permissive",)
    """`("any",)`, or license classes and names of which the weights' license must match one."""
    objective: Objective = "accuracy"

    def latency_limits(self, scope: Scope) -> tuple[tuple[Stage, float], ...]:
        """(stage, limit in ms) of all limits of the latency; `scope` is what one without a stage is about."""
        whole = () if self.max_latency_ms is None else ((scope, self.max_latency_ms),)
        return (*whole, *self.max_stage_latency_ms)

    @property
    def whole_ms(self) -> float | None:
        """What a whole request may take by all limits: its own, and that of its steps where each has one."""
        steps = dict(self.max_stage_latency_ms)
        limits = [sum(steps.values())] if set(steps) == set(STAGES) else []
        return min([*limits, *([] if self.max_latency_ms is None else [self.max_latency_ms])], default=None)

    @property
    def least(self) -> tuple[Least, ...]:
        """What is asked of figures on the user's labelled images, class by class."""
        return tuple(
            Least(
                requirement=name,
                metric=metric if label else OF_ALL.get(name, metric),
                label=label,
                value=value,
            )
            for name, metric in LEAST.items()
            for label, value in getattr(self, name)
        )


LEAST: dict[str, str] = {"min_recall": "recall", "min_iou": "IoU"}
"""Limit of `Requirements` -> the metric in `Quality.figures` that it is about."""
OF_ALL: dict[str, str] = {"min_iou": "mean IoU"}
"""The same where no class is named; a limit that is not here needs one."""
LEAST_OF: dict[str, tuple[str, ...]] = {
    "min_recall": ("classify",),
    "min_iou": ("segment", "promptable"),
}
"""The tasks that measure it."""


@dataclass(frozen=True, kw_only=True)
class Least:
    """The least that one figure on labelled images may be."""

    requirement: str
    """Its name in `Requirements`."""
    metric: str
    label: str
    """The class that is asked about."""
    value: float

    @property
    def option(self) -> str:
        """As it is asked for, e.g. `--min-recall`."""
        return f"--{self.requirement.replace('_', '-')}"

    @property
    def of(self) -> str:
        """`recall of cat`."""
        return f"{self.metric} of {self.label}" if self.label else self.metric


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Under what load latency is judged. Part of the key of every measurement."""

    batch_size: Annotated[int, Meta(ge=1)] = 1
    concurrency: Annotated[int, Meta(ge=1)] = 1
    """Clients at once, each of which sends its next request when the last was answered."""
    threads: Count | None = None
    """None: all usable cores (affinity and cgroup quota)."""
    device: str = "cpu"
    latency_scope: Scope = "request"
    percentile: Percent = 95.0
    image_size: Count | None = None
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
    budget_s: NonNegative = 300.0
    """Wall time, exports included; downloads and reading the person's images are not."""
    max_download_mib: NonNegative | None = None
    """Of all downloads together; None: 2 GiB."""
    offline: bool = False
    fresh: bool = False
    """Ignore recorded measurements and measure all again."""
    layout: Layout | None = None
    """What the folders of `Workload.data` are; None: what they are recognised as."""
    task: str = "classify"
    """What the winner is for."""
    exhaustive: bool = False
    """Measure whatever facts do not rule out, also what can no longer win."""
    passes: tuple[str, ...] | None = None
    """Names of `export.passes.PASSES` that may rewrite graphs; None: the exact ones, () none."""
    calibration: str | None = None
    """Folder of photos that int8 is calibrated on; None: the training split of `Workload.data`, or else a
    part of `Workload.images` that then judges nothing."""
    max_drop: NonNegative | None = None
    """What int8 may lose of the accuracy, in points: layers stay in higher precision until it holds. None:
    all of them become int8."""


# --- candidates and variants --------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How a photo becomes the model's input; carried by the weights, never guessed.

    Resize so that the short side is `floor(image_size / crop)`, centre-crop `image_size`, scale to
    [0, 1], subtract `mean`, divide by `std` (timm's evaluation transform, `crop_mode="center"`);
    `"squash"` resizes both sides to `floor(image_size / crop)` instead. `"letterbox"` resizes the long side
    to `image_size` and fills the square at the bottom and right (images/letterbox.py); its `crop` is 1.
    """

    image_size: Count
    crop: float = 0.875
    crop_mode: Literal["center", "squash", "letterbox"] = "center"
    interpolation: Interpolation = "bicubic"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    pixels: Pixels = "normalised"
    """`"uint8"`: the graph normalises by itself, and takes pixels as they are decoded: uint8 (B, S, S, 3)."""

    def __post_init__(self) -> None:
        # msgspec leaves a default that it did not read to the class, and then does not write it either.
        for each in fields(self):
            self.__dict__.setdefault(each.name, each.default)


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """The task's main figure in % with where it comes from; it belongs to its resolution.

    Of a classifier top-1; of masks the mean IoU; of an embedder the ImageNet top-1 of the classifier that its
    weights come from.
    """

    value: Percent
    provenance: Provenance
    source: str = ""
    images: Count | None = None
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
        """The candidate's preprocess at this image size, less what its graph does by itself."""
        found = replace(self.candidate.preprocess, image_size=self.image_size)
        return replace(found, pixels="uint8") if UINT8 in self.passes else found

    @property
    def plain(self) -> Variant:
        """The variant without passes: its graph as it is exported, whose inputs the fp32 reference takes."""
        return replace(self, passes=())

    @property
    def exact(self) -> bool:
        """Whether it computes the candidate's own function, but for rounding."""
        return not any(name.startswith(f"{MERGE}=") for name in self.passes)

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
        parts += [f"{name}={value}" for name, value in self.settings]
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
    """Letters stand for sizes that are chosen when the graph is loaded, `("B", 3, 224, 224)`, or at each call
    where the engine leaves them open."""
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
class Rewriting:
    """What passes, and quantising to int8, did to an export's graph."""

    places: tuple[tuple[str, Count], ...] = ()
    """(pass, how many places it rewrote)."""
    seconds: NonNegative = 0.0
    calibration: str | None = None
    """Digest of the photos that int8 was calibrated on; None: it is not int8."""
    calibrated_on: str = ""
    """Where these photos come from, in words."""
    calibration_photos: Count = 0
    kept: tuple[str, ...] = ()
    """Nodes left in higher precision: a last one that int8 would break, and those of accuracy control."""
    tried: tuple[tuple[Count, float], ...] = ()
    """(number of nodes kept, measured drop in points), in the order in which control tried them."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """A variant's files, made with torch and run without; `files` are relative to `folder`; () where the
    engine needs none."""

    folder: str
    files: tuple[str, ...]
    graphs: tuple[Graph, ...]
    seconds: float = 0.0
    random_weights: bool = False
    toolchain: tuple[tuple[str, str], ...] = ()
    """(library, version) of everything that took part in making the files."""
    rewriting: Rewriting | None = None
    """None: the graph is the exported one."""
    built_s: float = 0.0
    """What the engine took to build its files."""

    @property
    def made_s(self) -> float:
        """What making the files took in all."""
        return self.seconds + self.built_s + (self.rewriting.seconds if self.rewriting else 0.0)


# --- evidence -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RunnerFacts:
    """What the engine says it really does, read back after loading."""

    runtime: str
    version: str
    precision: str
    threads: Count
    device: str = "cpu"
    graphs: tuple[Graph, ...]
    """What was loaded, with numbers for all sizes but those that stay open, which keep their letters."""
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
    """Consecutive calls of one launch in one stage, bracketed by the reference workload."""

    launch: int
    scope: Stage
    samples_ms: tuple[float, ...]
    speed_before_ms: float
    speed_after_ms: float
    """Duration of the fixed reference workload just before and after the block."""
    steal_s: float = 0.0
    involuntary_switches: int = 0
    clients: Annotated[int, Meta(ge=1)] = 1
    """How many called at once: the calls of n clients overlap, and n neighbouring ones share their waits."""
    held_back: tuple[str, ...] = ()
    """What kept the clocks of the GPU low just before or after it, e.g. `the power cap`."""
    others: Count = 0
    """Other processes that computed on the GPU just before or after it."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Memory of the measuring process in MiB, or of a GPU; the pool of input photos is not in it."""

    peak: NonNegative
    """Absolute peak (VmHWM; of a GPU what its driver says), load included."""
    steady: NonNegative | None = None
    """Resident after the last call; None: a hand-written record does not say."""
    above_baseline: float | None = None
    """Peak less what the interpreter and libraries held before the export was loaded."""
    process: NonNegative | None = None
    """Peak of the process beside a GPU, which no limit is about; None: there is no GPU."""


@dataclass(frozen=True, kw_only=True)
class Made:
    """The files of a variant that a process loads."""

    mib: NonNegative
    """Their size on disk in MiB; of a PyTorch reference its weights'."""
    seconds: NonNegative
    """What making them took: the export, passes and int8, what the engine builds or compiles."""


@dataclass(frozen=True, kw_only=True)
class Parity:
    """An export's outputs against the fp32 eager reference on the same photos.

    Photos are counted, not crops: a photo is decided if the reference's answer to any of its crops is clear
    (the task says when), and agrees if all its decided crops keep theirs.
    """

    answer: Answer
    cosine: float
    """Smallest cosine similarity of the outputs over all crops."""
    relative_error: float
    """Largest ||variant - reference|| / ||reference|| over all crops."""
    photos: Count
    decided: Count
    agreeing: Count
    loss: float | None
    """Mean over photos of what the task says is lost, in points (%); None: it does not say."""
    loss_bound: float | None
    """One-sided 95 % upper bound of `loss`; None below the number of photos that supports one."""
    reason: str = ""
    worst: str = ""
    """The photo that differs most: by `relative_error`, or as the task says."""
    figures: tuple[Figure, ...] = ()
    """What else the task says of the comparison, the main one first; of masks their least IoU."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number that says how good outputs are, under the name that its task gives it."""

    metric: str
    """E.g. `top-1`, `recall`."""
    value: NonNegative
    unit: str = "%"
    """`%` is from 0 to 100; `points` are a difference of such figures."""
    interval: tuple[float, float] | None = None
    """95 %, on images like these."""
    images: Count
    """How many images it is about."""
    label: str = ""
    """The class that it is about; "": all of them."""
    share: bool = False
    """Whether it is the share of `images` that are right, so that these can be counted."""

    def __post_init__(self) -> None:
        if self.unit == "%" and not 0 <= self.value <= 100:
            raise ValueError(f"{self.metric} is {self.value:g} %: a percentage is from 0 to 100")

    @property
    def right(self) -> int:
        """Of `images`, how many are right, where it is a share."""
        return round(self.value * self.images / 100)


@dataclass(frozen=True, kw_only=True)
class Table:
    """Counts by label: a row for each true one, a column for each that was named (a confusion matrix)."""

    name: str
    labels: tuple[str, ...]
    counts: tuple[tuple[Count, ...], ...]

    def __post_init__(self) -> None:
        if {len(self.counts), *map(len, self.counts)} - {len(self.labels)}:
            raise ValueError(f"{self.name}: a table has a row and a column for each of its labels")


@dataclass(frozen=True, kw_only=True)
class Quality:
    """How an export does on labelled images of the user's that no fit has seen, as its task measures it."""

    split: str
    """`validation` (choices were made on it) or `test` (no choice has looked at it)."""
    data: str
    """Digest of the labelled images and their splits."""
    images: Count
    figures: Annotated[tuple[Figure, ...], Meta(min_length=1)]
    """The task's main figure (`Task.metric`) first; `accuracy` and its limit are about that one."""
    tables: tuple[Table, ...] = ()

    @property
    def main(self) -> Figure:
        """The figure that the task is judged by."""
        return self.figures[0]

    def figure(self, metric: str, label: str = "") -> Figure | None:
        """The figure of this name, of one class or of all; None: the task did not measure it."""
        return next((f for f in self.figures if (f.metric, f.label) == (metric, label)), None)


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
    quality: Quality | None = None
    """On the validation split of the user's labelled images, where there are any."""
    rewriting: Rewriting | None = None
    """What passes and int8 did to the graph; None: nothing."""
    made: Made | None = None


@dataclass(frozen=True, kw_only=True)
class JudgedLatency:
    """The percentile the requirement asks about, with its interval (None: too few calls)."""

    percentile: Percent
    value: NonNegative
    interval: tuple[float, float] | None


@dataclass(frozen=True, kw_only=True)
class LatencyFigures:
    """Percentiles in ms of all calls of one stage."""

    p50: NonNegative
    p95: NonNegative
    p99: NonNegative
    judged: JudgedLatency
    calls: Count


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One requirement's answer for one variant; only `pass` lets a variant win."""

    requirement: str
    """`max_latency`, `min_accuracy`, `min_recall`, `min_iou`, `max_memory`, `min_throughput`, `license` or
    `parity`; the limit of a stage is named with it, as in `max_latency.prompt`."""
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
    """The task's main figure (`Task.metric`), measured or claimed."""
    latency: Mapping[str, LatencyFigures] = field(default_factory=dict)
    """By stage, e.g. `request` and `model`, or `encode`; a stage that was not timed is not in it."""
    latency_answer: Answer | None = None
    """What the sequential test said against the limit; None: judge by the interval shown."""
    stage_answers: Mapping[Stage, Answer] = field(default_factory=dict)
    """The same of the limits of stages; one that is missing is judged by the interval shown."""
    throughput: float | None = None
    throughput_answer: Answer | None = None
    """An answer that overrides the one from the calls; None: judge by the calls or the number."""
    memory: Memory | None = None
    parity: Parity | None = None
    quality: Quality | None = None
    facts: RunnerFacts | None = None
    rewriting: Rewriting | None = None
    """What passes and int8 did to the graph; None: nothing."""
    measurement: Measurement | None = None
    confirmed: bool = True
    """False: a live search screened it but spent no finals on it, so it cannot win."""
    made: Made | None = None
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

    epoch: Count
    step: Count
    """Optimiser steps since the run began."""
    seconds: NonNegative
    """Wall time since the run began."""
    learning_rate: float | None
    train_loss: float | None
    """Mean over the epoch's batches of the minimised loss (mixed labels and smoothing included)."""
    validation_loss: float | None
    accuracy: Percent | None
    """The task's main figure in % on the validation split: top-1, mean IoU."""
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
    epochs: Count
    """Epochs done."""
    finished: bool
    history: tuple[TrainingEpoch, ...]


@dataclass(frozen=True, kw_only=True)
class SpeedUp:
    """How many times as fast a variant is as another one, by the medians of the judged stage."""

    variant: str
    """`Variant.name`."""
    over: str
    """`Variant.name` of what it is compared with."""
    times: NonNegative
    interval: tuple[float, float] | None
    """95 %; None: too few blocks."""
    interleaved: bool
    """Whether their blocks took turns, so that a machine that slows down slows both."""

    @property
    def faster(self) -> bool:
        """Whether it is beyond noise."""
        return self.interval is not None and self.interval[0] > 1


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
    test: Quality | None = None
    """The winner on the test split of the user's labelled images, which no choice has looked at."""
    expected_test: tuple[float, float] | None = None
    """95 % prediction interval for the main figure of `test`, from the winner's validation images alone."""
    trainings: tuple[Training, ...] = ()
    """Of the candidates that were trained here."""
    speed_ups: tuple[SpeedUp, ...] = ()
    """Of an optimisation (`vitrail optimize`): of each variant over the baseline, and of each with passes or
    settings over the one without."""
    settings: SearchSettings | None = None
    """Where was searched and for how long; None: not known."""
    arguments: tuple[str, ...] = ()
    """What the command line needs beside requirements, workload and settings to consider the same candidates,
    e.g. `("--trained", "run")`."""

    @property
    def task(self) -> str:
        """What its variants are for: a name of `tasks.TASKS`."""
        return self.ledger[0].variant.candidate.task if self.ledger else "classify"

    @property
    def winner(self) -> LedgerEntry | None:
        """The selected entry, or None when nothing meets all."""
        return next((e for e in self.ledger if e.variant.name == self.selected), None)

    @property
    def leader(self) -> LedgerEntry | None:
        """The provisional best's entry; None where there is a winner, or nothing leads."""
        return next((e for e in self.ledger if e.variant.name == self.provisional), None)
