"""int8 and compilers of others, where their packages are at hand; each says why it takes no part.

Packages that only peers need are read from one folder each below `--peers` (`pip install --target
DIR/optimum …`), never from this environment: some of them bring older libraries with them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from optimize_forms import Model
from optimize_race import Form

TIMEOUT_S = 1200
DISTRIBUTIONS = ("optimum_intel", "olive_ai", "zentorch")

NNCF = """
import json, sys
import numpy as np
import nncf, openvino
said = json.load(sys.stdin)
model = openvino.Core().read_model(said["ir"])
images = np.load(said["images"])
kind = nncf.ModelType.TRANSFORMER if said["transformer"] else None
data = nncf.Dataset([image[None] for image in images])
model.reshape([1, *images.shape[1:]])
openvino.save_model(nncf.quantize(model, data, model_type=kind), said["target"], compress_to_fp16=False)
print(json.dumps({"nncf": nncf.__version__}))
"""

OPTIMUM = """
import json, sys
sys.path.insert(0, sys.argv[1])
import numpy as np
import torch, transformers
from pathlib import Path
from optimum.intel import OVModelForImageClassification, OVQuantizationConfig, OVQuantizer
from optimum.intel.openvino.quantization import OVConfig
from optimum.version import __version__ as version
said = json.load(sys.stdin)
torch.manual_seed(0)
config = getattr(transformers, said["config"])(**said["arguments"])
folder = Path(said["target"]).parent
getattr(transformers, said["model"])(config).eval().save_pretrained(folder / "model")
plain = {"export": True, "compile": False, "load_in_8bit": False}
model = OVModelForImageClassification.from_pretrained(folder / "model", **plain)
import nncf
data = nncf.Dataset([{"pixel_values": image[None]} for image in np.load(said["images"])])
asked = OVConfig(quantization_config=OVQuantizationConfig(num_samples=len(np.load(said["images"]))))
OVQuantizer.from_pretrained(model).quantize(calibration_dataset=data, ov_config=asked, save_directory=folder)
(found,) = folder.glob("openvino_model.xml")
found.with_suffix(".bin").rename(Path(said["target"]).with_suffix(".bin"))
found.rename(said["target"])
print(json.dumps({"optimum": version, "transformers": transformers.__version__}))
"""
"""The same architecture in transformers with random weights: only its speed means anything."""

HUGGING_FACE = {
    "vit_base_patch16_224": ("ViTConfig", "ViTForImageClassification", {"num_labels": 1000}),
    "swin_base_patch4_window7_224": (
        "SwinConfig",
        "SwinForImageClassification",
        {"num_labels": 1000, "embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32]},
    ),
}


def nncf_ir(which: Model, ir: Path, images: np.ndarray, work: Path) -> Form | dict[str, str]:
    """`nncf.quantize` on the plainly converted IR; or why not."""
    target = work / "nncf" / which.name / "model.xml"
    said = {"ir": str(ir), "transformer": any(kind in which.name for kind in ("vit", "swin"))}
    return _made("nncf.quantize on OpenVINO's IR", NNCF, said, images, target)


def optimum(which: Model, images: np.ndarray, work: Path, packages: Path) -> Form | dict[str, str]:
    """Optimum-Intel's static quantisation of the same architecture in transformers; or why not."""
    if which.name not in HUGGING_FACE:
        return {
            "name": "optimum-intel",
            "refused": "no form of it in transformers is written down here",
        }
    config, model, arguments = HUGGING_FACE[which.name]
    target = work / "optimum" / which.name / "int8.xml"
    said = {"config": config, "model": model, "arguments": arguments}
    return _made("optimum-intel", OPTIMUM, said, images, target, str(packages / "optimum"))


def _made(
    name: str, script: str, said: dict[str, object], images: np.ndarray, target: Path, *arguments: str
) -> Form | dict[str, str]:
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        np.save(target.parent / "images.npy", images)
        said = {**said, "images": str(target.parent / "images.npy"), "target": str(target)}
        error = _run(script, said, *arguments)
        if error:
            return {"name": name, "refused": error}
    return Form(name=name, group=name, kind="openvino", path=str(target), precision="int8")


def _run(script: str, said: dict[str, object], *arguments: str) -> str:
    """What went wrong; "": nothing."""
    quiet = {**os.environ, "NNCF_CI": "1", "HF_HUB_OFFLINE": "1", "OPENVINO_TELEMETRY": "0"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments],
            input=json.dumps(said),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            env=quiet,
        )
    except subprocess.TimeoutExpired:
        return f"it took more than {TIMEOUT_S} s"
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return "" if done.returncode == 0 else (lines[-1][:300] if lines else f"ended with {done.returncode}")


ZENTORCH = Form(
    name="torch.compile zentorch",
    group="zentorch",
    kind="compile",
    settings={"backend": "zentorch", "freezing": "1"},
)
"""AMD's backend of torch.compile. Importing it changes torch, so it is raced in a process of its own."""


def versions(packages: Path, names: Sequence[str]) -> dict[str, str]:
    """Of what lies in the peers' folders."""
    found = {}
    for name in names:
        rows = sorted(packages.glob(f"*/{name}-*.dist-info"))
        found[name] = rows[0].name.split("-")[1] if rows else "not installed"
    return found
