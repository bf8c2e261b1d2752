"""Names and ids, and the one place where each is checked.

Every id is also an MQTT topic level, a file name and a URL segment, so the alphabet is the narrowest of the three.
"""

import re
from typing import NewType

from muster_shared.errors import WireError

FleetId = NewType("FleetId", str)
DeviceId = NewType("DeviceId", str)
ModelName = NewType("ModelName", str)
RolloutId = NewType("RolloutId", str)
EventId = NewType("EventId", str)
Sha256 = NewType("Sha256", str)
"""Lower-case hex, 64 characters."""

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,62}[a-z0-9])?")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_VERSION = re.compile(r"(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})(?:-[0-9A-Za-z-]{1,32})?")


def name(text: str, what: str) -> str:
    """Return `text` if it may be a fleet, device, model or rollout id: 1-64 of `a-z 0-9 - _`.

    Raises:
        WireError: it may not.
    """
    if not _NAME.fullmatch(text):
        raise WireError(
            f"{what} {text[:80]!r} is not a name: use 1 to 64 of a-z, 0-9, - and _, and end on a letter or digit"
        )
    return text


def sha256(text: str) -> Sha256:
    """Return `text` as a digest. Raises WireError when it is not 64 lower-case hex characters."""
    if not _SHA256.fullmatch(text):
        raise WireError(f"{text[:80]!r} is not a SHA-256 digest in lower-case hex")
    return Sha256(text)


def version(text: str) -> str:
    """Return `text` if it is a semantic version (major.minor.patch, one optional pre-release word)."""
    if not _VERSION.fullmatch(text):
        raise WireError(f"{text[:80]!r} is not a semantic version such as 1.4.0 or 2.0.0-rc1")
    return text
