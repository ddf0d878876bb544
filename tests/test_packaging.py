"""What ships: wheel and source archive hold what they must, and install lines work where they are said.

`make dist` builds both and uses the wheel in a new environment.
"""

from __future__ import annotations

import email
import json
import shlex
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from vitrail import install
from vitrail.errors import MissingExtraError

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "vitrail"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(names in the wheel, its METADATA, names in the archive), built as `python -m build` does it."""
    from hatchling.builders.sdist import SdistBuilder
    from hatchling.builders.wheel import WheelBuilder

    folder = str(tmp_path_factory.mktemp("dist"))
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=folder, versions=["standard"])
    (archive,) = SdistBuilder(str(ROOT)).build(directory=folder, versions=["standard"])
    with zipfile.ZipFile(wheel) as inside:
        names = set(inside.namelist())
        facts = email.message_from_bytes(inside.read(next(n for n in names if n.endswith("METADATA"))))
        scripts = inside.read(next(n for n in names if n.endswith("entry_points.txt"))).decode()
    with tarfile.open(archive) as inside:
        return names, facts, scripts, {name.partition("/")[2] for name in inside.getnames()}


def test_the_wheel_holds_the_package_whole_and_nothing_else(built):
    names, facts, scripts, _ = built
    there = {
        f"vitrail/{path.relative_to(SOURCE).as_posix()}"
        for path in SOURCE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if ".dist-info/" not in name} == there
    assert {"vitrail/py.typed", "vitrail/catalog/table.csv", "vitrail/report/page.html.j2"} <= names
    assert {"vitrail/text/data/NOTICE", "vitrail/text/data/bpe_simple_vocab_16e6.txt.gz"} <= names
    assert "vitrail = vitrail.cli:main" in scripts
    assert facts["License-Expression"] == "Apache-2.0"
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_base_install_asks_for_no_workbench(built):
    _, facts, _, _ = built
    asked = [Requirement(text) for text in facts.get_all("Requires-Dist")]
    base = {r.name for r in asked if r.marker is None or "extra" not in str(r.marker)}
    assert {"numpy", "openvino", "onnxruntime", "pillow"} <= base
    assert not base & {"torch", "timm", "onnx", "scikit-learn", "lightning-fabric", "pytest"}
    assert {"workbench", "train", "search"} <= set(facts.get_all("Provides-Extra"))


def test_the_archive_has_what_building_and_testing_need(built):
    _, _, _, names = built
    # Without what the environment and earlier commands left in the folder.
    assert {"pyproject.toml", "README.md", "LICENSE", "Makefile", "src/vitrail/py.typed"} <= names
    assert {"tests/conftest.py", "tests/artifacts.py", "docs/selection.schema.json"} <= names
    assert not [name for name in names if name.endswith((".pyc", ".ckpt", ".safetensors")) or "/." in name]


# --- install lines --------------------------------------------------------------------------------

EXTRA = 'pip install "vitrail[workbench,train]"'


@pytest.fixture
def origin(monkeypatch):
    def set_(**facts):
        monkeypatch.setattr(install, "_origin", lambda: facts)
        monkeypatch.setattr(install.shutil, "which", lambda name: str(Path(sys.executable).with_name(name)))

    return set_


def test_a_release_is_asked_for_by_name(origin):
    origin()
    assert install.here(EXTRA) == EXTRA
    assert install.here("pip install vitrail") == "pip install vitrail"
    assert install.here("make it yourself") == "make it yourself"


def test_a_source_folder_is_named(origin, tmp_path):
    folder = tmp_path / "my code $1"
    folder.mkdir()
    origin(url=folder.as_uri(), dir_info={"editable": True})
    assert shlex.split(install.here(EXTRA)) == ["pip", "install", "-e", f"{folder}[workbench,train]"]
    origin(url=folder.as_uri(), dir_info={})
    assert shlex.split(install.here(EXTRA)) == ["pip", "install", f"{folder}[workbench,train]"]
    folder.rmdir()
    assert install.here(EXTRA) == EXTRA, "it is gone"


def test_a_wheel_and_a_repository_are_named_as_pip_reads_them(origin, tmp_path):
    wheel = tmp_path / "vitrail-0.1.0-py3-none-any.whl"
    wheel.touch()
    origin(url=wheel.as_uri(), archive_info={})
    (asked,) = shlex.split(install.here(EXTRA))[2:]
    read = Requirement(asked)
    assert (read.name, read.extras, read.url) == ("vitrail", {"workbench", "train"}, wheel.as_uri())
    origin(url="https://example.org/vitrail", vcs_info={"vcs": "git", "commit_id": "abc"})
    (asked,) = shlex.split(install.here(EXTRA))[2:]
    assert Requirement(asked).url == "git+https://example.org/vitrail@abc"


def test_the_pip_is_that_of_this_python(origin, monkeypatch):
    origin()
    monkeypatch.setattr(install.shutil, "which", lambda _: "/usr/bin/pip")
    assert shlex.split(install.here(EXTRA))[:4] == [sys.executable, "-m", "pip", "install"]
    assert MissingExtraError("torch", EXTRA).install == install.here(EXTRA)


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_a_record_that_cannot_be_read_counts_as_none(monkeypatch, text):
    class Distribution:
        def read_text(self, _):
            return text

    monkeypatch.setattr(install.metadata, "distribution", lambda _: Distribution())
    assert install._origin() == {}
    monkeypatch.setattr(Distribution, "read_text", lambda *_: json.dumps({"url": "file:///x"}))
    assert install._origin() == {"url": "file:///x"}
