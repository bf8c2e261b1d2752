"""All rules over one set of facts: what a look finds, and of which rules it could say nothing. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from muster_controller.core.alerts import burn, content, expiring, mixing, rules, running
from muster_controller.core.alerts.finding import Finding, Look


@dataclass(frozen=True)
class Watched:
    """An objective, and what was counted in each of `burn.WINDOWS`."""

    objective: burn.Objective
    windows: Mapping[int, burn.Requests]

    def window(self, seconds: int) -> burn.Requests:
        return self.windows[seconds]


@dataclass(frozen=True)
class Facts:
    """What is known at one moment. None: it could not be looked at, so the rules that need it are blind."""

    now: float
    objectives: tuple[Watched, ...] | None = None
    drift: tuple[content.Drifting, ...] | None = None
    compared: tuple[content.Compared, ...] | None = None
    presence: tuple[running.Presence, ...] | None = None
    """None also while the broker or the controller has just come back."""
    peaks: tuple[running.Peak, ...] | None = None
    rollouts: tuple[running.Stuck, ...] | None = None
    is_connected: bool | None = None
    certificates: tuple[expiring.Expiring, ...] | None = None
    keys: tuple[expiring.Expiring, ...] | None = None
    mixers: tuple[mixing.MixerFacts, ...] | None = None


def judge(facts: Facts) -> Look:
    """Return what all rules say of `facts`."""
    blind: set[str] = set()
    found: list[Finding] = []
    for names, findings in _judged(facts):
        if findings is None:
            blind.update(names)
        else:
            found += findings
    return Look(tuple(found), frozenset(blind))


def _judged(facts: Facts) -> Iterator[tuple[tuple[str, ...], Iterator[Finding] | None]]:
    now = facts.now
    yield (rules.SLO_BURN,), None if facts.objectives is None else _burning(facts.objectives)
    yield (rules.DRIFT, rules.SKEW), None if facts.drift is None else content.drifting(facts.drift)
    yield (rules.SLICE_REGRESSION,), None if facts.compared is None else content.fallen(facts.compared)
    yield (rules.OFFLINE_SURGE,), None if facts.presence is None else running.surges(facts.presence)
    yield (rules.CAPACITY,), None if facts.peaks is None else running.headroom(facts.peaks)
    yield (rules.ROLLOUT_STUCK,), None if facts.rollouts is None else running.stuck(facts.rollouts, now)
    yield (
        (rules.BROKER_AWAY,),
        None if facts.is_connected is None else running.broker(is_connected=facts.is_connected),
    )
    yield (
        (rules.CERTIFICATE_EXPIRY,),
        None if facts.certificates is None else expiring.expiring(rules.CERTIFICATE_EXPIRY, facts.certificates, now),
    )
    yield (
        (rules.KEY_EXPIRY,),
        None if facts.keys is None else expiring.expiring(rules.KEY_EXPIRY, facts.keys, now),
    )
    yield (rules.BUDGET_SPENT,), None if facts.mixers is None else mixing.budgets(facts.mixers, now)
    yield (rules.MIXER_SILENT,), None if facts.mixers is None else mixing.silent(facts.mixers, now)


def _burning(objectives: tuple[Watched, ...]) -> Iterator[Finding]:
    for each in objectives:
        if (finding := burn.judge(each.objective, each.window)) is not None:
            yield finding
