"""Shared by the tests of the workbench: a tiny model's weights, exported once per session (about 8 s)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from vitrail.privacy import quiet_process

quiet_process()  # before any test imports an engine by itself: nothing reports that tests ran

CLASSES = 10

LONGEST = (
    "test_readme.py", "test_optimise.py", "test_compiled.py", "test_merging.py", "test_passes.py",
    "test_train.py", "test_swin.py", "test_train_clip.py", "test_export.py",
    "test_embeddings_models.py", "test_search.py", "test_vit.py", "test_weights_facts.py", "test_clip.py",
    "test_attention.py", "test_trained.py", "test_memory.py", "test_own.py", "test_privacy.py",
    "test_optimise.py", "test_losses.py", "test_pairs.py", "test_eager.py", "test_train_extend.py",
)  # fmt: skip
"""Files that take ten seconds or more, the longest first: begun last, one would run alone at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; what is not named keeps its order."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.fixture(autouse=True)
def one_thread_and_seed() -> None:
    """Tests compute on one thread and draw from one seed, whatever the one before left: the threads of tiny
    models wait for each other, on a busy machine for seconds a step."""
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "set_num_threads"):
        torch.set_num_threads(1)
        torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory) -> Path:
    """timm's test_vit for 64 px and 10 classes: random values in every tensor, norms and biases too."""
    import torch

    from vitrail.models import timm

    model = timm.build("test_vit", image_size=64, classes=CLASSES, weights=None)
    generator = torch.Generator().manual_seed(1)
    values = {
        name: value + 0.3 * torch.randn(value.shape, generator=generator)
        for name, value in model.state_dict().items()
    }
    path = tmp_path_factory.mktemp("weights") / "tiny.pth"
    torch.save(values, path)
    return path


@pytest.fixture(scope="session")
def tiny_labels(tmp_path_factory) -> Path:
    """Ten labels, one a line, some with commas and letters beyond ASCII."""
    path = tmp_path_factory.mktemp("labels") / "labels.txt"
    path.write_text("".join(f"größe {i}, {i}th\n" for i in range(CLASSES)), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_export(tiny_weights, tiny_labels, tmp_path_factory) -> Path:
    """The folder that `export.work.export` writes for `tiny_weights`."""
    from vitrail.export import work

    folder = tmp_path_factory.mktemp("exports") / "tiny"
    work.export(
        {
            "architecture": "test_vit",
            "implementation": "timm",
            "image_size": 64,
            "labels": str(tiny_labels),
            "weights": str(tiny_weights),
            "folder": str(folder),
            "threads": 2,
        }
    )
    work.build({"folder": str(folder), "runtime": "openvino", "target": str(folder / "openvino")})
    return folder


@pytest.fixture(scope="session")
def coloured(tmp_path_factory) -> Path:
    """A folder with three classes of 28 px images that colour tells apart, 15 each."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("coloured")
    for label in range(3):
        (root / f"class {label}").mkdir()
        for i in range(15):
            pixels = rng.integers(0, 120, (28, 28, 3))
            pixels[..., label] += 120
            Image.fromarray(pixels.astype(np.uint8)).save(root / f"class {label}" / f"{i}.png")
    return root
