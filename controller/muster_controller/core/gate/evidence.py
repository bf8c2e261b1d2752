"""Evidence: everything the gate knows of a rollout, put together so that it holds however often one looks (F4).

An e-process E starts at 1 and is a test martingale while nothing is worse, so by Ville's inequality (1939)
P(E ever >= 1/alpha) <= alpha at any number of looks; an ordinary test loses its error rate when it is looked at after
every report. A weighted mean of e-processes is one. Here means of the tests are taken twice:

    metric      E_m = (1 - c) E_pooled + c mean over classes of E_class: harm confined to one class is found too
    rollout     E   = sum_m w_m E_m

Weights are alpha split over the metrics: metric m alone would stop the rollout at E_m >= 1 / (alpha w_m), and whenever
it does so does the mean, since all other terms are >= 0. The mean also stops on what several metrics say together.

Failures of strata with controls are judged by F1, those of strata with fewer controls than treated devices by F2. They
share no device, so the product of both is an e-process too, and none of alpha is spent on choosing. So a shock to both
arms aborts a rollout that has controls no more often than alpha allows; F2 on all devices holds it (`hold_e`).

Pure: from (strata, terms) alone, and both are stored with each verdict.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from muster_controller.core.gate.agreement import against_disagreement
from muster_controller.core.gate.failures import against_controls, against_objective
from muster_controller.core.gate.latency import against_slowdown, merged_bins
from muster_controller.core.gate.strata import Stratum, VerdictKind

FAILURES, LATENCY, AGREEMENT = METRICS = ("failures", "latency", "agreement")
# Most of alpha goes where evidence is dear. A factor of two in a weight costs ln 2: about 20 devices where 5 % fail
# rather than 1 %, but two where all are slower by a fifth, and not one where devices disagree.
DEFAULT_WEIGHTS: Mapping[str, float] = {FAILURES: 0.8, LATENCY: 0.15, AGREEMENT: 0.05}
CLASS_SHARES: Mapping[str, float] = {FAILURES: 0.1, LATENCY: 0.65, AGREEMENT: 0.25}  # c, for the same reason.
LATENCY_TOLERANCE_END = 0.28  # e^0.25: differences are clipped there, so nothing slower could be told from it.
HOLD = 3.0  # From here on nothing is promoted: E = 3 would be odds of 3 to 1 for a bettor against the release.


def scaled(weights: Mapping[str, float]) -> Mapping[str, float]:
    """Return the weights above 0, of the metrics in use, scaled to sum to 1; all on failures where none is in use."""
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items() if weight} if total else {FAILURES: 1.0}


@dataclass(frozen=True)
class Terms:
    """What a policy asks of the gate; settled before the first wave.

    Raises:
        ValueError: a number is out of range, or the weights are not those of known metrics that sum to 1.
    """

    alpha: float = 0.05
    """Chance of aborting a release that is no worse, over the whole rollout."""
    failure_objective: float = 0.02
    """p0 of F2."""
    tolerance: float = 1.0
    """Relative worsening of the failure rate that is accepted, >= 1: tau of F1."""
    latency_tolerance: float = 0.05
    """Relative slowdown of the p95 that is accepted, below 0.28: see `latency`."""
    disagreement_objective: float = 0.02
    """Share of devices that may disagree with the candidate."""
    weights: Mapping[str, float] = field(default_factory=lambda: dict(DEFAULT_WEIGHTS))
    """Share of alpha of every metric in use."""
    has_controls: bool = True
    """False when it was settled before the first wave that there can be none; F2 then stands alone."""

    def __post_init__(self) -> None:
        for name, share in (
            ("alpha", self.alpha),
            ("failure_objective", self.failure_objective),
            ("disagreement_objective", self.disagreement_objective),
        ):
            if not 0 < share < 1:
                raise ValueError(f"{name} is {share}; choose it between 0 and 1")
        if not self.tolerance >= 1:
            raise ValueError(f"tolerance is {self.tolerance}; it is a factor, 1 or more")
        if not 0 <= self.latency_tolerance < LATENCY_TOLERANCE_END:
            raise ValueError(
                f"latency_tolerance is {self.latency_tolerance}; choose it from 0 to below {LATENCY_TOLERANCE_END}"
            )
        if unknown := sorted(set(self.weights) - set(METRICS)):
            raise ValueError(f"no such metrics: {', '.join(unknown)}; there are {', '.join(METRICS)}")
        if not self.weights or min(self.weights.values()) <= 0 or abs(sum(self.weights.values()) - 1) > 1e-9:
            raise ValueError("weights of metrics are above 0 and sum to 1; leave out the metrics that are not in use")


@dataclass(frozen=True)
class MetricEvidence:
    """E of one metric, of all devices together and of each class alone."""

    e: float
    e_pooled: float
    e_classes: Mapping[str, float]


@dataclass(frozen=True)
class Evidence:
    """E and everything that it was computed from; anyone can compute it again from `strata` and the terms."""

    e: float
    """Abort at 1/alpha."""
    hold_e: float
    """Hold at HOLD: the largest E of a metric in use, or of F2 on all treated devices."""
    metrics: Mapping[str, MetricEvidence]
    e_controls: float
    """F1, failures, all strata pooled."""
    e_objective: float
    """F2, failures, all treated devices pooled."""
    strata: Sequence[Stratum]


def evidence(strata: Sequence[Stratum], terms: Terms) -> Evidence:
    """Return the evidence that the treated arm is worse.

    Classes and controls are those of the assignment, settled before outcomes are known. Devices that have not
    reported are counted as good: failures report faster than successes, so leaving them out would inflate F2; counting
    them as good gives a lower bound of what E will be when they have reported, which is valid.
    """
    by_class: dict[str, list[Stratum]] = {}
    for stratum in strata:
        by_class.setdefault(stratum.device_class, []).append(stratum)
    tests: dict[str, Callable[[Sequence[Stratum]], float]] = {
        FAILURES: lambda some: _failures(some, terms),
        LATENCY: lambda some: against_slowdown(some, terms.latency_tolerance),
        AGREEMENT: lambda some: against_disagreement(some, terms.disagreement_objective),
    }
    # Latency and agreement depend on sums alone: a class is summed once, and the fleet is the sum of its classes.
    sums = {name: [_summed(name, some)] for name, some in by_class.items()}
    metrics = {
        name: _metric(tests[name], by_class if name == FAILURES else sums, CLASS_SHARES[name])
        for name in METRICS
        if name in terms.weights
    }
    e_objective = against_objective(strata, terms.failure_objective)
    return Evidence(
        e=sum(terms.weights[name] * metric.e for name, metric in metrics.items()),
        hold_e=max([metric.e for metric in metrics.values()] + ([e_objective] if FAILURES in metrics else [])),
        metrics=metrics,
        e_controls=against_controls(strata, terms.tolerance),
        e_objective=e_objective,
        strata=tuple(strata),
    )


def undecided(strata: Sequence[Stratum], terms: Terms) -> tuple[str, ...]:
    """Return the metrics in use of which nothing at all has been seen; E = 1 would pass for good news otherwise."""
    seen = {
        FAILURES: any(stratum.treated for stratum in strata),
        LATENCY: any(stratum.latency for stratum in strata),
        AGREEMENT: any(stratum.compared for stratum in strata),
    }
    return tuple(name for name in METRICS if name in terms.weights and not seen[name])


def verdict(found: Evidence, alpha: float) -> VerdictKind:
    """Return what the evidence says.

    Whether all have reported, enough devices have, and something was seen of every metric that is wanted (`undecided`)
    is for the rollout and its policy to say.
    """
    if found.e >= 1 / alpha:
        return VerdictKind.ABORT
    return VerdictKind.HOLD if found.hold_e >= HOLD else VerdictKind.PROMOTE


def _metric(
    test: Callable[[Sequence[Stratum]], float], by_class: Mapping[str, Sequence[Stratum]], class_share: float
) -> MetricEvidence:
    pooled = test([stratum for some in by_class.values() for stratum in some])
    classes = {name: test(by_class[name]) for name in sorted(by_class)}
    mean = sum(classes.values()) / len(classes) if classes else 1.0
    return MetricEvidence(e=(1 - class_share) * pooled + class_share * mean, e_pooled=pooled, e_classes=classes)


def _summed(device_class: str, strata: Sequence[Stratum]) -> Stratum:
    """Return what the trials and latencies of one class add up to; failures stay in their strata, as F1 needs them."""
    return Stratum(
        wave=0,
        device_class=device_class,
        treated=0,
        treated_bad=0,
        controls=0,
        controls_bad=0,
        latency=tuple(merged_bins(strata).items()),
        compared=sum(stratum.compared for stratum in strata),
        disagreed=sum(stratum.disagreed for stratum in strata),
    )


def _failures(strata: Sequence[Stratum], terms: Terms) -> float:
    if not terms.has_controls:
        return against_objective(strata, terms.failure_objective)
    held_back = [stratum for stratum in strata if stratum.controls >= stratum.treated]
    alone = [stratum for stratum in strata if stratum.controls < stratum.treated]
    return against_controls(held_back, terms.tolerance) * against_objective(alone, terms.failure_objective)
