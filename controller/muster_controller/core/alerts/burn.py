"""Burn rates: how fast an objective's error budget is used up, over a long and a short window at once.

A burn rate of 1 uses the budget of 28 days in 28 days. An alert needs the rate in both windows: the long one says that
it matters, the short one that it still goes on. Factors and windows: Google, The Site Reliability Workbook, chapter 5,
"Alerting on SLOs", 6: multiwindow, multi-burn-rate alerts. Pure.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from muster_controller.core.alerts.finding import Finding, Severity
from muster_controller.core.alerts.rules import SLO_BURN
from muster_shared.errors import WireError

PERIOD_S: Final = 300
"""Of the operational series: no window is shorter."""
BUDGET_S: Final = 28 * 86_400
TARGET_MIN, TARGET_MAX = 0.5, 0.9999
REQUESTS_MIN: Final = 100
"""In the long window, without which it says nothing: a share of few requests is luck. And ..."""
BAD_MIN: Final = 5
"""... so many of them bad: one failure in a quiet night pages nobody, whatever share of it that is."""
SLOWLY: Final = "/slowly"
"""What the subject of a slow burn ends with."""
LINGERS_FROM: Final = 0.8
"""Of a factor: an alert that burns ends below this."""


class Indicator(StrEnum):
    AVAILABILITY = "availability"
    """Good: answered, without an error. Of all requests."""
    LATENCY = "latency"
    """Good: answered within the release's `slo.latency_ms_p95`. Of the requests that were answered."""


@dataclass(frozen=True)
class Objective:
    """What share of a model's requests must be good over 28 days.

    Attributes:
        device_class: Empty: every class.
        target: TARGET_MIN..TARGET_MAX.
    """

    name: str
    model: str
    indicator: Indicator
    target: float
    device_class: str = ""

    def __post_init__(self) -> None:
        """Raises WireError: no such target can be kept, or missed."""
        if not TARGET_MIN <= self.target <= TARGET_MAX:
            raise WireError(f"a target of {self.target:g}; choose one from {TARGET_MIN} to {TARGET_MAX}, such as 0.999")


@dataclass(frozen=True)
class Requests:
    """Of one model in one window of time: as the operational series counts them."""

    requests: int = 0
    errors: int = 0
    slow: int = 0

    def counted(self, indicator: Indicator) -> tuple[int, int]:
        """Return how many count for `indicator`, and how many of them are bad."""
        match indicator:
            case Indicator.AVAILABILITY:
                return self.requests, min(self.errors, self.requests)
            case Indicator.LATENCY:
                answered = max(0, self.requests - self.errors)
                return answered, min(self.slow, answered)


@dataclass(frozen=True)
class Pace:
    """One pair of windows. `factor`: the burn rate from which it alerts."""

    factor: float
    long_s: int
    short_s: int
    severity: Severity


PACES: Final = (
    Pace(14.4, 3600, 300, Severity.PAGE),  # 2 % of the budget of 30 days in an hour.
    Pace(6.0, 6 * 3600, 1800, Severity.PAGE),  # 5 % in six.
    Pace(1.0, 3 * 86_400, 6 * 3600, Severity.TICKET),  # 10 % in three days.
)
WINDOWS: Final = tuple(sorted({each for pace in PACES for each in (pace.long_s, pace.short_s)} | {BUDGET_S}))
"""Seconds of every window that is asked for."""


@dataclass(frozen=True)
class Burn:
    """How an objective stands.

    Attributes:
        left: Share of the error budget of 28 days that is left; negative: overdrawn; None: there was no traffic.
        rates: By window in seconds; None where there was no traffic, which is no violation.
    """

    objective: Objective
    requests: int
    bad: int
    left: float | None
    rates: Mapping[int, float | None]


def rate(counts: Requests, objective: Objective) -> float | None:
    """Return the burn rate, >= 0; None: nothing was asked, which is no violation."""
    total, bad = counts.counted(objective.indicator)
    return None if not total else bad / total / (1 - objective.target)


def assess(objective: Objective, window: Callable[[int], Requests]) -> Burn:
    """Return how `objective` stands. `window` says what was counted in the last so many seconds."""
    counts = {each: window(each) for each in WINDOWS}
    total, bad = counts[BUDGET_S].counted(objective.indicator)
    spent = rate(counts[BUDGET_S], objective)
    return Burn(
        objective,
        total,
        bad,
        None if spent is None else 1.0 - spent,
        {each: rate(found, objective) for each, found in counts.items()},
    )


def judge(objective: Objective, window: Callable[[int], Requests]) -> Finding | None:
    """Return the worst that burns, or lingers; None: nothing does.

    What burns slowly is an alert of its own, under a subject of its own: its window of six hours would otherwise keep a
    page alive for hours after the fault is mended. Where something burns fast it goes without saying.
    """
    found = [each for pace in PACES if (each := _pace(objective, pace, window)) is not None]
    return max(found, key=lambda each: (not each.lingers, each.severity.rank), default=None)


def _pace(objective: Objective, pace: Pace, window: Callable[[int], Requests]) -> Finding | None:
    long, short = window(pace.long_s), window(pace.short_s)
    total, bad = long.counted(objective.indicator)
    slowly, now = rate(long, objective), rate(short, objective)
    if slowly is None or now is None or total < REQUESTS_MIN or bad < BAD_MIN:
        return None
    if min(slowly, now) < LINGERS_FROM * pace.factor:
        return None
    what = "failed" if objective.indicator is Indicator.AVAILABILITY else "were slow"
    where = f" on {objective.device_class}" if objective.device_class else ""
    return Finding(
        SLO_BURN,
        objective.name if pace.severity is Severity.PAGE else objective.name + SLOWLY,
        pace.severity,
        f"{objective.model}{where}: {bad} of {total} requests {what} in {_span(pace.long_s)}, {slowly:.1f} times what"
        f" the objective of {objective.target:.4%} bears, and {now:.1f} times in the last {_span(pace.short_s)}.",
        {
            "model": objective.model,
            "device_class": objective.device_class,
            "indicator": objective.indicator.value,
            "target": objective.target,
            "requests": total,
            "bad": bad,
            "rate_long": round(slowly, 3),
            "rate_short": round(now, 3),
            "long_s": pace.long_s,
            "short_s": pace.short_s,
            "factor": pace.factor,
        },
        lingers=min(slowly, now) < pace.factor,
    )


def _span(seconds: int) -> str:
    for size, word in ((86_400, "d"), (3600, "h")):
        if seconds >= size:
            return f"{seconds // size} {word}"
    return f"{seconds // 60} min"
