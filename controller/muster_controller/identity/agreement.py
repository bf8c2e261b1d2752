"""What controllers that share a database must have in common: the fleet CA, the online keys, their name at the broker.

    nothing recorded ─▶ recorded         the same ─▶ fine         a successor of what is recorded ─▶ recorded instead
    anything else ─▶ Disagreement: this data folder belongs to another fleet, or somebody replaced keys elsewhere

A value is a successor when this folder still knows the recorded one as its own former (`former`), or when its rank is
higher: the online keys have the version of the TUF root, which only the holders of root keys can raise. Pure; the rows
are `db.agreement_store`'s.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from muster_controller.identity.errors import IdentityError
from muster_shared.ids import Sha256


@dataclass(frozen=True)
class Recorded:
    """What the database says of one thing."""

    value: str
    rank: int


@dataclass(frozen=True)
class Own:
    """What this controller's data folder has of one thing.

    Attributes:
        name: such as `ca-root`; what it is called in the database.
        folder: where it is in the data folder, for people.
        value: SHA-256 of it.
        rank: a value of a higher one takes the place of those of a lower one.
        former: values that were this folder's own before, or are trusted beside it.
    """

    name: str
    folder: str
    value: Sha256
    rank: int = 0
    former: frozenset[str] = frozenset()


class Disagreement(IdentityError):
    """The data folder does not fit the database."""

    def __init__(self, own: Sequence[Own]) -> None:
        names = ", ".join(each.name for each in own)
        folders = " and ".join(sorted({f"{each.folder}/" for each in own}))
        super().__init__(
            f"this data folder does not belong to this database ({names}): another controller wrote down other keys. "
            f"Stop this one, copy {folders} from the data folder of the controller that leads, and start again; if the "
            "keys here are to take the place of those there, say so with `muster serve --adopt-keys`"
        )
        self.names = tuple(each.name for each in own)


def news(own: Sequence[Own], recorded: Mapping[str, Recorded], *, adopt: bool = False) -> list[Own]:
    """Return what is to be recorded anew.

    Args:
        adopt: whatever is recorded, the own counts.
    Raises:
        Disagreement: something is neither the same nor a successor.
    """
    found = [each for each in own if not _is_same(each, recorded.get(each.name))]
    strange = [each for each in found if not adopt and not _succeeds(each, recorded.get(each.name))]
    if strange:
        raise Disagreement(strange)
    return found


def _is_same(own: Own, recorded: Recorded | None) -> bool:
    return recorded is not None and recorded.value == own.value and recorded.rank >= own.rank


def _succeeds(own: Own, recorded: Recorded | None) -> bool:
    if recorded is None or recorded.value == own.value:
        return True
    return own.rank > recorded.rank or recorded.value in own.former
