"""A finding: what one rule says of one subject at one look. The vocabulary of everything here. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

Fact = str | int | float | bool | None


class Severity(StrEnum):
    """From good to bad."""

    INFO = "info"
    TICKET = "ticket"
    """Somebody looks at it in the next days."""
    PAGE = "page"
    """Somebody looks at it now, at night too."""

    @property
    def rank(self) -> int:
        return list(Severity).index(self)


@dataclass(frozen=True)
class Finding:
    """Something that a rule noticed.

    Attributes:
        subject: What it is about: an objective, a release, a device class, a rollout, a certificate. Never a device.
        summary: One sentence for people, with the figures.
        facts: What it was decided from.
        lingers: Below the threshold at which an alert begins, and above that at which it ends.
    """

    rule: str
    subject: str
    severity: Severity
    summary: str
    facts: Mapping[str, Fact] = field(default_factory=dict)
    lingers: bool = False


@dataclass(frozen=True)
class Look:
    """What was found at one moment.

    Attributes:
        blind: Rules of which nothing can be said now: their alerts stay as they are.
    """

    findings: tuple[Finding, ...] = ()
    blind: frozenset[str] = frozenset()
