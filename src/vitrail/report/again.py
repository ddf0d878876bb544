"""What a reader does next, as text to copy: use the winner, or ask the same question again."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass

from vitrail import tasks
from vitrail.vocabulary import LEAST, Requirements, SearchSettings, Workload

__all__ = ["Use", "command", "requirements_toml", "use"]


@dataclass(frozen=True, kw_only=True)
class Use:
    """How the artifact in `folder` is used, from the folder that holds the report."""

    folder: str
    shell: str
    python: str


def use(folder: str, task: str = "classify") -> Use:
    """Commands and code for an artifact's folder."""
    kind = tasks.known(task)
    quoted = shlex.quote(folder if not folder.startswith("-") else f"./{folder}")
    names = {"photo": "photo.jpg", "photos": "photos/", "index": "photos.parquet"}
    shell = f"{kind.shell.format(folder=quoted, **names)}\nvitrail verify {quoted} --measure"
    python = (
        f"import vitrail\n\nmodel = vitrail.load({json.dumps(folder, ensure_ascii=False)})\n{kind.python}"
    )
    return Use(folder=folder, shell=shell, python=python)


def requirements_toml(
    requirements: Requirements, workload: Workload, settings: SearchSettings | None = None
) -> str:
    """The question as a file for `vitrail select FILE`; a limit or option that was not given is left out."""
    lines: list[tuple[str, object]] = [
        ("max-latency", _latencies(requirements)),
        ("min-accuracy", _unit(requirements.min_accuracy, "%")),
        ("max-memory", _unit(requirements.max_memory_mib, "MiB")),
        ("min-throughput", _unit(requirements.min_throughput, "/s")),
        *((name.replace("_", "-"), _least(requirements, name) or None) for name in LEAST),
        ("license", list(requirements.license)),
        ("objective", requirements.objective),
        ("data", workload.data),
        ("images", workload.images),
        ("percentile", _unit(workload.percentile, "")),
        ("latency-scope", workload.latency_scope),
        ("batch-size", workload.batch_size),
        ("clients", workload.concurrency if workload.concurrency > 1 else None),
        ("threads", workload.threads),
        ("image-size", workload.image_size),
        ("device", workload.device),
        *(_settings(settings) if settings is not None else ()),
    ]
    return "".join(f"{key} = {_toml(value)}\n" for key, value in lines if value is not None)


def command(arguments: tuple[str, ...]) -> str:
    """The command that asks again; `arguments` are what no requirements file can say."""
    if arguments[:1] == ("optimize",):
        return shlex.join(["vitrail", *arguments])
    return shlex.join(["vitrail", "select", "requirements.toml", *arguments])


def _latencies(requirements: Requirements) -> str | None:
    stages = [f"{stage}={_unit(limit, 'ms')}" for stage, limit in requirements.max_stage_latency_ms]
    return ",".join(filter(None, (_unit(requirements.max_latency_ms, "ms"), *stages))) or None


def _least(requirements: Requirements, name: str) -> list[str]:
    asked = [each for each in requirements.least if each.requirement == name]
    return [f"{each.label}={each.value!r}" if each.label else repr(each.value) for each in asked]


def _settings(settings: SearchSettings) -> list[tuple[str, object]]:
    return [
        ("models", list(settings.models) or None),
        ("runtimes", list(settings.runtimes) or None),
        ("precisions", list(settings.precisions) or None),
        ("implementations", list(settings.implementations) or None),
        ("passes", None if settings.passes is None else list(settings.passes) or ["none"]),
        ("calibration", settings.calibration),
        ("max-drop", settings.max_drop),
        ("budget", _unit(settings.budget_s, "s")),
        ("layout", settings.layout),
        ("task", None if settings.task == "classify" else settings.task),
        ("max-download", _unit(settings.max_download_mib, "MiB")),
        *((name, True) for name in ("offline", "fresh", "exhaustive") if getattr(settings, name)),
    ]


def _unit(value: float | None, unit: str) -> str | None:
    return None if value is None else f"{int(value) if value == int(value) else value!r}{unit}"


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, list):
        return f"[{', '.join(_toml(item) for item in value)}]"
    escaped = str(value).replace("\\", "\\\\").replace('"', '\\"')
    plain = "".join(c if c >= " " and c != "\x7f" else f"\\u{ord(c):04x}" for c in escaped)
    return f'"{plain}"'
