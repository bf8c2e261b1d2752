"""What each distribution brings along: its requirements, followed through what is installed, held against the lock.

Names, versions and hashes are the lock's, edges and licences are those of the installed packages: `make install` put
exactly the lock there. Nothing is fetched.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PARTS = ("shared", "agent", "controller", "simulator")
OWN = "muster-"
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


class LockIncomplete(Exception):
    """Something is required that the lock does not hold; lock it with `make lock`."""


@dataclass(frozen=True)
class Pin:
    """One line of the lock."""

    version: str
    sha256: tuple[str, ...]
    """Of every file of that version that may be installed."""


@dataclass
class Package:
    name: str
    """Canonical."""
    version: str
    sha256: tuple[str, ...]
    licence: str
    """An SPDX expression where the package has one, else its own words; empty when it says nothing."""
    needs: set[str] = field(default_factory=set)
    is_optional: bool = True
    """Only an extra asks for it."""


@dataclass(frozen=True)
class Part:
    """One of our distributions."""

    name: str
    version: str
    requirements: tuple[Requirement, ...]
    extras: Mapping[str, tuple[Requirement, ...]]


def read_lock(path: Path) -> dict[str, Pin]:
    """Return what a lock pins for this platform and this Python, by canonical name."""
    pins: dict[str, Pin] = {}
    for block in path.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        line = block.partition(" --hash")[0].strip()
        if not line or line.startswith(("#", "-")):
            continue
        wanted = Requirement(line)
        if wanted.marker is None or wanted.marker.evaluate():
            version = next(iter(wanted.specifier)).version
            pins[canonicalize_name(wanted.name)] = Pin(version, tuple(sorted(_HASH.findall(block))))
    return pins


def read_part(root: Path, part: str) -> Part:
    """Return our distribution in the folder `part`."""
    project = tomllib.loads((root / part / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project.get("optional-dependencies", {})
    return Part(
        name=project["name"],
        version=project["version"],
        requirements=tuple(map(Requirement, project["dependencies"])),
        extras={name: tuple(map(Requirement, listed)) for name, listed in extras.items()},
    )


def parts_of(root: Path) -> dict[str, Part]:
    """Return all of our distributions by name."""
    return {part.name: part for part in (read_part(root, each) for each in PARTS)}


def close(part: Part, parts: Mapping[str, Part], pins: Mapping[str, Pin]) -> dict[str, Package]:
    """Return everything that `part` brings along, by name; ours are among it, and `part` itself.

    Raises:
        LockIncomplete: the lock, or what is installed, lacks something or has another version.
    """
    found: dict[str, Package] = {}
    _add(part.name, found, parts, pins)
    seen: set[tuple[str, str]] = set()
    waiting = [(part.name, "", False)]
    waiting += [(part.name, extra, True) for extra in sorted(part.extras)]
    while waiting:
        name, extra, is_optional = waiting.pop(0)
        package = found[name]
        package.is_optional = package.is_optional and is_optional
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        for wanted in _wanted(name, extra, parts):
            needed = canonicalize_name(wanted.name)
            _add(needed, found, parts, pins)
            package.needs.add(needed)
            # What is needed without an extra is looked at first, so nothing of it stays optional.
            waiting += [(needed, each, is_optional) for each in ("", *sorted(wanted.extras))]
    return found


def _add(name: str, found: dict[str, Package], parts: Mapping[str, Part], pins: Mapping[str, Pin]) -> None:
    if name in found:
        return
    if name in parts:
        found[name] = Package(name, parts[name].version, (), "")
        return
    pin = pins.get(name)
    if pin is None:
        raise LockIncomplete(f"{name} is required and is not in the lock; run `make lock`")
    installed = _installed(name)
    if installed.version != pin.version:
        raise LockIncomplete(
            f"{name} {installed.version} is installed, the lock says {pin.version}; run `make install`"
        )
    found[name] = Package(name, pin.version, pin.sha256, licence_of(installed))


def _wanted(name: str, extra: str, parts: Mapping[str, Part]) -> Iterator[Requirement]:
    """Yield what `name` requires here and now, with `extra` or without any."""
    if name in parts:
        yield from parts[name].extras[extra] if extra else parts[name].requirements
        return
    for line in _installed(name).requires or []:
        wanted = Requirement(line)
        if wanted.marker is None:
            if not extra:
                yield wanted
        elif wanted.marker.evaluate({"extra": extra}) and (not extra or not wanted.marker.evaluate({"extra": ""})):
            yield wanted


def _installed(name: str) -> Distribution:
    try:
        return distribution(name)
    except PackageNotFoundError as error:
        raise LockIncomplete(f"{name} is required and not installed; run `make install`") from error


def licence_of(installed: Distribution) -> str:
    """Return what a package says of its licence: an expression, else classifiers, else the first line of its text."""
    metadata = installed.metadata
    if expression := metadata.get("License-Expression"):
        return str(expression)
    named = [
        line.rpartition(" :: ")[2] for line in metadata.get_all("Classifier") or [] if line.startswith("License ::")
    ]
    if named := [each for each in named if each != "OSI Approved"]:
        return " AND ".join(sorted(named))
    return str(metadata.get("License") or "").strip().partition("\n")[0][:120]
