"""Recipes: every setting of a training run besides data and model, as one small TOML file.

A recipe has no hidden part: each key is a field below, an unknown one is refused, and anything a file leaves
out has the default given here. The files in `recipes/` say where their figures come from.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from vitrail.errors import InputError
from vitrail.limits import RANGES
from vitrail.store import digest_of
from vitrail.units import nearest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "RECIPES",
    "Augmentation",
    "EngineOptions",
    "Leg",
    "Optimizer",
    "Recipe",
    "Regularization",
    "load_recipe",
]

RECIPES = ("light", "full", "swin-paper", "deit-paper", "clip", "masks", "promptable")
"""Names of the files in `recipes/`."""

Precision = Literal["fp32", "bf16", "fp16"]


class Leg(NamedTuple):
    """Epochs of a run before it was extended, both counted from its very beginning."""

    planned: int
    """The last epoch of the schedule."""
    ended: int
    """The last epoch that was completed: earlier if patience ended it."""


class _Section(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Refuses keys it does not have."""


class Optimizer(_Section, frozen=True, kw_only=True):
    """How weights are updated."""

    name: Literal["adamw", "sgd", "muon"] = "adamw"
    learning_rate: float = 1e-3
    """At the end of the warm-up."""
    learning_rate_batch: int | None = None
    """The batch size that `learning_rate` is for; for another one it is scaled in proportion (Goyal et al.
    2017). None: not scaled."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's, also when used with Muon; SGD takes the first as Nesterov momentum."""
    weight_decay: float = 0.05
    """For matrices and kernels only: not for biases, norms and other vectors."""
    layer_decay: float = 1.0
    """Each layer learns this many times as fast as the one above it (ELECTRA, Clark et al. 2020, appendix on
    fine-tuning; for images BEiT, Bao et al. 2021)."""
    warmup_epochs: float = 1.0
    """The rate grows linearly from 0 for this long …"""
    final_share: float = 0.01
    """… and then falls along half a cosine to this share of its height."""
    clip_norm: float | None = 1.0
    """Largest norm of all gradients together; None: not limited."""


class Regularization(_Section, frozen=True, kw_only=True):
    """What keeps a model from overfitting."""

    label_smoothing: float = 0.1
    drop_path: float = 0.0
    """Rate of the last block; earlier ones less, in proportion (Huang et al. 2016)."""
    mixup: float = 0.0
    """alpha of the Beta distribution of Zhang et al. 2018; 0: off."""
    cutmix: float = 0.0
    """The same for Yun et al. 2019. If both are on, each batch gets one of them."""
    average_decay: float | None = None
    """Decay per step of the exponential moving average of the weights, which is then what is evaluated and
    kept; None: no average."""


class Augmentation(_Section, frozen=True, kw_only=True):
    """What is done to an image before the model sees it; torchvision's transforms, in this order."""

    crop_area: tuple[float, float] | None = (0.35, 1.0)
    """A random part of the image, of this share of its area; None: the pixels that evaluation sees."""
    crop_ratio: tuple[float, float] = (0.75, 1.3333)
    """Width to height of that part."""
    pad: int = 0
    """Pixels reflected at each side before a random crop to the size: a shift by up to that many. Only
    without `crop_area`."""
    flip: float = 0.5
    """Probability of mirroring left and right."""
    flip_vertical: float = 0.0
    randaugment: tuple[int, float] | None = None
    """(operations, strength from 0 to 10) of Cubuk et al. 2020."""
    color: float = 0.0
    """Largest change of brightness, contrast and saturation, as a share."""
    erase: float = 0.0
    """Probability of erasing a rectangle (Zhong et al. 2020)."""


class EngineOptions(_Section, frozen=True, kw_only=True):
    """What changes the speed and, up to rounding, not the result."""

    precision: Precision = "bf16"
    """bf16: autocast over fp32 weights; fp16: the same with a scaled loss, on a GPU only."""
    compile: bool = False
    """torch.compile: a minute or more at the start, faster steps afterwards."""
    channels_last: bool = True
    """Memory format of images and kernels."""
    accumulate: int = 1
    """Parts a batch is split into: less memory, the same gradient (except for batch norm's statistics)."""


class Recipe(_Section, frozen=True, kw_only=True):
    """One recipe, with every default filled in."""

    name: str = "own"
    source: str = ""
    """Where the figures come from."""
    epochs: int = 10
    batch_size: int = 64
    """Images per step, over all processes and parts."""
    seed: int = 0
    """For the order of images and all randomness; 63 bits."""
    patience: int | None = None
    """Stop after this many epochs without a better validation figure; None: never."""
    optimizer: Optimizer = Optimizer()
    regularization: Regularization = Regularization()
    augmentation: Augmentation = Augmentation()
    engine: EngineOptions = EngineOptions()

    def learning_rate(self) -> float:
        """The highest learning rate, scaled to the batch size if the recipe says so."""
        o = self.optimizer
        return o.learning_rate * (self.batch_size / o.learning_rate_batch if o.learning_rate_batch else 1.0)

    def learning_rate_at(self, step: int, per_epoch: int, extended: Sequence[Leg] = ()) -> float:
        """The rate of one step, counted from 0: linear warm-up, then half a cosine (Loshchilov and Hutter
        2017, equation 5). Each extension starts both again, from the rate at which the leg before it ended
        (warmed up and decayed again: Ibrahim et al. 2024, arXiv:2403.08763), with at most half of its epochs
        for the warm-up. A rate that does not fall (`final_share` 1) is that of one longer run."""
        peak, final = self.learning_rate(), self.optimizer.final_share
        leg = sum(step >= before.ended * per_epoch for before in extended)
        first = extended[leg - 1].ended if leg else 0
        last = extended[leg].planned if leg < len(extended) else self.epochs
        step, total = step - first * per_epoch, (last - first) * per_epoch
        warmup, start = self.optimizer.warmup_epochs * per_epoch, 0.0
        if leg:
            warmup = min(warmup, total / 2)
            start = self.learning_rate_at(first * per_epoch - 1, per_epoch, extended)
        if step < warmup:
            return start + (peak - start) * (step + 1) / (warmup + 1)
        done = min(1.0, (step - warmup) / max(1.0, total - warmup))
        return peak * (final + (1 - final) * (1 + math.cos(math.pi * done)) / 2)

    def digest(self) -> str:
        """Changes with any value but the name and the source."""
        values = {k: v for k, v in self.values().items() if k not in ("name", "source")}
        return digest_of(values)

    def values(self) -> dict[str, Any]:
        """Every field as plain values, sections as dicts."""
        values: dict[str, Any] = msgspec.to_builtins(self)
        return values


def load_recipe(name: str, changes: Sequence[str] = ()) -> Recipe:
    """A recipe by its name or file, with `KEY=VALUE` changes (`optimizer.clip_norm=5`, values as in TOML).

    Raises:
        InputError: an unknown recipe or key, or a value out of its range.
    """
    values, place = _read(name)
    for change in changes:
        _set(values, change)
    try:
        recipe = msgspec.convert(_with_none(values), Recipe)
    except msgspec.ValidationError as error:
        raise InputError(f"{place}: {_explained(str(error))}") from None
    _check(recipe, place)
    return recipe


def _read(name: str) -> tuple[dict[str, Any], str]:
    if name in RECIPES:
        text = resources.files("vitrail.learn").joinpath("recipes", f"{name}.toml").read_text("utf-8")
        return {"name": name, **tomllib.loads(text)}, f"The recipe {name}"
    path = Path(name)
    if not path.is_file():
        hint = nearest(name, RECIPES) or f" Recipes are {', '.join(RECIPES)}."
        raise InputError(f"There is no recipe {name!r}, and no file of that name: check --recipe.{hint}")
    try:
        return {"name": path.stem, **tomllib.loads(path.read_text("utf-8"))}, name
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{name} is not TOML ({error}): fix it.") from None
    except OSError as error:
        raise InputError(f"{name} cannot be read ({error.strerror}): check its permissions.") from None


def _set(values: dict[str, Any], change: str) -> None:
    key, equals, text = change.partition("=")
    if not equals or not key.strip():
        raise InputError(f"--set {change} is not a setting: give KEY=VALUE, such as optimizer.clip_norm=5.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    *sections, field = key.strip().split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise InputError(f"--set {change}: {section} has no fields of its own.")
    values[field] = value


def _with_none(values: dict[str, Any]) -> dict[str, Any]:
    """TOML has no null; a recipe writes "none"."""
    return {
        key: _with_none(value) if isinstance(value, dict) else None if value == "none" else value
        for key, value in values.items()
    }


def _explained(problem: str) -> str:
    """msgspec's message with the key's full name and, for an unknown one, what was probably meant."""
    what, _, where = problem.partition(" - at ")
    path = where.strip("`").removeprefix("$").strip(".")
    if not what.startswith("Object contains unknown field"):
        return f"{what}{f' (at {path})' if path else ''}: see docs/training.md for the keys and their values."
    key = what.split("`")[1]
    full = f"{path}.{key}" if path else key
    return f"there is no key {full!r} in a recipe: see docs/training.md.{nearest(full, _keys())}"


def _keys() -> list[str]:
    keys = []
    for field in msgspec.structs.fields(Recipe):
        if isinstance(field.type, type) and issubclass(field.type, _Section):
            keys += [f"{field.name}.{inner.name}" for inner in msgspec.structs.fields(field.type)]
        else:
            keys.append(field.name)
    return keys


def _check(recipe: Recipe, place: str) -> None:
    o, r, a, e = recipe.optimizer, recipe.regularization, recipe.augmentation, recipe.engine
    sound = {
        _range("epochs"): _within("epochs", recipe.epochs),
        _range("batch_size"): _within("batch_size", recipe.batch_size),
        "seed is from 0 to below 2**63": 0 <= recipe.seed < 2**63,
        _range("patience"): recipe.patience is None or _within("patience", recipe.patience),
        "optimizer.learning_rate is above 0": 0 < o.learning_rate < math.inf,
        _range("batch_size", "optimizer.learning_rate_batch"): o.learning_rate_batch is None
        or _within("batch_size", o.learning_rate_batch),
        "optimizer.betas are from 0 to below 1": all(0 <= beta < 1 for beta in o.betas),
        "optimizer.betas begin above 0 for sgd, which takes the first as its momentum": o.name != "sgd"
        or o.betas[0] > 0,
        "optimizer.weight_decay is 0 or more": 0 <= o.weight_decay < math.inf,
        "optimizer.layer_decay is above 0 and at most 1": 0 < o.layer_decay <= 1,
        "optimizer.warmup_epochs is from 0 to epochs": 0 <= o.warmup_epochs <= recipe.epochs,
        "optimizer.final_share is from 0 to 1": 0 <= o.final_share <= 1,
        "optimizer.clip_norm is above 0": o.clip_norm is None or 0 < o.clip_norm < math.inf,
        "regularization.label_smoothing is from 0 to below 1": 0 <= r.label_smoothing < 1,
        "regularization.drop_path is from 0 to below 1": 0 <= r.drop_path < 1,
        "regularization.mixup and cutmix are from 0 to 100": 0 <= r.mixup <= 100 and 0 <= r.cutmix <= 100,
        "regularization.average_decay is from 0 to below 1": r.average_decay is None
        or 0 <= r.average_decay < 1,
        "augmentation.crop_area is two rising shares from above 0 to 1": a.crop_area is None
        or 0 < a.crop_area[0] <= a.crop_area[1] <= 1,
        "augmentation.crop_ratio is two rising ratios from 0.01 to 100": 0.01
        <= a.crop_ratio[0]
        <= a.crop_ratio[1]
        <= 100,
        f"{_range('pad', 'augmentation.pad')}, and 0 together with crop_area": a.pad == 0
        or (_within("pad", a.pad) and a.crop_area is None),
        "augmentation.flip, flip_vertical and erase are from 0 to 1": all(
            0 <= share <= 1 for share in (a.flip, a.flip_vertical, a.erase)
        ),
        "augmentation.randaugment is a number of operations, up to 100, and a strength from 0 to 10": (
            a.randaugment is None or (_within("operations", a.randaugment[0]) and 0 <= a.randaugment[1] <= 10)
        ),
        "augmentation.color is from 0 to 1": 0 <= a.color <= 1,
        "engine.accumulate is 1 or more, and divides batch_size": _within("accumulate", e.accumulate)
        and recipe.batch_size % e.accumulate == 0,
    }
    for rule, holds in sound.items():
        if not holds:
            raise InputError(f"{place}: {rule}: change it.")


def _within(name: str, value: int) -> bool:
    least, most = RANGES[name]
    return least <= value <= most


def _range(name: str, key: str = "") -> str:
    least, most = RANGES[name]
    return f"{key or name} is from {least} to {most}"
