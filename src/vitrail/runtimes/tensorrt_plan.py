"""Plans of TensorRT 11: built of a typed ONNX file for one GPU, kept in the cache, loaded if they are ours.

A plan is machine code for one GPU, driver and version of TensorRT. It lies in a folder of the cache beside a
file with its digest and what it was built for: loading one runs what it holds.
"""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from vitrail import cards, gpu, runtimes, store
from vitrail.errors import InputError, MissingExtraError
from vitrail.privacy import import_engine
from vitrail.runtimes import EngineMismatch
from vitrail.vocabulary import Graph, Target

__all__ = ["Bound", "Plan", "bound_to", "build", "engine", "kept", "logger", "trusted"]

NAME, LABEL = "tensorrt", "TensorRT"
PLAN, FACTS = "model.plan", "plan.json"
OLDEST = 11
"""The first version that is strongly typed alone: an older one would take the same calls for others."""


class Bound(msgspec.Struct, frozen=True, kw_only=True):
    """What a plan was built for, and runs on alone."""

    gpu: str
    capability: str
    driver: str
    tensorrt: str

    def __str__(self) -> str:
        return f"{self.gpu} ({self.capability}) with driver {self.driver} and TensorRT {self.tensorrt}"


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What lies beside a plan."""

    sha256: str
    onnx: str
    """Digest of the graph that it was built of."""
    bound: Bound
    precision: str
    shapes: dict[str, tuple[int, ...]]
    """Of the inputs."""
    seconds: float
    """What building it took."""


def build(onnx: Path, folder: Path, *, shapes: Mapping[str, tuple[int, ...]], target: Target) -> Plan:
    """Build the plan of a typed ONNX file for the target's GPU in `folder`, which exists.

    Args:
        shapes: of the inputs, by their names in the file, with numbers for all sizes.

    Raises:
        MissingExtraError: TensorRT is not installed.
        InputError: it cannot read the file or build it, or no longer supports the GPU.
        EngineMismatch: TF32 is otherwise than asked for.
    """
    trt, bound, begin = engine(), bound_to(target.device), time.perf_counter()
    said = logger(trt)
    said.last = ""
    builder = trt.Builder(said)
    # Since TensorRT 11 the flag changes nothing; it says what is meant.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, said)
    if not parser.parse_from_file(str(onnx)):
        raise InputError(f"{LABEL} cannot read {onnx.name}: {_parser_errors(parser)}; export it again.")
    _fix_shapes(network, shapes)
    config = builder.create_builder_config()
    _set_tf32(trt, config, target.precision == "tf32")
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # or the inspector tells no types
    timings = _timings(bound)
    _use_timings(config, timings)
    made = builder.build_serialized_network(network, config)
    if made is None:
        raise InputError(
            f"{LABEL} cannot build {onnx.name} ({said.last or 'it does not say why'}): use another engine."
        )
    data = bytes(memoryview(made))
    cache = config.get_timing_cache()
    if cache is not None:
        timings.parent.mkdir(parents=True, exist_ok=True)
        store.atomic_write(timings, bytes(memoryview(cache.serialize())))
    plan = folder / PLAN
    plan.write_bytes(data)
    facts = Plan(
        sha256=store.sha256_file(plan),
        onnx=store.sha256_file(onnx),
        bound=bound,
        precision=target.precision,
        shapes=dict(shapes),
        seconds=time.perf_counter() - begin,
    )
    (folder / FACTS).write_bytes(msgspec.json.encode(facts))
    return facts


def _fix_shapes(network: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Numbers in place of the open sizes: the plan is for these alone, and quicker than one for a range."""
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        tensor.shape = shapes[tensor.name] if tensor.name in shapes else next(iter(shapes.values()))


def _set_tf32(trt: Any, config: Any, on: bool) -> None:
    (config.set_flag if on else config.clear_flag)(trt.BuilderFlag.TF32)
    if bool(config.get_flag(trt.BuilderFlag.TF32)) != on:
        raise EngineMismatch(f"{LABEL} was asked for TF32 {'on' if on else 'off'} and keeps it otherwise.")


def _timings(bound: Bound) -> Path:
    """Where the measured speeds of kernels are kept: the next plan for the same GPU is quicker to build."""
    mark = store.digest_of(msgspec.to_builtins(bound))[:16]
    return store.cache_dir() / NAME / f"timings-{mark}.bin"


def _use_timings(config: Any, file: Path) -> None:
    kept = file.read_bytes() if file.is_file() else b""
    cache = config.create_timing_cache(kept)
    if cache is None or not config.set_timing_cache(cache, False):  # damaged, or of another GPU after all
        config.set_timing_cache(config.create_timing_cache(b""), False)


def _parser_errors(parser: Any) -> str:
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    said = [f"{each.desc()} (node {each.node_name()}, {each.node_operator()})" for each in errors[:3]]
    return "; ".join(" ".join(text.split()) for text in said) or "it does not say why"


def kept(path: Path, graph: Graph, target: Target, bound: Bound) -> tuple[Path, Plan]:
    """The folder of the plan, and what lies beside it; built now if there is none."""
    shapes = {spec.name: tuple(int(side) for side in spec.shape) for spec in graph.inputs}
    try:
        digest = store.sha256_file(path)
        weights = path.with_name(f"{path.name}.data")
        beside = store.sha256_file(weights) if weights.is_file() else ""
    except OSError as error:
        raise InputError(f"{LABEL} cannot read {path.name} ({error.strerror}): export it again.") from None
    key = {
        "onnx": digest,
        "weights": beside,
        "shapes": {name: list(shape) for name, shape in shapes.items()},
        "precision": target.precision,
        "bound": msgspec.to_builtins(bound),
    }
    folder = store.cache_dir() / NAME / store.digest_of(key)[:24]
    if not (folder / FACTS).is_file():
        with _alone(folder):
            if not (folder / FACTS).is_file():  # another process may have built it while this one waited
                with store.atomic_folder(folder, overwrite=True) as made:
                    build(path, made, shapes=shapes, target=target)
    return folder, _facts(folder)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time: building takes minutes, and measures kernels, which two would disturb."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as handle:
        with suppress(OSError, ImportError):  # a system or file system without locks: the last one stays
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _facts(folder: Path) -> Plan:
    try:
        return msgspec.json.decode((folder / FACTS).read_bytes(), type=Plan)
    except (OSError, msgspec.DecodeError) as error:
        raise InputError(
            f"{folder / FACTS} is damaged ({type(error).__name__}): remove {folder}, and the plan is built "
            "again."
        ) from None


def trusted(folder: Path, bound: Bound) -> bytes:
    """The plan, if it is the one that was built there for this GPU.

    Raises:
        InputError: it is another one, or for another GPU, driver or TensorRT.
    """
    facts = _facts(folder)
    if facts.bound != bound:
        raise InputError(
            f"{folder / PLAN} was built for {facts.bound}, and this is {bound}: remove {folder}, and the "
            "plan is built again."
        )
    plan = folder / PLAN
    content = plan.read_bytes() if plan.is_file() else b""
    if hashlib.sha256(content).hexdigest() != facts.sha256:
        raise InputError(
            f"{plan} is not the plan that was built there (its digest differs), and is not loaded: remove "
            f"{folder}, and it is built again."
        )
    return content


def engine() -> Any:
    """TensorRT's module.

    Raises:
        MissingExtraError: it is not installed.
        InputError: it is older than TensorRT 11, or its libraries cannot be loaded.
    """
    try:
        trt = import_engine("tensorrt")
    except ModuleNotFoundError:
        raise MissingExtraError(LABEL, runtimes.RUNTIMES[NAME].install) from None
    except ImportError as error:  # the bindings without their libraries
        raise InputError(
            f"{LABEL} is installed without its libraries ({error}): install `tensorrt` as NVIDIA describes."
        ) from None
    if int(str(trt.__version__).partition(".")[0]) < OLDEST:
        raise InputError(f"{LABEL} {trt.__version__} is older than {OLDEST}: install TensorRT {OLDEST}.")
    return trt


def bound_to(device: str) -> Bound:
    """Raises an InputError where TensorRT no longer supports the GPU, and as `gpu.card`."""
    card = gpu.card(device)
    if refused := cards.unsupported(card.capability):
        raise InputError(f"{card.name}: {refused}")
    version = str(engine().__version__)
    return Bound(gpu=card.name, capability=card.capability, driver=card.driver, tensorrt=version)


@functools.cache
def logger(trt: Any) -> Any:
    """The process's one logger, which keeps the last error and says nothing.

    TensorRT keeps the first one that it is given, and ignores all others.
    """

    class Said(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last = ""

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.last = " ".join(message.split())[:300].rstrip(".")

    return Said()
