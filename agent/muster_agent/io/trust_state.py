"""What the device keeps of its trust chain, and what is asked of whoever verifies: values, and one file on the disk.

It verifies nothing and imports nothing of TUF: the agent reads its own state with this; only a check writes it.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import msgspec

from muster_agent.core.trust import Target
from muster_agent.errors import DiskFull, MetadataIncomplete
from muster_agent.io import durable
from muster_shared.assignment import Assignment, AssignmentKeys
from muster_shared.call import Call
from muster_shared.errors import (
    AssignmentForged,
    MetadataExpired,
    MetadataReplayed,
    MetadataUntrusted,
    MusterError,
    WireError,
)
from muster_shared.ids import Sha256
from muster_shared.undecodable import UNDECODABLE

STATE_FILE = "trust.json"
PREVIOUS_FILE = "trust.json.previous"  # One state older: used when the newest one rots on its disk.
VERSIONED = re.compile(r"([1-9][0-9]{0,8})\.([a-z0-9_-]+)\.json")

_FAILURES: dict[str, type[MusterError]] = {
    error.__name__: error
    for error in (
        AssignmentForged,
        DiskFull,
        MetadataExpired,
        MetadataIncomplete,
        MetadataReplayed,
        MetadataUntrusted,
        WireError,
    )
}


class Saved(msgspec.Struct, frozen=True, kw_only=True):
    """The content of `trust.json`."""

    bootstrap: Sha256 = Sha256("")
    """Digest of the root that the view rests on: another root, another fleet."""
    files: dict[str, str] = {}
    """Verified metadata as ngclient names it, such as `root_history/2.root.json`."""
    keys: str = ""
    """Of the target `keys/assignment.json`."""
    targets: dict[str, Target] | None = None
    """Of the view; None before the first."""
    valid_until: float = 0.0


class Failure(msgspec.Struct, frozen=True):
    """An error of `_FAILURES` as a value, so that it crosses from one process to another."""

    kind: str
    detail: str

    def error(self) -> MusterError:
        """Return it as what it was. Raises KeyError for a kind that no check ends in."""
        return _FAILURES[self.kind](self.detail)


class Question(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Everything that one check goes by. The state comes along: what is on the disk may have rotted since."""

    folder: str
    """Of the trust state."""
    bootstrap: bytes
    """Root metadata that the device was provisioned with."""
    saved: Saved
    candidates: dict[str, dict[str, str]]
    """Untrusted files by role."""
    now: float
    """Seconds since the epoch, by the device's clock."""


class Checked(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    saved: Saved
    """What is on the disk now. Also after a failure: versions that were verified on the way stay seen."""
    withheld: dict[str, str]
    """Why, by each release role that has expired."""
    failure: Failure | None = None


class Envelope(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """An assignment as it came, and the keys that may have signed it."""

    raw: bytes
    keys: AssignmentKeys


class Opened(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The assignment, or what is wrong with it."""

    assignment: Assignment | None
    failure: Failure | None = None


class CallEnvelope(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A call as it came, and the keys that may have signed it."""

    raw: bytes
    keys: AssignmentKeys


class OpenedCall(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The call, or what is wrong with it."""

    call: Call | None
    failure: Failure | None = None


class Checker(Protocol):
    """Does the cryptography: `trust_check.Checks`, or `trust_process.CheckProcess` that has it done elsewhere."""

    def check(self, question: Question) -> Checked:
        """Verify and keep. Raises CheckFailed when nobody could; nothing is believed then."""
        ...

    def open(self, envelope: Envelope) -> Opened:
        """Verify one signature. Raises CheckFailed."""
        ...


def failure(error: MusterError) -> Failure:
    """Return `error` as a value, under the nearest name that has one."""
    name = next(cls.__name__ for cls in type(error).__mro__ if cls.__name__ in _FAILURES)
    return Failure(name, str(error))


# -- files of the chain ------------------------------------------------------------------------------------------------


def own(trusted: Mapping[str, str], name: str) -> str | None:
    """Return the trusted file that the repository calls `name`: `4.targets.json`, without its version in ngclient."""
    match = VERSIONED.fullmatch(name)
    if match is None:
        return trusted.get(name)
    text = trusted.get(f"{match[2]}.json")
    return text if text is not None and _version(text) == int(match[1]) else None


def _version(text: str) -> int | None:
    try:
        version = json.loads(text)["signed"]["version"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return version if isinstance(version, int) else None


# -- disk --------------------------------------------------------------------------------------------------------------


def load(folder: Path) -> Saved:
    """Return the newest state that is whole; an empty one when there is none."""
    for name in (STATE_FILE, PREVIOUS_FILE):
        try:
            checksum, _, body = (folder / name).read_bytes().partition(b"\n")
            if checksum.decode() == hashlib.sha256(body).hexdigest():
                return msgspec.json.decode(body, type=Saved)
        except (OSError, *UNDECODABLE):
            continue
    return Saved()


def save(folder: Path, saved: Saved) -> None:
    """Keep `saved`, durably, and the state before it. Raises DiskFull."""
    body = msgspec.json.encode(saved)
    with disk():
        folder.mkdir(parents=True, exist_ok=True)
        state, temporary = folder / STATE_FILE, folder / f"{STATE_FILE}.tmp"
        durable.write(temporary, hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
        if state.exists():
            state.replace(folder / PREVIOUS_FILE)
        temporary.replace(state)
        durable.sync(folder)


@contextmanager
def disk() -> Iterator[None]:
    """Turn errors of the disk into ours."""
    try:
        yield
    except OSError as error:
        raise DiskFull(f"the trust state cannot be written ({error}); free some space or mend the disk") from error
