"""The JSON document: what is written, its schema, and what is read back."""

from __future__ import annotations

import contextlib
import json
import math
from dataclasses import fields, replace
from pathlib import Path

import jsonschema
import msgspec
import pytest
import selections
from hypothesis import given, settings
from hypothesis import strategies as st

from vitrail import document
from vitrail import vocabulary as v
from vitrail.document import from_document, json_schema, to_document, to_json_bytes
from vitrail.errors import InputError

SCHEMA_FILE = Path(__file__).parents[1] / "docs" / "selection.schema.json"


def validator() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json.loads(SCHEMA_FILE.read_text()))


def without_measurements(selection: v.Selection) -> v.Selection:
    def strip(seen: v.Observation) -> v.Observation:
        if (m := seen.measurement) is None:
            return seen
        return replace(
            seen,
            measurement=None,
            facts=seen.facts or m.facts,
            environment=seen.environment or m.environment,
            random_weights=seen.random_weights or m.random_weights,
        )

    return replace(
        selection, ledger=tuple(replace(e, observation=strip(e.observation)) for e in selection.ledger)
    )


# --- any selection, by hypothesis ---------------------------------------------------------------

number = st.floats(0, 1e6, allow_nan=False)
percent = st.floats(0, 100, allow_nan=False)
text = st.text(max_size=12)
interval = st.none() | st.tuples(number, number)
accuracy = st.builds(
    v.Accuracy,
    value=percent,
    provenance=st.sampled_from(["published", "declared", "measured", "estimated"]),
    source=text,
    images=st.none() | st.integers(0, 10**6),
    interval=interval,
)
judged = st.builds(v.JudgedLatency, percentile=percent, value=number, interval=interval)
latency = st.builds(
    v.LatencyFigures, p50=number, p95=number, p99=number, judged=judged, calls=st.integers(0, 10**6)
)
answer = st.sampled_from(["pass", "fail", "undecided", "not assessed"])
pairs = st.dictionaries(text, text, max_size=2).map(lambda d: tuple(d.items()))
environment = st.builds(v.Environment, hardware=text, engine=text, vitrail=text, photos=text)
specs = st.lists(
    st.builds(
        v.TensorSpec, name=text, shape=st.lists(st.integers(1, 9) | text, max_size=4).map(tuple), dtype=text
    ),
    max_size=2,
).map(tuple)
graphs = st.builds(v.Graph, name=text, entry=text, inputs=specs, outputs=specs)
facts = st.builds(
    v.RunnerFacts,
    runtime=text,
    version=text,
    precision=text,
    threads=st.integers(0, 99),
    graphs=st.lists(graphs, max_size=2).map(tuple),
    details=pairs,
)
parity = st.builds(
    v.Parity,
    answer=answer,
    cosine=st.floats(-1, 1),
    relative_error=number,
    photos=st.integers(0, 99),
    decided=st.integers(0, 99),
    agreeing=st.integers(0, 99),
    loss=st.none() | st.floats(-100, 100),
    loss_bound=st.none() | st.floats(-100, 100),
    reason=text,
)
memory = st.builds(v.Memory, peak=number, steady=st.none() | number, above_baseline=st.none() | number)
variant = st.builds(
    v.Variant,
    candidate=st.sampled_from(list(selections.MODELS)).map(selections.candidate),
    image_size=st.integers(0, 999),
    runtime=text,
    precision=st.sampled_from(["fp32", "bf16", "fp16", "int8", ""]),
    implementation=text,
    passes=st.lists(text, max_size=2).map(tuple),
    settings=pairs,
    reference=st.booleans(),
)
block = st.builds(
    v.Block,
    launch=st.integers(0, 3),
    scope=st.just("model"),
    samples_ms=st.just((1.0, 2.0)),
    speed_before_ms=number,
    speed_after_ms=number,
    steal_s=number,
    involuntary_switches=st.integers(0, 9),
)
measurement = st.builds(
    v.Measurement,
    variant=text,
    workload=st.just(v.Workload()),
    environment=environment,
    facts=facts,
    blocks=st.lists(block, max_size=3).map(tuple),
    memory=memory,
    parity=st.none(),
    load_s=number,
    warm_up_calls=st.integers(0, 9),
    random_weights=st.booleans(),
)
observation = st.builds(
    v.Observation,
    variant=variant,
    accuracy=st.none() | accuracy,
    latency=st.dictionaries(st.sampled_from(["request", "model", "encode"]), latency, max_size=3),
    latency_answer=st.none() | answer,
    throughput=st.none() | number,
    memory=st.none() | memory,
    parity=st.none() | parity,
    facts=st.none() | facts,
    measurement=st.none() | measurement,
    environment=st.none() | environment,
    random_weights=st.booleans(),
    weights_at_hand=st.booleans(),
    failure=st.none() | text,
    pruned=st.none() | text,
    flags=st.lists(text, max_size=2).map(tuple),
)
verdict = st.builds(
    v.Verdict,
    requirement=st.sampled_from(["max_latency", "license", "parity"]),
    answer=answer,
    observed=st.none() | number | text,
    limit=st.none() | number | text,
    margin=st.none() | st.floats(-1e6, 1e6),
    reason=text,
    admit=st.none() | text,
)
entries = st.builds(
    v.LedgerEntry,
    observation=observation,
    status=st.sampled_from(["selected", "meets", "undecided", "not measured", "rejected", "reference"]),
    verdicts=st.lists(verdict, max_size=2).map(tuple),
    reasons=st.lists(text, max_size=2).map(tuple),
    would_win=st.booleans(),
    tie=st.booleans(),
)
any_selection = st.builds(
    v.Selection,
    requirements=st.builds(
        v.Requirements, max_latency_ms=st.none() | number, min_accuracy=st.none() | percent
    ),
    workload=st.builds(v.Workload, threads=st.none() | st.integers(1, 9), percentile=percent),
    hardware=st.just({"cores": 2, "engines": {"openvino": "1"}, "flags": ["avx2"]}),
    ledger=st.lists(entries, min_size=1, max_size=3, unique_by=lambda e: e.variant.name).map(tuple),
    selected=st.none() | text,
    front=st.lists(text, max_size=2).map(tuple),
    seconds=number,
    notes=st.lists(text, max_size=2).map(tuple),
    provisional=st.none() | text,
    lacks=st.lists(text, max_size=2).map(tuple),
    settings=st.none()
    | st.builds(
        v.SearchSettings,
        models=st.lists(text, max_size=2).map(tuple),
        budget_s=number,
        max_download_mib=st.none() | number,
        offline=st.booleans(),
    ),
    arguments=st.lists(text, max_size=2).map(tuple),
)


@settings(max_examples=60, deadline=None)
@given(any_selection)
def test_what_is_written_is_valid_and_read_back_whole(selection: v.Selection):
    data = to_json_bytes(selection)
    validator().validate(json.loads(data))
    assert from_document(data, "it").selection == without_measurements(selection)


# --- what is written ----------------------------------------------------------------------------


def test_every_kind_of_entry_is_written():
    written = to_document(selections.selection())
    validator().validate(written)
    rows = {row["name"]: row for row in written["variants"]}
    assert len(rows) == len(selections.ROWS)
    assert {row["status"] for row in rows.values()} == {
        "selected", "meets", "undecided", "not measured", "rejected", "reference",
    }  # fmt: skip
    won = rows[written["selected"]]
    assert won["accuracy"] == {
        "value": 77.5, "provenance": "published", "source": selections.SOURCE,
        "images": None, "interval": None,
    }  # fmt: skip
    assert won["latency_ms"]["request"]["judged"]["percentile"] == 95
    assert won["latency_ms"]["request"]["calls"] == 360
    pruned = [row for row in rows.values() if row["pruned"]]
    assert len(pruned) == 4
    assert all(row["latency_ms"] is None and row["reasons"] for row in pruned)


def test_the_committed_schema_is_the_one_of_the_code():
    assert json.loads(SCHEMA_FILE.read_text()) == json_schema(), (
        "write json.dumps(vitrail.document.json_schema(), indent=2) to docs/selection.schema.json again"
    )
    jsonschema.Draft202012Validator.check_schema(json_schema())


def test_the_schema_refuses_additions_and_omissions():
    written = to_document(selections.selection())
    for place in (written, written["variants"][0], written["variants"][0]["weights"]):
        place["surprise"] = 1
        with pytest.raises(jsonschema.ValidationError):
            validator().validate(written)
        del place["surprise"]
    for key in ("status", "accuracy", "latency_ms", "parity", "random_weights"):
        value = written["variants"][0].pop(key)
        with pytest.raises(jsonschema.ValidationError):
            validator().validate(written)
        written["variants"][0][key] = value
    validator().validate(written)


def test_the_document_has_a_key_for_every_field_of_the_records():
    """A new field of the vocabulary must be written, or be left out here on purpose."""
    written = to_document(selections.selection())
    row = next(r for r in written["variants"] if r["parity"])
    for kind, place in [
        (v.Requirements, written["requirements"]),
        (v.Workload, written["workload"]),
        (v.Accuracy, row["accuracy"]),
        (v.Weights, row["weights"]),
        (v.Preprocess, row["preprocess"]),
        (v.Parity, row["parity"]),
        (v.RunnerFacts, row["engine"]),
        (v.LatencyFigures, row["latency_ms"]["request"]),
        (v.JudgedLatency, row["latency_ms"]["request"]["judged"]),
        (v.Verdict, row["verdicts"][0]),
        (v.Environment, row["environment"]),
        (v.SearchSettings, written["settings"]),
        (v.Selection, {**written, "ledger": written["variants"]}),
    ]:
        missing = {field.name for field in fields(kind)} - set(place)
        assert not missing, f"{kind.__name__}: {missing}"


def test_no_nan_and_no_infinity():
    selection = selections.selection()
    first = selection.ledger[0]
    broken = replace(first.observation.parity, answer="fail", cosine=math.nan, relative_error=math.inf)
    odd = replace(first, observation=replace(first.observation, parity=broken))
    selection = replace(selection, ledger=(odd, *selection.ledger[1:]), hardware={"peak": math.inf})
    data = to_json_bytes(selection)
    written = json.loads(data, parse_constant=lambda name: pytest.fail(f"{name} in the document"))
    validator().validate(written)
    assert written["variants"][0]["parity"]["cosine"] is None
    read = from_document(data, "it").observations[0].parity
    assert math.isnan(read.cosine)
    assert math.isnan(read.relative_error)


# --- what is read -------------------------------------------------------------------------------


def test_a_hand_written_file_of_four_lines():
    recorded = from_document(selections.finalists(), "finalists.json")
    assert not recorded.complete
    assert not recorded.stated
    last = recorded.observations[-1]
    assert last.variant.name == "efficientnetv2_m"
    assert last.accuracy == v.Accuracy(value=85.1, provenance="declared")
    for scope in (last.latency["request"], last.latency["model"]):
        assert scope.judged == v.JudgedLatency(percentile=95.0, value=15.0, interval=None)
        assert scope.calls == 0
    assert last.flags == (document.DECLARED_LATENCY,)
    assert (last.parity, last.memory, last.variant.candidate.weights.license) == (None, None, "")


def test_hand_written_figures_may_say_more():
    recorded = from_document(
        {
            "workload": {"percentile": 99, "latency_scope": "model"},
            "requirements": {"max_latency_ms": 50},
            "variants": [
                {"model": "a.tag", "accuracy": {"value": 80, "provenance": "measured", "images": 500},
                 "latency_ms": {"model": 12.5}, "memory_mib": 300, "runtime": "openvino", "precision": "bf16",
                 "image_size": 224, "weights": {"license": "mit"}},
            ],
        },
        "mine.json",
    )  # fmt: skip
    only = recorded.observations[0]
    assert only.variant.name == "a.tag@224 openvino bf16"
    assert only.variant.candidate.architecture == "a"
    assert list(only.latency) == ["model"]
    assert only.latency["model"].judged == v.JudgedLatency(percentile=99, value=12.5, interval=None)
    assert only.memory == v.Memory(peak=300)
    assert only.accuracy.provenance == "measured"
    assert only.variant.candidate.weights.license == "mit"
    assert recorded.selection.requirements == v.Requirements(max_latency_ms=50)
    assert recorded.selection.workload.latency_scope == "model"


def test_the_old_test_against_the_old_limit_is_not_an_answer_to_a_new_one():
    selection = selections.selection()
    first = selection.ledger[0]
    told = replace(first, observation=replace(first.observation, latency_answer="pass"))
    recorded = from_document(to_document(replace(selection, ledger=(told,))), "it")
    assert recorded.selection.ledger[0].observation.latency_answer == "pass"
    assert recorded.observations[0].latency_answer is None


GOOD = {"model": "swin_tiny", "accuracy": 81.4, "latency_ms": 28.0}


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        (b"", ["r.json", "not valid JSON"]),
        (b"\xff\xfe\x00", ["not valid JSON"]),
        (b'[{"model": "a", "accuracy": NaN, "latency_ms": 3}]', ["not valid JSON"]),
        (b"[" * 100_000, ["not valid JSON"]),
        (b"3", ["no recorded variants", '"latency_ms": 28.0']),
        (b"[]", ["no recorded variants"]),
        ({"variants": {}}, ["no recorded variants"]),
        ([3], ["variant 1", "a whole number"]),
        ([GOOD, {"model": "b", "accuracy": 80}], ["variant 2 (b)", "latency_ms", "28.0"]),
        ([{**GOOD, "latency_ms": "28ms"}], ["variant 1 (swin_tiny)", "latency_ms", "milliseconds"]),
        ([{**GOOD, "latency_ms": -3}], ["variant 1 (swin_tiny)", "latency_ms", "above 0"]),
        ([{**GOOD, "latency_ms": math.nan}], ["variant 1 (swin_tiny)", "latency_ms", "finite"]),
        ([{**GOOD, "latency_ms": {"request": {"p50": 1}}}], ["variant 1 (swin_tiny): latency_ms", "p95"]),
        (
            [{**GOOD, "latency_ms": {"modle": 12}}],
            ["variant 1 (swin_tiny): latency_ms", '"modle"', '"model"'],
        ),
        ([{**GOOD, "weights": {"licence": "mit"}}], ["variant 1 (swin_tiny): weights", "licence", "license"]),
        ({"variants": [GOOD], "requirement": {}}, ["the document", "requirement", "requirements"]),
        ([{**GOOD, "latency_ms": True}], ["latency_ms", "true or false"]),
        ([{**GOOD, "accuracy": 0.814}], ["fraction", "%"]),
        ([{**GOOD, "accuracy": {"value": 0.814}}], ["fraction", "%"]),
        ([{**GOOD, "accuracy": 814}], ["accuracy", "100"]),
        ([{**GOOD, "accuracy": {"value": "high"}}], ["accuracy.value", "a number", "text"]),
        ([{**GOOD, "accuracy": {"value": 80, "provenance": "guessed"}}], ["accuracy.provenance", "declared"]),
        ([{**GOOD, "precision": "fp8"}], ["precision", "bf16"]),
        ([{**GOOD, "image_size": "224"}], ["image_size", "a whole number"]),
        ([{**GOOD, "memory_mib": -1}], ["memory_mib", ">= 0"]),
        ([{**GOOD, "memory_mb": 1}], ["memory_mb", "memory_mib"]),
        ([{**GOOD, "model": 3}], ["variant 1", "model", "text"]),
        ([{**GOOD, "weights": "timm/x"}], ["weights", "an object"]),
        ([GOOD, GOOD], ["variants 1 and 2", "swin_tiny", "runtime"]),
        ({"variants": [GOOD], "workload": {"batch": 3}}, ["workload", "batch"]),
        ({"variants": [GOOD], "workload": 3}, ["workload", "an object"]),
        ({"variants": [GOOD], "schema_version": 10}, ["schema_version 10", "update"]),
        ({"variants": [GOOD], "schema_version": "1"}, ["schema_version", "whole number"]),
    ],
)
def test_bad_files_are_refused_in_one_sentence(data: object, parts: list[str]):
    with pytest.raises(InputError) as caught:
        from_document(data, "r.json")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("r.json")
    for part in parts:
        assert part in message


@settings(max_examples=150, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["model", "accuracy", "latency_ms", "variants", "weights", "request", "flags", "x"]
                ),
                inner,
            )
        ),
        max_leaves=8,
    ),
    st.sampled_from(
        [None, *GOOD, "weights", "passes", "settings", "flags", "status", "parity", "image_size"]
    ),
)
def test_anything_else_is_an_input_error_and_never_a_crash(junk: object, key: str | None):
    data = junk if key is None else [{**GOOD, key: junk}]
    if isinstance(data, (str, bytes)):
        data = msgspec.json.encode(data)
    with contextlib.suppress(InputError):
        from_document(data, "r.json")


def test_a_byte_order_mark_is_not_an_error():
    assert from_document(b"\xef\xbb\xbf" + selections.finalists(), "it").observations


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"acuracy": 90.0}, r"acuracy"),
        ({"recalls": "x"}, r"classification\.recalls"),
        ({"interval": None, "accuracy": 101.0}, r"classification\.accuracy"),
    ],
)
def test_an_older_document_s_classification_is_checked_in_its_own_form(change, said):
    document = json.loads((Path(__file__).parent / "golden" / "selection-5.json").read_bytes())
    row = next(row for row in document["variants"] if row["classification"])
    row["classification"] |= change
    with pytest.raises(InputError, match=said):
        from_document(document, "old.json")


def test_a_task_nobody_has_is_refused_with_its_variant():
    row = {"model": "swin_tiny", "accuracy": 81.4, "latency_ms": 28.0, "task": "foo"}
    with pytest.raises(InputError, match=r"own\.json: variant 1 \(swin_tiny\): unknown task 'foo'"):
        from_document([row], "own.json")


def test_a_table_has_a_row_and_a_column_for_each_label():
    for counts in (((1, 2), (3,)), ((1,),)):
        with pytest.raises(ValueError, match="a row and a column"):
            v.Table(name="confusion", labels=("a", "b"), counts=counts)
