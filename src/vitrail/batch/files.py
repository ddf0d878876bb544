"""Where images are read: a folder of this machine, or an object store through fsspec.

Each read gives the whole file, or an `ImageError` with a typed reason.
"""

from __future__ import annotations

import os
from typing import Any, Protocol

from vitrail.errors import InputError, MissingExtraError, VitrailError
from vitrail.images.decode import ImageError, open_file
from vitrail.images.limits import Limits

__all__ = ["FileError", "Files", "LocalFiles", "RemoteFiles", "SourceGone", "filesystem", "is_url"]

INSTALL = 'pip install "vitrail[remote]"'
TRIES = 3
"""How often a file is read that changes meanwhile."""


class FileError(ImageError):
    """A file that decoding never sees, for a reason of its own."""

    def __init__(self, reason: Any, message: str) -> None:
        super().__init__(reason, message)


class SourceGone(VitrailError):
    """The root itself is gone, as when a disk is unmounted: no reason to call millions of images missing."""


class Files(Protocol):
    """A root and what is below it."""

    @property
    def root(self) -> str:
        """An absolute path, or a URL."""

    @property
    def remote(self) -> bool:
        """Whether reading crosses a network."""

    def said(self, name: str) -> str:
        """What errors call a file."""

    def read(self, name: str, limits: Limits) -> bytes:
        """The content of a file. Raises ImageError, or SourceGone where nothing can be read any more."""


class LocalFiles:
    """Files below a folder; `confined`: names come from a list, and may not lead out of it."""

    remote = False

    def __init__(self, root: str, *, confined: bool = False) -> None:
        self.root = root
        self.confined = confined
        self._inside = os.path.join(os.path.realpath(root), "")

    def said(self, name: str) -> str:
        """The absolute path."""
        return os.path.join(self.root, name)

    def read(self, name: str, limits: Limits) -> bytes:
        """As `Files.read`; a file that changes while it is read is read again."""
        try:
            return self._read(name, limits)
        except ImageError as error:
            if error.reason in ("missing", "unreadable") and not os.path.isdir(self.root):
                raise SourceGone(
                    f"{self.root} is gone: mount it or put it back, and run the same command again."
                ) from None
            raise

    def _read(self, name: str, limits: Limits) -> bytes:
        path = self.said(name)
        if self.confined:
            self._check(name, path)
        if os.path.isdir(path):
            _check_listable(path)
        for _ in range(TRIES):
            with open_file(path, limits) as file:
                try:
                    before = os.fstat(file.fileno())
                    # Asked for more, Python would first take the memory for all of it.
                    data = file.read(min(limits.file_bytes, before.st_size) + 1)
                    after = os.fstat(file.fileno())
                except MemoryError:
                    raise _too_large(path) from None
                except OSError as error:
                    raise FileError(
                        "unreadable", f"{path} cannot be read ({error.strerror}): check the disk."
                    ) from None
            if (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns):
                return data
        raise FileError("changed", f"{path} changes while it is read: run again when it is complete.")

    def _check(self, name: str, path: str) -> None:
        if not name:
            raise FileError("missing", "A row of the manifest has no path: fill it in or remove the row.")
        try:
            real = os.path.realpath(path)
        except (OSError, ValueError) as error:
            raise FileError("missing", f"{path!r} is no path ({error}): correct it.") from None
        if not real.startswith(self._inside):
            raise FileError(
                "outside",
                f"{path} leads out of {self.root}: name a folder above all images with --root, "
                "and write all paths from there.",
            )


class RemoteFiles:
    """Files below a URL of a file system that fsspec knows.

    Where one cannot be read, another that could is tried again: if that fails too, it is not the file but the
    store, whose credentials have expired or whose network is down.
    """

    remote = True

    def __init__(self, fs: Any, path: str) -> None:
        self.fs = fs
        self.path = path.rstrip("/")
        self.root = str(fs.unstrip_protocol(self.path))
        self._could_be_read: str | None = None

    def said(self, name: str) -> str:
        """The URL."""
        return f"{self.root}/{name}"

    def read(self, name: str, limits: Limits) -> bytes:
        """As `Files.read`."""
        try:
            data = self._read(name, limits.file_bytes + 1)
        except ImageError as error:
            known = self._could_be_read
            if error.reason == "unreadable" and known is not None:
                self._check_store(known, error)
            raise
        self._could_be_read = name
        return data

    def _check_store(self, known: str, first: ImageError) -> None:
        try:
            self._read(known, 1)
        except ImageError as error:
            if error.reason == "unreadable":
                raise SourceGone(
                    f"{self.root} cannot be read any more: {first} Renew the credentials or wait for the "
                    "network, and run the same command again."
                ) from None

    def _read(self, name: str, most: int) -> bytes:
        said = self.said(name)
        if not name or ".." in name.split("/"):
            raise FileError("outside", f"{said} leads out of {self.root}: correct its path.")
        try:
            data = bytes(self.fs.cat_file(f"{self.path}/{name}", start=0, end=most))
        except FileNotFoundError:
            raise FileError("missing", f"{said} does not exist: check the path.") from None
        except IsADirectoryError:
            raise FileError("not a file", f"{said} is a folder: give the image files in it.") from None
        except PermissionError:
            raise FileError("unreadable", f"{said} may not be read: check the credentials.") from None
        except MemoryError:
            raise _too_large(said) from None
        except Exception as error:  # every store raises its own kinds
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            raise FileError("unreadable", f"{said} cannot be read ({reason}): try again.") from None
        if not data:
            raise FileError("empty", f"{said} is empty: replace it or leave it out.")
        return data


def is_url(text: str) -> bool:
    """Whether it names a file system of fsspec: `s3://bucket/photos`."""
    return "://" in text


def filesystem(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it.

    Raises:
        MissingExtraError: fsspec is not installed.
        InputError: nothing installed knows this kind of URL.
    """
    try:
        import fsspec
    except ImportError:
        raise MissingExtraError("fsspec, which reads URLs,", INSTALL) from None
    try:
        fs, path = fsspec.core.url_to_fs(url)
    except ImportError as error:  # fsspec says which package knows it
        raise InputError(f"{url} cannot be read: {str(error).rstrip('.')}.") from None
    except ValueError as error:
        raise InputError(f"{url} cannot be read ({error}): check what stands before ://.") from None
    return fs, str(path)


def _too_large(said: str) -> FileError:
    return FileError(
        "too large", f"{said} needs more memory than is available: make it smaller or leave it out."
    )


def _check_listable(path: str) -> None:
    try:
        with os.scandir(path):
            pass
    except OSError as error:
        raise FileError(
            "unreadable",
            f"{path} cannot be listed ({error.strerror}): make it readable or move it out.",
        ) from None
