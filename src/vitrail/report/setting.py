"""Where and how the figures were taken: a few sentences, a small table of engines, and every other fact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vitrail import hardware
from vitrail.report import phrases
from vitrail.vocabulary import STAGES, Selection
from vitrail.words import counted

__all__ = ["EngineRow", "Setting", "setting"]


@dataclass(frozen=True, kw_only=True)
class EngineRow:
    """An installed engine; `peaks` are of its own matrix product, in GFLOP/s."""

    label: str
    version: str
    peaks: tuple[str, ...]
    """One for each of `Setting.precisions`; empty text: not measured."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What the page says of hardware and method."""

    machine: str
    """A sentence; empty where the document does not know the machine."""
    method: tuple[str, ...]
    """Sentences."""
    engines: tuple[EngineRow, ...]
    precisions: tuple[str, ...]
    """Those with a measured peak."""
    facts: tuple[tuple[str, str], ...]
    """All that was recorded, as (name, text)."""


def setting(selection: Selection) -> Setting:
    """Sentences and tables of a selection's hardware and method."""
    peaks = selection.method.get("peaks_gflops")
    peaks = peaks if isinstance(peaks, Mapping) else {}
    precisions = dict.fromkeys(
        str(name) for found in peaks.values() if isinstance(found, Mapping) for name in found
    )
    ordered = tuple(sorted(precisions, key=lambda name: (name != "fp32", name)))
    return Setting(
        machine=_machine(selection.hardware),
        method=tuple(_method(selection)),
        engines=tuple(_engines(selection.hardware, peaks, ordered)),
        precisions=ordered,
        facts=(*_facts(selection.hardware), *_facts(selection.method)),
    )


def _machine(known: Mapping[str, Any]) -> str:
    """`AMD EPYC 9B45 (x86_64) with 2 cores, AVX-512, 24 GiB of memory and no GPU, under Linux 6.18 …`.

    A document may be written by hand: a machine in another form than this program's is only listed.
    """
    try:
        cores, memory, gpus, *_ = hardware.one_line(known).split(" · ")
        cpu, system = known["cpu"], known["os"]
        name = cpu["model"] or cpu["architecture"]
        kind = f"{cpu['architecture']}, virtual machine" if known["virtualised"] else cpu["architecture"]
        where = f"{system['system']} {str(system['kernel']).partition('-')[0]}, Python {known['python']}"
    except (KeyError, TypeError, ValueError, AttributeError):
        return ""
    return f"{name} ({kind}) with {cores}, {memory} of memory and {gpus}, under {where}."


def _engines(
    known: Mapping[str, Any], peaks: Mapping[str, Any], precisions: tuple[str, ...]
) -> list[EngineRow]:
    engines = known.get("engines")
    rows = []
    for name, engine in engines.items() if isinstance(engines, Mapping) else ():
        version = engine.get("version") if isinstance(engine, Mapping) else engine
        if not version:
            continue
        label = str(engine.get("label", name)) if isinstance(engine, Mapping) else str(name)
        reference = isinstance(engine, Mapping) and engine.get("reference")
        own = peaks.get(name)
        own = own if isinstance(own, Mapping) else {}
        rows.append(
            EngineRow(
                label=f"{label}, reference" if reference else label,
                version=str(version),
                peaks=tuple(_peak(own.get(precision)) for precision in precisions),
            )
        )
    return rows


def _peak(value: object) -> str:
    return phrases.number(value) if isinstance(value, (int, float)) else ""


def _method(selection: Selection) -> list[str]:
    workload = selection.workload
    stage = phrases.judged_stage(workload, selection.task)
    threads = "all usable cores" if workload.threads is None else counted(workload.threads, "thread")
    said = [
        f"The p{workload.percentile:g} latency of {stage} was judged, at {phrases.load(workload)} "
        f"with {threads} on the {workload.device.upper()}."
    ]
    if stages := [stage for stage, _ in selection.requirements.max_stage_latency_ms]:
        of = phrases.listed([f"{stage} ({STAGES[stage]})" for stage in stages])
        said.append(f"Judged by limits of their own: {of}.")
    if photos := _photos(selection):
        said.append(f"Timing and parity used {photos}.")
    if "version" in selection.method:
        said.append("Square brackets hold 95 % intervals that stay valid however long was measured.")
    measured, all_of = len(phrases.measured(selection)), len(selection.ledger)
    took = f"; the search took {phrases.number(selection.seconds)} s" if selection.seconds else ""
    had = "has" if measured == 1 else "have"
    said.append(f"{measured} of {counted(all_of, 'variant')} {had} a latency{took}.")
    return said


def _photos(selection: Selection) -> str:
    """What was decoded while timing; empty where nothing says that anything was."""
    workload = selection.workload
    if workload.images is not None:
        return f"the photos in {workload.images}"
    if workload.data is not None:
        return f"validation images of {workload.data}"
    taken = any(entry.observation.environment or entry.observation.measurement for entry in selection.ledger)
    if not taken and "photos" not in selection.method:
        return ""
    return "sample photos of installed packages, which are weaker evidence than your own"


def _facts(facts: Mapping[str, object]) -> list[tuple[str, str]]:
    """A nested object as (name, text) pairs, two levels deep, without what is not known."""
    found = []
    for key, value in facts.items():
        inner = value.items() if isinstance(value, dict) else [("", value)]
        for name, item in inner:
            if (text := _plain(item)) != "":
                found.append((f"{key} {name}".replace("_", " ").strip(), text))
    return found


def _plain(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        pairs = ((str(key).replace("_", " "), _plain(item)) for key, item in value.items())
        return ", ".join(f"{key} {text}" for key, text in pairs if text)
    if isinstance(value, (list, tuple)):
        joint = "; " if any(isinstance(item, dict) for item in value) else ", "
        return joint.join(_plain(item) for item in value) or "none"
    return str(value)
