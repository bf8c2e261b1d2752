"""A safe folder for what OpenVINO compiled: served only when every byte is what was written, and of this very model.

    cache_dir/compiled/<key>/    key = SHA-256 of (engine version, processor, device, settings, every model file)
        *.blob                   the engine's own
        digests.json             SHA-256 of each blob, written (and synced) last

The engine itself compares path, size and time, never content, and loads a damaged blob without a word. It knows no
engine: whoever compiles calls `prepare` before and `seal` after.
"""

import hashlib
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec
import structlog

from muster_agent.io import durable

FOLDER = "compiled"
DIGESTS = "digests.json"
CONFIGURATIONS_MAX = 3  # Of one release: each holds the whole model once more, and only the chosen one is needed again.
DIGESTS_BYTES_MAX = 64 * 1024
READ_BYTES = 1024 * 1024

log = structlog.get_logger(__name__)


def key(version: str, processor: str, device: str, settings: Mapping[str, str], files: Iterable[Path]) -> str:
    """Return the name under which what is compiled of `files` (their content) so, here, may be kept.

    Raises:
        OSError: a file cannot be read.
    """
    said = (version, processor, device, sorted(settings.items()), [(file.name, _hash(file)) for file in files])
    return hashlib.sha256(msgspec.json.encode(said)).hexdigest()


def processor() -> str:
    """Return which processor this is, as the system says: code is compiled for its very features."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
    except OSError:
        return " ".join(os.uname())
    kept = ("model name", "flags", "features", "cpu implementer", "cpu part", "cpu variant", "stepping")
    return "\n".join(line for line in text.splitlines() if line.partition(":")[0].strip().lower() in kept)


def prepare(cache_dir: Path, name: str) -> Path | None:
    """Return the folder for `name`, with only verified content in it (or nothing); None when there is no safe one."""
    parent = cache_dir / FOLDER
    folder = parent / name
    try:
        for private in (parent, folder):
            private.mkdir(mode=0o700, parents=True, exist_ok=True)
            private.chmod(0o700)  # `mkdir` leaves alone what is there.
        reason = _mismatch(folder)
        if reason:
            log.warning("compiled_model_not_trusted", folder=str(folder), reason=reason)
            _empty(folder)
        _drop_oldest(parent, name)
    except OSError as error:
        log.warning("compiled_model_not_cached", folder=str(folder), error=str(error))
        return None
    return folder


def seal(folder: Path) -> None:
    """Write down what the engine left in `folder`. When that fails, the next `prepare` finds that and empties it."""
    try:
        digests = {file.name: _hash(file) for file in _content(folder)}
        if digests == _sealed(folder):
            return
        for name in digests:
            durable.sync(folder / name)
        durable.replace(folder / DIGESTS, msgspec.json.encode(digests), 0o600)
    except OSError as error:
        log.warning("compiled_model_not_sealed", folder=str(folder), error=str(error))


def _mismatch(folder: Path) -> str:
    """Return what in `folder` is not as it was sealed; empty when all is, or there is nothing."""
    content = _content(folder)
    sealed = _sealed(folder)
    if sealed is None:
        return "there is content without digests" if content else ""
    if sorted(sealed) != sorted(file.name for file in content):
        return "other files are there than were sealed"
    return next((f"{file.name} has changed" for file in content if _hash(file) != sealed[file.name]), "")


def _sealed(folder: Path) -> dict[str, str] | None:
    """Return the digests by file name; None when there are none that can be read."""
    try:
        with (folder / DIGESTS).open("rb") as file:
            return msgspec.json.decode(file.read(DIGESTS_BYTES_MAX), type=dict[str, str])
    except (OSError, msgspec.MsgspecError, UnicodeError):
        return None


def _content(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.name != DIGESTS)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _drop_oldest(parent: Path, name: str) -> None:
    others = sorted((path for path in parent.iterdir() if path.name != name), key=lambda path: path.stat().st_mtime)
    for path in others[: max(0, len(others) - CONFIGURATIONS_MAX + 1)]:
        shutil.rmtree(path, ignore_errors=True)


def _hash(file: Path) -> str:
    if file.is_symlink() or not file.is_file():
        return "not a file"
    running = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(READ_BYTES):
            running.update(chunk)
    return running.hexdigest()
