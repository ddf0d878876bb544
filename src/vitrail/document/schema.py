"""The document's outer form: one object, and one flat row for each variant, as people also write it by hand.

Inside are the vocabulary's own records. A change to these structs or those records is a new `SCHEMA_VERSION`.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta, field

from vitrail import vocabulary as v

SCHEMA_VERSION = 9
"""2: labelled images (`data`, `min_recall`, `classification`, `test`).

3: `trainings`. 4: `provisional`, `lacks`, `settings`, `arguments`, `tie`, `confirmed`; status `meets` for
`feasible`, and `not measured`. 5: `task`, `worst`; an engine's `graphs` for `input_shape` and `output_shape`.
6: `quality` for `classification`; an engine's `details` as pairs; `made` and `speed_ups`. 7: a workload's
`concurrency`. 8: `min_iou`; a parity's `figures`. 9: `max_stage_latency_ms`.
Older ones are read as well."""

NOT_FINITE = ("cosine", "relative_error")
"""Figures of a parity for which null stands where outputs were not finite."""

JsonObject = dict[str, Any]


def _on(text: str) -> Meta:
    return Meta(description=text)


class WeightsDoc(msgspec.Struct, kw_only=True):
    """Where the trained weights come from; null where a hand-written record does not say."""

    source: v.WeightsSource = "file"
    reference: str = ""
    tag: str = ""
    revision: str | None = None
    sha256: str | None = None
    license: Annotated[str | None, _on("of the weights; null: not stated")] = None
    at_hand: Annotated[bool, _on("false: the weights could not be read on this machine")] = True


class MeasuredDoc(msgspec.Struct, kw_only=True):
    """How the figures came about; for the reader only, not read back."""

    load_s: v.NonNegative
    warm_up_calls: v.Count
    launches: v.Count
    blocks: v.Count
    steal_s: v.NonNegative
    involuntary_switches: v.Count


class VariantDoc(msgspec.Struct, kw_only=True):
    """A variant's place in the ledger, whether it was measured or pruned; null: not known."""

    name: Annotated[str, _on("unique within the document")] = ""
    model: Annotated[str, _on("timm's architecture.tag")]
    architecture: str
    family: str = ""
    task: Annotated[str, _on("what goes in and comes out, e.g. classify")] = "classify"
    weights: WeightsDoc = field(default_factory=WeightsDoc)
    labels: str = "imagenet-1k"
    note: str = ""
    preprocess: v.Preprocess | None = None
    parameters: v.Count | None = None
    macs: v.Count | None = None
    activations: v.Count | None = None
    public_weights: v.Count = 0
    image_size: Annotated[int, Meta(ge=1)] | None = None
    implementation: str = "timm"
    runtime: str | None = None
    precision: v.Precision | None = None
    passes: tuple[str, ...] = ()
    settings: dict[str, str] = {}
    reference: Annotated[bool, _on("measured and shown, never shipped")] = False
    status: v.Status = "undecided"
    would_win: Annotated[bool, _on("would be selected if its weights were at hand")] = False
    tie: Annotated[bool, _on("meets all; the objective cannot tell it from the winner")] = False
    reasons: tuple[str, ...] = ()
    verdicts: tuple[v.Verdict, ...] = ()
    accuracy: Annotated[v.Accuracy | None, _on("of this variant, its precision included")]
    weights_accuracy: Annotated[v.Accuracy | None, _on("as it came with the weights")] = None
    latency_ms: Annotated[
        dict[str, v.LatencyFigures | None] | None, _on("by stage: request, model, encode …")
    ]
    confirmed: Annotated[bool, _on("false: screened in one launch; it had no finals")] = True
    latency_answer: Annotated[v.Answer | None, _on("of the test at the recorded limit")] = None
    throughput: Annotated[v.NonNegative | None, _on("images/s")] = None
    memory_mib: Annotated[v.NonNegative | None, _on("absolute peak of the process, load included")] = None
    memory_steady_mib: v.NonNegative | None = None
    memory_above_baseline_mib: float | None = None
    parity: v.Parity | None = None
    quality: Annotated[v.Quality | None, _on("on the validation split of the labelled images")] = None
    made: Annotated[v.Made | None, _on("its files on disk, and what making them took")] = None
    engine: v.RunnerFacts | None = None
    rewriting: Annotated[v.Rewriting | None, _on("what passes and int8 did to the exported graph")] = None
    environment: v.Environment | None = None
    measured: MeasuredDoc | None = None
    random_weights: Annotated[bool, _on("timed with random weights; cannot win")] = False
    failure: Annotated[str | None, _on("why exporting or measuring gave no figures")] = None
    pruned: Annotated[str | None, _on("why it was not measured")] = None
    flags: tuple[str, ...] = ()


class Document(msgspec.Struct, kw_only=True):
    """One selection: what was asked, where it ran, who won, and the ledger of all variants considered."""

    schema_version: Annotated[int, Meta(ge=1)] = SCHEMA_VERSION
    vitrail: Annotated[str, _on("version that wrote the document")] = ""
    created: Annotated[str, _on("UTC time, ISO 8601")] = ""
    seconds: v.NonNegative = 0.0
    requirements: v.Requirements = field(default_factory=v.Requirements)
    workload: v.Workload = field(default_factory=v.Workload)
    hardware: JsonObject = {}
    method: JsonObject = {}
    settings: v.SearchSettings | None = None
    arguments: Annotated[tuple[str, ...], _on("what the command line needs to search the same")] = ()
    selected: Annotated[str | None, _on("name of the winner; null: nothing meets all")] = None
    provisional: Annotated[str | None, _on("without a winner: the best of which nothing fails")] = None
    lacks: Annotated[tuple[str, ...], _on("evidence never taken that could change the winner")] = ()
    front: Annotated[tuple[str, ...], _on("names on the Pareto front")] = ()
    nearest: Annotated[tuple[str, ...], _on("when nothing meets all: what misses by the least")] = ()
    notes: tuple[str, ...] = ()
    test: Annotated[v.Quality | None, _on("the winner on the test split")] = None
    expected_test: Annotated[tuple[float, float] | None, _on("95 %, of the test's main figure")] = None
    trainings: Annotated[tuple[v.Training, ...], _on("of what was trained here")] = ()
    speed_ups: Annotated[tuple[v.SpeedUp, ...], _on("of an optimisation: over its baseline")] = ()
    variants: tuple[VariantDoc, ...]


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of what `to_document` returns; committed as docs/selection.schema.json."""
    (reference,), definitions = msgspec.json.schema_components([Document], ref_template="#/$defs/{name}")
    for described in definitions.values():
        if "properties" in described:  # every key is written, and no other
            described |= {"required": list(described["properties"]), "additionalProperties": False}
            for each in described["properties"].values():
                each.pop("default", None)
    for name in NOT_FINITE:
        definitions["Parity"]["properties"][name] = {"anyOf": [{"type": "number"}, {"type": "null"}]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"Vitrail selection, schema version {SCHEMA_VERSION}",
        **reference,
        "$defs": definitions,
    }
