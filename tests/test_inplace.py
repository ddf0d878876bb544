"""Where inference works in place and in parts: on CPUs, when nobody records it, and nowhere else."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from vitrail.models import inplace
from vitrail.models.inplace import add, bounds, by_rows, in_place
from vitrail.models.layers import LayerNorm
from vitrail.models.swin import Swin, SwinConfig
from vitrail.models.vit import ViT, ViTConfig

SWIN = SwinConfig(image_size=(112, 112), width=16, depths=(2, 2), heads=(2, 4), num_classes=5)
MODELS = {
    "swin": (Swin, SWIN),
    "swin v2": (Swin, SwinConfig(**{**vars(SWIN), "version": 2, "pretrained_window": (0, 0)})),
    "vit": (ViT, ViTConfig(width=32, depth=2, heads=2, patch_size=8, image_size=(112, 112), layer_scale=1.0)),
}


class Operators(TorchDispatchMode):
    """Collects the operators that run while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch._ops.OpOverload] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


def operators(kind: str, device: str, batch: int) -> list[torch._ops.OpOverload]:
    """Those of one forward pass in inference; nothing is computed."""
    make, config = MODELS[kind]
    with torch.device("meta"):
        model = make(config).eval()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        weights = {name: torch.empty(t.shape, device=device) for name, t in named.items()}
        images = torch.empty(batch, 3, *config.image_size, device=device)
        if isinstance(model, Swin):
            # Its tables are computed with NumPy, which takes no fake tensors.
            tables = tuple(stage.to(device) for stage in model._tables.at(*config.image_size))
            model._tables.by_size[(*config.image_size, str(images.device))] = tables
        with Operators() as operators:
            torch.func.functional_call(model, weights, (images,))
    return operators.seen


def test_only_on_cpus_and_when_nobody_records():
    x = torch.zeros(2)
    assert not in_place(x)
    with torch.no_grad():
        assert in_place(x)
        assert not in_place(x.to("meta"))
        with FakeTensorMode():
            assert in_place(torch.empty(2))
            for device in ("cuda", "mps", "xpu"):
                assert not in_place(torch.empty(2, device=device))
    with torch.inference_mode():
        assert in_place(x)
        assert not torch.compile(in_place, backend="eager", fullgraph=True)(x)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("device", ["cuda", "meta"])
def test_other_devices_take_the_ordinary_path(kind, device, monkeypatch):
    monkeypatch.setattr(inplace, "ROWS_BYTES", 400 * 128 * 4)
    ordinary = operators(kind, device, 8)
    assert not [func for func in ordinary if func._schema.is_mutable]
    # As many calls however large the batch is.
    assert ordinary == operators(kind, device, 64)
    on_cpu = operators(kind, "cpu", 8)
    assert any(func._schema.is_mutable for func in on_cpu)
    assert len(operators(kind, "cpu", 64)) > len(on_cpu)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_both_paths_agree(kind, dtype, tolerance, monkeypatch):
    make, config = MODELS[kind]
    generator = torch.Generator().manual_seed(0)
    model = make(config).eval()
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        scale = 0.2 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
        parameter.data = (parameter.data + scale * noise).to(dtype)
    x = torch.rand(3, 3, 112, 112, generator=generator).to(dtype)
    monkeypatch.setattr(inplace, "ROWS_BYTES", 100 * 128 * 4)
    with torch.inference_mode():
        found = model(x).double()
    expected = model(x).double()
    assert (found - expected).norm() <= tolerance * expected.norm()


def test_rows_are_taken_in_equal_parts_and_come_back_in_their_shape(monkeypatch):
    assert bounds(10, 4) == [0, 3, 6, 10]
    taken = []

    def function(x):
        taken.append(len(x))
        return 2 * x[..., :3]

    x = torch.rand(2, 5, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(by_rows(function, x, features=1), function(x))
    taken.clear()
    monkeypatch.setattr(inplace, "ROWS_BYTES", 4 * 4)
    with torch.no_grad():
        assert torch.equal(by_rows(function, x, features=1), 2 * x[..., :3])
    assert taken == [3, 3, 4]


def test_a_sum_is_written_over_its_first_tensor_in_inference_alone():
    x, branch = torch.ones(2), torch.ones(2)
    assert add(x, branch) is not x
    with torch.no_grad():
        assert add(x, branch) is x
    assert x.tolist() == [2, 2]


def test_norms_in_bf16_are_as_exact_as_torchs():
    generator = torch.Generator().manual_seed(0)
    ours, theirs = LayerNorm(48).bfloat16(), nn.LayerNorm(48).bfloat16()
    with torch.no_grad():
        for parameter, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            parameter.copy_(torch.randn(48, generator=generator))
            other.copy_(parameter)
        x = torch.randn(7, 48, generator=generator).bfloat16()
        exact = nn.functional.layer_norm(x.double(), (48,), ours.weight.double(), ours.bias.double())
        found, expected = (norm(x).double() - exact for norm in (ours, theirs))
    assert found.norm() <= 1.01 * expected.norm()
    assert torch.equal(ours(x), theirs(x))
