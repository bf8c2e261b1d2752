"""E, computed again from what `muster rollout explain --json` said, with the gate that ships. Asks no controller.

found = json.load(open("explained.json"))
for line in recompute(found): print(line.name, line.said, line.computed, line.agrees)
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from muster_controller.core.gate.evidence import Terms, evidence
from muster_controller.core.gate.strata import Stratum
from muster_shared.errors import MusterError

TOLERANCE = 1e-9
"""Relative. The same arithmetic on the same counts; JSON keeps a double exactly."""
LARGEST = 1e300  # What the API says for anything above.


class NotExplained(MusterError):
    """A document that is not what `explain --json` says."""


class SaidEvidence(msgspec.Struct):
    e: float
    hold_e: float
    strata: list[Stratum]


class SaidVerdict(msgspec.Struct):
    at: float
    wave: int
    kind: str
    evidence: SaidEvidence


class SaidTerms(msgspec.Struct):
    alpha: float
    failure_objective: float
    tolerance: float
    latency_tolerance: float
    disagreement_objective: float
    weights: dict[str, float]
    has_controls: bool


class Said(msgspec.Struct):
    """Of the whole document, what E is computed from, and what it is said to be."""

    terms: SaidTerms
    evidence: SaidEvidence
    verdicts: list[SaidVerdict]
    abort_at: float
    hold_at: float


@dataclass(frozen=True)
class Recomputed:
    name: str
    said: float
    computed: float
    agrees: bool


def recompute(found: Any) -> list[Recomputed]:
    """Return what was said of E at each verdict, and now, beside what its counts come to. Raises NotExplained."""
    try:
        said = msgspec.convert(found, Said)
        terms = Terms(**msgspec.structs.asdict(said.terms))
    except (msgspec.ValidationError, ValueError) as error:
        raise NotExplained(f"this is not what `muster rollout explain --json` says: {error}") from error
    return list(_lines(said, terms))


def _lines(said: Said, terms: Terms) -> Iterator[Recomputed]:
    for verdict in said.verdicts:
        yield _compared(f"wave {verdict.wave + 1} {verdict.kind}", verdict.evidence, terms)
    yield _compared("now", said.evidence, terms)
    yield Recomputed("abort at", said.abort_at, 1 / terms.alpha, _close(said.abort_at, 1 / terms.alpha))


def _compared(name: str, said: SaidEvidence, terms: Terms) -> Recomputed:
    computed = evidence(said.strata, terms)
    agrees = _close(said.e, min(computed.e, LARGEST)) and _close(said.hold_e, min(computed.hold_e, LARGEST))
    return Recomputed(name, said.e, computed.e, agrees)


def _close(one: float, other: float) -> bool:
    return abs(one - other) <= TOLERANCE * max(abs(one), abs(other))
