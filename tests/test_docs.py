"""Docs: every page is in the index, links hold, every option is named; the architectures' examples run."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vitrail.cli import COMMANDS, command_parser
from vitrail.models import build
from vitrail.profiling import cost

DOCS = Path(__file__).parents[1] / "docs"
SOURCE = Path(__file__).parents[1] / "src" / "vitrail" / "models"
PAGES = sorted((DOCS / "architectures").glob("*.md"))
TEXTS = {page.stem: page.read_text(encoding="utf-8") for page in PAGES}
REFERENCE = re.compile(r"`([\w/]+\.py): (\w+)(?:\.(\w+))?(?:\([^`]*\))?`")


def examples(text):
    return re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def test_every_page_is_there_with_an_example():
    assert set(TEXTS) == {"README", "vit", "swin", "clip", "sam", "sam2", "upernet"}
    assert all(examples(text) for text in TEXTS.values())


@pytest.mark.slow
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


ROOT = DOCS.parent
WRITTEN = sorted(
    {*ROOT.glob("*.md"), *ROOT.glob("*/README.md"), *ROOT.glob("examples/*/*.md"), *DOCS.rglob("*.md")}
)
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)")


def prose(page):
    """The page without its code, where `[a](b)` is no link."""
    text = page.read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`", lambda found: found.group().replace("](", "] ("), text)


def anchors(page):
    """Of its headings, as GitHub names them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    titles = [line.lstrip("#").strip() for line in text.splitlines() if line.startswith("#")]
    titles = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title) for title in titles]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page):
    for target, anchor in LINK.findall(prose(page)):
        if re.match(r"\w+:", target):
            continue
        there = (page.parent / target).resolve() if target else page
        assert there.exists(), f"{page.name}: {target}"
        if anchor and there.suffix == ".md":
            assert anchor in anchors(there), f"{page.name}: {target}#{anchor}"


def test_every_page_of_the_docs_is_in_the_index():
    """A page by itself, or by the index of its folder."""
    for index in (DOCS / "README.md", *DOCS.glob("*/README.md")):
        linked = {(index.parent / target).resolve() for target, _ in LINK.findall(prose(index)) if target}
        pages = {*index.parent.glob("*.md"), *index.parent.glob("*/README.md")} - {index}
        assert pages <= linked, f"{index}: {sorted(page.name for page in pages - linked)}"


# --- the command line -----------------------------------------------------------------------------


def sections():
    """Of command-line.md: (heading, text)."""
    text = (DOCS / "command-line.md").read_text(encoding="utf-8")
    return [part.split("\n", 1) for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]]


def named_in(command):
    """The options that the sections of a command name; those of a TOML file stand without their dashes."""
    texts = [text for heading, text in sections() if re.search(rf"(?<![\w-]){command}(?![\w-])", heading)]
    assert texts, f"docs/command-line.md has no section for {command}"
    found = {option for text in texts for option in re.findall(r"--[a-z][a-z-]*", text)}
    if command == "select":
        (table,) = [text for heading, text in sections() if heading.startswith("Requirements")]
        found |= {f"--{name}" for name in re.findall(r"^\| `([a-z-]+)` \|", table, re.MULTILINE)}
        found |= {"--profile", *(option.replace("--no-", "--") for option in found)}
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_every_command_is_named_in_its_section(command):
    named = named_in(command) | {"--help", "--json"}  # which all have, as the page says at its top
    for action in command_parser(command)._actions:
        for option in action.option_strings:
            if option.startswith("--") and not (option.startswith("--no-") and command == "select"):
                assert option in named, f"{command}: {option} is not in docs/command-line.md"


def test_every_command_is_in_the_table():
    text = (DOCS / "command-line.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `vitrail ([a-z-]+)` \|", text, re.MULTILINE)
    assert sorted(rows) == sorted(COMMANDS)


@pytest.mark.parametrize("page", ["vit", "swin", "clip", "sam", "sam2", "upernet"])
def test_what_the_tables_refer_to_is_in_the_code(page):
    found = REFERENCE.findall(TEXTS[page])
    assert len(found) >= 8
    for file, name, member in found:
        assert name in names_of(file), f"{file}: {name}"
        assert not member or member in names_of(file)[name], f"{file}: {name}.{member}"


def names_of(file):
    """Functions and classes of a module of ours, and what each class defines."""
    folder = SOURCE.parent if "/" in file else SOURCE
    tree = ast.parse((folder / file).read_text(encoding="utf-8"))
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
