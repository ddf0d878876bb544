"""The document's schema, kept apart from the vocabulary on purpose: renaming a record must not change a
file that others read. Any change to these structs is a new `SCHEMA_VERSION`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from vitrail import vocabulary as v

SCHEMA_VERSION = 5
"""2: labelled images (`data`, `min_recall`, `classification`, `test`).

3: `trainings`. 4: `provisional`, `lacks`, `settings`, `arguments`, `tie`, `confirmed`; status `meets` for
`feasible`, and `not measured`. 5: `task`, `worst`; an engine's `graphs` for
`input_shape` and `output_shape`. Older ones are read as well."""

NonNegative = Annotated[float, Meta(ge=0)]
Percent = Annotated[float, Meta(ge=0, le=100)]
Count = Annotated[int, Meta(ge=0)]
Interval = Annotated[tuple[float, float], Meta(description="[low, high]; null: too little data to give one")]
JsonObject = dict[str, Any]


class _Doc(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """An object of the document: every key is written, none beyond the documented ones is read."""


class RequirementsDoc(_Doc):
    """What was asked; null: no limit."""

    max_latency_ms: NonNegative | None
    min_accuracy: Percent | None
    max_memory_mib: NonNegative | None
    min_throughput: NonNegative | None
    min_recall: Annotated[tuple[tuple[str, Percent], ...], Meta(description="(class, least recall)")]
    license: tuple[str, ...]
    objective: v.Objective


class WorkloadDoc(_Doc):
    """Under what load latency was judged."""

    batch_size: Annotated[int, Meta(ge=1)]
    threads: Count | None
    device: str
    latency_scope: v.Scope
    percentile: Percent
    image_size: Count | None
    images: str | None
    data: Annotated[str | None, Meta(description="the user's labelled images")]


class SettingsDoc(_Doc):
    """Where was searched and for how long; empty lists: no restriction."""

    models: tuple[str, ...]
    runtimes: tuple[str, ...]
    precisions: tuple[str, ...]
    implementations: tuple[str, ...]
    budget_s: NonNegative
    max_download_mib: NonNegative | None
    offline: bool
    fresh: bool
    layout: Annotated[
        v.Layout | None, Meta(description="what the folders of `data` are; null: as recognised")
    ]
    task: v.TaskName
    exhaustive: bool


class WeightsDoc(_Doc):
    """Where the trained weights come from; null where a hand-written record does not say."""

    source: v.WeightsSource
    reference: str
    tag: str
    revision: str | None
    sha256: str | None
    license: Annotated[str | None, Meta(description="of the weights; null: not stated")]
    at_hand: Annotated[bool, Meta(description="false: the weights could not be read on this machine")]


class PreprocessDoc(_Doc):
    """How a photo becomes the model's input."""

    image_size: Count
    crop: float
    crop_mode: Literal["center", "squash"]
    interpolation: v.Interpolation
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class AccuracyDoc(_Doc):
    """Top-1 in % and where the figure comes from."""

    value: Percent
    provenance: v.Provenance
    source: str
    images: Count | None
    interval: Interval | None


class JudgedDoc(_Doc):
    """The percentile that was asked for."""

    percentile: Percent
    value: NonNegative
    interval: Interval | None


class LatencyDoc(_Doc):
    """Milliseconds for a whole batch; `calls` is 0 where a hand-written record gave one number."""

    p50: NonNegative
    p95: NonNegative
    p99: NonNegative
    judged: JudgedDoc
    calls: Count


class ScopesDoc(_Doc):
    """`request`: decode + preprocess + run + top-k; `model`: run alone."""

    request: LatencyDoc | None
    model: LatencyDoc | None


class VerdictDoc(_Doc):
    """One requirement's answer; only `pass` lets a variant win."""

    requirement: str
    answer: v.Answer
    observed: float | str | None
    limit: float | str | None
    margin: Annotated[
        float | None, Meta(description="room left in the requirement's unit; negative: missing")
    ]
    reason: str
    admit: Annotated[str | None, Meta(description="the option that would admit this variant")]


class ParityDoc(_Doc):
    """Outputs against the fp32 eager reference on the same photos; null: not a finite number."""

    answer: v.Answer
    cosine: float | None
    relative_error: float | None
    photos: Count
    decided: Count
    agreeing: Count
    loss: float | None
    loss_bound: float | None
    reason: str
    worst: Annotated[str, Meta(description="the photo that differs most; empty: not known")]


class RecallDoc(_Doc):
    """The share of one class's images that are called by its name, in %."""

    label: str
    value: Percent
    images: Count


class ClassificationDoc(_Doc):
    """How an export does on labelled images that no fit has seen; `data` is their digest."""

    split: str
    data: str
    images: Count
    accuracy: Percent
    interval: Interval
    balanced_accuracy: Percent
    recalls: tuple[RecallDoc, ...]
    confusion: Annotated[
        tuple[tuple[Count, ...], ...], Meta(description="a row for each true class, a column for each named")
    ]
    calibration_error: Percent


class EpochDoc(_Doc):
    """Where a training run stood at the end of one epoch; null: not taken, or not a finite number."""

    epoch: Count
    step: Annotated[int, Meta(ge=0, description="optimiser steps since the run began")]
    seconds: NonNegative
    learning_rate: float | None
    train_loss: float | None
    validation_loss: float | None
    accuracy: Annotated[Percent | None, Meta(description="% top-1 on the validation split")]
    averaged: Annotated[bool, Meta(description="validation figures are of the averaged weights (EMA)")]


class TrainingDoc(_Doc):
    """How the weights of a candidate came about that was trained here."""

    candidate: Annotated[str, Meta(description="`model` of its variants")]
    recipe: str
    start: Annotated[str, Meta(description="`random`, or the weights that training began with")]
    epochs: Annotated[int, Meta(ge=0, description="epochs done")]
    finished: bool
    history: tuple[EpochDoc, ...]


class TensorDoc(_Doc):
    """A named input or output of a graph."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str


class GraphDoc(_Doc):
    """One computation of a model, as the engine loaded it."""

    name: str
    entry: str
    inputs: tuple[TensorDoc, ...]
    outputs: tuple[TensorDoc, ...]


class EngineDoc(_Doc):
    """What the engine says it really does, read back after loading."""

    runtime: str
    version: str
    precision: str
    threads: Count
    device: str
    graphs: tuple[GraphDoc, ...]
    details: dict[str, str]


class EnvironmentDoc(_Doc):
    """Where the figures were taken: fingerprint of the hardware, engine, method, digest of the photos."""

    hardware: str
    engine: str
    vitrail: str
    photos: str


class MeasuredDoc(_Doc):
    """How the figures came about; for the reader only, not read back."""

    load_s: NonNegative
    warm_up_calls: Count
    launches: Count
    blocks: Count
    steal_s: NonNegative
    involuntary_switches: Count


class VariantDoc(_Doc):
    """A variant's place in the ledger, whether it was measured or pruned."""

    name: Annotated[str, Meta(description="unique within the document")]
    model: Annotated[str, Meta(description="timm's architecture.tag")]
    architecture: str
    family: str
    task: Annotated[str, Meta(description="what goes in and comes out, e.g. classify")]
    weights: WeightsDoc
    labels: str
    note: str
    preprocess: PreprocessDoc | None
    parameters: Count | None
    macs: Count | None
    activations: Count | None
    public_weights: Count
    image_size: Annotated[int, Meta(ge=1)] | None
    implementation: str
    runtime: str | None
    precision: v.Precision | None
    passes: tuple[str, ...]
    settings: dict[str, str]
    reference: Annotated[bool, Meta(description="measured and shown, never shipped")]
    status: v.Status
    would_win: Annotated[bool, Meta(description="would be selected if its weights were at hand")]
    tie: Annotated[bool, Meta(description="meets all; the objective cannot tell it from the winner")]
    reasons: tuple[str, ...]
    verdicts: tuple[VerdictDoc, ...]
    accuracy: Annotated[AccuracyDoc | None, Meta(description="of this variant, its precision included")]
    weights_accuracy: Annotated[AccuracyDoc | None, Meta(description="the figure that came with the weights")]
    latency_ms: ScopesDoc | None
    confirmed: Annotated[bool, Meta(description="false: screened in one launch; finals were not spent on it")]
    latency_answer: Annotated[
        v.Answer | None, Meta(description="of the sequential test at the recorded limit")
    ]
    throughput: Annotated[NonNegative | None, Meta(description="images/s")]
    memory_mib: Annotated[NonNegative | None, Meta(description="absolute peak of the process, load included")]
    memory_steady_mib: NonNegative | None
    memory_above_baseline_mib: float | None
    parity: ParityDoc | None
    classification: Annotated[
        ClassificationDoc | None, Meta(description="on the validation split of the labelled images")
    ]
    engine: EngineDoc | None
    environment: EnvironmentDoc | None
    measured: MeasuredDoc | None
    random_weights: Annotated[bool, Meta(description="timed with random weights; cannot win")]
    failure: Annotated[str | None, Meta(description="why exporting or measuring ended without figures")]
    pruned: Annotated[str | None, Meta(description="why it was not measured")]
    flags: tuple[str, ...]


class Document(_Doc):
    """One selection: what was asked, where it ran, who won, and the ledger of all variants considered."""

    schema_version: Annotated[int, Meta(ge=1)]
    vitrail: Annotated[str, Meta(description="version that wrote the document")]
    created: Annotated[str, Meta(description="UTC time, ISO 8601")]
    seconds: NonNegative
    requirements: RequirementsDoc
    workload: WorkloadDoc
    hardware: JsonObject
    method: JsonObject
    settings: SettingsDoc | None
    arguments: Annotated[
        tuple[str, ...], Meta(description="what the command line needs beside them to search the same")
    ]
    selected: Annotated[str | None, Meta(description="name of the winning variant; null: nothing meets all")]
    provisional: Annotated[
        str | None, Meta(description="without a winner: the best of which nothing fails, not yet proven")
    ]
    lacks: Annotated[tuple[str, ...], Meta(description="evidence never taken that could change the winner")]
    front: Annotated[tuple[str, ...], Meta(description="names on the Pareto front")]
    nearest: Annotated[
        tuple[str, ...], Meta(description="when nothing meets all: names that miss by the least")
    ]
    notes: tuple[str, ...]
    test: Annotated[
        ClassificationDoc | None,
        Meta(description="the winner on the test split, which no choice has looked at"),
    ]
    expected_test: Annotated[
        Interval | None,
        Meta(description="95 % prediction interval of the test accuracy, from validation alone"),
    ]
    trainings: Annotated[
        tuple[TrainingDoc, ...], Meta(description="of the candidates that were trained here")
    ]
    variants: tuple[VariantDoc, ...]


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of what `to_document` returns; committed as docs/selection.schema.json."""
    (reference,), definitions = msgspec.json.schema_components([Document], ref_template="#/$defs/{name}")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"Vitrail selection, schema version {SCHEMA_VERSION}",
        **reference,
        "$defs": definitions,
    }
