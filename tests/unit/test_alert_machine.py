"""An alert's life: when it fires, when it ends, what is told, and what no silence and no burst lets through."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import msgspec
import pytest

from muster_controller.core.alerts import rules
from muster_controller.core.alerts.finding import Finding, Look, Severity
from muster_controller.core.alerts.grouping import LISTED_MAX, NoticeData, group
from muster_controller.core.alerts.machine import (
    AGAIN_S,
    FLAP_S,
    TOGETHER_S,
    Alert,
    Silence,
    State,
    Telling,
    Word,
    advance,
    clear_s,
)
from muster_controller.core.alerts.rules import RULES

LOOK_S = 30.0
SURGE = RULES[rules.OFFLINE_SURGE]


def surge(subject: str = "fleet", *, severity: Severity = Severity.PAGE, lingers: bool = False) -> Finding:
    return Finding(SURGE.name, subject, severity, f"{subject} went", {"gone": 3}, lingers)


@dataclass
class Watch:
    """Looks that follow each other, over what a store would keep."""

    now: float = 1_800_000_000.0
    alerts: dict[str, Alert] = field(default_factory=dict)
    silences: list[Silence] = field(default_factory=list)
    told: list[tuple[Word, str]] = field(default_factory=list)
    _ids: int = 0

    def look(self, *findings: Finding, blind: Iterable[str] = ()) -> list[tuple[Word, str]]:
        self._ids += 1
        ids = (f"a{self._ids}-{index}" for index in range(len(findings)))
        current = [
            each for each in self.alerts.values() if each.resolved_at is None or self.now - each.resolved_at <= FLAP_S
        ]
        step = advance(current, Look(findings, frozenset(blind)), self.silences, self.now, ids)
        self.alerts |= {each.id: each for each in step.saved}
        for name in step.dropped:
            del self.alerts[name]
        told = [(each.word, each.alert.subject) for each in step.tellings]
        self.told += told
        return told

    def pass_s(self, seconds: float, *findings: Finding) -> list[tuple[Word, str]]:
        """Look every LOOK_S for so long, and return what was told."""
        told: list[tuple[Word, str]] = []
        until = self.now + seconds
        while self.now < until:
            self.now += LOOK_S
            told += self.look(*findings)
        return told

    @property
    def states(self) -> list[State]:
        return [each.state for each in self.alerts.values()]

    @property
    def only(self) -> Alert:
        (alert,) = self.alerts.values()
        return alert


@pytest.fixture
def watch() -> Watch:
    return Watch()


def test_an_alert_fires_when_its_condition_has_lasted(watch: Watch) -> None:
    assert watch.look(surge()) == []
    assert watch.states == [State.PENDING]

    assert watch.pass_s(SURGE.for_s - LOOK_S, surge()) == []
    assert watch.pass_s(LOOK_S, surge()) == [(Word.FIRING, "fleet")]
    assert watch.states == [State.FIRING]


def test_what_does_not_last_leaves_nothing(watch: Watch) -> None:
    watch.look(surge())

    watch.pass_s(LOOK_S)

    assert (watch.alerts, watch.told) == ({}, [])


def test_what_lingers_begins_no_alert_and_does_not_let_a_pending_one_fire(watch: Watch) -> None:
    watch.look(surge(lingers=True))
    assert watch.alerts == {}
    watch.look(surge())

    watch.pass_s(2 * SURGE.for_s, surge(lingers=True))

    assert (watch.alerts, watch.told) == ({}, [])


def test_an_alert_ends_when_its_condition_was_away_for_long_enough(watch: Watch) -> None:
    watch.look(surge())
    watch.pass_s(SURGE.for_s, surge())

    assert watch.pass_s(SURGE.clear_s - 2 * LOOK_S) == []
    assert watch.pass_s(3 * LOOK_S) == [(Word.RESOLVED, "fleet")]
    assert watch.only.state is State.RESOLVED
    assert watch.only.resolved_at is not None


def test_what_lingers_keeps_a_firing_alert_from_ending(watch: Watch) -> None:
    watch.look(surge())
    watch.pass_s(SURGE.for_s, surge())

    assert watch.pass_s(3 * SURGE.clear_s, surge(lingers=True)) == []
    assert watch.only.state is State.FIRING


def test_a_rule_that_can_see_nothing_changes_nothing(watch: Watch) -> None:
    watch.look(surge())
    watch.pass_s(SURGE.for_s, surge())
    before = watch.only

    for _ in range(200):
        watch.now += LOOK_S
        watch.look(blind=[SURGE.name])

    assert watch.only == before


def test_one_rule_and_subject_have_one_alert(watch: Watch) -> None:
    watch.pass_s(3600, surge(), surge("nuc"))

    assert sorted(each.subject for each in watch.alerts.values()) == ["fleet", "nuc"]


def test_a_page_that_nobody_acknowledged_is_told_again(watch: Watch) -> None:
    watch.look(surge())
    watch.pass_s(SURGE.for_s, surge())

    assert watch.pass_s(AGAIN_S - LOOK_S, surge()) == []
    assert watch.pass_s(LOOK_S, surge()) == [(Word.AGAIN, "fleet")]


def test_an_acknowledged_page_and_a_ticket_are_told_once(watch: Watch) -> None:
    watch.pass_s(SURGE.for_s + LOOK_S, surge(), surge("nuc", severity=Severity.TICKET))
    for each in list(watch.alerts.values()):
        if each.subject == "fleet":
            watch.alerts[each.id] = replace(each, acknowledged_at=watch.now, acknowledged_by="anna")

    told = watch.pass_s(3 * AGAIN_S, surge(), surge("nuc", severity=Severity.TICKET))

    assert told == []


def test_an_alert_that_gets_worse_is_told_and_never_gets_better_before_it_ends(watch: Watch) -> None:
    ticket = surge(severity=Severity.TICKET)
    watch.look(ticket)
    watch.pass_s(SURGE.for_s, ticket)

    assert watch.pass_s(LOOK_S, surge()) == [(Word.WORSE, "fleet")]
    assert watch.pass_s(600, ticket) == []
    assert watch.only.severity is Severity.PAGE


@pytest.mark.parametrize(
    ("rule", "subject", "covers"),
    [
        ("", "", True),
        ("offline-surge", "fleet", True),
        ("offline-*", "", True),
        ("", "fl*", True),
        ("offline-surge", "flee", False),
        ("offline", "", False),
        ("drift", "fleet", False),
        ("", "*", True),
    ],
)
def test_a_silence_fits_by_name_or_by_its_beginning(watch: Watch, rule: str, subject: str, covers: bool) -> None:
    watch.silences = [Silence("s", rule, subject, watch.now, watch.now + 7200)]

    watch.pass_s(SURGE.for_s + LOOK_S, surge())

    assert watch.told == ([] if covers else [(Word.FIRING, "fleet")])
    assert watch.only.state is State.FIRING


def test_what_still_fires_when_its_silence_ends_is_told_then(watch: Watch) -> None:
    watch.silences = [Silence("s", SURGE.name, "", watch.now, watch.now + 7200)]
    watch.pass_s(7200 - LOOK_S, surge())
    assert watch.told == []

    assert watch.pass_s(2 * LOOK_S, surge()) == [(Word.FIRING, "fleet")]


def test_the_end_of_what_nobody_was_told_of_is_not_told(watch: Watch) -> None:
    watch.silences = [Silence("s", SURGE.name, "", watch.now, watch.now + 900)]
    watch.pass_s(600, surge())

    watch.pass_s(2 * SURGE.clear_s)

    assert watch.told == []
    assert watch.only.state is State.RESOLVED


def test_what_comes_back_and_back_has_to_be_away_for_longer_each_time(watch: Watch) -> None:
    for _ in range(4):
        watch.pass_s(SURGE.for_s + LOOK_S, surge())
        while any(each.state is State.FIRING for each in watch.alerts.values()):
            watch.pass_s(LOOK_S)

    waits = [clear_s(each) for each in sorted(watch.alerts.values(), key=lambda each: each.began_at)]
    assert waits == [SURGE.clear_s * factor for factor in (1, 2, 4, 8)]


def test_a_flapping_condition_is_told_seldom(watch: Watch) -> None:
    for _ in range(24 * 3600 // 1800):  # Half of each half hour, for a day.
        watch.pass_s(900, surge())
        watch.pass_s(900)

    assert len(watch.told) <= 3 + 24 * 3600 / AGAIN_S


def test_more_of_the_same_waits_and_is_told_together(watch: Watch) -> None:
    watch.pass_s(SURGE.for_s + LOOK_S, surge("c-0"))
    watch.told.clear()
    many = [surge(f"c-{index}") for index in range(30)]

    told_at_once = watch.pass_s(TOGETHER_S - LOOK_S, *many)
    told_then = watch.pass_s(SURGE.for_s, *many)

    assert told_at_once == []
    assert len(told_then) == 29


def test_many_subjects_of_one_rule_are_one_notice() -> None:
    alerts = [
        Alert(f"a{index}", SURGE.name, f"c-{index:02}", Severity.PAGE, State.FIRING, "gone.", 0.0, 0.0, 0.0)
        for index in range(LISTED_MAX + 5)
    ]

    (notice,) = group([Telling(Word.FIRING, each) for each in alerts], "harbour", 0.0)

    data = msgspec.json.decode(notice.body.data, type=NoticeData)
    assert (data.count, len(data.alerts), data.runbook) == (25, LISTED_MAX, SURGE.runbook)
    assert notice.body.subject == "[harbour] page: offline-surge, 25 at once"
    assert "and 5 more" in notice.body.text


def test_pages_come_before_tickets_and_each_rule_and_word_by_itself() -> None:
    def alert(rule: str, severity: Severity) -> Alert:
        return Alert("a", rule, "x", severity, State.FIRING, "s", 0.0, 0.0, 0.0)

    tellings = [
        Telling(Word.FIRING, alert("drift", Severity.TICKET)),
        Telling(Word.RESOLVED, alert("key-expiry", Severity.PAGE)),
        Telling(Word.FIRING, alert("slo-burn", Severity.PAGE)),
    ]

    notices = group(tellings, "harbour", 0.0)

    assert [each.body.type for each in notices] == ["alert.resolved", "alert.firing", "alert.firing"]
    assert [each.severity for each in notices] == [Severity.PAGE, Severity.PAGE, Severity.TICKET]


def test_a_subject_cannot_break_out_of_its_line() -> None:
    alert = Alert("a", "drift", "x\r\nBcc: all", Severity.PAGE, State.FIRING, "s", 0.0, 0.0, 0.0)

    (notice,) = group([Telling(Word.FIRING, alert)], "harbour", 0.0)

    assert "\n" not in notice.body.subject
    assert "\r" not in notice.body.subject
