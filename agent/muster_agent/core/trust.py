"""What the device holds for true after TUF verification: the only thing about trust that the core ever sees."""

from collections.abc import Mapping
from dataclasses import dataclass

from muster_shared.assignment import AssignmentKeys
from muster_shared.ids import Sha256


@dataclass(frozen=True)
class Target:
    """One verified TUF target."""

    sha256: Sha256
    length: int


@dataclass(frozen=True)
class TrustView:
    """Every release that the offline keys vouch for now, and the keys that may sign assignments."""

    targets: Mapping[str, Target]
    keys: AssignmentKeys
