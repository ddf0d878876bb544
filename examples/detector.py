"""torchvision's Faster R-CNN on our Swin: its four stages are the pyramid, the rest is torchvision's.

    python examples/detector.py --out detector

    photo ─► Swin ─► maps at strides 4, 8, 16, 32 ─► norms ─► FPN ─► proposals ─► boxes and classes
             └─────────────────── ours ───────────────────┘   └─────────── torchvision ───────────┘

Eight photos that scikit-image and scikit-learn carry, boxes drawn by hand, weights random at the start. It
shows that the parts fit, and that gradients reach all of Swin through the pyramid at images of many shapes.
It does not show a useful detector: eight photos are learnt by heart. Two photos are kept out: twelve coins
that training never saw, and the same motorcycle by the stereo pair's other camera, which is nearly a copy.

The last line printed is one JSON document; OUT/detector.jpg shows the boxes before and after.

Shapes: B images, C channels, H W pixels, D width, h w tokens of a map, G true boxes, P predicted boxes.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from skimage import data as skimage_data
from sklearn.datasets import load_sample_image
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign, box_iou
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from vitrail.models import build
from vitrail.models.swin import Swin

CLASSES = ("coin", "motorcycle", "wheel", "face", "rocket", "cat", "cup", "spoon", "flower", "pagoda")
"""Label 1 is the first: torchvision keeps 0 for the background. "wheel" means the motorcycle's."""

PHOTOS: dict[str, Callable[[], np.ndarray]] = {
    "coins": skimage_data.coins,
    "motorcycle": lambda: skimage_data.stereo_motorcycle()[0],
    "motorcycle, other camera": lambda: skimage_data.stereo_motorcycle()[1],
    "astronaut": skimage_data.astronaut,
    "rocket": skimage_data.rocket,
    "cat": skimage_data.chelsea,
    "coffee": skimage_data.coffee,
    "flower": lambda: load_sample_image("flower.jpg"),
    "pagoda": lambda: load_sample_image("china.jpg"),
}

SURE = 0.5
"""The score from which a box is drawn, and counted as right or wrong."""

Box = tuple[int, int, int, int]
Prediction = dict[str, Tensor]


@dataclass(frozen=True)
class Scene:
    """A photo, or the rows [top, bottom) of one, and what is in it."""

    photo: str
    objects: tuple[tuple[str, Box], ...]
    """(class, (x0, y0, x1, y1)) in pixels of the whole photo."""
    rows: tuple[int, int | None] = (0, None)

    def load(self) -> tuple[Tensor, dict[str, Tensor]]:
        """The image (3, H, W) in 0…1, and its target: boxes (G, 4) and labels (G,)."""
        pixels = PHOTOS[self.photo]()
        if pixels.ndim == 2:
            pixels = np.repeat(pixels[..., None], 3, axis=2)
        top, bottom = self.rows
        image_CHW = torch.from_numpy(pixels[top:bottom].copy()).permute(2, 0, 1).float() / 255
        boxes_G4 = torch.tensor([box for _, box in self.objects], dtype=torch.float32)
        boxes_G4[:, 1::2] -= top
        labels_G = torch.tensor([1 + CLASSES.index(name) for name, _ in self.objects])
        return image_CHW, {"boxes": boxes_G4, "labels": labels_G}


def _coins(*boxes: Box) -> tuple[tuple[str, Box], ...]:
    return tuple(("coin", box) for box in boxes)


# fmt: off
TRAINING = (
    Scene("coins", _coins(
        (23, 34, 67, 74), (81, 39, 120, 74), (132, 28, 179, 74),
        (192, 30, 240, 73), (255, 34, 297, 72), (305, 16, 365, 72),
        (25, 104, 67, 145), (84, 107, 122, 145), (134, 110, 174, 145),
        (186, 105, 227, 144), (245, 95, 296, 144), (317, 105, 356, 145),
    ), rows=(0, 150)),
    Scene("motorcycle", (
        ("motorcycle", (92, 18, 684, 455)), ("wheel", (122, 237, 279, 402)), ("wheel", (513, 294, 684, 454)),
    )),
    Scene("astronaut", (("face", (153, 15, 301, 189)), ("rocket", (354, 0, 458, 276)))),
    Scene("rocket", (("rocket", (309, 126, 335, 407)),)),
    Scene("cat", (("cat", (0, 0, 400, 300)),)),
    Scene("coffee", (("cup", (172, 18, 409, 307)), ("spoon", (327, 66, 425, 326)))),
    Scene("flower", (("flower", (169, 84, 446, 360)), ("flower", (288, 374, 470, 427)))),
    Scene("pagoda", (("pagoda", (62, 29, 375, 405)),)),
)
HELD_OUT = (
    Scene("coins", _coins(
        (25, 178, 63, 217), (80, 175, 124, 217), (135, 179, 174, 217),
        (189, 170, 237, 216), (251, 172, 297, 216), (315, 156, 380, 218),
        (18, 233, 75, 288), (92, 244, 136, 287), (144, 236, 201, 288),
        (220, 240, 269, 288), (276, 240, 326, 288), (336, 248, 381, 289),
    ), rows=(150, None)),
    Scene("motorcycle, other camera", (
        ("motorcycle", (47, 16, 628, 454)), ("wheel", (80, 237, 240, 402)), ("wheel", (470, 294, 628, 454)),
    )),
)
# fmt: on


class SwinPyramid(nn.Module):
    """Images (B, 3, H, W) -> {"0" … "3": (B, out_channels, h, w) at strides 4 … 32, "pool": at stride 64}.

    A stage of Swin ends with a residual sum of any scale, so each map is normalised before the FPN mixes
    them: the last by the norm that Swin has for its classifier, the others by norms of their own.
    """

    def __init__(self, swin: Swin, out_channels: int = 96) -> None:
        super().__init__()
        widths = [swin.config.width << stage for stage in range(len(swin.config.depths))]
        self.swin = swin
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths[:-1])
        self.fpn = FeaturePyramidNetwork(widths, out_channels, extra_blocks=LastLevelMaxPool())
        self.out_channels = out_channels
        """What torchvision's detectors ask of a backbone."""

    def forward(self, images_BCHW: Tensor) -> OrderedDict[str, Tensor]:
        """The maps by name, finest first."""
        maps_BDhw = self.swin.forward_pyramid(images_BCHW)
        norms = [*self.norms, self.swin.norm]
        named = [
            (str(stage), norm(map_BDhw.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
            for stage, (norm, map_BDhw) in enumerate(zip(norms, maps_BDhw, strict=True))
        ]
        pyramid: OrderedDict[str, Tensor] = self.fpn(OrderedDict(named))
        return pyramid


def detector(min_size: Sequence[int] = (192,), max_size: int = 352, **overrides: Any) -> FasterRCNN:
    """Faster R-CNN on a Swin-T cut to half its width and two blocks per stage, small enough for two cores.

    torchvision scales each photo's shorter side to `min_size` (training: one of them by chance) and pads to
    a multiple of 32. Swin needs no such padding, but torchvision's anchors do: their spacing is the quotient
    of image and map rounded down, so 337 pixels over ⌈337 / 4⌉ columns would give 3 instead of 4.

    Args:
        min_size: pixels of the shorter side, one or several.
        max_size: pixels that the longer side may have.
        overrides: fields of Swin's config, e.g. `width=96`.
    """
    # Nothing was trained at 224 × 224 here, so there is nothing to warn of at other sizes.
    fields: dict[str, Any] = {
        "width": 48,
        "depths": (2, 2, 2, 2),
        "drop_path": 0.0,
        "trained_size": None,
    } | overrides
    swin = build("swin_tiny_patch4_window7_224", num_classes=0, **fields)
    assert isinstance(swin, Swin)
    backbone = SwinPyramid(swin)
    sizes, hidden, cells = ((16,), (32,), (64,), (128,), (256,)), 256, 7
    return FasterRCNN(
        backbone,
        min_size=tuple(min_size),
        max_size=max_size,
        size_divisible=32,
        # Height over width; 4 is for rockets.
        rpn_anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0, 4.0),) * len(sizes)),
        rpn_pre_nms_top_n_train=1000,
        rpn_post_nms_top_n_train=300,
        rpn_pre_nms_top_n_test=500,
        rpn_post_nms_top_n_test=200,
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2", "3"], output_size=cells, sampling_ratio=2),
        box_head=TwoMLPHead(backbone.out_channels * cells * cells, hidden),
        box_predictor=FastRCNNPredictor(hidden, 1 + len(CLASSES)),
        box_batch_size_per_image=128,
    )


def augment(
    image_CHW: Tensor, target: dict[str, Tensor], dice: np.random.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """A random crop, sides of 70–100 %, that keeps an object if it has its centre; then perhaps mirrored."""
    height, width = image_CHW.shape[1:]
    crop_h, crop_w = (int(side * dice.uniform(0.7, 1.0)) for side in (height, width))
    top, left = int(dice.integers(height - crop_h + 1)), int(dice.integers(width - crop_w + 1))
    boxes_G4 = target["boxes"] - torch.tensor([left, top, left, top])
    centre_G2 = (boxes_G4[:, :2] + boxes_G4[:, 2:]) / 2
    keep_G = ((centre_G2 > 0) & (centre_G2 < torch.tensor([crop_w, crop_h]))).all(1)
    if not keep_G.any():
        return image_CHW, target
    boxes_G4 = boxes_G4[keep_G]
    boxes_G4[:, 0::2] = boxes_G4[:, 0::2].clamp(0, crop_w)
    boxes_G4[:, 1::2] = boxes_G4[:, 1::2].clamp(0, crop_h)
    image_CHW = image_CHW[:, top : top + crop_h, left : left + crop_w]
    if dice.random() < 0.5:
        image_CHW = image_CHW.flip(2)
        boxes_G4[:, 0::2] = crop_w - boxes_G4[:, [2, 0]]
    return image_CHW, {"boxes": boxes_G4, "labels": target["labels"][keep_G]}


def train(model: FasterRCNN, scenes: Sequence[Scene], *, steps: int, batch: int, seed: int) -> list[float]:
    """AdamW with a warm-up and a cosine; the loss (RPN's and RoI head's, classes and boxes) of each step."""
    dice = np.random.default_rng(seed)
    examples = [scene.load() for scene in scenes]
    optimiser = torch.optim.AdamW(model.parameters(), lr=4e-4, weight_decay=0.05)
    warm = max(1, min(30, steps // 5))

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * step / steps))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
    model.train()
    losses: list[float] = []
    queue: list[int] = []
    for step in range(steps):
        if len(queue) < batch:
            queue += dice.permutation(len(examples)).tolist()
        drawn = [augment(*examples[queue.pop(0)], dice) for _ in range(batch)]
        loss = sum(model([image for image, _ in drawn], [target for _, target in drawn]).values())
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
        if (step + 1) % 50 == 0 or step + 1 == steps:
            print(f"step {step + 1:4d}  loss {np.mean(losses[-50:]):.3f}", flush=True)
    return losses


@torch.inference_mode()
def predict(model: FasterRCNN, scenes: Sequence[Scene]) -> list[Prediction]:
    """Boxes (P, 4), labels (P,) and scores (P,) of each scene, in its own pixels, best first."""
    model.eval()
    return [model([scene.load()[0]])[0] for scene in scenes]


def ranked(
    found: Sequence[Prediction], truth: Sequence[Prediction], label: int
) -> tuple[np.ndarray, np.ndarray]:
    """Scores (P,) of a class's boxes over all photos, best first, and which of them are right, (P,).

    Taken in that order, a box is right if the object it overlaps most, with an IoU of 0.5 or more, was not
    found before.
    """
    scores: list[float] = []
    right: list[bool] = []
    for predicted, target in zip(found, truth, strict=True):
        boxes_G4 = target["boxes"][target["labels"] == label]
        taken: set[int] = set()
        of_class_P = (predicted["labels"] == label).nonzero()[:, 0]
        for index in of_class_P[predicted["scores"][of_class_P].argsort(descending=True, stable=True)]:
            overlap_G = box_iou(predicted["boxes"][index][None], boxes_G4)[0]
            best = int(overlap_G.argmax()) if len(boxes_G4) else -1
            right.append(best >= 0 and bool(overlap_G[best] >= 0.5) and best not in taken)
            scores.append(float(predicted["scores"][index]))
            taken |= {best} if right[-1] else set()
    order_P = np.argsort(-np.array(scores), kind="stable")
    return np.array(scores, dtype=float)[order_P], np.array(right, dtype=bool)[order_P]


def average_precision(right_P: np.ndarray, objects: int) -> float:
    """Area under precision over recall, precision made monotone (VOC 2010 and later: all points)."""
    hits_P = np.cumsum(right_P)
    precision_P = hits_P / np.arange(1, len(hits_P) + 1)
    envelope_P = np.maximum.accumulate(precision_P[::-1])[::-1]
    return float(envelope_P[right_P].sum() / objects)


def evaluate(found: Sequence[Prediction], scenes: Sequence[Scene]) -> dict[str, Any]:
    """AP of each class that occurs, their mean, and what is right and wrong among boxes of SURE and more.

    Average precision alone flatters: boxes that are wrong count little once all the right ones score higher.
    """
    truth = [scene.load()[1] for scene in scenes]
    by_class: dict[str, float] = {}
    correct = wrong = total = 0
    for label, name in enumerate(CLASSES, start=1):
        objects = sum(int((target["labels"] == label).sum()) for target in truth)
        scores_P, right_P = ranked(found, truth, label)
        if objects:
            by_class[name] = average_precision(right_P, objects)
        total += objects
        correct += int(right_P[scores_P >= SURE].sum())
        wrong += int((~right_P[scores_P >= SURE]).sum())
    mean = float(np.mean(list(by_class.values())))
    return {"classes": by_class, "mean": mean, "objects": total, "found": correct, "wrong": wrong}


CELL = (260, 174)
"""Pixels (width, height) that a photo may take in the picture."""


def draw(scene: Scene, predicted: Prediction) -> Image.Image:
    """The photo with its boxes of SURE and more, or with the three best if there is none."""
    image_CHW, _ = scene.load()
    scale = min(CELL[0] / image_CHW.shape[2], CELL[1] / image_CHW.shape[1])
    photo = Image.fromarray((image_CHW.permute(1, 2, 0) * 255).byte().numpy())
    photo = photo.resize((round(photo.width * scale), round(photo.height * scale)), Image.Resampling.LANCZOS)
    pen, font = ImageDraw.Draw(photo), ImageFont.load_default(9)
    shown = int((predicted["scores"] >= SURE).sum()) or 3
    rows = zip(*(predicted[key][:shown].tolist() for key in ("boxes", "labels", "scores")), strict=True)
    for box, label, score in rows:
        x0, y0, x1, y1 = (value * scale for value in box)
        colour = f"hsl({(label - 1) * 360 // len(CLASSES)}, 100%, 55%)"
        pen.rectangle((x0, y0, x1, y1), outline=colour, width=2)
        text = f"{CLASSES[label - 1]} {100 * score:.0f}"
        spot = (max(0.0, min(x0, photo.width - pen.textlength(text, font))), max(0.0, y0 - 10))
        pen.rectangle(pen.textbbox(spot, text, font), fill="black")
        pen.text(spot, text, colour, font)
    return photo


def picture(
    scenes: Sequence[Scene], before: Sequence[Prediction], after: Sequence[Prediction]
) -> Image.Image:
    """Each scene twice, before training above and after it below, five scenes in a row."""
    gap, columns, title = 6, 5, 18
    width, height = CELL[0] + gap, title + 2 * (CELL[1] + gap)
    sheet = Image.new("RGB", (columns * width, -(-len(scenes) // columns) * height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for index, scene in enumerate(scenes):
        left, top = index % columns * width, index // columns * height
        kind = "held out" if scene in HELD_OUT else "training"
        pen.text((left, top + 2), f"{scene.photo} ({kind})", "black", font)
        for row, predictions in enumerate((before, after)):
            sheet.paste(draw(scene, predictions[index]), (left, top + title + row * (CELL[1] + gap)))
    return sheet


def report(part: str, before: dict[str, Any], after: dict[str, Any]) -> None:
    """Print the table of some photos."""
    print(f"\nAverage precision at IoU 0.5, {part} photos: untrained → trained")
    for name, value in after["classes"].items():
        print(f"  {name:10s}  {100 * before['classes'][name]:5.1f} → {100 * value:5.1f} %")
    print(f"  {'mean':10s}  {100 * before['mean']:5.1f} → {100 * after['mean']:5.1f} %")
    found = f"{after['found']} of {after['objects']} objects"
    print(f"  Boxes scored {SURE} or more: {found}, and {after['wrong']} wrong boxes")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("detector"), help="folder for the picture")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    model = detector(min_size=(160, 192, 224))
    scenes = (*TRAINING, *HELD_OUT)
    before = predict(model, scenes)
    start = time.perf_counter()
    losses = train(model, TRAINING, steps=options.steps, batch=options.batch, seed=options.seed)
    seconds = time.perf_counter() - start
    after = predict(model, scenes)

    seen = len(TRAINING)
    result = {
        "training": {"before": evaluate(before[:seen], TRAINING), "after": evaluate(after[:seen], TRAINING)},
        "held_out": {"before": evaluate(before[seen:], HELD_OUT), "after": evaluate(after[seen:], HELD_OUT)},
    }
    for part, values in result.items():
        report(part.replace("_", " "), **values)
    options.out.mkdir(parents=True, exist_ok=True)
    picture(scenes, before, after).save(options.out / "detector.jpg", quality=60)
    print(f"\n{options.out / 'detector.jpg'} · {seconds:.0f} s of training\n")
    ends = {"first": float(np.mean(losses[:20])), "last": float(np.mean(losses[-20:]))}
    settings = {"steps": options.steps, "batch": options.batch, "seed": options.seed}
    print(json.dumps({**settings, "seconds": round(seconds, 1), "loss": ends, "ap50": result}))


if __name__ == "__main__":
    main()
