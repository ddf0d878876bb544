"""Text, units, TOML and profiles -> Requirements, Workload and SearchSettings.

`OPTIONS` names everything that can be set, once: its keys are the command's flags (`--max-latency`),
the keys of a TOML file (`max-latency` or `max_latency`) and the keys of a profile's settings. Values carry
their unit (`50ms`, `1GiB`); a bare number is refused where it would be ambiguous.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

from vitrail import gpu
from vitrail.errors import InputError
from vitrail.limits import RANGES
from vitrail.units import count, duration_ms, nearest, percent, size_mib, throughput
from vitrail.vocabulary import (
    STAGES,
    TASKS,
    Implementation,
    Layout,
    Objective,
    Precision,
    Requirements,
    Scope,
    SearchSettings,
    Workload,
)
from vitrail.words import is_utf8, utf8

__all__ = [
    "OPTIONS",
    "PROFILES",
    "Option",
    "Profile",
    "check",
    "from_toml",
    "read_toml",
    "resolve",
]

DAY_MS = 86_400_000.0
PIB_MIB = float(1 << 30)

# --- other values -------------------------------------------------------------------------------


def _percentile(value: object, name: str) -> float:
    return percent(value.lstrip("pP") if isinstance(value, str) else value, name)


def _seconds(value: object, name: str) -> float:
    return duration_ms(value, name, "5m or 30s") / 1000


def _latencies(value: object, name: str) -> float | tuple[tuple[str, float], ...]:
    """A time; or times of stages (`encode=300ms,prompt=20ms`), as (stage, ms), of the stage "": the whole."""
    if isinstance(value, str) and "=" in value:
        value = value.split(",")
    if not isinstance(value, (list, tuple)) or not value:
        return duration_ms(value, name)
    found: dict[str, float] = {}
    for item in value:
        stage, named, time = (part.strip() for part in str(item).rpartition("="))
        if named and stage not in STAGES:
            known = " or ".join(f"{each}={time or '50ms'}" for each in STAGES)
            raise InputError(
                f"{name}: unknown stage {stage!r}: write {known}, and a time alone for a whole request."
                f"{nearest(stage, STAGES)}"
            )
        if stage in found:
            twice = f"{stage} is given twice" if stage else "a whole request has two limits"
            raise InputError(f"{name}: {twice}: keep one.")
        found[stage] = duration_ms(time, name)
        _check_range(found[stage], OPTIONS["max-latency"], name, str(item).strip())
    return tuple((stage, found[stage]) for stage in ("", *STAGES) if stage in found)


def _stages(value: object, name: str) -> tuple[tuple[str, float], ...]:
    """Of records built in Python: (stage, ms) pairs, each stage once."""
    if not isinstance(value, tuple) or any(not isinstance(each, tuple) or len(each) != 2 for each in value):
        raise InputError(f'{name}: {value!r} has the wrong type: give pairs, as (("prompt", 20.0),).')
    for stage, ms in value:
        if stage not in STAGES:
            raise InputError(f"{name}: unknown stage {stage!r}: use {' or '.join(STAGES)}.")
        _check_range(_number(ms, name), OPTIONS["max-latency"], name, f"{stage}={ms:g}")
    if len(dict(value)) < len(value):
        raise InputError(f"{name}: a stage is given twice: keep one.")
    return value


def _one_of(*choices: str) -> Callable[[object, str], str]:
    def parse(value: object, name: str) -> str:
        if value not in choices:
            hint = nearest(str(value), choices)
            raise InputError(f"{name}: unknown value {str(value)!r}: use {' or '.join(choices)}.{hint}")
        return str(value)

    return parse


def _device(value: object, name: str) -> str:
    if value != "cpu":
        try:
            gpu.number_of(str(value))
        except InputError:
            raise InputError(f"{name}: unknown device {str(value)!r}: use cpu, cuda or cuda:N.") from None
    return str(value)


def _task(value: object, name: str) -> str:
    return _one_of(*TASKS)(value, name)


def _names(value: object, name: str) -> tuple[str, ...]:
    """A string or a list of strings; each may hold several names separated by commas."""
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, (list, tuple)) or not all(isinstance(item, str) for item in items):
        raise InputError(f'{name}: {value!r} is not a list of names: write ["a", "b"].')
    names = tuple(part.strip() for item in items for part in item.split(","))
    if not names or not all(names):
        raise InputError(f"{name}: an empty name: give at least one, or leave the option out.")
    return tuple(dict.fromkeys(names))


def _recalls(value: object, name: str) -> tuple[tuple[str, float], ...]:
    """`class=percent` or a list of those; records built in Python hold (class, percent) pairs."""
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, (list, tuple)):
        raise InputError(f"{name}: {value!r} is not a class with a percentage: write defect=95.")
    found: dict[str, float] = {}
    for item in items:
        pair = isinstance(item, tuple) and len(item) == 2
        label, least = item if pair else str(item).rpartition("=")[::2]
        if not (pair or isinstance(item, str)) or not isinstance(label, str) or not label:
            raise InputError(f"{name}: {item!r} is not a class with a percentage: write defect=95.")
        if label in found:
            raise InputError(f"{name}: {label} is given twice: keep one.")
        found[label] = percent(least, name)
        if not 1 < found[label] <= 100:
            raise InputError(f"{name}: {label}={found[label]:g} is not a percentage: give one in (1, 100].")
    return tuple(found.items())


def _ious(value: object, name: str) -> tuple[tuple[str, float], ...]:
    """`80`, of the mean, and `class=percent`; records built in Python hold (class or "", percent) pairs."""
    items: list[Any] = list(value) if isinstance(value, (list, tuple)) else [value]
    mean: list[object] = []
    named: list[object] = []
    for item in items:
        if isinstance(item, tuple) and item[:1] == ("",):
            mean.append(item[1])
        elif isinstance(item, tuple) or "=" in str(item):
            named.append(item)
        else:
            mean.append(item)
    if len(mean) > 1:
        raise InputError(f"{name}: {mean[0]} and {mean[1]} are both about the mean: keep one.")
    found = [("", percent(least, name)) for least in mean]
    for _, least in found:
        if not 1 < least <= 100:
            raise InputError(f"{name}: {least:g} is not a percentage: give one in (1, 100].")
    return (*found, *(_recalls(named, name) if named else ()))


def _passes(value: object, name: str) -> tuple[str, ...]:
    """Names, or `none`; records built in Python say that as ()."""
    if value == ():
        return ()
    names = _names(value, name)
    if "none" in names and len(names) > 1:
        raise InputError(f"{name}: none leaves graphs as they are: drop the others.")
    return () if names == ("none",) else names


def _points(value: object, name: str) -> float:
    """Percentage points, as a number."""
    try:
        found = float(str(value))
    except ValueError:
        found = math.nan
    if isinstance(value, bool) or not math.isfinite(found):
        raise InputError(f"{name}: {value!r} is not a number of points: write 0.5.")
    return found


def _licenses(value: object, name: str) -> tuple[str, ...]:
    names = _names(value, name)
    if "any" in names and len(names) > 1:
        raise InputError(f"{name}: any admits every license: drop the others.")
    return names


def _path_of(what: str) -> Callable[[object, str], str]:
    def parse(value: object, name: str) -> str:
        if not isinstance(value, str) or not value:
            raise InputError(f"{name}: {value!r} is not a path: give {what}.")
        if not is_utf8(value):  # it is recorded in JSON, and must be readable from there
            raise InputError(f"{name}: {utf8(value)} is not UTF-8: rename it.")
        return value

    return parse


def _switch(value: object, name: str) -> bool:
    if not isinstance(value, bool):
        raise InputError(f"{name}: {value!r} is not a boolean: write true or false.")
    return value


# --- the options --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Option:
    """One setting, under the same name on the command line, in TOML and in profiles."""

    record: type[Requirements] | type[Workload] | type[SearchSettings]
    field: str
    parse: Callable[[object, str], Any]
    help: str
    metavar: str | None = None
    """None: a switch without a value."""
    many: bool = False
    above: float | None = None
    """The value must be greater than this ..."""
    least: float | None = None
    """... or at least this ..."""
    most: float | None = None
    """... and at most this."""
    by_stage: str | None = None
    """The field of values that name a stage (`prompt=20ms`)."""


OPTIONS: dict[str, Option] = {
    "max-latency": Option(
        record=Requirements, field="max_latency_ms", by_stage="max_stage_latency_ms", parse=_latencies,
        metavar="TIME", above=0, most=DAY_MS,
        help="limit of the whole batch's latency at --percentile, e.g. 50ms; of the steps of a promptable "
        "model encode=300ms,prompt=20ms",
    ),
    "min-accuracy": Option(
        record=Requirements, field="min_accuracy", parse=percent, metavar="PERCENT", above=1, most=100,
        help="least top-1 accuracy, e.g. 80",
    ),
    "max-memory": Option(
        record=Requirements, field="max_memory_mib", parse=size_mib, metavar="SIZE", above=0, most=PIB_MIB,
        help="limit of the peak memory of the process that runs the model, e.g. 1GiB",
    ),
    "min-throughput": Option(
        record=Requirements, field="min_throughput", parse=throughput, metavar="RATE", above=0, most=1e9,
        help="least images per second, e.g. 20",
    ),
    "min-recall": Option(
        record=Requirements, field="min_recall", parse=_recalls, metavar="CLASS=PERCENT", many=True,
        help="least recall of a class on your labelled images, e.g. defect=95; needs --data",
    ),
    "min-iou": Option(
        record=Requirements, field="min_iou", parse=_ious, metavar="[CLASS=]PERCENT", many=True,
        help="least mean IoU, or IoU of a class, on your photos with masks, e.g. 80; needs --data",
    ),
    "license": Option(
        record=Requirements, field="license", parse=_licenses, metavar="NAME", many=True,
        help="permissive, any, or names of licenses of the weights (default permissive)",
    ),
    "objective": Option(
        record=Requirements, field="objective", parse=_one_of(*get_args(Objective)),
        metavar="|".join(get_args(Objective)),
        help="what to optimise among those that meet all limits (default accuracy)",
    ),
    "batch-size": Option(
        record=Workload, field="batch_size", parse=count, metavar="B", least=1,
        most=RANGES["batch_size"][1],
        help="images per call (default 1)",
    ),
    "clients": Option(
        record=Workload, field="concurrency", parse=count, metavar="N", least=1,
        most=RANGES["clients"][1],
        help="clients at once, each sending its next request when the last was answered (default 1)",
    ),
    "image-size": Option(
        record=Workload, field="image_size", parse=count, metavar="PIXELS", least=32,
        most=RANGES["image_size"][1],
        help="side of the model's input; without it, the size the published accuracy belongs to",
    ),
    "threads": Option(
        record=Workload, field="threads", parse=count, metavar="N", least=1,
        most=RANGES["threads"][1],
        help="inference threads; without it, all usable cores",
    ),
    "device": Option(
        record=Workload, field="device", parse=_device, metavar="cpu|cuda|cuda:N",
        help="where the model runs: the CPU, or an NVIDIA GPU (default cpu)",
    ),
    "latency-scope": Option(
        record=Workload, field="latency_scope", parse=_one_of(*get_args(Scope)),
        metavar="|".join(get_args(Scope)),
        help="judge a whole request (decode, preprocess, run, top-k) or the model alone (default request)",
    ),
    "percentile": Option(
        record=Workload, field="percentile", parse=_percentile, metavar="P", least=50, most=99.9,
        help="percentile of latency that is judged (default 95)",
    ),
    "images": Option(
        record=Workload, field="images", parse=_path_of("a folder of photos"), metavar="DIR",
        help="your photos for timing and parity; without it a small sample set, which is weaker evidence",
    ),
    "data": Option(
        record=Workload, field="data", metavar="DIR",
        parse=_path_of("your labelled images, a folder per class or a manifest (CSV or Parquet)"),
        help="your labelled images: a folder per class, or a manifest; candidates are probed on them",
    ),
    "layout": Option(
        record=SearchSettings, field="layout", parse=_one_of(*get_args(Layout)),
        metavar="|".join(get_args(Layout)),
        help="what the folders of --data are, where that could be taken for two things",
    ),
    "task": Option(
        record=SearchSettings, field="task", parse=_task, metavar="|".join(TASKS),
        help="what the winner is for: classify, embed (vectors) or segment (masks) (default classify)",
    ),
    "models": Option(
        record=SearchSettings, field="models", parse=_names, metavar="GLOB", many=True,
        help="only candidates whose name matches one of these, e.g. 'swin_*'",
    ),
    "runtimes": Option(
        record=SearchSettings, field="runtimes", parse=_names, metavar="NAME", many=True,
        help="only these engines",
    ),
    "precisions": Option(
        record=SearchSettings, field="precisions", parse=_names, metavar="NAME", many=True,
        help=f"only these of {', '.join(get_args(Precision))}",
    ),
    "implementations": Option(
        record=SearchSettings, field="implementations", parse=_names, metavar="NAME", many=True,
        help="whose code runs the weights: vitrail, timm or both (default: ours where there is one)",
    ),
    "passes": Option(
        record=SearchSettings, field="passes", parse=_passes, metavar="NAME", many=True,
        help="what may rewrite graphs: none, or names (default: whatever leaves the answers as they are)",
    ),
    "calibration": Option(
        record=SearchSettings, field="calibration", parse=_path_of("a folder of photos"), metavar="DIR",
        help="photos that int8 is calibrated on; without it those that train a probe, or a part of --images",
    ),
    "max-drop": Option(
        record=SearchSettings, field="max_drop", parse=_points, metavar="POINTS", least=0, most=100,
        help="what int8 may lose of the accuracy: layers stay in higher precision until it holds, e.g. 0.5",
    ),
    "budget": Option(
        record=SearchSettings, field="budget_s", parse=_seconds, metavar="TIME", above=0,
        most=30 * DAY_MS / 1000,
        help="wall time of the search with its exports, without downloads and reading images (default 5m)",
    ),
    "max-download": Option(
        record=SearchSettings, field="max_download_mib", parse=size_mib, metavar="SIZE", least=0,
        most=PIB_MIB,
        help="limit of all downloads together, e.g. 2GB",
    ),
    "offline": Option(
        record=SearchSettings, field="offline", parse=_switch,
        help="download nothing; use only weights on this machine",
    ),
    "fresh": Option(
        record=SearchSettings, field="fresh", parse=_switch,
        help="measure all again instead of using recorded measurements",
    ),
    "exhaustive": Option(
        record=SearchSettings, field="exhaustive", parse=_switch,
        help="measure all that facts do not rule out, also what can no longer win",
    ),
}  # fmt: skip


# --- profiles -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A starting point for a kind of use; `settings` are options as text, which TOML and flags override."""

    name: str
    recommendation: str
    use: str
    trade_off: str
    settings: Mapping[str, object]


PROFILES: dict[str, Profile] = {
    "accuracy-first": Profile(
        name="accuracy-first",
        recommendation="Swin-Large, ViT-Large",
        use="offline batches, where accuracy comes before everything else",
        trade_off="gives up speed and cost",
        settings={
            "models": ["swin_[bl]a*", "vit_large_*", "deit3_[bl]a*"],  # base and large
            "objective": "accuracy",
            "batch-size": 8,
            "budget": "20m",
        },
    ),
    "balanced": Profile(
        name="balanced",
        recommendation="Swin-Base, ConvNeXt-Base",
        use="most production services",
        trade_off="a little less accuracy for a reasonable speed",
        settings={
            "models": ["swin*_base_*", "convnext_base*"],
            "objective": "accuracy",
            "max-latency": "150ms",
        },
    ),
    "speed-first": Profile(
        name="speed-first",
        recommendation="EfficientNetV2-S, MobileViT",
        use="real-time work, 30 images a second one at a time",
        trade_off="gives up accuracy for speed",
        settings={
            "models": ["*efficientnetv2_s*", "mobilevit*", "efficientvit_*", "fastvit_*"],
            "objective": "latency",
            "max-latency": "33ms",
            "min-accuracy": 75,
        },
    ),
    "edge": Profile(
        name="edge",
        recommendation="MobileNetV3, EfficientNet-Lite",
        use="mobile and IoT devices",
        trade_off="gives up much accuracy for small resources",
        settings={
            "models": ["mobilenetv3_*", "*efficientnet_lite*"],
            "objective": "accuracy",
            "threads": 1,
            "max-latency": "100ms",
            "max-memory": "512MiB",
        },
    ),
}


# --- TOML, precedence, checks -------------------------------------------------------------------


def from_toml(path: str | Path) -> dict[str, object]:
    """Read a TOML file of options into {option: value in the record's unit}; `profile` stays a string.

    The file is flat; keys are those of `OPTIONS` and `profile`, with `-` or `_`. Relative `images`,
    `data` and `calibration` are relative to the file.

    Raises:
        InputError: the file cannot be read, is not TOML (with the line), or holds a bad key or value.
    """
    path = Path(path)
    parsed = _parse(read_toml(path, "requirements"), lambda name: f"{name} in {path}")
    for key in ("images", "data", "calibration"):
        if key in parsed:
            parsed[key] = str(path.parent / str(parsed[key]))
    return parsed


def resolve(
    profile: str | None = None,
    toml: str | Path | Mapping[str, object] | None = None,
    flags: Mapping[str, object] | None = None,
    *,
    runtimes: Collection[str] = (),
) -> tuple[Requirements, Workload, SearchSettings]:
    """Merge the four layers: flags override TOML, which overrides the profile, which overrides defaults.

    Args:
        profile: a name of `PROFILES`; None: the one the TOML file names, if any.
        toml: a path, or what `from_toml` returned.
        flags: {option: text as typed}; None counts as absent; keys with `-` or `_`.
        runtimes: names of all engines, to refuse unknown ones; empty: not checked.

    Raises:
        InputError: an unknown name, a bad value or unit, or limits that contradict each other.
    """
    typed = {name: value for name, value in (flags or {}).items() if value is not None}
    from_flags = _parse(typed, lambda name: f"--{name}")
    from_file = dict(toml) if isinstance(toml, Mapping) else from_toml(toml) if toml is not None else {}
    named = profile or from_flags.pop("profile", None) or from_file.get("profile")
    settings = _profile(named).settings if named else {}
    layers = [_parse(settings, lambda name: f"{name} of profile {named}"), from_file, from_flags]
    chosen: dict[str, object] = {}
    for layer in layers:
        if layer.get("offline"):  # overrides the allowance of a lower layer
            chosen.pop("max-download", None)
        chosen.update(layer)
    requirements = Requirements(**_fields(Requirements, chosen))
    workload = Workload(**_fields(Workload, chosen))
    search = SearchSettings(**_fields(SearchSettings, chosen))
    check(requirements, workload, search, runtimes=runtimes)
    return requirements, workload, search


def _fields(record: type, chosen: Mapping[str, object]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, option in OPTIONS.items():
        if option.record is not record or name not in chosen:
            continue
        value = chosen[name]
        if option.by_stage is not None and isinstance(value, tuple):
            found[option.by_stage] = tuple((stage, limit) for stage, limit in value if stage)
            value = dict(value).get("")
        found[option.field] = value
    return found


def check(
    *records: Requirements | Workload | SearchSettings,
    runtimes: Collection[str] = (),
) -> None:
    """Check records built in Python by the same rules as typed ones.

    No latency limit contradicts a throughput limit: each is a bound that a faster model can meet.

    Raises:
        InputError: a value of the wrong kind, out of its range, or an unknown name.
    """
    for record in records:
        for option in OPTIONS.values():
            if option.record is type(record):
                _check_value(getattr(record, option.field), option)
        if isinstance(record, Requirements):
            _stages(record.max_stage_latency_ms, "max_stage_latency_ms")
    staged = any(isinstance(record, Requirements) and record.max_stage_latency_ms for record in records)
    for record in records:
        if isinstance(record, Workload) and staged:
            for name, value in (("clients", record.concurrency), ("batch-size", record.batch_size)):
                if value > 1:
                    raise InputError(
                        f"{name} {value} and limits of stages contradict each other: a stage is timed for "
                        f"one photo at a time; leave {name} out, or limit the whole request."
                    )
        if isinstance(record, Workload) and record.concurrency > 1 and record.latency_scope == "model":
            raise InputError(
                "clients and latency-scope model contradict each other: the model runs one call at a time, "
                "and clients wait for whole requests; drop one of them."
            )
        if isinstance(record, SearchSettings):
            _known("runtime", record.runtimes, runtimes)
            _known("precision", record.precisions, get_args(Precision))
            _known("implementation", record.implementations, get_args(Implementation))
            if record.offline and record.max_download_mib:
                raise InputError("offline and max-download contradict each other: drop one of them.")


def _check_value(value: object, option: Option) -> None:
    """Ranges for numbers; everything else must pass its own parser unchanged."""
    name = option.field
    default = next(f.default for f in fields(option.record) if f.name == name)
    if type(value) is type(default) and value == default:
        return
    if option.above is None and option.least is None:
        if option.parse(value, name) != value:
            raise InputError(f"{name}: {value!r} has the wrong type: give a tuple of names.")
        return
    value = _number(value, name)
    if option.parse in (percent, _percentile):
        option.parse(value, name)  # a bare fraction is as ambiguous here as when typed
    if option.parse is count and not isinstance(value, int):
        raise InputError(f"{name}: {value!r} is not a whole number: give an int.")
    _check_range(value, option, name, f"{value:g}")


def _number(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not _finite(value):
        raise InputError(f"{name}: {str(value)[:40]!r} is not a finite number: give one, or leave it out.")
    return value


def _finite(value: float) -> bool:
    # Python's integers are unbounded, and beyond a float's range they cannot be compared with one or printed.
    return abs(value) < 1e300 if isinstance(value, int) else math.isfinite(value)


def _check_range(value: float, option: Option, name: str, shown: str) -> None:
    if option.above is not None and not value > option.above:
        raise InputError(f"{name}: {shown} is not above {option.above:g}: raise it, or leave it out.")
    if option.least is not None and value < option.least:
        raise InputError(f"{name}: {shown} is below {option.least:g}: raise it, or leave it out.")
    if option.most is not None and value > option.most:
        raise InputError(f"{name}: {shown} is above {option.most:g}: lower it, or leave it out.")


def _parse(raw: Mapping[str, object], place: Callable[[str], str]) -> dict[str, object]:
    """{option: text} -> {option: value in the record's unit}; `place` says where an option was written."""
    parsed: dict[str, object] = {}
    for key, value in raw.items():
        name = key.replace("_", "-")
        if name == "profile":
            parsed[name] = _profile(value).name
            continue
        if name not in OPTIONS:
            raise InputError(f"{place(key)}: unknown option.{nearest(name, [*OPTIONS, 'profile'])}")
        if name in parsed:
            raise InputError(f"{place(name)} is given twice, with - and with _: remove one.")
        option = OPTIONS[name]
        result = option.parse(value, place(name))
        if isinstance(result, (int, float)) and not isinstance(result, bool):
            _check_range(result, option, place(name), str(value))
        parsed[name] = result
    return parsed


def _profile(name: object) -> Profile:
    if not isinstance(name, str) or name not in PROFILES:
        hint = nearest(str(name), PROFILES)
        raise InputError(f"profile: unknown name {str(name)!r}: use {' or '.join(PROFILES)}.{hint}")
    return PROFILES[name]


def _known(kind: str, names: Iterable[str], known: Collection[str]) -> None:
    for name in names:
        if known and name not in known:
            raise InputError(f"Unknown {kind} {name!r}: use {' or '.join(known)}.{nearest(name, known)}")


def read_toml(path: Path, of: str) -> dict[str, object]:
    """A TOML file's keys; `of` says what it holds, for messages.

    Raises:
        InputError: it cannot be read, or is not TOML.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        text = path.read_bytes().decode()
        return tomllib.loads(text)
    except OSError as error:
        reason = error.strerror or "cannot be read"
        raise InputError(f"{path}: {reason}: give a readable TOML file of {of}.") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text at byte {error.start}: save it as UTF-8.") from None
    except tomllib.TOMLDecodeError as error:
        reason = str(error).rstrip(".")
        if "line" not in reason:
            reason += f", line {text.count(chr(10)) + 1}"
        raise InputError(f"{path} is not valid TOML: {reason}: fix that line.") from None
