"""A training step of ours beside loops put together from timm's and torchvision's packaged parts.

    python benchmarks/train.py [--part step|curve|processes] [--batch 16] [--rounds 3] [--save [HARDWARE]]

step:      one step of Swin-T at 224 px, AdamW, clipped gradients, on noise: fp32 eager, bf16, bf16 compiled.
           Ours is `learn.train.train` itself with its own model; the peers are loops of timm's parts with
           its model, and of torchvision's with its own, at the same settings. Each form runs in a process of
           its own, the forms one after the other and again for each round; a form's time is the median of
           its launches' medians. Ours reads and normalises its images within the step, theirs are there; our
           AdamW is the fused one, theirs what the library makes of the name. Aims: at least 4 times timm's
           fp32 eager, and never slower than a peer. `products` times only the matrix products that the
           model's linear layers ask for in one step, forward and backward: what no loop can go below.
curve:     seeded runs on digits, about 200 steps, in fp32 and in bf16 compiled: mean loss of each epoch, and
           three other seeds in fp32. Aim: within their spread.
processes: one process on one core beside two on two, the same batches. Aim: at least 1.8 times, same losses.

The last line of standard output is one JSON document.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"
MODES = ("fp32", "bf16", "bf16 compiled")
FORMS = (
    *((library, mode) for library in ("vitrail", "timm", "torchvision") for mode in MODES),
    *(("products", mode) for mode in ("fp32", "bf16")),
)
WARM = 2
SWIN = "swin_tiny_patch4_window7_224"


# --- one form, in a process of its own ------------------------------------------------------------


def ours(mode: str, batch: int, steps: int, folder: Path) -> list[float]:
    """Seconds of each step of `learn.train.train`, images from memory as in any run."""
    import torch

    from vitrail import models
    from vitrail.learn.classify import ClassifierTraining
    from vitrail.learn.images import EvaluationImages, Pixels, TrainingImages, augmentation
    from vitrail.learn.launch import launched
    from vitrail.learn.recipe import load_recipe
    from vitrail.learn.request import RunRequest
    from vitrail.learn.run import Run
    from vitrail.learn.setup import Machine
    from vitrail.learn.train import train
    from vitrail.vocabulary import Preprocess

    plan = load_recipe(
        "light",
        [
            *("epochs=1", f"batch_size={batch}", "optimizer.warmup_epochs=0", "optimizer.layer_decay=1"),
            "optimizer.weight_decay=0.05",
            *("regularization.average_decay=none", "augmentation.crop_area=none", "augmentation.flip=0"),
            *(f"engine.precision={mode.split()[0]}", f"engine.compile={str('compiled' in mode).lower()}"),
        ],
    )
    preprocess = Preprocess(image_size=224, crop=1.0)
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 255, (224, 224, 3), dtype=np.uint8) for _ in range(batch * steps)]
    labels = rng.integers(0, 1000, len(pixels)).tolist()
    torch.manual_seed(0)
    task = ClassifierTraining(
        model=models.build(SWIN).train(),
        images=TrainingImages(Pixels(pixels), labels, augmentation(plan.augmentation, preprocess), seed=0),
        validation=EvaluationImages(Pixels(pixels[:1]), labels[:1], preprocess),
        regularization=plan.regularization,
        classes=1000,
    )
    request = RunRequest(model=SWIN, image_size=224, start="random", data="noise", recipe=plan.values())
    fabric = launched(Machine(), plan)
    run = Run(folder=folder / "run", request=request, record=lambda kept: None, fabric=fabric)
    moments = [time.perf_counter()]

    def stepped(progress: Any, **_: Any) -> None:
        moments.append(time.perf_counter())

    run.after_step = stepped  # type: ignore[method-assign]
    run.checkpoint_is_due = lambda progress, steps: False  # type: ignore[method-assign]
    train(task, plan, run, fabric)
    return np.diff(moments).tolist()


def peer(library: str, mode: str, batch: int, steps: int) -> list[float]:
    """The same step as the library's own training script takes it: its model, groups, loss and clipping."""
    import timm
    import torch
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.optim import create_optimizer_v2
    from timm.utils import dispatch_clip_grad
    from torchvision.models import swin_t

    torch.manual_seed(0)
    if library == "timm":
        model = timm.create_model(SWIN).train()
        optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05)
        loss_of = LabelSmoothingCrossEntropy(0.1)
    else:
        model = swin_t().train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
        loss_of = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    model = model.to(memory_format=torch.channels_last)
    forward = torch.compile(model) if "compiled" in mode else model
    images = torch.randn(batch * steps, 3, 224, 224)
    labels = torch.randint(0, 1000, (batch * steps,))
    seconds = []
    for step in range(steps):
        begin = time.perf_counter()
        part = images[step * batch :][:batch].contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=mode.startswith("bf16")):
            loss = loss_of(forward(part).float(), labels[step * batch :][:batch])
        loss.backward()
        dispatch_clip_grad(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        seconds.append(time.perf_counter() - begin)
    return seconds


def products(mode: str, batch: int, steps: int) -> list[float]:
    """Seconds of the step's matrix products alone: each linear layer's output and both of its gradients."""
    import timm
    import torch

    model = timm.create_model(SWIN)  # whose every linear layer is called as a module
    shapes: list[tuple[int, int, int]] = []

    def seen(layer: Any, inputs: Any, output: Any) -> None:
        shapes.append((inputs[0].numel() // layer.in_features, layer.in_features, layer.out_features))

    for layer in model.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.register_forward_hook(seen)
    with torch.no_grad():
        model(torch.zeros(1, 3, 224, 224))
    dtype = torch.bfloat16 if mode == "bf16" else torch.float32
    seconds = [0.0] * steps
    for rows, inner, outer in shapes:
        rows *= batch
        x, weight = torch.randn(rows, inner, dtype=dtype), torch.randn(outer, inner, dtype=dtype)
        gradient = torch.randn(rows, outer, dtype=dtype)
        for step in range(steps):
            begin = time.perf_counter()
            torch.nn.functional.linear(x, weight)
            gradient @ weight
            gradient.T @ x
            seconds[step] += time.perf_counter() - begin
    return seconds


def one_form(library: str, mode: str, batch: int, steps: int) -> None:
    if library == "products":
        seconds = products(mode, batch, steps)
    elif library == "vitrail":
        with tempfile.TemporaryDirectory() as folder:
            seconds = ours(mode, batch, steps, Path(folder))
    else:
        seconds = peer(library, mode, batch, steps)
    print(json.dumps(seconds[WARM:]))


def measured(library: str, mode: str, batch: int, steps: int) -> list[float]:
    made = subprocess.run(
        [sys.executable, __file__, "--form", library, mode, "--batch", str(batch), "--steps", str(steps)],
        capture_output=True,
        text=True,
    )
    if made.returncode:
        raise RuntimeError(f"{library} {mode}: {made.stderr[-400:]}")
    return json.loads(made.stdout.strip().splitlines()[-1])


def step_part(batch: int, rounds: int, steps: int) -> dict[str, Any]:
    times: dict[str, list[float]] = {f"{library} {mode}": [] for library, mode in FORMS}
    for _ in range(rounds):
        for library, mode in FORMS:
            found = statistics.median(measured(library, mode, batch, steps))
            times[f"{library} {mode}"].append(found)
            print(f"{library:12} {mode:14} {found:7.3f} s a step", file=sys.stderr, flush=True)
    best = {name: statistics.median(values) for name, values in times.items()}
    over_fastest_peer = {
        mode: min(best[f"timm {mode}"], best[f"torchvision {mode}"]) / best[f"vitrail {mode}"]
        for mode in MODES
    }
    print(f"Swin-T 224 px, batch {batch}: s a step, timm fp32 over it, fastest peer over ours")
    for name, seconds in best.items():
        library, mode = name.split(" ", 1)
        ratio = f"{over_fastest_peer[mode]:5.2f}" if library == "vitrail" else ""
        print(f"{name:26} {seconds:7.3f}  {best['timm fp32'] / seconds:5.2f}  {ratio}")
    return {
        "seconds": best,
        "launches": times,
        "over_fp32_eager": best["timm fp32"] / best["vitrail bf16 compiled"],
        "over_fp32_eager_if_only_products": best["timm fp32"] / best["products bf16"],
        "over_fastest_peer": over_fastest_peer,
    }


# --- curves and processes -------------------------------------------------------------------------


def digits(folder: Path) -> Path:
    from PIL import Image
    from sklearn.datasets import load_digits

    found = load_digits()
    for i, (image, label) in enumerate(zip(found.images, found.target, strict=True)):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        pixels = Image.fromarray((image / 16 * 255).astype(np.uint8)).resize((28, 28))
        pixels.save(folder / str(label) / f"{i}.png")
    return folder


def run_of(data: Path, out: Path, *more: str) -> dict[str, Any]:
    """One `vitrail train` on digits: the losses of its steps and its seconds."""
    command = [sys.executable, "-m", "vitrail", "train", "--data", str(data), "--out", str(out), "--offline"]
    command += ["--set", "regularization.average_decay=none", "--set", "augmentation.crop_area=none"]
    made = subprocess.run([*command, *more], capture_output=True, text=True)
    if made.returncode:
        raise RuntimeError(made.stderr[-400:])
    with open(out / "metrics.csv") as file:
        header, *rows = (line.rstrip("\n").split(",") for line in file)
    place = {name: header.index(name) for name in ("step", "train_loss", "images_per_s")}
    steps = [row for row in rows if row[place["train_loss"]] and row[place["images_per_s"]]]
    record = json.loads((out / "trained.json").read_text())
    return {
        "losses": [float(row[place["train_loss"]]) for row in steps],
        "images_per_s": statistics.median(float(row[place["images_per_s"]]) for row in steps[1:]),
        "epoch_losses": [epoch["train_loss"] for epoch in record["history"]],
    }


def curve_part() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        data = digits(Path(place) / "digits")
        common = ["--model", "swin_nano_patch2_window7_28", "--batch-size", "32", "--epochs", "6"]
        runs = {}
        for name, more in {
            "fp32": ["--precision", "fp32"],
            "bf16 compiled": ["--precision", "bf16", "--compile"],
            **{f"fp32 seed {seed}": ["--precision", "fp32", "--seed", str(seed)] for seed in (1, 2, 3)},
        }.items():
            runs[name] = run_of(data, Path(place) / name.replace(" ", "-"), *common, *more)
            print(
                f"{name}: {[round(loss, 3) for loss in runs[name]['epoch_losses']]}",
                file=sys.stderr,
                flush=True,
            )
    own = np.array(runs["fp32"]["epoch_losses"])
    spread = np.array(
        [np.abs(np.array(runs[f"fp32 seed {seed}"]["epoch_losses"]) - own) for seed in (1, 2, 3)]
    )
    apart = np.abs(np.array(runs["bf16 compiled"]["epoch_losses"]) - own)
    within = bool((apart <= spread.max(0)).all())
    print(f"bf16 compiled differs from fp32 by at most {apart.max():.4f}, other seeds by {spread.max():.4f}")
    return {"runs": runs, "apart": apart.tolist(), "spread": spread.max(0).tolist(), "within": within}


def processes_part() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        data = digits(Path(place) / "digits")
        common = [
            "--model",
            SWIN,
            "--image-size",
            "224",
            "--from-scratch",
            "--batch-size",
            "16",
            "--epochs",
            "1",
        ]
        common += ["--threads", "1", "--workers", "0", "--set", "optimizer.warmup_epochs=0.5"]
        runs = {
            name: run_of(data, Path(place) / name, *common, "--processes", count)
            for name, count in (("one", "1"), ("two", "2"))
        }
    ratio = runs["two"]["images_per_s"] / runs["one"]["images_per_s"]
    differ = float(np.abs(np.array(runs["two"]["losses"]) - runs["one"]["losses"]).max())
    print(f"two processes {ratio:.2f} times one; losses differ by at most {differ:.4f}")
    return {"runs": runs, "ratio": ratio, "losses_differ": differ}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=("step", "curve", "processes"), default="step")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--form", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--save", nargs="?", const="this-machine", metavar="HARDWARE")
    args = parser.parse_args()
    if args.form:
        one_form(*args.form, args.batch, args.steps)
        return 0
    found = {
        "step": lambda: step_part(args.batch, args.rounds, args.steps),
        "curve": curve_part,
        "processes": processes_part,
    }[args.part]()
    document = {
        "benchmark": "train",
        "part": args.part,
        "date": datetime.date.today().isoformat(),
        "cores": len(os.sched_getaffinity(0)),
        **found,
    }
    text = json.dumps(document)
    if args.save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"train-{args.part}-{args.save}-{document['date']}.json").write_text(text + "\n")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
