"""The environments of an installation: which one runs, which one ran before, and the one that is being tried.

    program_dir/   current ──▶ versions/1.4.0/venv        what the service starts
                   previous ──▶ the one before            what it falls back to
                   upgrade.json                           only while a new one is not yet proven
                   upgrade.lock                           held by whoever works on it

A kill at any byte leaves `current` leading to a whole environment. One that does not come up after the machine lost its
power in between is taken back by `count_start`, which every start of the service asks first. It runs no pip.
"""

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from muster_agent.install.places import InstallError, Places, point
from muster_agent.io import durable

PENDING = "upgrade.json"
LOCK = "upgrade.lock"
WHOLE = "whole"
"""A file in a version's folder that is written last."""
STARTS_MAX = 4
"""Starts of a version that is not proven: one of the upgrade itself, and some that power may have cut short."""
_LOCK_LOOK_S = 0.1


class Pending(msgspec.Struct, frozen=True, kw_only=True):
    """A switch that is under way, as `upgrade.json`."""

    version: str
    before: Path
    after: Path
    earlier: Path | None = None
    """What `previous` led to, for when this switch was in vain."""
    serving: tuple[str, ...]
    """What was served before, as `health.Health` names it."""
    starts: int = 0


def previous(places: Places) -> Path:
    return places.program_dir / "previous"


def environment_of(places: Places, version: str) -> Path:
    return places.program_dir / "versions" / version / "venv"


def is_whole(environment: Path) -> bool:
    return (environment.parent / WHOLE).exists()


def mark_whole(environment: Path) -> None:
    """Remember durably that the environment is complete. Raises OSError."""
    os.sync()  # pip syncs nothing: all of its files have to be there before this one is.
    durable.write(environment.parent / WHOLE, b"")
    durable.sync(environment.parent)


def pending(places: Places) -> Pending | None:
    """Return the switch that is under way; None: none is."""
    try:
        raw = (places.program_dir / PENDING).read_bytes()
        return msgspec.json.decode(raw, type=Pending, dec_hook=lambda _, text: Path(text))
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise InstallError(f"{places.program_dir / PENDING} cannot be read ({error}); remove it") from error


def begin(places: Places, switch: Pending) -> None:
    """Let `current` lead to the new environment, and remember that it is not proven. Raises OSError."""
    _keep(places, switch)
    point(previous(places), switch.before)
    point(places.current, switch.after)


def settle(places: Places) -> None:
    """The new environment is proven: keep it, and the one before; remove the others. Raises OSError."""
    (places.program_dir / PENDING).unlink(missing_ok=True)
    durable.sync(places.program_dir)
    kept = {os.path.realpath(link) for link in (places.current, previous(places))}
    versions = places.program_dir / "versions"
    for folder in versions.iterdir() if versions.is_dir() else ():
        if os.path.realpath(folder / "venv") not in kept:
            shutil.rmtree(folder, ignore_errors=True)


def take_back(places: Places, switch: Pending) -> None:
    """Let `current` lead to the environment before; `forget` comes when that one runs again. Raises OSError."""
    point(places.current, switch.before)


def forget(places: Places, switch: Pending) -> None:
    """The switch is over and was in vain: what was tried is removed, unless it ran before. Raises OSError."""
    if switch.earlier is not None:
        point(previous(places), switch.earlier)
    else:
        previous(places).unlink(missing_ok=True)
    (places.program_dir / PENDING).unlink(missing_ok=True)
    durable.sync(places.program_dir)
    versions = places.program_dir.resolve() / "versions"
    if switch.after.is_relative_to(versions) and switch.after != switch.earlier:
        shutil.rmtree(switch.after.parent, ignore_errors=True)


def count_start(places: Places) -> str:
    """Count a start of an environment that is not proven, and take it back when there were too many.

    Returns:
        What was done, for the log; empty: there is nothing to count.
    """
    switch = pending(places)
    if switch is None or os.path.realpath(places.current) != os.path.realpath(switch.after):
        return ""
    starts = switch.starts + 1
    if starts <= STARTS_MAX:
        _keep(places, msgspec.structs.replace(switch, starts=starts))
        return f"start {starts} of {switch.version}, which is not proven yet"
    take_back(places, switch)
    return f"{switch.version} was started {starts - 1} times and never proven: the version before takes over"


@contextmanager
def alone(places: Places, wait_s: float) -> Iterator[None]:
    """Let nobody else work on the versions.

    Raises:
        InstallError: somebody does, and still after `wait_s`; or the folder cannot be written.
    """
    try:
        descriptor = os.open(places.program_dir / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise InstallError(
            f"{places.program_dir} cannot be written ({error.strerror}); run this as its owner"
        ) from error
    try:
        until = time.monotonic() + wait_s
        while True:
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            if time.monotonic() > until:
                raise InstallError("another upgrade is under way; wait for it")
            time.sleep(_LOCK_LOOK_S)
        yield
    finally:
        os.close(descriptor)


def _keep(places: Places, switch: Pending) -> None:
    durable.replace(places.program_dir / PENDING, msgspec.json.encode(switch, enc_hook=str))
