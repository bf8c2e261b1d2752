"""Which identity provider is asked, and what its claims are worth. `oidc` does the asking."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from muster_controller.operators.roles import Role


@dataclass(frozen=True)
class OidcConfig:
    """Who is asked, and what its claims are worth.

    Attributes:
        issuer: its URL; https, but on the loopback.
        claim: which claim has the groups or roles (a text or a list of them).
        roles: value of that claim to what it gives; of several that fit, the one that may do most counts.
    """

    issuer: str
    client_id: str
    client_secret: str = field(default="", repr=False)
    claim: str = "groups"
    roles: Mapping[str, tuple[Role, str]] = field(default_factory=dict)
    """Value to role and selector."""
    scope: str = "openid profile email"


def parse_role(text: str) -> tuple[str, tuple[Role, str]]:
    """Return what `--oidc-role VALUE=ROLE` or `VALUE=ROLE:SELECTOR` says. Raises ValueError."""
    value, equals, given = text.partition("=")
    role, _, selector = given.partition(":")
    if not value or not equals:
        raise ValueError(f"{text!r}: write VALUE=ROLE or VALUE=ROLE:SELECTOR")
    return value, (Role(role), selector)
