"""An alert's life: what a look makes of the alerts that there are, and what is to be told of it.

    (nothing) ── found ──▶ PENDING ── found for `for_s` ──▶ FIRING ── not found for `clear_s` ──▶ RESOLVED
        ▲                     │                                 ▲ │
        └──── not found ──────┘              lingers, or worse ─┘─┘

There is one alert for each rule and subject. What comes back soon after it ended flaps: each time it has to be away
twice as long before it ends. Silences keep nothing from firing, only from being told. Pure.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from muster_controller.core.alerts.finding import Fact, Finding, Look, Severity
from muster_controller.core.alerts.rules import RULES

FLAP_S: Final = 3600.0
"""What begins again within an hour of its end is the same trouble."""
CLEAR_S_MAX: Final = 4 * 3600.0
AGAIN_S: Final = 4 * 3600.0
"""A page that nobody acknowledged is told again."""
TOGETHER_S: Final = 300.0
"""A rule that was just told waits so long with more of the same: an outage is two messages and not a hundred."""
SEEN_S: Final = 60.0
"""`seen_at` is no truer than this: it costs a row to keep."""


class State(StrEnum):
    PENDING = "pending"
    FIRING = "firing"
    RESOLVED = "resolved"


@dataclass(frozen=True)
class Alert:
    """One alert. Times are Unix seconds.

    Attributes:
        changed_at: When its state or severity changed last.
        seen_at: When its condition held last, within SEEN_S.
        told_at: When receivers were told last that it fires; None: never, so its end is not told either.
        times: How often it came back soon after it had ended.
    """

    id: str
    rule: str
    subject: str
    severity: Severity
    state: State
    summary: str
    began_at: float
    changed_at: float
    seen_at: float
    facts: Mapping[str, Fact] = field(default_factory=dict)
    resolved_at: float | None = None
    told_at: float | None = None
    times: int = 0
    acknowledged_by: str = ""
    acknowledged_at: float | None = None
    comment: str = ""

    @property
    def key(self) -> tuple[str, str]:
        return self.rule, self.subject


@dataclass(frozen=True)
class Silence:
    """What fits is not told of from `begins_at` until `ends_at`.

    Attributes:
        rule: Empty: every rule; `*` at its end stands for anything. So `subject`.
    """

    id: str
    rule: str
    subject: str
    begins_at: float
    ends_at: float
    by: str = ""
    reason: str = ""

    def covers(self, alert: Alert, now: float) -> bool:
        is_on = self.begins_at <= now < self.ends_at
        return is_on and _fits(self.rule, alert.rule) and _fits(self.subject, alert.subject)


class Word(StrEnum):
    """What is told of an alert."""

    FIRING = "firing"
    WORSE = "worse"
    """It fires as a page now, and did as less."""
    AGAIN = "again"
    """It still fires, and nobody has acknowledged it."""
    RESOLVED = "resolved"


@dataclass(frozen=True)
class Telling:
    word: Word
    alert: Alert


@dataclass(frozen=True)
class Step:
    """What a look makes of the alerts.

    Attributes:
        saved: Alerts that are new or changed.
        dropped: Ids of those that did not last: nobody needs to know.
        tellings: What to tell, now.
    """

    saved: tuple[Alert, ...] = ()
    dropped: tuple[str, ...] = ()
    tellings: tuple[Telling, ...] = ()


def advance(
    alerts: Iterable[Alert], look: Look, silences: Iterable[Silence], now: float, new_ids: Iterable[str]
) -> Step:
    """Return what `look` makes of `alerts`.

    Args:
        alerts: All that are pending or firing, and those that ended in the last FLAP_S.
        new_ids: As many as there are findings, at least.
    """
    known = {
        each.key: each for each in sorted(alerts, key=lambda each: (each.state is not State.RESOLVED, each.began_at))
    }
    found = {(each.rule, each.subject): each for each in look.findings}
    ids, silent = iter(new_ids), tuple(silences)
    after: dict[tuple[str, str], Alert] = {}
    dropped: list[str] = []
    for key in sorted(known.keys() | found.keys()):
        before, finding = known.get(key), found.get(key)
        if before is None or before.state is State.RESOLVED:
            if finding is not None and not finding.lingers:
                after[key] = _begun(finding, before, now, next(ids))
            continue
        if finding is None and before.rule in look.blind:
            after[key] = before
            continue
        moved = _moved(before, finding, now)
        if moved is None:
            dropped.append(before.id)
        else:
            after[key] = moved
    tellings = _tellings(after, found.keys(), silent, now)
    told = {each.alert.key: each.alert for each in tellings}
    after |= told
    saved = tuple(alert for key, alert in sorted(after.items()) if alert != known.get(key))
    return Step(saved, tuple(dropped), tuple(tellings))


def clear_s(alert: Alert) -> float:
    """Return for how long its condition has to be away before it ends."""
    rule = RULES.get(alert.rule)
    own = 900.0 if rule is None else rule.clear_s  # A rule of a controller before an upgrade.
    return float(min(max(own, CLEAR_S_MAX), own * 2**alert.times))


def is_silenced(alert: Alert, silences: Iterable[Silence], now: float) -> bool:
    return any(each.covers(alert, now) for each in silences)


def _begun(finding: Finding, before: Alert | None, now: float, new_id: str) -> Alert:
    ended_at = None if before is None else before.resolved_at
    flaps = before is not None and ended_at is not None and now - ended_at < FLAP_S
    alert = Alert(
        id=new_id,
        rule=finding.rule,
        subject=finding.subject,
        severity=finding.severity,
        state=State.PENDING,
        summary=finding.summary,
        facts=finding.facts,
        began_at=now,
        changed_at=now,
        seen_at=now,
        times=before.times + 1 if before is not None and flaps else 0,
    )
    return _fired(alert, now)


def _moved(alert: Alert, finding: Finding | None, now: float) -> Alert | None:
    """Return the alert after a look; None: it was pending and did not last."""
    if finding is None or (finding.lingers and alert.state is State.PENDING):
        if alert.state is State.PENDING:
            return None
        if now - alert.seen_at < clear_s(alert):
            return alert
        return replace(alert, state=State.RESOLVED, changed_at=now, resolved_at=now)
    if finding.lingers:
        return alert if now - alert.seen_at < SEEN_S else replace(alert, seen_at=now)
    is_worse = finding.severity.rank > alert.severity.rank
    if is_worse:
        alert = replace(alert, severity=finding.severity, changed_at=now)
    if is_worse or now - alert.seen_at >= SEEN_S:
        alert = replace(alert, seen_at=now, summary=finding.summary, facts=finding.facts)
    return _fired(alert, now)


def _fired(alert: Alert, now: float) -> Alert:
    rule = RULES.get(alert.rule)
    lasted = now - alert.began_at >= (0.0 if rule is None else rule.for_s)
    if alert.state is not State.PENDING or not lasted:
        return alert
    return replace(alert, state=State.FIRING, changed_at=now)


def _tellings(
    after: Mapping[tuple[str, str], Alert],
    found: Collection[tuple[str, str]],
    silences: tuple[Silence, ...],
    now: float,
) -> list[Telling]:
    """Return what to tell. That something fires is told only while it does: not in the time that it takes to end."""
    told_at: dict[str, float] = {}
    for alert in after.values():
        if alert.told_at is not None and alert.state is State.FIRING:
            told_at[alert.rule] = max(alert.told_at, told_at.get(alert.rule, alert.told_at))
    tellings: list[Telling] = []
    for key, alert in sorted(after.items()):
        word = _word(alert, told_at.get(alert.rule), now)
        if word is None or is_silenced(alert, silences, now) or (word is not Word.RESOLVED and key not in found):
            continue
        tellings.append(Telling(word, alert if word is Word.RESOLVED else replace(alert, told_at=now)))
    return tellings


def _word(alert: Alert, rule_told_at: float | None, now: float) -> Word | None:
    match alert.state:
        case State.PENDING:
            return None
        case State.RESOLVED:
            return Word.RESOLVED if alert.told_at is not None else None
        case State.FIRING:
            pass
    if alert.told_at is None:
        is_burst = rule_told_at is not None and now - rule_told_at < TOGETHER_S
        return None if is_burst else Word.FIRING
    if alert.changed_at > alert.told_at:
        return Word.WORSE
    is_ours = alert.acknowledged_at is not None or alert.severity is not Severity.PAGE
    return Word.AGAIN if not is_ours and now - alert.told_at >= AGAIN_S else None


def _fits(pattern: str, text: str) -> bool:
    if not pattern:
        return True
    return text.startswith(pattern[:-1]) if pattern.endswith("*") else text == pattern
