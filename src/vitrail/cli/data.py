"""`vitrail data DIR`: what a labelled data set contains, and what is wrong with it. Light: no torch."""

from __future__ import annotations

import argparse
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from vitrail.cli.output import STDOUT, add_json_argument, write_json, write_lines
from vitrail.data.records import LAYOUTS
from vitrail.errors import InputError
from vitrail.words import counted, utf8

if TYPE_CHECKING:
    from vitrail.data.near import NearPair
    from vitrail.data.read import Reading

SCHEMA_VERSION = 1
SHOWN = 5
"""Files or pairs of a kind named on a terminal; the JSON document names more."""
SHOWN_CLASSES = 40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "data", metavar="DIR", help="a folder per class, a manifest (CSV, Parquet), or a saved data set"
    )
    parser.add_argument(
        "--layout", choices=LAYOUTS, help="what the folders are, if that is not recognised (docs/data.md)"
    )
    parser.add_argument("--sheet", metavar="FILE", help="write a contact sheet, .jpg or .png")
    parser.add_argument(
        "--per-class", type=int, default=8, metavar="N", help="images of each class on it (8)"
    )
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Inspect, show, write the sheet; 1 if some images cannot be used (broken, or with two labels).

    Raises InputError for data that cannot be used at all.
    """
    from vitrail.data import read, sheet

    if not 1 <= args.per_class <= sheet.MAX_PER_CLASS:
        raise InputError(f"--per-class is {args.per_class}: give 1 to {sheet.MAX_PER_CLASS}.")
    if args.sheet is not None:
        sheet.check_sheet(args.sheet)
    reading = read.read(args.data, layout=args.layout)
    document = data_document(reading)
    try:
        if args.sheet is not None:
            drawn = sheet.write_sheet(reading.dataset, args.sheet, per_class=args.per_class)
            document["sheet"] = {"path": args.sheet, "classes": drawn}
    finally:  # even if the sheet could not be written
        if args.json is not None:
            write_json(document, args.json)
        if args.json != STDOUT:
            write_lines(_lines(document))
    return 1 if document["broken"] or document["conflicts"] else 0


def data_document(reading: Reading) -> dict[str, Any]:
    """The `--json` document (docs/command-line.md); `sheet` is None until one is written."""
    from vitrail.data.near import ALIKE, near_duplicates

    dataset, looks = reading.dataset, reading.looks
    near = near_duplicates(dataset.examples, [looks[e.path].thumbnail for e in dataset.examples])
    unusable = len(dataset.broken) + sum(len(conflict.paths) for conflict in dataset.conflicts)
    return {
        "schema_version": SCHEMA_VERSION,
        "name": dataset.name,
        "digest": dataset.digest,
        "files": len(dataset.examples) + dataset.duplicates + unusable,
        "images": len(dataset.examples),
        "classes": dataset.counts(),
        "layout": dataset.found,
        "given_splits": dataset.given,
        "width": _spread(look.size[0] for look in looks.values()),
        "height": _spread(look.size[1] for look in looks.values()),
        "formats": dict(Counter(look.kind for look in looks.values()).most_common()),
        "broken": [asdict(item) for item in dataset.broken],
        "duplicates": [asdict(copy) for copy in dataset.copies],
        "conflicts": [asdict(conflict) for conflict in dataset.conflicts],
        "near_duplicates": {
            "correlation": ALIKE,
            "pairs": near.pairs,
            "images": near.images,
            "straddling": near.straddling,
            "held_out": near.held_out,
            "mislabelled": near.mislabelled,
            "closest": [_pair(pair, dataset.classes) for pair in near.closest],
        },
        "sheet": None,
    }


def _spread(values: Iterable[int]) -> dict[str, float]:
    numbers = list(values)
    return {"min": min(numbers), "median": statistics.median(numbers), "max": max(numbers)}


def _pair(pair: NearPair, classes: Sequence[str]) -> dict[str, Any]:
    both = (pair.first, pair.second)
    return {
        "paths": [example.path for example in both],
        "classes": [classes[example.label] for example in both],
        "splits": [example.split for example in both],
        "correlation": round(pair.correlation, 4),
    }


# --- text ---------------------------------------------------------------------------------------


def _lines(document: dict[str, Any]) -> list[str]:
    classes, given = document["classes"], document["given_splits"]
    how = f"{', '.join(given)} as given" if given else "by content"
    kinds = ", ".join(f"{count} {kind}" for kind, count in document["formats"].items())
    lines = [
        f"{document['name']} · {counted(document['images'], 'distinct image')} · "
        f"{counted(len(classes), 'class', 'classes')} · splits {how} · {document['digest'][:12]}",
        *([f"layout       {document['layout']}"] if document["layout"] else []),
        "",
        *_table(classes),
        "",
        f"pixels       {_range(document['width'])} wide, {_range(document['height'])} high (min–median–max)",
        f"formats      {kinds}",
        *_broken(document),
        *_duplicates(document),
        *_near(document["near_duplicates"]),
    ]
    if document["sheet"] is not None:
        drawn, there = document["sheet"]["classes"], len(classes)
        some = f" (the first {drawn} of {there} classes)" if drawn < there else ""
        lines.append(f"sheet        {document['sheet']['path']}{some}")
    return lines


def _table(classes: dict[str, dict[str, int]]) -> list[str]:
    """Counts per class and split with their totals; of many classes only some."""
    splits = list(next(iter(classes.values())))
    shown = list(classes.items())[:SHOWN_CLASSES]
    totals = {split: sum(counts[split] for counts in classes.values()) for split in splits}
    width = max(len(name) for name in ("class", "total", *(name for name, _ in shown)))
    lines = [f"{'class':{width}}" + "".join(f"{title:>12}" for title in (*splits, "all"))]
    for name, counts in [*shown, ("total", totals)]:
        cells = [counts[split] for split in splits]
        if name == "total" and len(shown) < len(classes):
            lines.append(f"and {len(classes) - len(shown)} more classes")
        lines.append(f"{name:{width}}" + "".join(f"{cell:12}" for cell in (*cells, sum(cells))))
    return lines


def _range(spread: dict[str, float]) -> str:
    if spread["min"] == spread["max"]:
        return f"{spread['min']}"
    return f"{spread['min']}–{spread['median']:g}–{spread['max']}"


def _broken(document: dict[str, Any]) -> list[str]:
    broken = document["broken"]
    if not broken:
        return ["broken       none"]
    # Most reasons name their file.
    reasons = [
        b["reason"] if utf8(b["path"]) in b["reason"] else f"{b['path']}: {b['reason']}" for b in broken
    ]
    return [f"broken       {counted(len(broken), 'file')}, in no split", *_some(reasons)]


def _duplicates(document: dict[str, Any]) -> list[str]:
    copies, conflicts = document["duplicates"], document["conflicts"]
    lines = ["duplicates   none"]
    if copies:
        across = sum(copy["straddles"] for copy in copies)
        leak = f"; {across} across the given splits, kept where it judges" if across else ""
        lines = [f"duplicates   {counted(len(copies), 'exact copy', 'exact copies')}, counted once{leak}"]
        lines += _some([f"{copy['path']} = {copy['original']}" for copy in copies])
    if conflicts:
        files = sum(len(conflict["paths"]) for conflict in conflicts)
        many = counted(len(conflicts), "image")
        fix = "in no split: remove the wrong ones"
        lines.append(f"conflicts    {many} under more than one label ({counted(files, 'file')}), {fix}")
        for conflict in conflicts[:SHOWN]:
            pairs = zip(conflict["paths"], conflict["labels"], strict=True)
            lines += _some([f"{path} is {label!r}" for path, label in pairs])
        if len(conflicts) > SHOWN:
            lines.append(f"  and {len(conflicts) - SHOWN} more images: see --json")
    return lines


def _near(near: dict[str, Any]) -> list[str]:
    if not near["pairs"]:
        return [f"near copies  none (no thumbnails correlate by {near['correlation']} or more)"]
    pairs, across = counted(near["pairs"], "pair"), counted(near["straddling"], "pair")
    how = f"thumbnails correlate by {near['correlation']} or more"
    lines = [f"near copies  {pairs} among {near['images']} images ({how})"]
    if near["straddling"]:
        held_out = counted(near["held_out"], "image")
        lines.append(
            f"  {across} across splits, with {held_out} of validation or test: accuracy may look too good"
        )
    if near["mislabelled"]:
        lines.append(f"  {counted(near['mislabelled'], 'pair')} with two labels: look for a wrong one")
    named = [
        f"{pair['correlation']:.3f}  {' ~ '.join(pair['paths'])} ({' ~ '.join(pair['splits'])})"
        for pair in near["closest"]
    ]
    return [*lines, *_some(named, near["pairs"])]


def _some(items: Sequence[str], total: int | None = None) -> list[str]:
    """The first few, indented, and the number of others."""
    more = (len(items) if total is None else total) - min(len(items), SHOWN)
    return [*(f"  {item}" for item in items[:SHOWN]), *([f"  and {more} more"] if more else [])]
