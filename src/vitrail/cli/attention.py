"""`vitrail attention`: which attention kernels this machine has, and naive against fused and all others."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vitrail.cli.numbers import whole_number
from vitrail.cli.output import STDOUT, add_json_argument, write_json
from vitrail.words import counted

if TYPE_CHECKING:
    from vitrail.profiling.kernel_session import Case
    from vitrail.profiling.kernels import Kernel, KernelRow

SCHEMA_VERSION = 1
PRECISIONS = ("fp32", "bf16", "fp16")

COLUMNS = ("tokens", "kernel", "ms", "from", "to", "naive_x", "fused_x", "peak_MiB", "error")
GRADIENT = "gradient_error"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--tokens",
        nargs="+",
        type=whole_number("tokens"),
        default=(1024, 4096, 8192),
        metavar="N",
        help="lengths to measure (1024 4096 8192)",
    )
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="(fp32)")
    parser.add_argument("--heads", type=whole_number("heads"), default=12, metavar="H", help="(12)")
    parser.add_argument(
        "--width", type=whole_number("head_width"), default=64, metavar="D", help="of a head (64)"
    )
    parser.add_argument("--batch-size", type=whole_number("batch_size"), default=1, metavar="B", help="(1)")
    parser.add_argument("--backward", action="store_true", help="forward and backward pass together")
    parser.add_argument("--threads", type=whole_number("threads"), metavar="T", help="(all usable cores)")
    parser.add_argument("--device", default="cpu", metavar="DEV", help="cpu, cuda or cuda:N (cpu)")
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Show which kernels there are, measure them, show the figures; 0 even if a kernel fails.

    Raises InputError for a device that does not exist here.
    """
    document = attention_document(args)
    if args.json is not None:
        write_json(document, args.json)
    if args.json != STDOUT:
        _show(document)
    return 0


def attention_document(args: argparse.Namespace) -> dict[str, Any]:
    """The `--json` document: the machine, `kernels` (available ones) and `rows` (measurements)."""
    from dataclasses import asdict

    import torch

    from vitrail import hardware
    from vitrail.profiling import kernels
    from vitrail.profiling.kernel_session import Case

    kernels.check_device(args.device)
    facts = hardware.facts()
    no_gpu = kernels.no_gpu()
    devices = list(dict.fromkeys(["cpu", args.device] if no_gpu else ["cpu", "cuda", args.device]))
    there = [
        kernel
        for device in devices
        for precision in PRECISIONS
        for kernel in kernels.available(device, precision, heads=args.heads, width=args.width)
    ]
    mine = [k for k in there if (k.device, k.precision) == (args.device, args.precision)]
    threads = args.threads or hardware.usable_cores()
    rows: list[dict[str, Any]] = []
    auto = {}
    for tokens in dict.fromkeys(args.tokens):
        case = Case(
            tokens=tokens,
            heads=args.heads,
            width=args.width,
            batch_size=args.batch_size,
            precision=args.precision,
            backward=args.backward,
            device=args.device,
            threads=threads,
        )
        _progress(case, mine)
        auto[str(tokens)] = kernels.auto_takes(case)
        rows += with_speedups(kernels.measure(case, mine))
    return {
        "schema_version": SCHEMA_VERSION,
        "summary": hardware.one_line(facts),
        "fingerprint": hardware.fingerprint(facts),
        "torch": str(torch.__version__),
        "no_gpu": no_gpu,
        "kernels": [asdict(kernel) for kernel in there],
        "case": {
            "device": args.device,
            "precision": args.precision,
            "heads": args.heads,
            "width": args.width,
            "batch_size": args.batch_size,
            "backward": args.backward,
            "threads": threads,
        },
        "auto": auto,
        "rows": rows,
    }


def with_speedups(rows: Sequence[KernelRow]) -> list[dict[str, Any]]:
    """The rows of one length as JSON, with `speedup_over_naive` and `speedup_over_fused` of the medians."""
    from dataclasses import asdict

    medians = {row.kernel: row.median_ms for row in rows}

    def speedup(row: KernelRow, other: str) -> float | None:
        theirs = medians.get(other)
        return None if theirs is None or row.median_ms is None else theirs / row.median_ms

    return [
        {
            **asdict(row),
            "speedup_over_naive": speedup(row, "naive"),
            "speedup_over_fused": speedup(row, "fused"),
        }
        for row in rows
    ]


def _progress(case: Case, kernels: Sequence[Kernel]) -> None:
    if sys.stderr.isatty():
        names = ", ".join(k.kernel for k in kernels if (k.backward if case.backward else k.forward))
        print(f"{counted(case.tokens, 'token')}: {names} …", file=sys.stderr)


# --- text ---------------------------------------------------------------------------------------


def _show(document: dict[str, Any]) -> None:
    print(f"{document['summary']} · torch {document['torch']}\n")
    print("\n".join(_which(document)))
    case = document["case"]
    passes = "forward and backward" if case["backward"] else "forward"
    print(
        f"\n{passes}, {case['precision']} on {case['device']}, {counted(case['threads'], 'thread')}: "
        f"batch {case['batch_size']}, {case['heads']} heads of {case['width']}\n"
    )
    columns = (*COLUMNS, GRADIENT) if case["backward"] else COLUMNS
    cells = [_cells(row, columns) for row in document["rows"]]
    _print_table(columns, cells)
    chosen = ", ".join(f"{kernel} at {tokens}" for tokens, kernel in document["auto"].items())
    print(f"\nauto takes {chosen} tokens.")
    print(
        "ms: median, from the fastest to the slowest call; x: times faster than that kernel; peak: above the "
        "inputs;\nerror: relative, against float64."
    )


def _which(document: dict[str, Any]) -> list[str]:
    """The kernels of each device: a column per precision, then the reasons for missing ones."""
    lines = []
    for device in dict.fromkeys(kernel["device"] for kernel in document["kernels"]):
        mine = [kernel for kernel in document["kernels"] if kernel["device"] == device]
        lines.append(f"{device:12}" + "".join(f"{precision:17}" for precision in PRECISIONS).rstrip())
        for name in dict.fromkeys(kernel["kernel"] for kernel in mine):
            of = {k["precision"]: k for k in mine if k["kernel"] == name}
            states = "".join(f"{_state(of[precision]):17}" for precision in PRECISIONS)
            lines.append(f"  {name:10}{states}{_reasons(list(of.values()))}".rstrip())
    if document["no_gpu"] is not None:
        lines.append(f"no GPU: {document['no_gpu']}")
    return lines


def _state(kernel: dict[str, Any]) -> str:
    if not kernel["forward"]:
        return "no"
    if not kernel["backward"]:
        return "forward only"
    return f"yes ({kernel['takes']})" if kernel["takes"] else "yes"


def _reasons(kernels: Sequence[dict[str, Any]]) -> str:
    """Each reason once, with its precisions unless it applies to all."""
    found: dict[str, list[str]] = {}
    for kernel in kernels:
        if kernel["reason"] not in (None, "forward only"):
            found.setdefault(kernel["reason"], []).append(kernel["precision"])
    everywhere = len(kernels)
    return "; ".join(
        reason if len(where) == everywhere else f"{', '.join(where)}: {reason}"
        for reason, where in found.items()
    )


def _cells(row: dict[str, Any], columns: Sequence[str]) -> tuple[str, ...]:
    """One cell per column; for a kernel that was not measured, only its name and the reason."""
    if row["status"] != "measured":
        status = "" if row["status"] in ("too large", "unavailable") else f"{row['status']}: "
        return (str(row["tokens"]), row["kernel"], f"{status}{row['reason']}")
    values = {
        "tokens": str(row["tokens"]),
        "kernel": row["kernel"],
        "ms": _ms(row["median_ms"]),
        "from": _ms(row["fastest_ms"]),
        "to": _ms(row["slowest_ms"]),
        "naive_x": _times(row["speedup_over_naive"]),
        "fused_x": _times(row["speedup_over_fused"]),
        "peak_MiB": f"{row['peak_mib']:.0f}",
        "error": f"{row['error']:.1e}",
        GRADIENT: "-" if row["gradient_error"] is None else f"{row['gradient_error']:.1e}",
    }
    return tuple(values[column] for column in columns)


def _print_table(columns: Sequence[str], cells: Sequence[tuple[str, ...]]) -> None:
    """The same lines for a terminal and a pipe; on a terminal the header is bold and reasons are dim."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 1000)
    rows = (tuple(columns), *cells)
    widths = [max(len(row[i]) for row in rows if i < 2 or len(row) > 3) for i in range(len(columns))]
    for row in rows:
        line = f"{row[0].rjust(widths[0])}  {row[1].ljust(widths[1])}"
        # A reason may extend over the empty columns.
        rest = row[2:] if len(row) == 3 else map(str.rjust, row[2:], widths[2:])
        style = "bold" if row is rows[0] else "dim" if len(row) == 3 else None
        console.print("  ".join([line, *rest]).rstrip(), style=style, highlight=False, markup=False)


def _ms(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.3f}"


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


# --- arguments ----------------------------------------------------------------------------------
