"""`vitrail memory`: a model's memory at an image size and batch size, predicted and, on request, measured."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from vitrail import hardware
from vitrail.cli.numbers import whole_number
from vitrail.cli.output import STDOUT, add_json_argument, write_json
from vitrail.errors import InputError, VitrailError

if TYPE_CHECKING:
    from vitrail.profiling.memory import MemorySetup

SCHEMA_VERSION = 1
MEASURED_SHARE = 0.8
"""Share of this machine's memory at which a measuring process is stopped."""
GIB = 1024.0
EXTRAPOLATED = 4
"""Beyond this many times the given batch, the largest one is extrapolated."""

MEANING = {
    "baseline": "process with its imports",
    "runtime": "the kernels' code, threads and buffers",
    "weights": "",
    "input": "the images",
    "activations": "alive at the peak, except those below",
    "attention": "scores, or the kernel's tiles",
    "kernels": "matrix products compiled and kept by oneDNN, one per shape",
    "gradients": "",
    "optimizer": "AdamW's two averages",
    "allowance": "a tenth of the tensors: buffers inside kernels, memory kept by malloc",
    "total": "",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("model", metavar="MODEL", help="timm's name without a tag; CLIP by open_clip's")
    parser.add_argument(
        "--image-size",
        type=whole_number("image_size"),
        metavar="PX",
        help="height and width (the model's own)",
    )
    parser.add_argument("--batch-size", type=whole_number("batch_size"), default=1, metavar="B", help="(1)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="(fp32)")
    parser.add_argument("--training", action="store_true", help="a step of AdamW instead of inference")
    parser.add_argument(
        "--attention", default="auto", metavar="KERNEL", help="auto, naive, fused or another kernel (auto)"
    )
    parser.add_argument(
        "--implementation", choices=("vitrail", "timm"), help="whose code runs (ours where it exists)"
    )
    parser.add_argument("--measure", action="store_true", help="run it too, in a separate process")
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Predict, measure on request, show; 1 if measuring failed.

    Raises InputError for a model, size, batch or kernel that does not exist, or that do not fit together.
    """
    from vitrail.profiling.memory import MemorySetup

    setup = MemorySetup(
        model=args.model,
        image_size=args.image_size,
        batch_size=args.batch_size,
        precision=args.precision,
        training=args.training,
        attention=args.attention,
        implementation=args.implementation,
    )
    document = memory_document(setup, measured=args.measure)
    if args.json is not None:
        write_json(document, args.json)
    if args.json != STDOUT:
        print("\n".join(_lines(document)))
    if document["not_measured"] is not None:
        print(f"not measured: {document['not_measured']}", file=sys.stderr)
        return 1
    return 0


def memory_document(setup: MemorySetup, *, measured: bool) -> dict[str, Any]:
    """The `--json` document: the setup, `predicted_mib`, `measured_mib` (None: not requested or failed, see
    `not_measured`), `machine_mib`, `fits` and `largest_batch`, the last three by the prediction."""
    from vitrail.profiling import memory

    machine = _machine_mib()
    predicted = memory.predict(setup, budget_mib=machine)
    total = predicted["predicted_mib"]["total"]
    figures, reason = None, None
    if measured and total > MEASURED_SHARE * machine:
        reason = f"it would take {total:.0f} of this machine's {machine:.0f} MiB"
    elif measured:
        try:
            figures = memory.measure(setup, memory_mib=MEASURED_SHARE * machine)["measured_mib"]
        except InputError:
            raise
        except VitrailError as error:
            reason = str(error)
    return {
        "schema_version": SCHEMA_VERSION,
        "model": setup.model,
        "implementation": predicted["implementation"],
        "image_size": predicted["image_size"],
        "batch_size": setup.batch_size,
        "precision": setup.precision,
        "training": setup.training,
        "attention": setup.attention,
        "parameters": predicted["parameters"],
        "macs": predicted["macs"],
        "predicted_mib": predicted["predicted_mib"],
        "measured_mib": figures,
        "not_measured": reason,
        "machine_mib": machine,
        "followed_batches": predicted["followed_batches"],
        "fits": total <= machine,
        "largest_batch": predicted["largest_batch"],
    }


def _machine_mib() -> float:
    memory = hardware.facts()["memory"]
    known = [size for size in (memory["total_mib"], memory["limit_mib"]) if size is not None]
    if not known:
        raise InputError("This system does not say how much memory it has: run on Linux or macOS.")
    return float(min(known))


# --- text ---------------------------------------------------------------------------------------


def _lines(document: dict[str, Any]) -> list[str]:
    size, mode = document["image_size"], "training" if document["training"] else "inference"
    lines = [
        f"{document['model']} ({document['implementation']}) · {size} × {size} px · batch "
        f"{document['batch_size']} · {document['precision']} · {mode} · attention {document['attention']}",
        f"{document['parameters'] / 1e6:.1f} M parameters · {document['macs'] / 1e9:.2f} GMACs an image",
        "",
        f"{'MiB':12} {'predicted':>9}",
    ]
    for name, meaning in MEANING.items():
        value = document["predicted_mib"][name]
        if value >= 0.05 or name == "total":
            lines.append(f"{name:12} {value:9.1f}  {meaning}".rstrip())
    return [*lines, *_measured(document), "", _verdict(document)]


def _measured(document: dict[str, Any]) -> list[str]:
    measured = document["measured_mib"]
    if measured is None:
        return []
    off = document["predicted_mib"]["total"] / measured["total"] - 1
    return [
        "",
        f"measured     {measured['total']:9.1f}  predicted {off:+.1%}; baseline {measured['baseline']:.1f}, "
        f"load {measured['load']:.1f}, run {measured['run']:.1f}, further calls {measured['repeated']:.1f}",
    ]


def _verdict(document: dict[str, Any]) -> str:
    total, machine = document["predicted_mib"]["total"], document["machine_mib"]
    largest = document["largest_batch"]
    said = "fits" if document["fits"] else "does not fit"
    near = "about " if largest > EXTRAPOLATED * document["batch_size"] else ""
    most = f"the largest batch that does is {near}{largest}" if largest else "not even one image does"
    return f"{total / GIB:.2f} GiB {said} in this machine's {machine / GIB:.1f} GiB; by prediction {most}."
