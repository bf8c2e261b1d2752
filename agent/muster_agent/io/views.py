"""A release as a folder: the paths of its manifest, hard-linked to the content that the store holds.

Engines read meaning into file endings, and a model may name its weights beside it. It does not verify: whoever loads
from a view has just done so through the store.
"""

import errno
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from muster_agent.errors import StoreError
from muster_agent.io.disk import OsDisk
from muster_agent.io.store import blob
from muster_shared.bundle import BundleFile
from muster_shared.ids import Sha256

VIEWS = "views"
CACHES = "caches"
LINKLESS = frozenset({errno.EPERM, errno.EXDEV, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS})
"""File systems without hard links, such as FAT: there the files are copied."""


class Views:
    """One folder a release below `views/`, and one below `caches/` that its engine may fill."""

    def __init__(self, disk: OsDisk) -> None:
        self._disk = disk

    @property
    def root(self) -> Path:
        """The folder of the device that all of them are in."""
        return self._disk.root

    def make(self, bundle: Sha256, files: Iterable[BundleFile]) -> Path:
        """Return a fresh folder with `files` under their manifest paths.

        Raises:
            StoreError: a file is not in the store, or the folder cannot be written.
        """
        folder = self.folder(bundle)
        try:
            shutil.rmtree(folder, ignore_errors=True)  # An older one may link to a damaged file that the store forgot.
            for file in files:
                target = folder / file.path
                target.parent.mkdir(parents=True, exist_ok=True)
                _link(self._disk.path(blob(file.sha256)), target)
        except OSError as error:
            raise StoreError(f"the files of release {bundle[:12]}… cannot be laid out: {error}") from error
        return folder

    def folder(self, bundle: Sha256) -> Path:
        """Return where `make` lays out this release."""
        return self._disk.path(f"{VIEWS}/{bundle}")

    def cache(self, bundle: Sha256) -> Path:
        """Return the folder that the engine may fill for this release alone: engines do not compare content.

        Raises:
            StoreError: it cannot be made.
        """
        folder = self._disk.path(f"{CACHES}/{bundle}")
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{folder} cannot be made: {error.strerror}") from error
        return folder

    def collect(self, keep: frozenset[Sha256]) -> None:
        """Remove the folders of every other release; what an engine has open stays with it."""
        for parent in (VIEWS, CACHES):
            for name in self._disk.list(parent):
                if name not in keep:
                    shutil.rmtree(self._disk.path(f"{parent}/{name}"), ignore_errors=True)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in LINKLESS:
            raise
        shutil.copyfile(source, target)
