"""What is told together: all of one rule, one word and one severity in one look is one notice. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import msgspec

from muster_controller.core.alerts.finding import Fact, Severity
from muster_controller.core.alerts.machine import Alert, Telling, Word
from muster_controller.core.alerts.rules import RULES

LISTED_MAX: Final = 20
"""Alerts that a notice lists; of the others it gives the number."""
SUBJECT_MAX: Final = 140


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """One alert in a notice."""

    id: str
    subject: str
    summary: str
    began_at: float
    resolved_at: float | None
    facts: dict[str, Fact]


class NoticeData(msgspec.Struct, frozen=True, kw_only=True):
    """What programs read of a notice of alerts: `data` of the webhook."""

    fleet: str
    rule: str
    severity: str
    runbook: str
    count: int
    alerts: tuple[Told, ...]
    """The first LISTED_MAX, by subject."""


class Body(msgspec.Struct, frozen=True, kw_only=True):
    """Something to be told, to whoever it may be: what is in the queue, and what a webhook posts.

    Shape as Standard Webhooks recommends: `type`, `timestamp` (ISO 8601), `data`; and words for people beside it.
    """

    type: str
    timestamp: str
    subject: str
    """One line."""
    text: str
    data: msgspec.Raw


@dataclass(frozen=True)
class Notice:
    severity: Severity
    body: Body


def group(tellings: Iterable[Telling], fleet: str, now: float) -> list[Notice]:
    """Return what to tell: the worst first, pages before tickets."""
    grouped: dict[tuple[int, str, Word], list[Alert]] = {}
    for each in tellings:
        grouped.setdefault((-each.alert.severity.rank, each.alert.rule, each.word), []).append(each.alert)
    return [
        Notice(alerts[0].severity, _body(rule, word, sorted(alerts, key=lambda alert: alert.subject), fleet, now))
        for (_, rule, word), alerts in sorted(grouped.items())
    ]


def body(kind: str, subject: str, text: str, data: object, now: float) -> Body:
    """Return something to be told. `data`: whatever msgspec makes JSON of."""
    at = datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    line = " ".join(subject.split())[:SUBJECT_MAX]
    return Body(type=kind, timestamp=at, subject=line, text=text, data=msgspec.Raw(msgspec.json.encode(data)))


def _body(rule: str, word: Word, alerts: list[Alert], fleet: str, now: float) -> Body:
    known = RULES.get(rule)
    runbook = "" if known is None else known.runbook
    severity = alerts[0].severity
    listed = alerts[:LISTED_MAX]
    about = listed[0].subject if len(alerts) == 1 else f"{len(alerts)} at once"
    lines = [each.summary for each in listed]
    if len(alerts) > LISTED_MAX:
        lines.append(f"... and {len(alerts) - LISTED_MAX} more; `muster alerts --rule {rule}` lists them.")
    if word is not Word.RESOLVED:
        lines += ["", f"What to do: {runbook}", *(f"Acknowledge: muster alert ack {each.id}" for each in listed[:1])]
    data = NoticeData(
        fleet=fleet,
        rule=rule,
        severity=severity.value,
        runbook=runbook,
        count=len(alerts),
        alerts=tuple(
            Told(
                id=each.id,
                subject=each.subject,
                summary=each.summary,
                began_at=each.began_at,
                resolved_at=each.resolved_at,
                facts=dict(each.facts),
            )
            for each in listed
        ),
    )
    return body(
        f"alert.{word.value}", f"[{fleet}] {_said(word, severity)}: {rule}, {about}", "\n".join(lines), data, now
    )


def _said(word: Word, severity: Severity) -> str:
    match word:
        case Word.FIRING:
            return severity.value
        case Word.WORSE:
            return f"{severity.value}, worse than before"
        case Word.AGAIN:
            return f"{severity.value}, still there"
        case Word.RESOLVED:
            return "over"
