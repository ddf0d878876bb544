"""Reads `table.csv`, the frozen table of candidates, into records.

One row is one set of published weights at the one image size that its published top-1 belongs to.
`scripts/make_catalog.py` writes the file; changing a figure changes one line in its diff.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from typing import cast

from vitrail.vocabulary import Accuracy, Candidate, Interpolation, Preprocess, Weights, WeightsSource

COLUMNS = (
    "name",
    "family",
    "source",
    "reference",
    "license",
    "image_size",
    "crop",
    "crop_mode",
    "interpolation",
    "normalisation",
    "top1",
    "top1_source",
    "parameters",
    "macs",
    "activations",
    "public_weights",
    "note",
)

Channels = tuple[float, float, float]

# (mean, std) per RGB channel, for pixels scaled to [0, 1].
NORMALISATIONS: dict[str, tuple[Channels, Channels]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    # TensorFlow's EfficientNet-Lite subtracts 127 and divides by 128, on values 0..255.
    "edge": ((127 / 255, 127 / 255, 127 / 255), (128 / 255, 128 / 255, 128 / 255)),
}

# Where a published top-1 comes from; braces are filled with the row's columns.
TOP1_SOURCES: dict[str, str] = {
    "timm": "timm results-imagenet.csv (img_size {image_size}, crop {crop}, {interpolation})",
    "efficientnet-lite": "tensorflow/tpu EfficientNet-Lite README, FP32 at {image_size}, of the original "
    "TensorFlow checkpoint (conversion to PyTorch unverified)",
}


def read_table(lines: Iterable[str]) -> tuple[Candidate, ...]:
    """Parse the CSV lines of a table, in the file's order.

    Raises ValueError for columns other than `COLUMNS`, a duplicate name, or a value outside the literal
    tables above: a broken table is a bug of this package, not the user's mistake.
    """
    reader = csv.DictReader(lines)
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise ValueError(f"catalog table: columns are {reader.fieldnames}, expected {COLUMNS}")
    found: dict[str, Candidate] = {}
    for row in reader:
        candidate = _candidate(row)
        if candidate.name in found:
            raise ValueError(f"catalog table: {candidate.name} is there twice")
        found[candidate.name] = candidate
    return tuple(found.values())


def _candidate(row: dict[str, str]) -> Candidate:
    architecture, _, tag = row["name"].partition(".")
    if row["source"] not in ("hub", "package"):
        raise ValueError(f"catalog table: {row['name']} has unknown source {row['source']!r}")
    return Candidate(
        name=row["name"],
        architecture=architecture,
        family=row["family"],
        weights=Weights(
            source=cast(WeightsSource, row["source"]),
            reference=row["reference"],
            tag=tag,
            license=row["license"],
        ),
        preprocess=_preprocess(row),
        accuracy=Accuracy(
            value=float(row["top1"]),
            provenance="published",
            source=TOP1_SOURCES[row["top1_source"]].format(**row),
        ),
        parameters=int(row["parameters"]),
        macs=int(row["macs"]),
        activations=int(row["activations"]),
        public_weights=int(row["public_weights"]),
        note=row["note"],
    )


def _preprocess(row: dict[str, str]) -> Preprocess:
    if row["interpolation"] not in ("bicubic", "bilinear"):
        raise ValueError(f"catalog table: {row['name']} has interpolation {row['interpolation']!r}")
    if row["crop_mode"] not in ("center", "squash"):
        raise ValueError(f"catalog table: {row['name']} has crop mode {row['crop_mode']!r}")
    mean, std = NORMALISATIONS[row["normalisation"]]
    return Preprocess(
        image_size=int(row["image_size"]),
        crop=float(row["crop"]),
        crop_mode="squash" if row["crop_mode"] == "squash" else "center",
        interpolation=cast(Interpolation, row["interpolation"]),
        mean=mean,
        std=std,
    )
