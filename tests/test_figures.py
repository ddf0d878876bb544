"""What the figures show is computed rightly: rollout, reach, colours, and a drawing that is well-formed."""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from vitrail.models.windows import plan_stage

SCRIPTS = str(Path(__file__).parents[1] / "scripts")
FIGURES = Path(__file__).parents[1] / "docs" / "figures"


@pytest.fixture(scope="module", autouse=True)
def _scripts():
    sys.path.insert(0, SCRIPTS)
    yield
    sys.path.remove(SCRIPTS)


def test_rollout_sums_over_all_paths_through_the_blocks():
    from figures.vit import rolled_out

    maps = [torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(i)).softmax(-1) for i in range(3)]
    found = rolled_out(maps)
    mixed = [0.5 * each.mean(1) + 0.5 * torch.eye(4) for each in maps]
    for image in range(2):
        for end in range(4):
            for start in range(4):
                paths = (
                    mixed[2][image, end, b] * mixed[1][image, b, a] * mixed[0][image, a, start]
                    for a in range(4)
                    for b in range(4)
                )
                assert found[image, end, start] == pytest.approx(float(sum(paths)), abs=1e-6)
    assert torch.allclose(found.sum(-1), torch.ones(2, 4))


@pytest.mark.parametrize("size", [(8, 8), (7, 10)])
def test_reach_is_what_windows_and_shift_say(size):
    from figures.swin import reached

    plan, (height, width) = plan_stage(size, (4, 4)), size
    start = 5 * width + 2
    steps = reached(plan, start, 2, shifting=True)

    def window(row, column, shift):
        # Positions before the shift are a window of their own: what wraps around is kept apart.
        return (row - shift) // 4, (column - shift) // 4

    first = {(r, c) for r in range(height) for c in range(width) if window(r, c, 0) == window(5, 2, 0)}
    second = {
        (r, c)
        for r in range(height)
        for c in range(width)
        if any(window(r, c, 2) == window(*other, 2) for other in first)
    }
    for known, expected in zip(steps, (first, second), strict=True):
        found = {divmod(int(i), width) for i in torch.nonzero(known).flatten()}
        assert found == expected
    still = reached(plan, start, 3, shifting=False)
    assert torch.equal(still[0], still[2])


def test_pieces_of_a_wrapped_window():
    from figures.swin import _pieces

    assert _pieces((np.array([6, 7, 0, 1]), np.array([3, 4, 3, 4]))) == [((0, 2), (3, 5)), ((6, 8), (3, 5))]


def test_shades_go_from_white_through_the_colour_to_dark():
    from figures.canvas import shaded

    low, middle, high, beyond = shaded(np.array([[0.0, 2.0, 3.0, 9.0]]), "#336699", high=3.0)[0]
    assert low.tolist() == [255, 255, 255]
    assert middle.tolist() == [0x33, 0x66, 0x99]
    assert high.tolist() == beyond.tolist() == [13, 26, 38]


def test_principal_colours_do_not_depend_on_the_order_of_the_features():
    from figures.swin import principal_colours

    features = np.random.default_rng(0).standard_normal((6, 5, 4))
    colours = principal_colours(features)
    assert colours.shape == (5, 4, 3)
    assert np.array_equal(colours, principal_colours(features[::-1]))


def test_a_drawing_is_xml_with_what_was_drawn():
    from figures.canvas import Canvas

    canvas = Canvas(100, 50, "a < b")
    canvas.text(1, 2, "x & y\nsecond")
    canvas.path([(0, 0), (10, 0)], arrow=True)
    canvas.image(0, 0, 5, 5, np.zeros((2, 2, 3), dtype=np.uint8))
    root = ElementTree.fromstring(canvas.svg())
    kinds = [node.tag.split("}")[1] for node in root]
    assert kinds == ["title", "rect", "text", "text", "path", "path", "image"]
    assert root[0].text == "a < b"


def comparison():
    """A result as benchmarks/swin_vs_vit.py writes it, with made-up numbers."""
    growth = [
        {"model": model, "size": size, "attention": attention, "median_ms": ms * size, "run_mib": ms * size}
        for model, attention, ms in (("vit", "auto", 2.0), ("swin", "auto", 1.0), ("vit", "naive", 4.0))
        for size in (224, 1024)
    ]
    growth.append({"model": "vit", "size": 1536, "attention": "auto", "failed": "went over its limit"})
    published = [{"weights": "vit.tag", "image_size": 224, "top1": 81.5, "source": "timm"}]
    known = {"parameters": 86_600_000, "macs_224": 17_600_000_000, "published": published}
    return {
        "created": "2026-01-02T03:04:05+00:00",
        "hardware": {"cpu": {"model": "Some CPU", "architecture": "x86_64", "usable_cores": 2}},
        "models": {"vit": known, "swin": known},
        "throughput": [
            {"model": m, "runtime": "eager", "precision": "fp32", "batch": 8, "images_per_s": rate}
            for m, rate in (("vit", 10.0), ("swin", 20.0))
        ],
        "growth": growth,
        "predicted_naive": [{"model": "vit", "size": 1536, "run_mib": 9000.0}],
    }


def test_the_comparison_s_table_says_what_was_measured():
    from figures.versus import table

    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table(comparison()).splitlines()]
    cells = {row[0]: row[1:] for row in rows if row}
    assert cells["images/s at 224 px, batch 8, eager fp32"] == ["10.0", "20.0"]
    assert cells["time at 1024 px, fp32, ms"] == ["2048", "1024"]
    assert cells["time at 1536 px, fp32, ms"] == ["–", "–"]
    assert cells["the same, attention written out, 1024 px, MiB"] == ["4096", "–"]
    assert cells["top-1 as published, %"][0] == "81.5 (tag, 224 px)"


def test_the_comparison_s_plot_has_a_mark_for_each_point():
    from figures.versus import growth

    root = ElementTree.fromstring(growth(comparison()).svg())
    discs = [node for node in root.iter() if node.tag.endswith("circle")]
    # Six measured points in each panel; the predicted one has memory only, and is hollow.
    assert len(discs) == 2 * 6 + 1
    assert sum(node.get("fill") == "#ffffff" for node in discs) == 1


def test_ticks_lie_inside():
    from figures.versus import _ticks

    assert _ticks(0.3, 60) == pytest.approx([0.5, 1, 2, 5, 10, 20, 50])


def test_every_figure_is_there_and_small():
    from draw_figures import FIGURES as DRAWN
    from draw_figures import LARGEST

    for name in DRAWN:
        data = (FIGURES / f"{name}.svg").read_bytes()
        assert len(data) < LARGEST
        ElementTree.fromstring(data)
