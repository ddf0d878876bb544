"""Parameters and MACs of well-known variants, counted on the meta device (`vitrail.profiling.cost`)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitrail.models import build, sam2
from vitrail.models.clip import CLIP
from vitrail.models.sam import SAM, PromptGraph
from vitrail.models.sam2_config import HieraConfig
from vitrail.models.swin import Swin
from vitrail.models.upernet import UPerNet
from vitrail.models.vit import ViT
from vitrail.profiling import cost

__all__ = [
    "CLIPS",
    "SAM2S",
    "SAMS",
    "SWINS",
    "UPERNETS",
    "VITS",
    "clip",
    "sam",
    "sam_2",
    "swin",
    "upernet",
    "vit",
]

VITS = (
    "vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch32_224", "vit_base_patch16_224",
    "vit_base_patch16_384", "vit_large_patch16_224", "vit_huge_patch14_224", "vit_small_patch14_dinov2",
    "vit_base_patch14_dinov2", "vit_giant_patch14_dinov2", "vit_base_patch16_siglip_224",
)  # fmt: skip
SWINS = (
    "swin_tiny_patch4_window7_224", "swin_small_patch4_window7_224", "swin_base_patch4_window7_224",
    "swin_large_patch4_window7_224", "swin_base_patch4_window12_384", "swinv2_tiny_window8_256",
    "swinv2_small_window8_256", "swinv2_base_window8_256", "swinv2_base_window16_256",
    "swinv2_large_window12to24_192to384",
)  # fmt: skip
CLIPS = (
    "ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336", "ViT-H-14", "ViT-B-16-SigLIP", "ViT-SO400M-14-SigLIP",
)  # fmt: skip
SAMS = ("sam_vit_nano", "sam_vit_base", "sam_vit_large", "sam_vit_huge")
SAM2S = (
    "sam2_hiera_nano", "edgetam", "sam2_hiera_tiny", "sam2_hiera_small", "sam2_hiera_base_plus",
    "sam2_hiera_large",
)  # fmt: skip
UPERNETS = (
    "upernet_swin_nano", "upernet_swin_tiny", "upernet_swin_small", "upernet_swin_base", "upernet_swin_large",
)  # fmt: skip


def vit() -> str:
    """The table of docs/architectures/vit.md."""
    rows = []
    for name in VITS:
        model = _on_meta(name)
        assert isinstance(model, ViT)
        c, counted = model.config, cost.count(model, model.config.image_size[0])
        tokens = c.grid[0] * c.grid[1] + c.prefix_tokens
        rows.append(
            f"| `{name}` | {c.image_size[0]} | {c.width} | {c.depth} | {c.heads} | {tokens} "
            f"| {_millions(counted.parameters)} | {_billions(counted.macs)} |"
        )
    return _table("name | image | width | blocks | heads | tokens | parameters, M | GMACs", rows)


def swin() -> str:
    """The table of docs/architectures/swin.md."""
    rows = []
    for name in SWINS:
        model = _on_meta(name)
        assert isinstance(model, Swin)
        c, counted = model.config, cost.count(model, model.config.image_size[0])
        depths, heads = (" ".join(map(str, each)) for each in (c.depths, c.heads))
        rows.append(
            f"| `{name}` | {c.image_size[0]} | {c.window} | {c.width} | {depths} | {heads} "
            f"| {_millions(counted.parameters)} | {_billions(counted.macs)} |"
        )
    return _table("name | image | window | width | blocks | heads | parameters, M | GMACs", rows)


def clip() -> str:
    """The table of docs/architectures/clip.md."""
    rows = []
    for name in CLIPS:
        model = _on_meta(name)
        assert isinstance(model, CLIP)
        size = model.config.image_size[0]
        image, text = cost.count(model.image, size), cost.count(_OneText(model), size)
        rows.append(
            f"| `{name}` | {size} | {model.config.embed_width} | {_millions(image.parameters)} "
            f"| {_billions(image.macs)} | {_millions(text.parameters)} | {_billions(text.macs)} |"
        )
    return _table(
        "name | image | E | image tower: parameters, M | GMACs | text tower: parameters, M | GMACs", rows
    )


def sam() -> str:
    """The table of docs/architectures/sam.md."""
    rows = []
    for name in SAMS:
        model = _on_meta(name)
        assert isinstance(model, SAM)
        c, size = model.config, model.config.image_size[0]
        encoder, decoder = cost.count(model.image_encoder, size), cost.count(_OneClick(model), size)
        rows.append(
            f"| `{name}` | {size} | {c.width} | {c.depth} | {c.heads} | {_millions(encoder.parameters)} "
            f"| {_billions(encoder.macs)} | {_millions(decoder.parameters)} | {_billions(decoder.macs)} |"
        )
    return _table(
        "name | image | width | blocks | heads | encoder: parameters, M | GMACs "
        "| prompts and masks: parameters, M | GMACs",
        rows,
    )


def sam_2() -> str:
    """The table of docs/architectures/sam2.md."""
    rows = []
    for name in SAM2S:
        model = _on_meta(name)
        assert isinstance(model, sam2.SAM2)
        trunk, size = model.config.trunk, model.config.image_size[0]
        encoder, decoder = cost.count(sam2.EncodeGraph(model), size), cost.count(_OneFineClick(model), size)
        blocks = " ".join(map(str, trunk.depths)) if isinstance(trunk, HieraConfig) else trunk.name
        parameters = sum(parameter.numel() for parameter in model.image_encoder.parameters())
        rows.append(
            f"| `{name}` | {size} | {trunk.widths[0]} | {blocks} | {_millions(parameters)} "
            f"| {_billions(encoder.macs)} | {_millions(decoder.parameters)} | {_billions(decoder.macs)} |"
        )
    return _table(
        "name | image | width | blocks | encoder: parameters, M | GMACs "
        "| prompts and masks: parameters, M | GMACs",
        rows,
    )


def upernet() -> str:
    """The table of docs/architectures/upernet.md."""
    rows = []
    for name in UPERNETS:
        with torch.device("meta"):
            model = build(name, auxiliary=False)
        assert isinstance(model, UPerNet)
        c, size = model.config, model.config.image_size[0]
        whole, swin = cost.count(model, size), cost.count(model.backbone, size)
        rows.append(
            f"| `{name}` | {size} | {c.backbone.window} | {c.backbone.width} | {c.head_width} "
            f"| {_millions(whole.parameters)} | {_billions(whole.macs)} | {_billions(swin.macs)} |"
        )
    return _table("name | image | window | width | E | parameters, M | GMACs | of them Swin's", rows)


class _OneClick(nn.Module):
    """What is computed for one point without a mask, behind an image's signature."""

    def __init__(self, model: SAM) -> None:
        super().__init__()
        self.graph, self.config = PromptGraph(model), model.config

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """(1, …) -> (1, 1, M, Y, X)."""
        new, width = images_BCHW.new_empty, self.config.embed_width
        encoder, decoder = self.graph.prompt_encoder, self.graph.mask_decoder
        labels_BPN = torch.zeros(1, 1, 2, dtype=torch.int64, device=images_BCHW.device)
        sparse_BPNE = encoder.points(new(1, 1, 2, 2), labels_BPN)
        masks_BPMYX: Tensor = decoder(
            new(1, width, *self.config.grid), encoder.image_positions(), sparse_BPNE, encoder.no_mask(1)
        )[0]
        return masks_BPMYX


class _OneFineClick(nn.Module):
    """The same of SAM 2."""

    def __init__(self, model: sam2.SAM2) -> None:
        super().__init__()
        self.graph = sam2.ClickGraph(model)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """(1, …) -> (1, 1 + M, Y, X)."""
        new, config = images_BCHW.new_empty, self.graph.config
        width, (h, w) = config.embed_width, config.grid
        labels_BN = torch.zeros(1, 2, dtype=torch.int64, device=images_BCHW.device)
        maps = new(1, width, h, w), new(1, width // 4, 2 * h, 2 * w), new(1, width // 8, 4 * h, 4 * w)
        masks_BMYX: Tensor = self.graph(*maps, new(1, 2, 2), labels_BN)[0]
        return masks_BMYX


class _OneText(nn.Module):
    """The text tower behind an image's signature: `count` gives an image, it reads one full text."""

    def __init__(self, model: CLIP) -> None:
        super().__init__()
        self.text = model.text

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """(1, …) -> (1, E)."""
        length = self.text.config.context_length
        tokens_BL = torch.zeros(1, length, dtype=torch.int64, device=images_BCHW.device)
        # Inference would leave out what stands after the text, and on the meta device there is no text.
        with torch.enable_grad():
            embedding_BE: Tensor = self.text(tokens_BL)
        return embedding_BE


def _on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return build(name)


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f}"


def _billions(count: int) -> str:
    return f"{count / 1e9:.2f}" if count < 1e10 else f"{count / 1e9:.1f}"


def _table(head: str, rows: list[str]) -> str:
    dashes = "|".join(["---"] + ["---:"] * head.count("|"))
    return "\n".join([f"| {head} |", f"|{dashes}|", *rows, ""])
