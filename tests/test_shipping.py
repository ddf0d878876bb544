"""What is done after the search: how long shipping may take, and what it says (below 1 s)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from test_judge import decide, raced

from vitrail import vocabulary as v
from vitrail.selection import select


@dataclass
class Bundle:
    text_tower: object = None


def test_the_shipped_folder_is_launched_once_and_briefly(monkeypatch):
    """Its figure is said, and decides nothing: no limit, no waiting, no request, however busy the machine."""
    selection = decide(raced({"net": (80.0, 20.0)}), license=("any",), max_latency_ms=20.5)
    entry = selection.ledger[0]
    asked = {}

    def measure(written, requirements, workload, **options):
        asked.update(requirements=requirements, workload=workload, **options)
        return entry.observation

    monkeypatch.setattr(select.artifact, "write", lambda *_, **__: "written")
    monkeypatch.setattr(select.artifact, "evidence_of", lambda _: None)
    monkeypatch.setattr(select.verify, "verify", lambda _: SimpleNamespace(holds=True))
    monkeypatch.setattr(select.remeasure, "measure_artifact", measure)
    bench = SimpleNamespace(export=lambda *_, **__: None, bundle=lambda *_, **__: Bundle())
    line = select.ship(selection, entry, SimpleNamespace(bench=bench), Path("w"), overwrite=False)
    assert line.startswith("shipped folder launched again: model p50 ")
    assert asked["requirements"] == v.Requirements()
    assert asked["workload"].latency_scope == "model"
    assert (asked["launches"], asked["patience_s"]) == (1, 0.0)
