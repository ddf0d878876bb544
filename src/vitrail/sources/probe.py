"""Candidates -> probed candidates: a linear head for each on the user's labelled images, in a race.

Every candidate starts on a part of the images. One that another beats on the same images, and that is slower
too, is out; the others see more, until all of them or nobody is left to beat. The winner of a race is not yet
the winner of a selection: latency, memory and parity are judged afterwards, on every one that is left.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from vitrail import store
from vitrail.data import Example
from vitrail.errors import VitrailError
from vitrail.export.requests import HeadRequest
from vitrail.export.variants import at_size, in_floating_point, variants
from vitrail.measure import sandbox
from vitrail.sources.features import Extractor, Features
from vitrail.sources.source import Context, Found, Source
from vitrail.tasks import accuracy
from vitrail.vocabulary import Accuracy, Candidate, Weights
from vitrail.weights.find import missing as missing_weights
from vitrail.words import NOT_AT_HAND, counted

PROBE_VERSION = 1
"""Part of a probe's key: raise it when the same images would give another head."""

FIRST_IMAGES = 512
FIRST_PER_CLASS = 8
GROWTH = 4
"""Each round of the race sees so many times the images of the one before."""
SHARE = 0.6
"""Of the budget, for probing; the rest is the search's."""
SLOWER = 1.25
"""A rival this much faster, on the engine that gave the features, counts as faster under any load."""
HEAD_TIMEOUT_S = 120.0


@dataclass
class Contestant:
    """One candidate in the race."""

    candidate: Candidate
    engine: Extractor
    images: int = 0
    right: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))
    """Which of the validation images its head gets right."""
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Probe(Source):
    """The candidates of other sources, each with a new head that was fitted on the labelled images."""

    backbones: Found

    def find(self, context: Context) -> Found:
        """The candidates that the race leaves; the others are excluded, without accuracy on other classes."""
        candidates = self.backbones.candidates
        if not candidates:
            return self.backbones
        race = _Race(context)
        kept = race.run(candidates)
        rest = tuple(replace(c, accuracy=None) for c in candidates if c.name in race.excluded)
        return Found(
            candidates=(*kept, *rest),
            excluded=race.excluded,
            notes=(*self.backbones.notes, *race.notes),
            why_none=race.why_none(candidates),
        )


class _Race:
    def __init__(self, context: Context, clock: Callable[[], float] = time.monotonic) -> None:
        assert context.dataset is not None
        self._dataset, self._bench = context.dataset, context.bench
        self._requirements, self._settings = context.requirements, context.settings
        self._note, self._doing, self._clock = context.note, context.doing, clock
        self._deadline = clock() + SHARE * context.left_s()
        self._train = mixed(self._dataset.of("train"))
        self._validation = mixed(self._dataset.of("validation"))
        self._heads = store.RecordStore(store.cache_dir() / "probes")
        self._features = Features(context.bench, context.settings)
        self.excluded: dict[str, str] = {}
        self.notes: tuple[str, ...] = ()

    def run(self, candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
        """Fit a head for each candidate whose weights are at hand; drop those that others leave behind."""
        runners = self._starters(candidates)
        for images in rounds(len(self._train), len(self._dataset.classes)):
            for number, runner in enumerate(racing := list(runners), 1):
                self._doing(
                    f"probing {number} of {counted(len(racing), 'model')} on {counted(images, 'image')}"
                )
                if not self._advance(runner, images):
                    runners.remove(runner)
            self._drop(runners, images)
            self._note(f"probed on {counted(images, 'image')}: {standing(runners)}")
        kept = tuple(self._as_candidate(runner) for runner in runners)
        probed = len(runners) + sum("probe:" in reason for reason in self.excluded.values())
        missing = sum(reason.startswith("its weights") for reason in self.excluded.values())
        note = f"{probed} of {len(candidates)} models were probed on {self._dataset.name}"
        if missing:
            have = counted(missing, "model has", "models have")
            note += f"; {have} no weights at hand (see the ledger)"
        self.notes = (note,)
        return kept

    def why_none(self, candidates: Sequence[Candidate]) -> str:
        """Why no candidate is left, as a sentence; empty where one is."""
        if not all(candidate.name in self.excluded for candidate in candidates):
            return ""
        lost = [each for each in candidates if self._bench.weights(each) is None]
        if len(lost) == len(candidates):
            missing = "; for ".join(missing_weights(map(self._bench.unavailable, lost)))
            return f"No model could be probed: {NOT_AT_HAND} for {missing}."
        name, reason = next(iter(self.excluded.items()))
        more = f" (and {len(self.excluded) - 1} more)" if len(self.excluded) > 1 else ""
        return f"No model could be probed: {name}: {reason}{more}"

    # --- the race ---------------------------------------------------------------------------------

    def _starters(self, candidates: Sequence[Candidate]) -> list[Contestant]:
        """Candidates that can take part, those with the least arithmetic first."""
        runners: list[Contestant] = []
        for number, candidate in enumerate(sorted(candidates, key=lambda each: each.macs), 1):
            self._doing(f"probing: preparing {number} of {counted(len(candidates), 'model')}")
            begin = self._clock()
            located = self._bench.weights(candidate)
            self._deadline += self._clock() - begin  # downloads are not charged
            if located is None:
                self.excluded[candidate.name] = (
                    f"its weights are not at hand: {self._bench.unavailable(candidate)}"
                )
                continue
            if self._clock() >= self._deadline and runners:
                self.excluded[candidate.name] = "not probed within the budget: raise --budget"
                continue
            candidate = at_size(replace(candidate, weights=located.weights), self._bench.workload.image_size)
            try:
                forms = variants([candidate], self._bench.workload, in_floating_point(self._settings))
                engine = self._features.engine(forms, self._train)
            except (sandbox.ChildFailure, VitrailError) as error:
                self.excluded[candidate.name] = f"probe: {error}"
                continue
            runners.append(Contestant(candidate, engine))
        return runners

    def _advance(self, runner: Contestant, images: int) -> bool:
        """Fit the runner's head on the first `images`; False: it is out."""
        train, seen = self._train[:images], self._part(images)
        name = runner.candidate.name
        needed = runner.engine.ms * (len(train) + len(seen)) / 1e3
        # The first round is tried however late it is: a runner without figures tells nothing.
        if runner.images and self._clock() + needed > self._deadline:
            self.excluded[name] = f"probe: at {runner.figures['accuracy']:.1f} % when the budget ended"
            return False
        try:
            runner.figures = self._fitted(runner, train, seen)
        except (sandbox.ChildFailure, VitrailError) as error:
            self.excluded[name] = f"probe: {error}"
            return False
        runner.images = len(train)
        runner.right = np.array(runner.figures["right"], dtype=bool)
        return True

    def _part(self, images: int) -> tuple[Example, ...]:
        """As large a part of the validation images as of the training images."""
        share = images / len(self._train)
        return self._validation[: max(1, round(share * len(self._validation)))]

    def _drop(self, runners: list[Contestant], images: int) -> None:
        """Take out what a faster runner beats, and what cannot reach the asked accuracy."""
        asked = self._requirements.min_accuracy
        for runner in list(runners):
            right, seen = int(runner.right.sum()), len(runner.right)
            text = (
                f"probe: {100 * right / seen:.1f} % of {seen} validation images "
                f"after {images} training images"
            )
            low_high = accuracy.share_interval(right, seen, confidence=0.998)
            if asked is not None and 100 * low_high[1] < asked:
                self.excluded[runner.candidate.name] = f"{text}: below {asked:g} % by more than the noise"
                runners.remove(runner)
                continue
            rival = next((other for other in runners if self._beats(other, runner)), None)
            if rival is not None:
                score = 100 * rival.right.mean()
                self.excluded[runner.candidate.name] = (
                    f"{text}; {rival.candidate.name} is faster and gets {score:.1f} % of the same images"
                )
                runners.remove(runner)

    def _beats(self, a: Contestant, b: Contestant) -> bool:
        """More accurate beyond the noise, faster and no larger: whatever is optimised, b cannot win."""
        if self._settings.exhaustive or a is b:
            return False
        smaller = a.candidate.parameters <= b.candidate.parameters
        return smaller and a.engine.ms * SLOWER <= b.engine.ms and accuracy.shares_differ(a.right, b.right)

    # --- one head ---------------------------------------------------------------------------------

    def _key(
        self, runner: Contestant, train: Sequence[Example], seen: Sequence[Example]
    ) -> dict[str, object]:
        return {
            "probe": PROBE_VERSION,
            "features": self._features.key(runner.engine),
            "data": self._dataset.digest,
            "train": len(train),
            "validation": len(seen),
            "classes": list(self._dataset.classes),
        }

    def _fitted(
        self, runner: Contestant, train: Sequence[Example], seen: Sequence[Example]
    ) -> dict[str, Any]:
        """Figures of the runner's head after these images, from an earlier run if there was one."""
        from vitrail.learn import probe as learn

        key = self._key(runner, train, seen)
        head = self._head_file(key)
        kept = self._heads.get(key)
        if kept is not None and head.is_file():
            return kept
        rows = self._features.rows(runner.engine, (*train, *seen))
        labels, truth = _labels(train), _labels(seen)
        fitted = learn.fit(rows[: len(train)], labels, len(self._dataset.classes))
        new = rows[len(train) :]
        right = fitted.scores(new).argmax(axis=1) == truth
        figures: dict[str, Any] = {
            "accuracy": 100.0 * float(right.mean()),
            "right": [int(r) for r in right],
            "cross_validated": fitted.cross_validated,
            "nearest_neighbours": learn.knn_accuracy(rows[: len(train)], labels, new, truth),
            "strength": fitted.strength,
            "temperature": fitted.temperature,
        }
        head.parent.mkdir(parents=True, exist_ok=True)
        partial = head.with_suffix(".partial")
        with open(partial, "wb") as file:
            np.savez(file, weight=fitted.weight, bias=fitted.bias)
        partial.replace(head)
        self._heads.put(key, figures)
        return figures

    def _head_file(self, key: dict[str, object]) -> Path:
        digest = store.digest_of(key)[:24]
        return store.cache_dir() / "probes" / f"{digest}.npz"

    def _as_candidate(self, runner: Contestant) -> Candidate:
        """The runner as an ordinary candidate: weights with its own head, labels, accuracy on validation."""
        candidate = runner.candidate
        key = self._key(runner, self._train[: runner.images], self._part(runner.images))
        head = self._head_file(key)
        target, labels = head.with_suffix(".safetensors"), head.with_suffix(".txt")
        store.atomic_write(labels, "".join(f"{name}\n" for name in self._dataset.classes).encode("utf-8"))
        if not target.is_file():
            located = self._bench.weights(candidate)
            assert located is not None
            request = HeadRequest(
                architecture=candidate.architecture,
                image_size=candidate.preprocess.image_size,
                labels=candidate.labels,
                weights=str(located.path),
                head=str(head),
                target=str(target),
                threads=self._bench.threads,
            )
            self._bench.workshop.run(
                "write_head", request, timeout_s=HEAD_TIMEOUT_S, name="writing the probe"
            )
        figures, seen = runner.figures, len(runner.right)
        low, high = accuracy.share_interval(int(runner.right.sum()), seen)
        return replace(
            candidate,
            name=f"{candidate.name}+probe",
            weights=Weights(
                source="file",
                reference=str(target),
                tag=f"{candidate.weights.tag}+probe",
                license=candidate.weights.license,
            ),
            labels=str(labels),
            accuracy=Accuracy(
                value=figures["accuracy"],
                provenance="measured",
                source=f"probe on the validation split of {self._dataset.name}",
                images=seen,
                interval=(100 * low, 100 * high),
            ),
            note=(
                f"linear probe of {candidate.name} ({candidate.weights.reference}) on "
                f"{counted(runner.images, 'image')}: strength {figures['strength']:g}, "
                f"temperature {figures['temperature']:.2f}, cross-validated "
                f"{figures['cross_validated']:.1f} %, "
                f"nearest neighbours {figures['nearest_neighbours']:.1f} %"
            ),
        )


def rounds(images: int, classes: int) -> tuple[int, ...]:
    """Training images of each round, rising; the last is all of them."""
    sizes = []
    size = max(FIRST_IMAGES, FIRST_PER_CLASS * classes)
    while size * GROWTH // 2 < images:
        sizes.append(size)
        size *= GROWTH
    return (*sizes, images)


def mixed(examples: Sequence[Example]) -> tuple[Example, ...]:
    """The examples in an order whose every beginning holds the classes in their shares.

    Within a class the order is that of the digests, which know nothing of names or dates.
    """
    by_class: dict[int, list[Example]] = {}
    for example in sorted(examples, key=lambda each: each.digest):
        by_class.setdefault(example.label, []).append(example)
    placed = [
        ((i + 0.5) / len(members), label, example)
        for label, members in by_class.items()
        for i, example in enumerate(members)
    ]
    return tuple(example for _, _, example in sorted(placed, key=lambda item: item[:2]))


def standing(runners: Sequence[Contestant]) -> str:
    """`a 81.2 %, b 79.0 %`, best first."""
    ordered = sorted(runners, key=lambda runner: -float(runner.right.mean()))
    return (
        ", ".join(f"{r.candidate.architecture} {100 * r.right.mean():.1f} %" for r in ordered) or "none left"
    )


def _labels(examples: Sequence[Example]) -> np.ndarray:
    return np.array([example.label for example in examples])


__all__ = ["Contestant", "Probe", "mixed", "rounds", "standing"]
