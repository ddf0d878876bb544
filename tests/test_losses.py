"""Contrastive losses against open_clip's; over 2 and 4 processes against one with the same global batch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing
from torch.nn import functional as F

from vitrail.errors import InputError
from vitrail.learn.losses import clip_loss, gathered, info_nce, siglip_loss

pytestmark = pytest.mark.slow

PAIRS, WIDTH, INPUT = 8, 12, 6
KINDS = ("info_nce", "clip", "siglip")


class Towers(torch.nn.Module):
    """Two linear towers, a scale and a bias: parameters whose gradients a loss must get right."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for name in ("image", "text"):
            weight = torch.randn(WIDTH, INPUT, generator=generator)
            setattr(self, name, torch.nn.Parameter(weight))
        self.logit_scale = torch.nn.Parameter(torch.tensor(math.log(9.0)))
        self.logit_bias = torch.nn.Parameter(torch.tensor(-3.0))

    def forward(self, images, texts):
        embed = [F.normalize(x @ w.T, dim=-1) for x, w in ((images, self.image), (texts, self.text))]
        return (*embed, self.logit_scale.exp(), self.logit_bias)


def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, PAIRS, INPUT, generator=generator)


def loss_of(kind, outputs, group=None):
    image, text, scale, bias = outputs
    if kind == "info_nce":
        return info_nce(image, text, scale, group=group)
    if kind == "clip":
        return clip_loss(image, text, scale, group=group)
    return siglip_loss(image, text, scale, bias, group=group)


def peer_loss(kind, outputs):
    # Not at the top: the spawned processes read this file too, and would each take seconds to import it.
    from open_clip.loss import ClipLoss, SigLipLoss

    image, text, scale, bias = outputs
    if kind == "info_nce":
        return F.cross_entropy(ClipLoss().get_logits(image, text, scale)[0], torch.arange(len(image)))
    return ClipLoss()(image, text, scale) if kind == "clip" else SigLipLoss()(image, text, scale, bias)


def gradients(loss, model):
    model.zero_grad()
    loss.backward()
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def close(found, expected, tolerance=1e-5):
    assert torch.isfinite(expected).all()
    scale = expected.abs().max().clamp(min=1e-3)
    assert (found - expected).abs().max() / scale <= tolerance


def same_gradients(found, expected, tolerance=1e-5):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] is None) == (value is None), name
        if value is not None:
            close(found[name], value, tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_equal_open_clips(kind):
    model, (images, texts) = Towers(), batch()
    ours, theirs = loss_of(kind, model(images, texts)), peer_loss(kind, model(images, texts))
    close(ours, theirs, 1e-6)
    same_gradients(gradients(ours, model), gradients(theirs, model))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_equal_finite_differences(kind):
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(2, 4, 5, generator=generator, dtype=torch.float64)
    inputs = [F.normalize(part, dim=-1).requires_grad_() for part in rows]
    numbers = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (7.0, -4.0)]
    assert torch.autograd.gradcheck(lambda *outputs: loss_of(kind, outputs), [*inputs, *numbers])


def test_values_that_are_known():
    same, apart = torch.ones(4, 1), torch.eye(4)
    assert float(info_nce(same, same, 3.0)) == pytest.approx(math.log(4))
    assert float(clip_loss(apart, apart, 50.0)) == pytest.approx(0, abs=1e-9)
    # One pair and three others, all with score 0: four times log 2 for each image.
    assert float(siglip_loss(same, same, 0.0, 0.0)) == pytest.approx(4 * math.log(2))


def test_half_precision_embeddings_are_compared_in_fp32():
    image, text, scale, bias = (x.detach() for x in Towers()(*batch()))
    image, text = image.bfloat16(), text.bfloat16()
    expected = clip_loss(image.float(), text.float(), 100.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = clip_loss(image, text, 100.0)
    assert found.dtype == torch.float32
    close(found, expected, 1e-6)
    close(siglip_loss(image, text, scale, bias), siglip_loss(image.float(), text.float(), scale, bias), 1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shapes", [((4, 3), (5, 3)), ((4, 3), (4, 2)), ((0, 3), (0, 3)), ((3,), (3,))])
def test_what_is_not_pairs_is_refused(kind, shapes):
    one, other = (torch.ones(shape) for shape in shapes)
    with pytest.raises(InputError, match="give each image its text"):
        loss_of(kind, (one, other, 1.0, 0.0))


# --- several processes ----------------------------------------------------------------------------


def _work(rank, folder):
    """One process of four, the first two of which are a group of their own too."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=4)
    try:
        first_two = dist.new_group([0, 1])
        _share(rank, 4, dist.group.WORLD, folder)
        if rank < 2:
            _share(rank, 2, first_two, folder)
    finally:
        dist.destroy_process_group()


def _share(rank, processes, group, folder):
    """A process's share of the batch, every kind of loss, gradients averaged as DDP averages them."""
    model = Towers()
    images, texts = (part.chunk(processes)[rank] for part in batch())
    result = {}
    for kind in KINDS:
        share = loss_of(kind, model(images, texts), group)
        found = gradients(share, model)
        values = [share.detach().clone(), *(g for g in found.values() if g is not None)]
        for value in values:
            dist.all_reduce(value, group=group)
            value /= processes
        result[kind] = {"loss": values[0], "gradients": found}
    result["order"] = gathered(torch.full((1, 1), float(rank)), group)
    result["refused"] = _refusals(rank, group)
    if rank == processes - 1:  # the last one: a mistake in the rank's offset shows
        torch.save(result, f"{folder}/result-{processes}.pt")


def _refusals(rank, group):
    """What each process says when the first has fewer pairs, and when it has none that fit; none may wait."""
    said = []
    for image, text in ((2 - (rank == 0), None), (2, 2 + (rank == 0))):
        rows = torch.ones(image, 3), torch.ones(text or image, 3)
        try:
            clip_loss(*rows, 1.0, group=group)
            said.append(None)
        except InputError as error:
            said.append(str(error))
    return said


@pytest.fixture(scope="module")
def worked(tmp_path_factory):
    """The folder of what two and four processes found."""
    folder = tmp_path_factory.mktemp("processes")
    context = multiprocessing.spawn(_work, (str(folder),), nprocs=4, join=False)
    while not context.join(timeout=60):
        pass
    return folder


@pytest.fixture(params=[2, 4])
def several(request, worked):
    return request.param, torch.load(worked / f"result-{request.param}.pt")


@pytest.mark.parametrize("kind", KINDS)
def test_several_processes_equal_one_on_the_same_batch(several, kind):
    model = Towers()
    alone = peer_loss(kind, model(*batch()))
    close(several[1][kind]["loss"], alone.detach())
    same_gradients(several[1][kind]["gradients"], gradients(alone, model))


def test_gathered_rows_stand_in_the_order_of_the_ranks(several):
    processes, result = several
    assert result["order"].flatten().tolist() == list(range(processes))


def test_uneven_processes_are_refused_everywhere(several):
    uneven, unpaired = several[1]["refused"]
    assert "drop_last" in uneven
    assert "0: not usable" in unpaired
