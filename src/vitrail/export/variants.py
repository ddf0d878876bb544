"""Candidates -> variants: the sizes, codes, engines and precisions in which a candidate could ship here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from vitrail import runtimes, tasks
from vitrail.errors import InputError, MissingExtraError
from vitrail.export import passes
from vitrail.export.passes import PASSES
from vitrail.limits import whole
from vitrail.models.registry import MODELS, SEGMENTERS
from vitrail.runtimes import RUNTIMES
from vitrail.runtimes.parts import IMAGES
from vitrail.vocabulary import (
    MERGE,
    SIZE,
    Candidate,
    Implementation,
    Precision,
    SearchSettings,
    Variant,
    Workload,
)

__all__ = [
    "Form",
    "at_size",
    "engines",
    "forms",
    "implementations",
    "in_floating_point",
    "missing_runtimes",
    "variants",
]


@dataclass(frozen=True, kw_only=True)
class Form:
    """How a graph is rewritten, and an engine set, beside its precision."""

    passes: tuple[str, ...] = ()
    settings: tuple[tuple[str, str], ...] = ()
    runtime: str = ""
    """The engine whose settings they are; "": any."""
    image_size: int | None = None
    """None: the workload's, or else the candidate's own."""


def variants(
    candidates: Iterable[Candidate],
    workload: Workload,
    settings: SearchSettings,
    *,
    int8: bool = False,
    forms: Sequence[Form] = (Form(),),
) -> tuple[Variant, ...]:
    """All variants of the candidates on the installed runtimes that the settings admit.

    References (PyTorch) are measured beside the winner, never searched.

    Args:
        int8: whether there are photos to calibrate it on.
        forms: how graphs are rewritten and engines set.

    Raises:
        MissingExtraError: of the asked runtimes none is installed.
        InputError: no installed runtime has an asked precision, only references are asked for, none of the
            asked implementations has any of the candidates, or none of the runtimes takes an ONNX file.
    """
    candidates = tuple(candidates)
    pairs = engines(settings, workload.device, int8=int8)
    found = (
        Variant(
            candidate=candidate,
            image_size=form.image_size or workload.image_size or candidate.preprocess.image_size,
            implementation=implementation,
            runtime=runtime,
            precision=precision,
            passes=tuple(name for name in form.passes if _reaches(name, runtime, precision)),
            settings=form.settings,
        )
        for candidate in candidates
        for implementation in implementations(candidate, settings.implementations)
        for runtime, precision in pairs
        if not (implementation == "onnx" and RUNTIMES[runtime].of_module)
        for form in forms
        if form.runtime in ("", runtime) and (form == Form() or not tasks.known(candidate.task).stages)
    )
    unlike = tuple(dict.fromkeys(found))
    own = [candidate.name for candidate in candidates if candidate.trained_with == "onnx"]
    if not unlike and own and all(RUNTIMES[runtime].of_module for runtime, _ in pairs):
        label = RUNTIMES[pairs[0][0]].label
        raise InputError(f"{label} takes modules, and {own[0]} is an ONNX file: name another runtime.")
    if not unlike and "onnx" in settings.implementations:
        raise InputError("Only a file given with --onnx runs its own graph: give one, or name timm too.")
    if not unlike and settings.implementations == ("vitrail",):
        raise InputError("Vitrail has none of these architectures of its own: add timm to --implementations.")
    return unlike


def engines(settings: SearchSettings, device: str, *, int8: bool = True) -> list[tuple[str, Precision]]:
    """The installed runtimes and precisions on the device that the settings admit, at least one.

    Args:
        int8: whether it can be made.

    Raises:
        MissingExtraError: of the asked runtimes none is installed.
        InputError: an asked runtime is of another device, no installed one has an asked precision, or only
            references are asked for.
    """
    for name in settings.runtimes:
        if name in RUNTIMES and not RUNTIMES[name].on(device):
            kinds = " or ".join(f"--device {kind}" for kind in RUNTIMES[name].devices)
            raise InputError(
                f"{RUNTIMES[name].label} does not run on {device}: measure it with {kinds}, or name another "
                "runtime."
            )
    pairs = _engines(settings, device, int8=int8)
    if settings.runtimes and all(name in RUNTIMES and RUNTIMES[name].reference for name in settings.runtimes):
        raise InputError(
            f"{' and '.join(settings.runtimes)} is a reference and never ships: name a runtime that does too."
        )
    if not pairs:
        unasked = [name for name, row in RUNTIMES.items() if row.on(device) and not row.named_only]
        for name in settings.runtimes or ([] if settings.precisions else unasked):
            if name in RUNTIMES and (missing := runtimes.missing(name)) is not None:
                raise MissingExtraError(*missing)
        asked = " ".join((*settings.runtimes, *settings.precisions)) or "any"
        there = runtimes.installed()
        offers = "; ".join(
            f"{name} has {', '.join(offered)}"
            for name, runtime in RUNTIMES.items()
            if name in there and not runtime.reference and (offered := runtime.on(device))
        )
        install = "`vitrail doctor` says what to install"
        raise InputError(f"No installed runtime offers {asked}: {offers or install}.")
    return pairs


def in_floating_point(settings: SearchSettings) -> SearchSettings:
    """The settings without int8: what features and first figures are computed in."""
    return replace(settings, precisions=tuple(name for name in settings.precisions if name != "int8"))


def forms(settings: SearchSettings, workload: Workload, *, quality: bool) -> tuple[Form, ...]:
    """Graphs as they are exported, and as the passes make them: whether those pay, measuring says.

    Args:
        quality: whether the accuracy of what comes out is measured, on labelled images.

    Raises:
        InputError: an unknown pass, or one that changes answers where nothing measures how much.
    """
    asked = settings.passes
    names = tuple(name for name in PASSES if name not in (MERGE, SIZE)) if asked is None else asked
    passes.check(names)
    sizes = [int(name.partition("=")[2]) for name in names if name.partition("=")[0] == SIZE]
    for size in sizes:
        whole("image_size", size, f"--passes {SIZE}")
    changing = [name for name in names if name.partition("=")[0] in (MERGE, SIZE)]
    merging = [name for name in changing if name.partition("=")[0] == MERGE]
    exact = tuple(name for name in names if name not in changing)
    if changing and not quality:
        raise InputError(
            f"--passes {changing[0]} changes answers: give labelled images (--data DIR) to measure how many."
        )
    steady = tuple(name for name in exact if not passes.known(name).sometimes)
    sets = [(), steady, exact, *((name, *rest) for name in merging for rest in ((), exact))]
    found = [Form(passes=each, image_size=size) for size in (None, *sizes) for each in dict.fromkeys(sets)]
    if workload.batch_size > 1:
        found += [
            replace(form, runtime=name, settings=((IMAGES, "1"),))
            for name, engine in RUNTIMES.items()
            if IMAGES in engine.settings
            for form in tuple(found)
        ]
    return tuple(found)


def implementations(candidate: Candidate, asked: Sequence[str] = ()) -> tuple[Implementation, ...]:
    """Whose code can run the candidate's weights, of those asked; none asked: ours where it exists."""
    there: tuple[Implementation, ...] = ("vitrail", "timm") if candidate.architecture in MODELS else ("timm",)
    if candidate.architecture in SEGMENTERS:
        there = ("vitrail",)
    if candidate.trained_with is not None:
        there = (candidate.trained_with,)
    return tuple(name for name in there if name in asked) if asked else there[:1]


def at_size(candidate: Candidate, image_size: int | None) -> Candidate:
    """The candidate prepared at the asked size: its accuracy is measured there, so it belongs there."""
    old = candidate.preprocess.image_size
    if image_size in (None, old):
        return candidate
    scale = (image_size / old) ** 2
    return replace(
        candidate,
        preprocess=replace(candidate.preprocess, image_size=image_size),
        macs=round(candidate.macs * scale),
        activations=round(candidate.activations * scale),
    )


def _reaches(name: str, runtime: str, precision: str) -> bool:
    """Whether a pass can be applied to what the engine takes, and helps it."""
    row = passes.known(name)
    return row.helps(runtime, precision) and (row.of_module or not RUNTIMES[runtime].of_module)


def _engines(settings: SearchSettings, device: str, *, int8: bool) -> list[tuple[str, Precision]]:
    there = [name for name in runtimes.installed() if runtimes.missing(name) is None]
    return [
        (name, precision)
        for name, runtime in RUNTIMES.items()
        if name in there and not runtime.reference and _asked(name, settings.runtimes)
        for precision in runtime.on(device)
        if (not settings.precisions or precision in settings.precisions) and (int8 or precision != "int8")
    ]


def missing_runtimes(settings: SearchSettings, device: str) -> tuple[str, ...]:
    """One note per runtime that was asked for, or ships on the device, and is not installed."""
    names = (
        name
        for name, runtime in RUNTIMES.items()
        if name in settings.runtimes
        or not (settings.runtimes or runtime.reference or runtime.named_only or not runtime.on(device))
    )
    lacking = filter(None, map(runtimes.missing, names))
    return tuple(f"{what} is not installed: `{install}`" for what, install in lacking)


def _asked(name: str, names: Sequence[str]) -> bool:
    """Whether a runtime is among the asked ones; none asked: all that need not be named."""
    return name in names if names else not RUNTIMES[name].named_only
