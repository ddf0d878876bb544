"""What the search expects of a variant, and what it believes impossible, on invented latencies."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from vitrail import catalog
from vitrail.export.variants import Form, variants
from vitrail.selection.learn import Effects
from vitrail.selection.order import LatencyModel, cannot_beat, cannot_fit, likely_to_fit, rank_key
from vitrail.selection.prune import floor_ms
from vitrail.vocabulary import (
    Accuracy,
    JudgedLatency,
    LatencyFigures,
    Observation,
    Requirements,
    SearchSettings,
    Workload,
)

WORKLOAD = Workload(threads=2)
PEAKS = {
    "openvino": {"fp32": 280.0, "bf16": 1400.0, "int8": 2500.0},
    "onnxruntime": {"fp32": 290.0, "int8": 2400.0},
}
FORMS = (Form(), Form(passes=("uint8", "branches")))
SETTINGS = SearchSettings(runtimes=("openvino", "onnxruntime"), implementations=("timm",))
EVERYTHING = variants(catalog.find(("*",)), WORKLOAD, SETTINGS, int8=True, forms=FORMS)


def named(text):
    return next(variant for variant in EVERYTHING if variant.name == text)


LITE = "tf_efficientnet_lite0.pypi@224"


def test_the_grid_is_as_large_as_a_real_one():
    assert len(EVERYTHING) >= 300


@pytest.mark.parametrize("seed", range(3))
def test_effects_find_what_made_the_values(seed):
    rng = random.Random(seed)
    true = {name: rng.gauss(0.0, 1.0) for name in "abcdefgh"}
    effects = Effects(0.05)
    for _ in range(200):
        features = dict.fromkeys(rng.sample("abcdefgh", 3), 1.0)
        effects.observe(features, sum(true[name] for name in features) + rng.gauss(0.0, 0.05))
    mean, least = effects.predict({"a": 1.0, "b": 1.0})
    assert mean == pytest.approx(true["a"] + true["b"], abs=0.1)
    assert 0.1 < mean - least < 0.5
    unseen, lowest = effects.predict({"z": 1.0})
    assert unseen == 0.0
    assert lowest < -3.0


def test_effects_that_are_often_wrong_say_so():
    """What the priors call impossible makes all later predictions less certain."""
    sure, unsure = Effects(0.1), Effects(0.1)
    rng = random.Random(0)
    for number in range(50):
        sure.observe({"all": 1.0}, rng.gauss(0.0, 0.1))
        unsure.observe({"all": 1.0}, rng.gauss(0.0, 1.0) + number % 2)
    off = [mean - least for mean, least in (each.predict({"all": 1.0}) for each in (sure, unsure))]
    assert off[1] > 5 * off[0]


def seen(*measured):
    """A model that measured these (name, factor of what it expected)."""
    model, fresh = LatencyModel(WORKLOAD, PEAKS), LatencyModel(WORKLOAD, PEAKS)
    for name, factor in measured:
        model.observe(named(name), factor * fresh.predict_ms(named(name)))
    return model


@pytest.mark.parametrize(
    "relative",
    [
        f"{LITE} openvino bf16",
        f"{LITE} openvino int8",
        f"{LITE} onnxruntime fp32",
        f"{LITE} openvino fp32 uint8 branches",
        "tf_efficientnet_lite1.pypi@240 openvino fp32",
    ],
)
def test_a_measurement_tells_of_each_kind_of_relative(relative):
    """Across engines, precisions, forms and family; the closer the relative, the more."""
    before, after = LatencyModel(WORKLOAD, PEAKS), seen((f"{LITE} openvino fp32", 4.0))
    stranger = named("vit_tiny_patch16_224.augreg_in21k_ft_in1k@224 onnxruntime int8")
    moved = after.predict_ms(named(relative)) / before.predict_ms(named(relative))
    assert 4.0 > moved > after.predict_ms(stranger) / before.predict_ms(stranger) > 1.0


def test_a_form_that_pays_on_some_models_is_expected_to_pay_on_others():
    forms = ("openvino fp32", "openvino fp32 uint8 branches")
    measured = [
        (f"{model} {form}", factor)
        for model in (LITE, "resnet50.tv2_in1k@224", "mobilenetv3_small_100.lamb_in1k@224")
        for form, factor in zip(forms, (2.0, 1.4), strict=True)
    ]
    model = seen(*measured)
    plain, rewritten = (model.predict_ms(named(f"tf_efficientnet_lite2.pypi@260 {form}")) for form in forms)
    assert rewritten < 0.9 * plain


def invented(seed, spread):
    """Latencies whose efficiency nobody can foresee: each variant for itself, within a factor."""
    rng = random.Random(seed)
    return {
        variant.name: floor_ms(variant, WORKLOAD, PEAKS) * rng.uniform(*spread) + 0.3
        for variant in EVERYTHING
    }


@pytest.mark.parametrize("spread", [(1.0, 3.0), (1.5, 6.0), (1.0, 40.0)])
@pytest.mark.parametrize("seed", range(2))
def test_what_is_believed_impossible_is_not_what_happens(seed, spread):
    """Efficiencies drawn one by one follow no rule that could be learnt: bounds widen instead of failing."""
    latencies, model = invented(seed, spread), LatencyModel(WORKLOAD, PEAKS)
    order = random.Random(seed).sample(EVERYTHING, len(EVERYTHING))
    wrong = asked = 0
    for count, variant in enumerate(order):
        if count % 20 == 0:
            left = order[count:]
            asked += len(left)
            wrong += sum(latencies[each.name] < model.least_model_ms(each) for each in left)
        model.observe(variant, latencies[variant.name])
    assert wrong <= 0.01 * asked


def test_bounds_tighten_as_relatives_are_measured():
    nothing = LatencyModel(WORKLOAD, PEAKS)
    one = seen((f"{LITE} openvino fp32", 4.0))
    more = seen(
        *((f"{LITE} {engine}", 4.0) for engine in ("openvino fp32", "openvino bf16", "onnxruntime fp32"))
    )
    variant = named(f"{LITE} openvino fp32 uint8 branches")
    bounds = [model.least_model_ms(variant) / model.predict_ms(variant) for model in (nothing, one, more)]
    assert bounds == sorted(bounds)
    assert bounds[-1] > 0.4


def test_a_slow_engine_rules_out_no_other_one():
    """ONNX Runtime in int8 may take longer than OpenVINO in fp32, however high its peak is."""
    model = seen((f"{LITE} onnxruntime int8", 30.0))
    slow = model.predict_ms(named(f"{LITE} onnxruntime int8"))
    assert model.least_model_ms(named(f"{LITE} openvino fp32")) < slow / 10


def test_one_noisy_tail_rules_out_nothing():
    """On a busy machine the first variant's slowest calls are ten times its median."""
    model = seen((f"{LITE} openvino fp32", 1.0))
    took = model.predict_ms(named(f"{LITE} openvino fp32"))
    requirements = Requirements(max_latency_ms=2 * took)
    for engine in ("openvino bf16", "openvino int8", "onnxruntime fp32"):
        assert cannot_fit(named(f"{LITE} {engine}"), requirements, WORKLOAD, model) is None


def test_host_work_counts_half():
    model, lite = LatencyModel(WORKLOAD, PEAKS), named(f"{LITE} openvino fp32")
    model.observe(lite, 10.0, host_ms=6.0)
    model.observe(lite, 10.0, host_ms=8.0)
    assert model.least_ms(lite) == pytest.approx(model.least_model_ms(lite) + 3.0)


def figures(ms):
    judged = JudgedLatency(percentile=95.0, value=ms, interval=None)
    return LatencyFigures(p50=ms, p95=ms, p99=ms, judged=judged, calls=10)


def test_equal_accuracy_is_given_up_only_for_what_is_too_slow():
    """Latency decides between forms of the same accuracy."""
    model = seen((f"{LITE} openvino fp32", 1.0))
    rival = named(f"{LITE} openvino fp32")
    took = model.predict_ms(rival)
    observation = Observation(
        variant=rival,
        accuracy=Accuracy(value=75.1, provenance="published", source=""),
        latency={"request": figures(took)},
    )

    def reason(variant):
        return cannot_beat(variant, observation, "accuracy", model, memory_baseline=0.0, photos=15)

    assert reason(named(f"{LITE} openvino fp32 uint8 branches")) is None
    assert "at most 74.6 % top-1" in reason(named(f"{LITE} openvino int8"))
    observation = replace(observation, latency={"request": figures(took / 100)})
    assert "unlikely to be below" in reason(named(f"{LITE} openvino fp32 uint8 branches"))


def test_accuracy_takes_fp32_before_lower_precisions_of_the_same_weights():
    model = LatencyModel(WORKLOAD, PEAKS)
    requirements = Requirements(max_latency_ms=1e4)
    of_lite = [variant for variant in EVERYTHING if variant.name.startswith(LITE) and not variant.passes]
    order = sorted(of_lite, key=lambda variant: rank_key(variant, requirements, model, photos=15))
    assert [variant.precision for variant in order] == ["fp32", "fp32", "bf16", "int8", "int8"]


def test_a_lower_precision_of_a_better_model_comes_before_a_worse_model_that_is_exact():
    """It may fit where fp32 does not."""
    model = LatencyModel(WORKLOAD, PEAKS)
    better, worse = named("resnet50.a1_in1k@288 openvino int8"), named(f"{LITE} openvino fp32")
    requirements = Requirements(max_latency_ms=1.3 * model.predict_ms(better))
    keys = [rank_key(variant, requirements, model, photos=15) for variant in (better, worse)]
    assert keys == sorted(keys)


@pytest.mark.parametrize("objective", ["latency", "throughput"])
def test_what_runs_faster_comes_first_where_time_decides(objective):
    model = LatencyModel(WORKLOAD, PEAKS)
    of_lite = [variant for variant in EVERYTHING if variant.name.startswith(LITE) and not variant.passes]
    first = min(
        of_lite, key=lambda variant: rank_key(variant, Requirements(objective=objective), model, photos=15)
    )
    assert first.precision == "int8"


def test_clients_loosen_no_bound_and_only_order():
    """How long clients may have to wait rules nothing out: where decoding is slow, they hardly do."""
    eight = replace(WORKLOAD, concurrency=8)
    lite = named(f"{LITE} openvino fp32")
    alone, among = LatencyModel(WORKLOAD, PEAKS), LatencyModel(eight, PEAKS)
    for model in (alone, among):
        model.observe(lite, 10.0)
    assert among.least_ms(lite) == alone.least_ms(lite)
    least = among.least_ms(lite)
    fits = Requirements(max_latency_ms=1.1 * least, min_throughput=0.9 * 1000 / least)
    assert cannot_fit(lite, fits, eight, among) is None
    # Eight clients do not make the engine any faster.
    assert "throughput" in cannot_fit(lite, Requirements(min_throughput=1.1 * 1000 / least), eight, among)
    # But eight turns of 10 ms are more than 50 ms, which makes it unlikely.
    within = Requirements(max_latency_ms=50.0)
    assert likely_to_fit(lite, within, alone)
    assert not likely_to_fit(lite, within, among)


def test_images_a_second_of_eight_clients_are_given_up_only_beyond_the_engine():
    model = LatencyModel(replace(WORKLOAD, concurrency=8), PEAKS)
    lite = named(f"{LITE} openvino fp32")
    model.observe(lite, 10.0)
    most = 1000 / model.least_ms(lite)
    rival = Observation(variant=named(f"{LITE} openvino bf16"), latency={"request": figures(80.0)})

    def reason(images_per_s):
        seen_so = replace(rival, throughput=images_per_s)
        return cannot_beat(lite, seen_so, "throughput", model, memory_baseline=0.0, photos=15)

    assert reason(0.9 * most) is None
    assert "images/s" in reason(1.1 * most)
