"""What is still possible when keys are lost or stolen: for each role, who can still sign, and what to do next.

Pure: it reads the trust in force and is told which keys are gone.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum

from tuf.api.metadata import Root, Targets

from muster_controller.registry.ceremony_begin import key_roles
from muster_controller.registry.ceremony_file import Ceremony


class Standing(Enum):
    SOUND = "sound"
    REPLACE = "replace"
    """Its own holders, or those above them, replace what is gone."""
    ANEW = "anew"
    """Nobody can: devices need a new root."""


@dataclass(frozen=True)
class Assessment:
    """One role. `standing` says how bad it is; `advice` what to do, one sentence a step."""

    role: str
    keys: int
    threshold: int
    lost: tuple[str, ...]
    stolen: tuple[str, ...]
    can_sign: bool
    """Whether those who still have their keys, stolen copies or not, are enough."""
    thief_can_sign: bool
    standing: Standing
    advice: tuple[str, ...]


def assess(ceremony: Ceremony, lost: Collection[str], stolen: Collection[str]) -> tuple[Assessment, ...]:
    """Return how every offline role stands.

    Args:
        ceremony: Any that starts from the trust in force.
        lost, stolen: Ids of keys. A stolen key is still with its holder, too; a key may be both.
    """
    names: Mapping[str, str] = ceremony.names
    roles = key_roles(ceremony)
    found: dict[str, Assessment] = {}
    for role, held in roles.items():
        gone = tuple(names.get(each, each[:12]) for each in held.keyids if each in lost)
        taken = tuple(names.get(each, each[:12]) for each in held.keyids if each in stolen)
        left = len(held.keyids) - len(gone)
        can, thief = left >= held.threshold, len(taken) >= held.threshold
        above = found.get({Root.type: "", Targets.type: Root.type}.get(role, Targets.type))
        names_again = above is None or above.standing is not Standing.ANEW
        standing, advice = _judge(role, (*gone, *taken), can, thief, names_again)
        found[role] = Assessment(role, len(held.keyids), held.threshold, gone, taken, can, thief, standing, advice)
    return tuple(found.values())


def _judge(
    role: str, gone: tuple[str, ...], can: bool, thief: bool, names_again: bool
) -> tuple[Standing, tuple[str, ...]]:
    if not gone:
        return Standing.SOUND, ()
    remove = " ".join(f"--remove {name}" for name in dict.fromkeys(gone))
    rotate = f"Replace it: `muster key ceremony begin rotate FILE {remove} --key {role}-NAME` with a new holder's NAME."
    if role == Root.type:
        if thief:
            return Standing.ANEW, (
                "Whoever stole them can sign a root that devices accept: they decide from now on what every role is.",
                "Stop the controller, revoke nothing in a hurry, and begin anew: `muster key ceremony begin create`.",
                "Every device enrols again, since the root that it trusts cannot take this back.",
            )
        if not can:
            return Standing.ANEW, (
                "No root can be signed any more. What is in force goes on until it runs out: see `muster trust show`.",
                "Begin anew before that: `muster key ceremony begin create`; every device enrols again.",
            )
        return Standing.REPLACE, ("The others are enough to sign the next root.", rotate)
    above = "root" if role == Targets.type else "targets"
    if not names_again:
        return Standing.ANEW, (f"It takes the {above} keys to replace it, and they are gone: see {above}.",)
    if thief:
        return Standing.REPLACE, (
            f"Whoever stole them can sign what devices accept; the {above} holders take that away from them, at once.",
            rotate.replace("Replace it", "Remove every stolen key"),
            "Look at what the controller publishes: revoke each release that you did not sign.",
        )
    if not can:
        return Standing.REPLACE, (
            f"Its holders can sign nothing any more; the {above} holders name new ones, and what is published goes on.",
            rotate,
        )
    return Standing.REPLACE, (f"The others are enough to sign; the {above} holders name a new key.", rotate)
