"""Rules about mixers: the privacy budget, and whether they say and publish anything. Pure."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from muster_controller.core.alerts import rules
from muster_controller.core.alerts.finding import Fact, Finding, Severity
from muster_shared.metrics import DAY_S, RELEASES_A_DAY

STATE_PERIOD_S: Final = 60.0
"""A mixer says how it is every minute; three times nothing is silence."""
SUMS_S: Final = 3 * 3600.0
"""An hour closes 75 minutes after its end, so that sums are never older than two hours and a half."""
PUBLISHED_S: Final = 2 * 86_400.0
"""Only a mixer that published in the last two days is missed: in a small fleet no cell may ever be large enough."""
AHEAD: Final = 3
"""Releases that the ledger may be ahead of the day: late batches charge an hour that was charged already to no one."""


@dataclass(frozen=True)
class MixerFacts:
    """One mixer, as it said it is.

    Attributes:
        seen_at: When it said something last; 0: never since it was created at `created_at`.
        day: Of the newest line of its ledger: days since 1970; None: it never charged anything.
        out_of_budget: Cells refused since the ledger began, and ...
        out_of_budget_before: ... as it was a day ago, or when this controller began to lead.
        summed_at: End of the newest hour that it published; None: none.
    """

    mixer: str
    created_at: float
    seen_at: float
    day: int | None = None
    rho_spent: float = 0.0
    rho_budget: float = 0.0
    out_of_budget: int = 0
    out_of_budget_before: int = 0
    summed_at: float | None = None


def budgets(mixers: Iterable[MixerFacts], now: float) -> Iterator[Finding]:
    """Yield the mixers that refuse, or will before the day is over."""
    for each in mixers:
        refused = each.out_of_budget - each.out_of_budget_before
        facts: dict[str, Fact] = {
            "mixer": each.mixer,
            "day": each.day,
            "rho_spent": round(each.rho_spent, 6),
            "rho_budget": each.rho_budget,
            "refused": refused,
        }
        if refused > 0:
            said = f"{refused} cells were not published since yesterday, because the day's privacy budget was spent"
            yield Finding(rules.BUDGET_SPENT, each.mixer, Severity.TICKET, f"Mixer {each.mixer}: {said}.", facts)
        elif each.day is not None and each.rho_budget > 0 and each.day == int(now // DAY_S):
            hours = (now % DAY_S) / 3600 + AHEAD
            spent, due = each.rho_spent / each.rho_budget, hours / RELEASES_A_DAY
            if spent > due:
                yield Finding(
                    rules.BUDGET_SPENT,
                    each.mixer,
                    Severity.TICKET,
                    f"Mixer {each.mixer}: {spent:.0%} of the day's privacy budget is spent; {due:.0%} at most was due.",
                    facts,
                )


def silent(mixers: Iterable[MixerFacts], now: float) -> Iterator[Finding]:
    """Yield the mixers that say nothing, or publish nothing any more."""
    for each in mixers:
        quiet_s = now - (each.seen_at or each.created_at)
        facts: dict[str, Fact] = {"mixer": each.mixer, "seen_at": each.seen_at, "summed_at": each.summed_at}
        if quiet_s > 3 * STATE_PERIOD_S:
            said = f"has said nothing for {_span(quiet_s)}" if each.seen_at else "has never said anything"
            yield Finding(rules.MIXER_SILENT, each.mixer, Severity.TICKET, f"Mixer {each.mixer} {said}.", facts)
        elif each.summed_at is not None and SUMS_S < now - each.summed_at < PUBLISHED_S:
            said = f"has published no hour since the one that ended {_span(now - each.summed_at)} ago"
            yield Finding(rules.MIXER_SILENT, each.mixer, Severity.TICKET, f"Mixer {each.mixer} {said}.", facts)


def _span(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 7200 else f"{seconds / 60:.0f} min"
