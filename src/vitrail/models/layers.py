"""Small parts shared by the transformers: the MLP, norms, stochastic depth, input checks.

Shapes: B batch, C channels, H W pixels, N tokens, D width, F features of the hidden layer.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitrail.errors import InputError
from vitrail.models.choices import ACTIVATIONS, check_choice
from vitrail.models.inplace import in_place
from vitrail.models.linear import Linear

__all__ = ["DropPath", "LayerNorm", "LayerNorm2d", "LayerScale", "Mlp", "check_images", "drop_path_rates"]


def quick_gelu(x: Tensor) -> Tensor:
    """x · sigmoid(1.702 x), the approximation of GELU that OpenAI's CLIP was trained with."""
    return x * torch.sigmoid(1.702 * x)


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = dict(
    zip(ACTIVATIONS, (F.gelu, _gelu_tanh, quick_gelu, F.silu), strict=True)
)


class LayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` with the same weights and names; in bf16 on CPUs its weight and bias are used in fp32.

    For these dtypes torch's kernel is a third faster, and as accurate.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(…, D) -> (…, D)."""
        if input.dtype is torch.bfloat16 and in_place(input):
            weight, bias = self.weight.float(), self.bias.float()
            return F.layer_norm(input, self.normalized_shape, weight, bias, self.eps)
        return super().forward(input)


class LayerNorm2d(nn.LayerNorm):
    """`nn.LayerNorm` over the channels of a map, (B, C, h, w) -> (B, C, h, w)."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Mlp(nn.Module):
    """(…, D) -> (…, D): fc2(act(fc1 x)), or with `gated` fc2(silu(a) · b) where [a b] = fc1 x.

    The gate is SwiGLU (Shazeer 2020, eq. 6), both of its matrices packed into fc1.
    """

    def __init__(self, width: int, hidden: int, *, activation: str = "gelu", gated: bool = False) -> None:
        super().__init__()
        check_choice("activation", activation, ACTIVATIONS)
        if gated and hidden % 2:
            raise InputError(f"A gated MLP halves its hidden features: give an even number, not {hidden}.")
        self.activation, self.gated, self.hidden = activation, gated, hidden
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden // 2 if gated else hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        if self.gated:
            gate, value = self.fc1(x).chunk(2, dim=-1)
            return self.fc2(F.silu(gate) * value)
        if self.activation == "gelu":
            return self.fc2(self.fc1(x, gelu=True))
        return self.fc2(_ACTIVATIONS[self.activation](self.fc1(x)))


class LayerScale(nn.Module):
    """x · gamma, one learned factor per feature (Touvron et al. 2021, "Going deeper", eq. 5)."""

    def __init__(self, width: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), initial))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class DropPath(nn.Module):
    """In training, drop a residual branch for a random share of the samples (Huang et al. 2016).

    Kept branches are divided by the probability of being kept, so that inference needs no correction.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        kept_B = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
        return x * (kept_B / keep)


def drop_path_rates(last: float, depth: int) -> list[float]:
    """The rate of each block, growing linearly from 0 to `last`: early blocks matter to all later ones."""
    return [last * i / max(1, depth - 1) for i in range(depth)]


def check_images(images_BCHW: Tensor, channels: int) -> None:
    """Refuse anything but a batch of images; the model itself checks the sizes.

    Raises:
        InputError: not 4-D, the wrong number of channels, or an empty batch.
    """
    if images_BCHW.ndim != 4:
        raise InputError(
            f"A batch of images has the shape (B, {channels}, H, W), not {tuple(images_BCHW.shape)}: "
            "a single image needs images[None]."
        )
    if images_BCHW.shape[1] != channels:
        raise InputError(
            f"The model takes {channels} channels and the images have {images_BCHW.shape[1]}: "
            f"convert them, or build the model with channels={images_BCHW.shape[1]}."
        )
    # A symbolic batch must not be compared: the comparison would become part of the traced graph.
    if not torch.compiler.is_compiling() and images_BCHW.shape[0] == 0:
        raise InputError("The batch of images is empty: give at least one image.")
