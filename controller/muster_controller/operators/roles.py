"""Roles: who may order what, and of which devices. Pure.

    viewer ──▶ operator ──▶ publisher
                       └──▶ approver          admin: all of it

A principal sees and touches the devices that its selector fits; an empty one fits all. What would go beyond is made
smaller where that is possible without a loss (`narrowed`), and refused where it is not (`inside`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

from muster_controller.core.selector import Operator, Requirement, Selector, parse


class Permission(Enum):
    VIEW = "view"
    """Read: devices, rollouts, models, history."""
    ACCOUNT = "account"
    """One's own password, sessions and tokens."""
    OPERATE = "operate"
    """Create rollouts and roll back; pause, resume, skip, retry, extend, abort."""
    PUBLISH = "publish"
    """Bring releases, blobs and trust metadata. What they are worth, their signatures say."""
    APPROVE = "approve"
    """Approve what waits for it. The second person stays a second person whatever the role."""
    ADMINISTER = "administer"
    """Operators and their tokens, enrolment, identities, the fleet CA, audit, keys."""


class Role(Enum):
    VIEWER = "viewer"
    OPERATOR = "operator"
    PUBLISHER = "publisher"
    APPROVER = "approver"
    ADMIN = "admin"


class PrincipalKind(Enum):
    SESSION = "session"
    TOKEN = "token"
    LOCAL = "local"


_VIEWER = frozenset({Permission.VIEW, Permission.ACCOUNT})
_OPERATOR = _VIEWER | {Permission.OPERATE}
GRANTS: Mapping[Role, frozenset[Permission]] = {
    Role.VIEWER: _VIEWER,
    Role.OPERATOR: _OPERATOR,
    Role.PUBLISHER: _OPERATOR | {Permission.PUBLISH},
    Role.APPROVER: _OPERATOR | {Permission.APPROVE},
    Role.ADMIN: frozenset(Permission),
}
"""What each role may do: the whole table."""


@dataclass(frozen=True)
class Principal:
    """Who a request comes from, as proven. `name` is what history and audit say."""

    name: str
    role: Role
    selector: str = ""
    """Of the devices that it sees and touches, canonical; empty: all."""
    kind: PrincipalKind = PrincipalKind.LOCAL
    credential: str = ""
    """The id of the session or token; empty for the local token."""
    expires_at: float | None = None

    @property
    def operator(self) -> str | None:
        """The account behind it; None for the local token, which has none."""
        return None if self.kind is PrincipalKind.LOCAL else self.name


def may(principal: Principal, permission: Permission, labels: Mapping[str, str] | None = None) -> bool:
    """Return whether `principal` has `permission`, for a device of these labels if some are given."""
    return permission in GRANTS[principal.role] and (labels is None or fits(principal, labels))


def fits(principal: Principal, labels: Mapping[str, str]) -> bool:
    """Return whether a device of these labels is one of the principal's."""
    return not principal.selector or _parsed(principal.selector).matches(labels)


def least_role(permission: Permission) -> str:
    """Return the roles that have `permission`, for people: "operator, publisher, approver or admin"."""
    names = [role.value for role in Role if permission in GRANTS[role]]
    return " or ".join((", ".join(names[:-1]), names[-1])) if len(names) > 1 else names[0]


def lesser(one: Role, other: Role) -> Role:
    """Return the role that may do what both may."""
    both = GRANTS[one] & GRANTS[other]
    return max((role for role in Role if GRANTS[role] <= both), key=lambda role: len(GRANTS[role]))


def narrowed(selector: str, scope: str) -> str:
    """Return the canonical selector for the devices that both select. Raises SelectorInvalid."""
    return str(parse(",".join(each for each in (selector.strip(), scope) if each)))


def inside(selector: str, scope: str) -> bool:
    """Return whether every device that `selector` fits is provably one that `scope` fits.

    Sound, not complete: each condition of the scope must follow from one condition of the selector on the same key.
    """
    inner, outer = _parsed(selector), _parsed(scope)
    return all(any(_implies(each, wanted) for each in inner.requirements) for wanted in outer.requirements)


def _implies(given: Requirement, wanted: Requirement) -> bool:
    if given.key != wanted.key:
        return False
    match given.operator, wanted.operator:
        case Operator.IN, Operator.IN:
            return given.values <= wanted.values
        case Operator.IN, Operator.NOT_IN:
            return not given.values & wanted.values
        case Operator.NOT_IN, Operator.NOT_IN:
            return given.values >= wanted.values
        case ((Operator.IN | Operator.EXISTS), Operator.EXISTS):
            return True
        case Operator.MISSING, (Operator.MISSING | Operator.NOT_IN):
            return True
        case _:
            return False


@lru_cache(maxsize=256)
def _parsed(selector: str) -> Selector:
    return parse(selector)
