"""Selections with invented but plausible figures, for the document and report tests (not measurements)."""

from __future__ import annotations

from vitrail import vocabulary as v

HARDWARE: dict[str, object] = {
    "cpu": "Intel(R) Xeon(R) Processor @ 2.60GHz",
    "cores": 2,
    "flags": ["avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16"],
    "memory_mib": 24093,
    "gpu": None,
    "engines": {"openvino": "2026.4.0", "onnxruntime": "1.32.0"},
    "fingerprint": "4be1c20d7f",
}
METHOD: dict[str, object] = {
    "alpha": 0.05,
    "launches": 3,
    "calls_per_block": 30,
    "photos": "11 sample photos",
    "allowance_points": 0.5,
}
ENVIRONMENT = v.Environment(hardware="4be1c20d7f", engine="openvino 2026.4.0", vitrail="1", photos="9d2f")
SOURCE = "https://github.com/huggingface/pytorch-image-models/blob/main/results/results-imagenet.csv"

# name: (family, size, top-1, million parameters, GMACs, license)
MODELS = {
    "efficientnet_lite0.ra_in1k": ("EfficientNet-Lite", 224, 75.48, 4.7, 0.4, "apache-2.0"),
    "efficientnet_lite1.pkg_in1k": ("EfficientNet-Lite", 240, 76.60, 5.4, 0.6, "apache-2.0"),
    "efficientnet_lite2.pkg_in1k": ("EfficientNet-Lite", 260, 77.50, 6.1, 0.9, "apache-2.0"),
    "mobilenetv3_large_100.miil_in21k_ft_in1k": ("MobileNetV3", 224, 77.92, 5.5, 0.2, "apache-2.0"),
    "mobilenetv4_conv_medium.e500_r256_in1k": ("MobileNetV4", 256, 79.93, 9.7, 1.1, "apache-2.0"),
    "mobilevitv2_100.cvnets_in1k": ("MobileViT v2", 256, 78.08, 4.9, 1.8, "other"),
    "efficientvit_b1.r224_in1k": ("EfficientViT", 224, 79.25, 9.1, 0.5, "apache-2.0"),
    "fastvit_t8.apple_in1k": ("FastViT", 256, 76.18, 4.0, 0.7, "other"),
    "tf_efficientnetv2_s.in21k_ft_in1k": ("EfficientNetV2", 384, 84.28, 21.5, 8.4, "apache-2.0"),
    "tf_efficientnetv2_m.in21k_ft_in1k": ("EfficientNetV2", 480, 85.98, 54.1, 24.6, "apache-2.0"),
    "convnext_tiny.fb_in22k_ft_in1k": ("ConvNeXt", 224, 82.90, 28.6, 4.5, "apache-2.0"),
    "convnext_base.fb_in22k_ft_in1k": ("ConvNeXt", 224, 85.84, 88.6, 15.4, "apache-2.0"),
    "swin_tiny_patch4_window7_224.ms_in22k_ft_in1k": ("Swin", 224, 80.90, 28.3, 4.5, "mit"),
    "swin_base_patch4_window7_224.ms_in22k_ft_in1k": ("Swin", 224, 85.27, 87.8, 15.5, "mit"),
    "vit_base_patch16_224.augreg2_in21k_ft_in1k": ("ViT", 224, 85.10, 86.6, 17.6, "apache-2.0"),
    "deit3_small_patch16_224.fb_in22k_ft_in1k": ("DeiT-3", 224, 83.09, 22.1, 4.6, "apache-2.0"),
    "resnet50.a1_in1k": ("ResNet", 224, 80.22, 25.6, 4.1, "apache-2.0"),
}

# (model, runtime, precision, request p95 ms or None, memory MiB, at hand or what went otherwise)
ROWS: list[tuple[str, str, v.Precision, float | None, float, str]] = [
    ("efficientnet_lite0.ra_in1k", "openvino", "bf16", 5.9, 231, ""),
    ("efficientnet_lite0.ra_in1k", "openvino", "fp32", 7.4, 236, ""),
    ("efficientnet_lite0.ra_in1k", "onnxruntime", "fp32", 9.6, 188, ""),
    ("efficientnet_lite0.ra_in1k", "pytorch-eager", "fp32", 21.3, 612, "reference"),
    ("efficientnet_lite1.pkg_in1k", "openvino", "bf16", 7.2, 240, ""),
    ("efficientnet_lite1.pkg_in1k", "openvino", "fp32", 9.1, 246, ""),
    ("efficientnet_lite2.pkg_in1k", "openvino", "bf16", 9.1, 252, ""),
    ("efficientnet_lite2.pkg_in1k", "openvino", "fp32", 12.3, 259, ""),
    ("efficientnet_lite2.pkg_in1k", "onnxruntime", "fp32", 15.8, 204, ""),
    ("efficientnet_lite2.pkg_in1k", "pytorch-eager", "bf16", 93.0, 640, "reference"),
    ("mobilenetv3_large_100.miil_in21k_ft_in1k", "openvino", "fp32", 6.4, 233, "random"),
    ("mobilenetv4_conv_medium.e500_r256_in1k", "openvino", "bf16", 8.2, 251, "random"),
    ("mobilevitv2_100.cvnets_in1k", "openvino", "bf16", None, 0, "license"),
    ("efficientvit_b1.r224_in1k", "openvino", "bf16", 8.8, 246, "random"),
    ("fastvit_t8.apple_in1k", "openvino", "fp32", None, 0, "license"),
    ("tf_efficientnetv2_s.in21k_ft_in1k", "openvino", "bf16", 41.9, 402, "random"),
    ("tf_efficientnetv2_m.in21k_ft_in1k", "openvino", "bf16", 104.5, 671, "random"),
    ("convnext_tiny.fb_in22k_ft_in1k", "openvino", "bf16", 26.1, 361, "random"),
    ("convnext_base.fb_in22k_ft_in1k", "openvino", "bf16", 67.3, 702, "random"),
    ("swin_tiny_patch4_window7_224.ms_in22k_ft_in1k", "openvino", "bf16", 28.9, 377, "crash"),
    ("swin_base_patch4_window7_224.ms_in22k_ft_in1k", "openvino", "bf16", 66.0, 691, "random"),
    ("vit_base_patch16_224.augreg2_in21k_ft_in1k", "openvino", "bf16", None, 0, "pruned"),
    ("vit_base_patch16_224.augreg2_in21k_ft_in1k", "openvino", "fp32", None, 0, "pruned"),
    ("deit3_small_patch16_224.fb_in22k_ft_in1k", "openvino", "bf16", 50.2, 352, "undecided"),
    ("resnet50.a1_in1k", "openvino", "bf16", 24.6, 330, "random"),
]


def accuracy_of(top1: float, precision: v.Precision) -> v.Accuracy:
    """Published for fp32, estimated with the stated allowance otherwise."""
    if precision == "fp32":
        return v.Accuracy(value=top1, provenance="published", source=SOURCE)
    return v.Accuracy(value=round(top1 - 0.5, 2), provenance="estimated", source="published less 0.5 points")


def candidate(name: str) -> v.Candidate:
    """One of `MODELS` as a candidate."""
    family, size, top1, parameters, gmacs, license_name = MODELS[name]
    packaged = name.startswith("efficientnet_lite")
    return v.Candidate(
        name=name,
        architecture=name.partition(".")[0],
        family=family,
        weights=v.Weights(
            source="package" if packaged else "hub",
            reference=name.partition(".")[0] if packaged else f"timm/{name}",
            tag=name.partition(".")[2],
            sha256="ab12" * 16 if packaged else None,
            license=license_name,
        ),
        preprocess=v.Preprocess(image_size=size),
        accuracy=v.Accuracy(value=top1, provenance="published", source=SOURCE),
        parameters=int(parameters * 1e6),
        macs=int(gmacs * 1e9),
        activations=int(gmacs * 7e6),
        public_weights=3,
        note="converted from TensorFlow; the conversion is unverified" if packaged else "",
    )


def figures(p95: float, calls: int = 360, spread: float = 0.03) -> v.LatencyFigures:
    """Percentiles around `p95` with a judged interval."""
    interval = (round(p95 * (1 - spread), 2), round(p95 * (1 + spread), 2))
    judged = v.JudgedLatency(percentile=95.0, value=p95, interval=interval)
    return v.LatencyFigures(
        p50=round(p95 * 0.93, 2), p95=p95, p99=round(p95 * 1.08, 2), judged=judged, calls=calls
    )


def observation(row: tuple[str, str, v.Precision, float | None, float, str]) -> v.Observation:
    """What is known of one of `ROWS`."""
    name, runtime, precision, p95, memory, case = row
    chosen = candidate(name)
    size = chosen.preprocess.image_size
    variant = v.Variant(
        candidate=chosen,
        image_size=size,
        runtime=runtime,
        precision=precision,
        reference=case == "reference",
    )
    at_hand = chosen.weights.source == "package"
    accuracy = accuracy_of(MODELS[name][2], precision)
    if case == "crash":
        failure = "the export process ended with signal 9 at 3072 MiB"
        return v.Observation(variant=variant, accuracy=accuracy, weights_at_hand=at_hand, failure=failure)
    if p95 is None:
        pruned = {
            "license": "license: other is not permissive",
            "pruned": "cannot be fast enough: at least 105 ms by the engine's peak, limit 50 ms",
        }[case]
        return v.Observation(variant=variant, accuracy=accuracy, weights_at_hand=at_hand, pruned=pruned)
    parity = v.Parity(
        answer="pass",
        cosine=0.99994 if precision == "bf16" else 0.9999999,
        relative_error=0.011 if precision == "bf16" else 2e-6,
        photos=11,
        decided=9,
        agreeing=9,
        loss=0.12 if precision == "bf16" else 0.0,
        loss_bound=None,
        reason="9 of 9 decided photos agree",
    )
    return v.Observation(
        variant=variant,
        accuracy=accuracy,
        latency={
            "request": figures(p95, spread=0.06 if case == "undecided" else 0.03),
            "model": figures(round(p95 * 0.62, 2)),
        },
        throughput=round(1000 / (p95 * 0.93), 1),
        memory=v.Memory(peak=memory, steady=memory - 21, above_baseline=memory - 140),
        parity=parity if at_hand else None,
        facts=v.RunnerFacts(
            runtime=runtime,
            version="2026.4.0",
            precision=precision,
            threads=2,
            graphs=(
                v.Graph(
                    entry="model.xml",
                    inputs=(v.TensorSpec(name="images", shape=(1, 3, size, size)),),
                    outputs=(v.TensorSpec(name="scores", shape=(1, 1000)),),
                ),
            ),
            details=(("INFERENCE_PRECISION_HINT", precision), ("NUM_STREAMS", "1")),
        ),
        environment=ENVIRONMENT,
        random_weights=not at_hand,
        weights_at_hand=at_hand,
        flags=("drift 6.1 % around one block",) if case == "undecided" else (),
    )


def _latency_verdict(seen: v.Observation, limit: float) -> v.Verdict:
    if not seen.latency:
        return v.Verdict(
            requirement="max_latency",
            answer="not assessed",
            observed=None,
            limit=limit,
            margin=None,
            reason="not measured",
        )
    value = seen.latency["request"].judged.value
    low, high = seen.latency["request"].judged.interval or (value, value)
    answer: v.Answer = "pass" if high <= limit else "fail" if low > limit else "undecided"
    margin = round(limit - value, 2)
    words = {
        "pass": f"p95 {value:g} ms: {margin:g} ms below the limit",
        "fail": f"p95 {value:g} ms: {-margin:g} ms over the limit",
        "undecided": f"p95 between {low:g} and {high:g} ms: not told apart from the limit of {limit:g} ms",
    }
    return v.Verdict(
        requirement="max_latency",
        answer=answer,
        observed=value,
        limit=limit,
        margin=margin,
        reason=words[answer],
        admit=None if answer != "fail" else f"--max-latency {int(high) + 1}ms",
    )


def _accuracy_verdict(seen: v.Observation, limit: float) -> v.Verdict:
    value = seen.accuracy.value if seen.accuracy else 0.0
    passes = value >= limit
    margin = round(value - limit, 2)
    return v.Verdict(
        requirement="min_accuracy",
        answer="pass" if passes else "fail",
        observed=value,
        limit=limit,
        margin=margin,
        reason=f"top-1 {value:g} %: {abs(margin):g} points {'above' if passes else 'below'} the limit",
        admit=None if passes else f"--min-accuracy {value:g}",
    )


def entry(seen: v.Observation, requirements: v.Requirements, status: v.Status | None = None) -> v.LedgerEntry:
    """A stand-in for the judge: just enough for the pages to show every kind of entry."""
    verdicts = []
    if requirements.max_latency_ms is not None:
        verdicts.append(_latency_verdict(seen, requirements.max_latency_ms))
    if requirements.min_accuracy is not None:
        verdicts.append(_accuracy_verdict(seen, requirements.min_accuracy))
    name = seen.variant.candidate.weights.license
    fits = name != "other"
    verdicts.append(
        v.Verdict(
            requirement="license",
            answer="pass" if fits else "fail",
            observed=name,
            limit="permissive",
            margin=None,
            reason=f"{name} is {'permissive' if fits else 'not permissive'}",
            admit=None if fits else "--license any",
        )
    )
    parity: v.Answer = seen.parity.answer if seen.parity else "not assessed"
    verdicts.append(
        v.Verdict(
            requirement="parity",
            answer=parity,
            observed=None,
            limit=None,
            margin=None,
            reason=seen.parity.reason if seen.parity else "no outputs of real weights to compare",
        )
    )
    reasons = tuple(verdict.reason for verdict in verdicts if verdict.answer != "pass")
    if seen.failure or seen.pruned:
        reasons = (seen.failure or seen.pruned or "",)
    if status is None:
        answers = {verdict.answer for verdict in verdicts}
        if seen.variant.reference:
            status, reasons = "reference", ("measured and shown, never shipped",)
        elif seen.failure or "fail" in answers:
            status = "rejected"
        elif seen.pruned:
            status = "not measured"
        elif answers == {"pass"}:
            status = "meets"
        elif seen.random_weights and "undecided" not in answers:
            status, reasons = "undecided", ("its weights are not at hand: timed with random weights",)
        else:
            status = "undecided"
    return v.LedgerEntry(observation=seen, status=status, verdicts=tuple(verdicts), reasons=reasons)


def selection(*, max_latency: float | None = 50.0, min_accuracy: float | None = 75.0) -> v.Selection:
    """About 25 variants with every status, pruned and failed ones, and random weights."""
    from dataclasses import replace

    requirements = v.Requirements(
        max_latency_ms=max_latency, min_accuracy=min_accuracy, max_memory_mib=1024.0
    )
    ledger = [entry(observation(row), requirements) for row in ROWS]
    feasible = [e for e in ledger if e.status == "meets"]
    best = max(feasible, key=lambda e: e.observation.accuracy.value, default=None)
    missing = [e for e in ledger if e.reasons == ("its weights are not at hand: timed with random weights",)]
    would = max(missing, key=lambda e: e.observation.accuracy.value, default=None)
    for i, e in enumerate(ledger):
        if e is best:
            ledger[i] = replace(
                e, status="selected", reasons=("highest top-1 of those that hold all limits",)
            )
        elif e is would:
            ledger[i] = replace(e, would_win=True)
        elif e.status == "meets" and best is not None:
            gap = best.observation.accuracy.value - e.observation.accuracy.value
            ledger[i] = replace(e, reasons=(f"{gap:.2g} points less accurate than the winner",))
    timed = [e for e in ledger if e.status in ("selected", "meets")]
    at = {
        e.variant.name: (e.observation.latency["request"].judged.value, -e.observation.accuracy.value)
        for e in timed
    }
    front = [
        name
        for name, (ms, loss) in at.items()
        if not any(a <= ms and b <= loss and (a, b) != (ms, loss) for a, b in at.values())
    ]
    nearest = sorted(
        (e for e in ledger if e.observation.latency and e.status == "rejected"),
        key=lambda e: sum(-(x.margin or 0.0) / float(x.limit) for x in e.verdicts if x.answer == "fail"),
    )
    return v.Selection(
        requirements=requirements,
        workload=v.Workload(threads=2),
        hardware=HARDWARE,
        ledger=tuple(ledger),
        selected=best.variant.name if best else None,
        front=tuple(front),
        nearest=() if best else tuple(e.variant.name for e in nearest[:3]),
        seconds=287.4,
        created="2026-01-15T09:30:00Z",
        notes=("timed on 11 sample photos: weaker evidence than your own (--images DIR)",),
        method=METHOD,
        settings=v.SearchSettings(models=("swin_*", "convnext_*"), budget_s=300.0, offline=True),
    )


def finalists() -> bytes:
    """A hand-written file of four lines: what a person types from a table in an article."""
    return b"""[{"model": "resnet152", "accuracy": 81.8, "latency_ms": 35},
 {"model": "swin_base", "accuracy": 83.5, "latency_ms": 28},
 {"model": "convnext_base", "accuracy": 83.8, "latency_ms": 25},
 {"model": "efficientnetv2_m", "accuracy": 85.1, "latency_ms": 15}]
"""
