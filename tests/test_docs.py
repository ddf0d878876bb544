"""The pages on the architectures: their examples run, links and references hold, counts are right."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vitrail.models import build, cost

DOCS = Path(__file__).parents[1] / "docs"
SOURCE = Path(__file__).parents[1] / "src" / "vitrail" / "models"
PAGES = sorted((DOCS / "architectures").glob("*.md"))
TEXTS = {page.stem: page.read_text(encoding="utf-8") for page in PAGES}
REFERENCE = re.compile(r"`(\w+\.py): (\w+)(?:\.(\w+))?(?:\([^`]*\))?`")


def examples(text):
    return re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def test_every_page_is_there_with_an_example():
    assert set(TEXTS) == {"README", "vit", "swin", "clip"}
    assert all(examples(text) for text in TEXTS.values())


def test_the_python_examples_run_as_they_stand(tmp_path):
    # One process for all pages, a namespace for each example: importing torch takes longer than they do.
    run = "import sys\nfor code in sys.argv[1:]:\n    exec(compile(code, 'example', 'exec'), {})"
    codes = [code for text in TEXTS.values() for code in examples(text)]
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", run, *codes],
        capture_output=True, text=True, timeout=120, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= len(codes)


@pytest.mark.parametrize("page", sorted(TEXTS))
def test_links_and_figures_exist(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", TEXTS[page]):
        if not target.startswith("https://"):
            assert (DOCS / "architectures" / target).resolve().exists(), target


def test_links_to_headings_exist():
    for page, text in TEXTS.items():
        for target, anchor in re.findall(r"\]\(([\w./]*)#([^)]*)\)", text):
            there = (DOCS / "architectures" / target).read_text(encoding="utf-8") if target else text
            titles = [line.lstrip("# ") for line in there.splitlines() if line.startswith("#")]
            anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor in anchors, f"{page}: {target}#{anchor}"


@pytest.mark.parametrize("page", ["vit", "swin", "clip"])
def test_what_the_tables_refer_to_is_in_the_code(page):
    found = REFERENCE.findall(TEXTS[page])
    assert len(found) >= 8
    for file, name, member in found:
        assert name in names_of(file), f"{file}: {name}"
        assert not member or member in names_of(file)[name], f"{file}: {name}.{member}"


def names_of(file):
    """Functions and classes of a module of ours, and what each class defines."""
    tree = ast.parse((SOURCE / file).read_text(encoding="utf-8"))
    return {
        node.name: {inner.name for inner in node.body if isinstance(inner, ast.FunctionDef)}
        for node in tree.body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef))
    }


@pytest.mark.parametrize(
    ("page", "name"), [("vit", "vit_tiny_patch16_224"), ("swin", "swin_tiny_patch4_window7_224")]
)
def test_the_sizes_are_those_of_our_models(page, name):
    (row,) = [line for line in TEXTS[page].splitlines() if line.startswith(f"| `{name}` |")]
    with torch.device("meta"):
        counted = cost.count(build(name), 224)
    parameters, macs = row.split("|")[-3:-1]
    assert parameters.strip() == f"{counted.parameters / 1e6:.1f}"
    assert macs.strip() == f"{counted.macs / 1e9:.2f}"
