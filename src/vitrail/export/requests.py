"""What the exporting process is asked to do, as JSON between the processes."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from vitrail.vocabulary import Implementation, Precision, Preprocess

__all__ = [
    "BuildRequest",
    "ExportRequest",
    "Form",
    "HeadRequest",
    "ModuleRequest",
    "OwnGraph",
    "OwnRequest",
    "QuantiseRequest",
    "ReferenceRequest",
    "RewriteRequest",
]

REWRITTEN_FILE = "rewritten.json"
"""What was done to a graph, beside it."""


class OwnRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A person's own ONNX file, and what they say of it."""

    file: str
    preprocess: Preprocess
    """At the size that is asked for."""
    classes: int
    """K, the number of labels."""
    batch_size: int
    """Images at a time, under the workload."""
    threads: int
    input: str = ""
    """Name of the images; "": the only input."""
    output: str = ""
    """Name of the scores; "": the only output."""
    layout: Literal["NCHW", "NHWC"] | None = None
    """None: as the input's shape shows."""
    channels: Literal["RGB", "BGR"] = "RGB"
    task: str = "classify"
    values: Literal["logits", "probabilities"] | None = None
    """What dense scores are, as the person says; None: as the file shows."""


class OwnGraph(msgspec.Struct, frozen=True, kw_only=True):
    """How such a file is read."""

    input: str
    output: str
    layout: Literal["NCHW", "NHWC"]
    channels: Literal["RGB", "BGR"]
    kind: int
    """ONNX's number for the type of the images."""
    batch: int | None
    """Images at a time; None: any number."""
    data: str
    """Digest of the weights, wherever the file keeps them."""
    maps: Literal["", "NCHW", "NHWC", "NHW"] = ""
    """How dense scores lie; "": they are a classifier's."""
    values: str = ""
    """What dense scores are, of which the output is made: logits or probabilities."""
    sides: tuple[int, int] = (0, 0)
    """(h, w) of dense scores."""


class ModuleRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Which module to build; `weights` None means random weights of a fixed seed."""

    architecture: str
    implementation: Implementation
    labels: str
    """Name of a label set, or path of a file with one label per line."""
    weights: str | None
    threads: int
    own: OwnRequest | None = None
    """The ONNX file that takes the module's place (`implementation` is `onnx`)."""


class ExportRequest(ModuleRequest, frozen=True, kw_only=True):
    """What to export."""

    image_size: int
    folder: str
    task: str = "classify"
    """`embed`: without the classifier, (B, 3, S, S) -> (B, D) features; `segment`: -> (B, K, h, w);
    `promptable`: a module of two stages."""
    passes: list[str] = msgspec.field(default_factory=list)
    """Those that change the module."""
    compare: bool = True
    """Compare our module with timm's for the same weights."""

    @property
    def features(self) -> bool:
        """Whether the classifier is left out."""
        return self.task == "embed"


class ReferenceRequest(ModuleRequest, frozen=True, kw_only=True):
    """Which outputs of the fp32 eager reference to compute, and for how long at most."""

    task: dict[str, Any]
    """As `tasks.pack` gives it."""
    photos: list[str]
    crops_per_photo: int
    seconds: float
    minimum: int
    target: str

    @property
    def features(self) -> bool:
        """Whether the classifier is left out."""
        return bool(self.task["facts"]["name"] == "embed")


class Form(msgspec.Struct, frozen=True, kw_only=True):
    """What files hold for that are built of the module, and nothing else."""

    precision: Precision
    batch_size: int
    threads: int
    """0: any number."""
    settings: dict[str, str]
    machine: str = ""
    """Fingerprint of the hardware, where the code uses the instructions of the CPU it was compiled on."""
    engine: str = ""
    """Version of what builds it, where no other key holds that."""
    calibration: str = ""
    """Digest of the photos that int8 is calibrated on; "": it is not int8."""


class QuantiseRequest(msgspec.Struct, frozen=True, kw_only=True):
    """How a graph becomes int8."""

    task: dict[str, Any]
    """As `tasks.pack` gives it, for the graph after its passes."""
    photos: list[str]
    """They calibrate."""
    max_drop: float | None = None
    """What may be lost, in points; None: whatever it is."""
    judged: list[str] = msgspec.field(default_factory=list)
    """The photos on which the drop is measured."""
    labels: list[int] | None = None
    """Their classes, by the graph's scores; None: the loss is against the graph's own answers in fp32."""
    batch: int | None = None
    """Images that the graph takes at a time; None: any number."""


class RewriteRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Which passes to apply to an export's graph, and whether it becomes int8."""

    folder: str
    """Of the export."""
    target: str
    """The folder to make."""
    passes: list[str]
    preprocess: Preprocess
    """How images become the export's input, before any pass."""
    quantise: QuantiseRequest | None
    threads: int


class BuildRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Which engine's files to build from an export."""

    folder: str
    """Of the export, or what passes made of it."""
    runtime: str
    target: str
    """The folder to make."""
    stages: list[str] = msgspec.field(default_factory=list)
    """The graphs of an export that has several, each in a folder of its name."""
    form: Form | None = None
    """Of an engine that builds of the module."""
    quantise: QuantiseRequest | None = None
    """How such an engine makes int8 of it."""
    unsigned: bool = False
    """The files are the int8 graph itself, its activations unsigned."""
    typed: Precision | None = None
    """The files are the graph with this precision in the types of its tensors (passes/typed.py)."""
    measured: QuantiseRequest | None = None
    """The photos on which such a graph's islands are measured; None: kinds of nodes alone decide."""


class HeadRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A linear classifier to replace a model's own; `weights` and `labels` are the model's."""

    architecture: str
    image_size: int
    labels: str
    weights: str
    head: str
    """`.npz` with `weight` (K, D) and `bias` (K)."""
    target: str
    """The safetensors file to write: all weights, including the new classifier."""
    threads: int
