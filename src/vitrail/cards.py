"""NVIDIA cards that today's libraries no longer support: what the last ones are that do.

Sources, looked up in November 2026:
- CUDA toolkits and drivers: "CUDA Toolkit, Driver, and Architecture Matrix", NVIDIA,
  https://docs.nvidia.com/datacenter/tesla/drivers/cuda-toolkit-driver-and-architecture-matrix.html
- TensorRT: the release notes of 8.5.2 ("the last release supporting NVIDIA Kepler"), the support matrices of
  8.6.1 and 10.1.0 ("capability SM 7.0 or higher"), and the release notes of 10.5.0 ("NVIDIA Volta support has
  been removed starting with TensorRT 10.5"), https://docs.nvidia.com/deeplearning/tensorrt
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["ARCHITECTURES", "Architecture", "of", "unsupported"]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One generation of cards, with the last of each library that supports it."""

    name: str
    capabilities: tuple[str, ...]
    tensorrt: str
    cuda: str
    driver: str
    """The last branch."""
    cards: str
    """A pattern of what drivers call the cards."""


ARCHITECTURES = (
    Architecture(
        name="Volta",
        capabilities=("7.0",),
        tensorrt="10.4",
        cuda="12.9",
        driver="R580",
        cards=r"V100|TITAN V|GV100",
    ),
    Architecture(
        name="Pascal",
        capabilities=("6.0", "6.1"),
        tensorrt="8.6",
        cuda="12.9",
        driver="R580",
        cards=r"P100|P40|P4|P6|GTX 10[5-8]0|GT 10[13]0|TITAN (X \(Pascal\)|Xp)|Quadro G?P\d+|TITAN X Pascal",
    ),
    Architecture(
        name="Maxwell",
        capabilities=("5.0", "5.2", "5.3"),
        tensorrt="8.6",
        cuda="12.9",
        driver="R580",
        cards=r"M4|M6|M10|M40|M60|GTX 9[5-8]0|GTX 7[45]0( Ti)?|GTX TITAN X|Quadro M\d+",
    ),
    Architecture(
        name="Kepler",
        capabilities=("3.5", "3.7"),
        tensorrt="8.5",
        cuda="11.8",
        driver="R470",
        cards=r"K20[A-Za-z]*|K40[A-Za-z]*|K80|GTX 780|GTX TITAN( Black| Z)?|Quadro K6000",
    ),
    Architecture(
        name="Kepler",
        capabilities=("3.0", "3.2"),
        tensorrt="8.5",
        cuda="10.2",
        driver="R470",
        cards=r"K10|GTX 6[5-9]0|GTX 7[67]0|GRID K[12]",
    ),
)
"""From Turing (7.5) on, cards are supported by TensorRT 11, CUDA 13 and current drivers."""


def of(card: str) -> Architecture | None:
    """The unsupported generation of a card; None: it is supported, or unknown here.

    Args:
        card: its compute capability (`7.0`), or its name as the driver gives it (`Tesla V100-SXM2-16GB`).
    """
    found = re.fullmatch(r"\d+\.\d+", card.strip())
    for each in ARCHITECTURES:
        if found:
            if card.strip() in each.capabilities:
                return each
        elif re.search(rf"(?<![\w.])({each.cards})(?![\w.])", card, re.IGNORECASE):
            return each
    if found and tuple(map(int, card.strip().split("."))) < (3, 0):
        return ARCHITECTURES[-1]
    return None


def unsupported(card: str) -> str | None:
    """One sentence about a card that TensorRT 11 and CUDA 13 left behind; None: they have not, or who knows.

    Args:
        card: as `of` takes it.
    """
    found = of(card)
    if found is None:
        return None
    return (
        f"{card} is of the {found.name} generation, which TensorRT supports up to {found.tensorrt}, CUDA up "
        f"to {found.cuda} and drivers up to {found.driver}: use another engine, built for such a CUDA, or a "
        "newer GPU."
    )
