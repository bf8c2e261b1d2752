"""Does a candidate do on live inputs what the release does that serves? One verdict from one trial on one device.

    shadow   it answers inputs that were answered already: how often otherwise, or not at all
    canary   it answers a share of the requests: whether it fails more often than what serves
    both     the time that the engine takes, p95 against p95

Pure. `serving.trial` compares and counts; the policy says what is too much.
"""

from dataclasses import dataclass
from enum import Enum

from muster_agent.core.health import binomial_at_least
from muster_shared.assignment import Trial

TAIL = 0.01  # As in `health`: of what is within its limits, one in a hundred is called beyond them.
LATENCIES_MIN = 40  # Two of them are slower than the p95: no single outlier decides.
SECONDS_SLACK = 0.1


@dataclass(frozen=True)
class TrialReading:
    """What was counted since the trial began. Times are the engine's, of one request."""

    seconds: float
    """By a clock that nobody can set."""
    compared: int = 0
    """Inputs that both answered."""
    disagreed: int = 0
    answered: int = 0
    """Requests that the candidate answered,"""
    errors: int = 0
    """and on which its engine failed."""
    latency_ms_p95: float | None = None
    serving_answered: int = 0
    """Requests that what serves answered meanwhile; in a shadow, those that were given to the candidate too."""
    serving_errors: int = 0
    serving_latency_ms_p95: float | None = None


class Passing(Enum):
    PASSES = "passes"
    FAILS = "fails"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class TrialVerdict:
    passing: Passing
    detail: str = ""


def judge(trial: Trial, reading: TrialReading) -> TrialVerdict:
    """Return whether the candidate may take over, once there are `requests_min` inputs or `seconds_max` is over.

    An input on which a shadow fails counts as answered otherwise: what serves did answer it. With fewer inputs than
    `requests_min` a candidate fails only by what chance does not explain, or when inputs are required.
    """
    seen = (reading.compared if trial.mode == "shadow" else reading.answered) + reading.errors
    if seen < trial.requests_min and reading.seconds < trial.seconds_max - SECONDS_SLACK:
        return TrialVerdict(Passing.UNDECIDED)
    enough = seen >= trial.requests_min
    problem = _otherwise(trial, reading, enough=enough) or _failing(trial, reading) or _slow(trial, reading)
    if problem:
        return TrialVerdict(Passing.FAILS, problem)
    if enough:
        return TrialVerdict(Passing.PASSES, f"{seen} live inputs, {reading.disagreed} answered otherwise")
    return too_little(trial, f"{seen} live inputs in {reading.seconds:.0f} s; {trial.requests_min} are needed")


def too_little(trial: Trial, detail: str) -> TrialVerdict:
    """Return the verdict on a trial that shows nothing."""
    return TrialVerdict(Passing.FAILS if trial.required else Passing.PASSES, detail)


def _otherwise(trial: Trial, reading: TrialReading, *, enough: bool) -> str:
    if trial.mode != "shadow":
        return ""
    seen, wrong = reading.compared + reading.errors, min(reading.disagreed, reading.compared) + reading.errors
    if not wrong or wrong <= trial.disagreement_max * seen:
        return ""
    if not enough and binomial_at_least(wrong, seen, trial.disagreement_max) >= TAIL:
        return ""
    failed = f", {reading.errors} of them not at all" if reading.errors else ""
    return f"{wrong} of {seen} live inputs answered otherwise{failed}; {trial.disagreement_max:.2%} are allowed"


def _failing(trial: Trial, reading: TrialReading) -> str:
    """Compare the failures of a canary with those of what serves: given their sum, the split is binomial."""
    if trial.mode != "canary" or not reading.errors:
        return ""
    asked = reading.answered + reading.errors
    serving = reading.serving_answered + reading.serving_errors
    both = reading.errors + reading.serving_errors
    if binomial_at_least(reading.errors, both, asked / (asked + serving)) >= TAIL:
        return ""
    return f"{reading.errors} of {asked} requests failed, and {reading.serving_errors} of {serving} of what serves"


def _slow(trial: Trial, reading: TrialReading) -> str:
    mine, other = reading.latency_ms_p95, reading.serving_latency_ms_p95
    if mine is None or other is None or min(reading.answered, reading.serving_answered) < LATENCIES_MIN:
        return ""
    if mine <= trial.latency_ratio_max * other:
        return ""
    return f"p95 of {mine:.2f} ms, of what serves {other:.2f} ms; {trial.latency_ratio_max:g} times is allowed"
