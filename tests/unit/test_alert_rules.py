"""What each rule takes for trouble, what it lets linger, and what is none."""

import math

import pytest

from muster_controller.core.alerts import rules
from muster_controller.core.alerts.content import Drifting, drifting
from muster_controller.core.alerts.expiring import DAY_S, Expiring, expiring
from muster_controller.core.alerts.finding import Finding, Severity
from muster_controller.core.alerts.judge import Facts, judge
from muster_controller.core.alerts.mixing import MixerFacts, budgets, silent
from muster_controller.core.alerts.running import (
    FLEET,
    Hold,
    Peak,
    Presence,
    Stuck,
    broker,
    headroom,
    stuck,
    surges,
)
from muster_controller.core.metrics.figures import Figure

HOUR_S = 3600.0
NOW = 20_000 * DAY_S + 12 * HOUR_S  # Noon of some day.
NONE = Figure(0.0, 0.0, 0.0, noise=0.001, sample=0.001)
UNKNOWN = Figure(None)


def share(value: float, error: float) -> Figure:
    return Figure(value, value - 2 * error, value + 2 * error, devices=1000, noise=error, sample=0.0)


def said(findings: "list[Finding]") -> list[tuple[str, bool]]:
    return [(each.subject, each.lingers) for each in findings]


# -- drift and skew ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("figure", "expected"),
    [
        (share(0.30, 0.01), [("digits/2.0.0/nuc", False)]),
        (share(0.30, 0.088), [("digits/2.0.0/nuc", True)]),
        (share(0.30, 0.10), []),
        (share(0.04, 0.001), [("digits/2.0.0/nuc", True)]),
        (share(0.02, 0.0001), []),
        (UNKNOWN, []),
    ],
)
def test_drift_is_told_when_even_the_lower_end_is_too_much(figure: Figure, expected: list[tuple[str, bool]]) -> None:
    found = list(drifting([Drifting("digits", "2.0.0", "nuc", figure, NONE, 3)]))

    assert said(found) == expected


def test_skew_is_a_rule_of_its_own() -> None:
    (found,) = drifting([Drifting("digits", "2.0.0", "", NONE, share(0.4, 0.01), 3)])

    assert (found.rule, found.subject, found.severity) == (rules.SKEW, "digits/2.0.0", Severity.TICKET)


# -- devices that went -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("online", "gone", "yesterday", "expected"),
    [
        (90, 20, None, [(FLEET, False)]),
        (90, 8, None, [(FLEET, True)]),
        (990, 20, None, []),
        (5, 2, None, []),  # Two of seven: a coincidence in a small fleet.
        (4, 3, None, [(FLEET, False)]),
        (0, 3, None, [(FLEET, False)]),
        (60, 40, 38, [(FLEET, True)]),  # As every evening.
        (60, 40, 40, []),
        (20, 80, 38, [(FLEET, False)]),
        (0, 0, None, []),
    ],
)
def test_a_surge_is_many_devices_at_once_and_more_than_yesterday(
    online: int, gone: int, yesterday: int | None, expected: list[tuple[str, bool]]
) -> None:
    assert said(list(surges([Presence(FLEET, online, gone, yesterday)]))) == expected


def test_a_surge_of_the_fleet_is_told_once_and_not_for_each_class() -> None:
    fleet, nuc, pi = Presence(FLEET, 50, 50), Presence("nuc", 25, 25), Presence("pi", 25, 25)

    assert said(list(surges([fleet, nuc, pi]))) == [(FLEET, False)]
    assert said(list(surges([Presence(FLEET, 990, 10), Presence("nuc", 0, 10)]))) == [("nuc", False)]


# -- what runs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("percent", "expected"), [(86.0, [("nuc", False)]), (80.0, [("nuc", True)]), (60.0, [])])
def test_headroom_is_judged_at_the_peak(percent: float, expected: list[tuple[str, bool]]) -> None:
    assert said(list(headroom([Peak("nuc", percent, NOW, 10)]))) == expected


@pytest.mark.parametrize(
    ("hold", "limit_s"), [(Hold.UNDECIDED, HOUR_S), (Hold.APPROVAL, 24 * HOUR_S), (Hold.STALLED, 600.0)]
)
def test_a_rollout_is_stuck_after_a_while_that_depends_on_why(hold: Hold, limit_s: float) -> None:
    def rests(seconds: float) -> Stuck:
        return Stuck("r-1", "digits", "2.0.0", hold, NOW - seconds, "", 600.0)

    assert said(list(stuck([rests(limit_s + 1)], NOW))) == [("r-1", False)]
    assert list(stuck([rests(limit_s - 1)], NOW)) == []


def test_a_broker_that_is_away_pages() -> None:
    assert [each.severity for each in broker(is_connected=False)] == [Severity.PAGE]
    assert list(broker(is_connected=True)) == []


# -- what runs out -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("role", "lifetime_d", "left_d", "severity"),
    [
        ("root", 0, 31, None),
        ("root", 0, 29, Severity.TICKET),
        ("root", 0, 6, Severity.PAGE),
        ("targets", 0, -1, Severity.PAGE),
        ("timestamp", 0, 0.5, None),  # Signed anew every half day, so this is as it should be.
        ("timestamp", 0, 0.3, Severity.TICKET),
        ("timestamp", 0, 0.1, Severity.PAGE),
        ("snapshot", 0, 14, None),
        ("ca-root", 3652, 300, Severity.TICKET),
        ("ca-intermediate", 365, 100, None),
        ("ca-intermediate", 365, 10, Severity.PAGE),
        ("ca-server", 30, 8, None),
        ("ca-server", 30, 7, Severity.TICKET),
        ("ca-server", 30, 2, Severity.PAGE),
        ("mixer", 7, 3, None),
        ("mixer", 7, 1.5, Severity.TICKET),
        ("page", 90, 20, Severity.TICKET),
        ("ca-retired", 365, -5, None),
    ],
)
def test_what_runs_out_is_told_in_time_for_whoever_renews_it(
    role: str, lifetime_d: float, left_d: float, severity: Severity | None
) -> None:
    thing = Expiring(role, "it", NOW + left_d * DAY_S, lifetime_d * DAY_S)

    assert [each.severity for each in expiring(rules.KEY_EXPIRY, [thing], NOW)] == (
        [] if severity is None else [severity]
    )


# -- mixers ------------------------------------------------------------------------------------------------------------


def mixer(**changes: float) -> MixerFacts:
    day = int(NOW // DAY_S)
    facts = {"created_at": 0.0, "seen_at": NOW - 60, "day": day, "rho_spent": 0.044, "rho_budget": 0.1}
    return MixerFacts("one", **{**facts, **changes})  # type: ignore[arg-type]  # Numbers, each of its field's kind.


def test_a_budget_that_is_spent_as_the_day_goes_is_no_trouble() -> None:
    assert list(budgets([mixer()], NOW)) == []
    assert list(budgets([mixer(day=int(NOW // DAY_S) - 1, rho_spent=0.1)], NOW)) == []  # Yesterday is over.


def test_a_budget_that_is_ahead_of_the_day_and_cells_that_were_refused_are_told() -> None:
    assert said(list(budgets([mixer(rho_spent=0.08)], NOW))) == [("one", False)]
    (found,) = budgets([mixer(out_of_budget=7, out_of_budget_before=4)], NOW)
    assert found.facts["refused"] == 3


def test_a_mixer_that_says_nothing_or_stops_to_publish_is_told() -> None:
    assert said(list(silent([mixer(seen_at=NOW - 181)], NOW))) == [("one", False)]
    assert said(list(silent([mixer(seen_at=0.0, created_at=NOW - 3600)], NOW))) == [("one", False)]
    assert said(list(silent([mixer(summed_at=NOW - 4 * HOUR_S)], NOW))) == [("one", False)]
    assert list(silent([mixer(summed_at=NOW - 2.5 * HOUR_S)], NOW)) == []
    assert list(silent([mixer(summed_at=NOW - 3 * DAY_S)], NOW)) == []  # A fleet that became too small.
    assert list(silent([mixer()], NOW)) == []


# -- all of them -------------------------------------------------------------------------------------------------------


def test_what_could_not_be_looked_at_leaves_its_rules_blind_and_no_other() -> None:
    everything = judge(Facts(now=NOW))
    some = judge(Facts(now=NOW, is_connected=True, mixers=(), presence=()))

    assert everything.blind == frozenset(rules.RULES)
    assert some.blind == frozenset(rules.RULES) - {
        rules.BROKER_AWAY,
        rules.BUDGET_SPENT,
        rules.MIXER_SILENT,
        rules.OFFLINE_SURGE,
    }


def test_every_figure_in_the_facts_of_a_finding_is_one_that_json_has() -> None:
    found = [
        *drifting([Drifting("digits", "2.0.0", "", share(0.3, 0.01), NONE, 3)]),
        *surges([Presence(FLEET, 4, 3)]),
        *budgets([mixer(rho_spent=0.09)], NOW),
    ]

    numbers = [each for finding in found for each in finding.facts.values() if isinstance(each, float)]
    assert numbers
    assert all(map(math.isfinite, numbers))
