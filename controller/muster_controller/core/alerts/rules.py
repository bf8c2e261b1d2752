"""The rules: every alert that there can be, how long its condition has to last, and where its runbook is. Pure.

Thresholds stand with the functions that judge (`burn`, `content`, `running`, `expiring`, `mixing`); `judge` asks
them all.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

MINUTE_S: Final = 60.0
HOUR_S: Final = 3600.0

SLO_BURN: Final = "slo-burn"
DRIFT: Final = "drift"
SKEW: Final = "skew"
SLICE_REGRESSION: Final = "slice-regression"
OFFLINE_SURGE: Final = "offline-surge"
CAPACITY: Final = "capacity"
ROLLOUT_STUCK: Final = "rollout-stuck"
BROKER_AWAY: Final = "broker-away"
CERTIFICATE_EXPIRY: Final = "certificate-expiry"
KEY_EXPIRY: Final = "key-expiry"
BUDGET_SPENT: Final = "budget-spent"
MIXER_SILENT: Final = "mixer-silent"


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
        for_s: How long its condition has to hold before it fires.
        clear_s: How long it has to be away before the alert ends.
        title: What it says, for a listing.
    """

    name: str
    for_s: float
    clear_s: float
    title: str

    @property
    def runbook(self) -> str:
        """The page that says what to do, in the repository."""
        return f"docs/runbooks/alert-{self.name}.md"


RULES: Final[Mapping[str, Rule]] = {
    rule.name: rule
    for rule in (
        # The windows of a burn rate are its patience; a second look keeps out a period that was half written.
        Rule(SLO_BURN, MINUTE_S, 15 * MINUTE_S, "An objective's error budget is used up too fast"),
        # Hourly figures: an hour later they are other figures.
        Rule(DRIFT, 0.0, 2 * HOUR_S, "Too many devices see inputs that drift from the reference"),
        Rule(SKEW, 0.0, 2 * HOUR_S, "Too many devices prepare inputs otherwise than training did"),
        Rule(SLICE_REGRESSION, 0.0, 2 * HOUR_S, "A release is worse for some classes, whatever the average says"),
        Rule(OFFLINE_SURGE, 5 * MINUTE_S, 15 * MINUTE_S, "Many devices went offline at once"),
        Rule(CAPACITY, 10 * MINUTE_S, 6 * HOUR_S, "A device class has no headroom left at its peak"),
        Rule(ROLLOUT_STUCK, MINUTE_S, 5 * MINUTE_S, "A rollout does not go on"),
        Rule(BROKER_AWAY, 5 * MINUTE_S, 5 * MINUTE_S, "The controller has lost the broker"),
        Rule(CERTIFICATE_EXPIRY, 0.0, 10 * MINUTE_S, "A certificate runs out"),
        Rule(KEY_EXPIRY, 0.0, 10 * MINUTE_S, "Signed trust metadata runs out"),
        Rule(BUDGET_SPENT, 0.0, HOUR_S, "A mixer's privacy budget is spent before the day is over"),
        Rule(MIXER_SILENT, 5 * MINUTE_S, 15 * MINUTE_S, "A mixer says nothing, or publishes nothing"),
    )
}
