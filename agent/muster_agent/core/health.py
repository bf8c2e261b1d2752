"""Is a release doing what its publisher claims? One bit from one probation window on one device.

Counts are compared with the signed claim by an exact binomial tail, not by a bare ratio: 1 wrong in 3 is no evidence
against a claim of 0.96, 10 wrong in 60 is. At a tail of 1 % a device that runs exactly as claimed calls itself bad at
most once in a hundred windows, and the gate compares with held-back controls on top.
"""

from dataclasses import dataclass
from enum import Enum
from math import exp, lgamma, log, log1p

from muster_shared.bundle import Slo
from muster_shared.messages import WindowReport

TAIL = 0.01
TRIALS_MAX = 2000  # Larger windows are scaled down: the tail is exact up to here and the verdict no longer close.


class Health(Enum):
    GOOD = "good"
    BAD = "bad"
    TOO_LITTLE = "too_little"


@dataclass(frozen=True)
class Judgement:
    health: Health
    reason: str


def judge(window: WindowReport, slo: Slo, requests_min: int) -> Judgement:
    """Return whether `window` contradicts `slo`, and by what."""
    if window.errors and binomial_at_least(window.errors, window.requests + window.errors, slo.error_rate) < TAIL:
        return Judgement(
            Health.BAD,
            f"{window.errors} of {window.requests + window.errors} requests failed; {slo.error_rate:.1%} is claimed",
        )
    if slo.accuracy is not None and window.labelled:
        wrong = window.labelled - window.right
        if wrong and binomial_at_least(wrong, window.labelled, 1 - slo.accuracy) < TAIL:
            return Judgement(
                Health.BAD,
                f"{window.right} of {window.labelled} labelled answers were right; {slo.accuracy:.1%} is claimed",
            )
    if window.requests < requests_min:
        return Judgement(Health.TOO_LITTLE, f"{window.requests} requests; {requests_min} are needed")
    if window.latency_ms_p95 is not None and window.latency_ms_p95 > slo.latency_ms_p95:
        return Judgement(Health.BAD, f"p95 of {window.latency_ms_p95:.1f} ms; {slo.latency_ms_p95:g} ms is claimed")
    return Judgement(Health.GOOD, f"{window.requests} requests as claimed")


def binomial_at_least(hits: int, trials: int, p: float) -> float:
    """Return P(X >= hits) for X ~ Binomial(trials, p), for trials up to 2,000 (more are scaled down)."""
    if trials > TRIALS_MAX:
        hits, trials = hits * TRIALS_MAX // trials, TRIALS_MAX
    if hits <= 0:
        return 1.0
    if p <= 0:
        return 0.0
    if p >= 1:
        return 1.0
    below = sum(_probability(k, trials, p) for k in range(hits))
    return max(0.0, 1.0 - below)


def _probability(k: int, trials: int, p: float) -> float:
    ways = lgamma(trials + 1) - lgamma(k + 1) - lgamma(trials - k + 1)
    return exp(ways + k * log(p) + (trials - k) * log1p(-p))
