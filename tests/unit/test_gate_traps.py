"""Traps that the gates of the field have fallen into, each laid for ours and for the rule that is known to fall in.

A trap is a question that a sound gate answers with yes. The rules of others are emulated in `harness.anchor_gates`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import log, nan
from typing import Protocol

import numpy as np
import pytest
from numpy.typing import NDArray

from harness.anchor_gates import (
    ARGO_P,
    aws_aborts,
    hawkbit_aborts,
    kayenta_passes,
    mann_whitney_p,
    mann_whitney_p_of_counts,
)
from muster_controller.core.gate.evidence import (
    DEFAULT_WEIGHTS,
    FAILURES,
    LATENCY,
    Terms,
    evidence,
    scaled,
    undecided,
    verdict,
)
from muster_controller.core.gate.strata import Stratum, VerdictKind, latency_bin

CONTROLS = 10
LIVES = 200
LOOKS = 100
STEP = 20  # Devices from one look to the next.


@dataclass(frozen=True)
class Seen:
    """What a gate can know of one device class at a look."""

    treated: int
    failed: int = 0
    silent: int = 0
    """Said nothing until the deadline."""
    controls: int = 0
    controls_failed: int = 0
    before_ms: tuple[float, ...] = ()
    """p95 of each treated device with the old release; nan where it said nothing."""
    after_ms: tuple[float, ...] = ()
    controls_before_ms: tuple[tuple[float, ...], ...] = ()
    """Of each treated device's own controls."""
    controls_after_ms: tuple[tuple[float, ...], ...] = ()
    device_class: str = "pi5"


class Gate(Protocol):
    def __call__(self, *classes: Seen) -> VerdictKind: ...


def ours(*classes: Seen) -> VerdictKind:
    """Muster's, under a policy that requires every metric in use."""
    timed = any(seen.after_ms for seen in classes)
    terms = Terms(weights=scaled({name: DEFAULT_WEIGHTS[name] for name in (FAILURES, LATENCY)[: 1 + timed]}))
    found = evidence([_stratum(seen) for seen in classes], terms)
    said = verdict(found, terms.alpha)
    return VerdictKind.HOLD if said is VerdictKind.PROMOTE and undecided(found.strata, terms) else said


def _stratum(seen: Seen) -> Stratum:
    bins: dict[int, int] = {}
    rows = zip(seen.before_ms, seen.after_ms, seen.controls_before_ms, seen.controls_after_ms, strict=True)
    for before, after, controls_before, controls_after in rows:
        if after != after:  # nan
            continue
        z_controls = [log(late / early) for early, late in zip(controls_before, controls_after, strict=True)]
        if (place := latency_bin(log(after / before), z_controls)) is not None:
            bins[place] = bins.get(place, 0) + 1
    bad = seen.failed + seen.silent
    latency = tuple(sorted(bins.items()))
    return Stratum(0, seen.device_class, seen.treated, bad, seen.controls, seen.controls_failed, latency)


def _or_promote(aborts: bool) -> VerdictKind:
    return VerdictKind.ABORT if aborts else VerdictKind.PROMOTE


def hawkbit(*classes: Seen) -> VerdictKind:
    return _or_promote(hawkbit_aborts(sum(seen.failed for seen in classes), sum(seen.treated for seen in classes)))


def aws(*classes: Seen) -> VerdictKind:
    failed, silent = sum(seen.failed for seen in classes), sum(seen.silent for seen in classes)
    return _or_promote(aws_aborts(failed, silent, sum(seen.treated for seen in classes)))


def mann_whitney(*classes: Seen) -> VerdictKind:
    if any(seen.after_ms for seen in classes):
        return _or_promote(mann_whitney_p(*_pooled_ms(classes)) < ARGO_P)
    failed, treated, controls_failed, controls = (
        sum(getattr(seen, name) for seen in classes) for name in ("failed", "treated", "controls_failed", "controls")
    )
    return _or_promote(mann_whitney_p_of_counts(failed, treated, controls_failed, controls) < ARGO_P)


def kayenta(*classes: Seen) -> VerdictKind:
    treated, controls = _pooled_ms(classes)
    return _or_promote(not kayenta_passes(list(treated), list(controls)))


def _pooled_ms(classes: tuple[Seen, ...]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the p95 of all treated devices and of all controls, device classes thrown together."""
    treated = [ms for seen in classes for ms in seen.after_ms]
    return np.array(treated), np.array([ms for seen in classes for row in seen.controls_after_ms for ms in row])


def is_not_promoted_without_a_single_report(gate: Gate) -> bool:
    return gate(Seen(treated=0)) is not VerdictKind.PROMOTE


def is_not_promoted_when_no_device_gave_a_latency(gate: Gate) -> bool:
    number, none = 20, ((nan,) * CONTROLS,) * 20
    seen = Seen(
        number,
        controls=number * CONTROLS,
        before_ms=(10.0,) * number,
        after_ms=(nan,) * number,
        controls_before_ms=none,
        controls_after_ms=none,
    )
    return gate(seen) is not VerdictKind.PROMOTE


def is_rarely_aborted_for_having_been_looked_at_often(gate: Gate) -> bool:
    return _ever_aborted(gate, treated_rate=(0.01, 0.01), controls_rate=(0.01, 0.01)) <= 0.05 * LIVES


def is_rarely_aborted_for_a_shock_to_both_arms(gate: Gate) -> bool:
    return _ever_aborted(gate, treated_rate=(0.01, 0.04), controls_rate=(0.01, 0.04)) <= 0.05 * LIVES


def is_aborted_when_one_in_twenty_falls_silent(gate: Gate) -> bool:
    return gate(Seen(400, failed=4, silent=20, controls=4000, controls_failed=40)) is VerdictKind.ABORT


def is_not_aborted_for_one_unlucky_device_among_the_first(gate: Gate) -> bool:
    return gate(Seen(5, failed=1, controls=50, controls_failed=1)) is not VerdictKind.ABORT


def is_not_promoted_past_bricks_because_they_are_still_few(gate: Gate) -> bool:
    return gate(Seen(40, failed=16, controls=400, controls_failed=4)) is VerdictKind.ABORT


def is_not_aborted_because_slow_devices_are_more_among_the_treated(gate: Gate) -> bool:
    random = np.random.default_rng(5)
    return gate(_timed(random, 10, 8.0, "nuc"), _timed(random, 40, 40.0, "pi4", CONTROLS // 5)) is not VerdictKind.ABORT


TRAPS: list[tuple[Callable[[Gate], bool], Gate]] = [
    (is_not_promoted_without_a_single_report, hawkbit),
    (is_not_promoted_without_a_single_report, kayenta),
    (is_not_promoted_when_no_device_gave_a_latency, kayenta),
    (is_rarely_aborted_for_having_been_looked_at_often, mann_whitney),
    (is_rarely_aborted_for_having_been_looked_at_often, hawkbit),
    (is_rarely_aborted_for_having_been_looked_at_often, aws),
    (is_rarely_aborted_for_a_shock_to_both_arms, hawkbit),
    (is_rarely_aborted_for_a_shock_to_both_arms, aws),
    (is_aborted_when_one_in_twenty_falls_silent, hawkbit),
    (is_aborted_when_one_in_twenty_falls_silent, mann_whitney),
    (is_not_aborted_for_one_unlucky_device_among_the_first, hawkbit),
    (is_not_promoted_past_bricks_because_they_are_still_few, aws),
    (is_not_aborted_because_slow_devices_are_more_among_the_treated, mann_whitney),
]
NAMES = [f"{trap.__name__}-{getattr(rule, '__name__', '')}" for trap, rule in TRAPS]


@pytest.mark.parametrize("trap", dict.fromkeys(trap for trap, _ in TRAPS), ids=lambda trap: trap.__name__)
def test_our_gate_does_not_fall_into_the_trap(trap: Callable[[Gate], bool]) -> None:
    assert trap(ours)


@pytest.mark.parametrize(("trap", "rule"), TRAPS, ids=NAMES)
def test_the_rule_of_the_field_does_so_the_trap_is_one(trap: Callable[[Gate], bool], rule: Gate) -> None:
    assert not trap(rule)


def test_mann_whitney_of_counts_is_mann_whitney_of_their_zeros_and_ones() -> None:
    treated, controls = np.repeat([1.0, 0.0], [3, 17]), np.repeat([1.0, 0.0], [5, 195])

    assert mann_whitney_p_of_counts(3, 20, 5, 200) == pytest.approx(mann_whitney_p(treated, controls))


def _ever_aborted(gate: Gate, treated_rate: tuple[float, float], controls_rate: tuple[float, float]) -> int:
    """Return how many of LIVES rollouts are aborted at some look; the rates are those of each half."""
    random = np.random.default_rng(20260101)
    rates = np.repeat([treated_rate, controls_rate], LOOKS // 2, axis=1)
    aborted = 0
    for _ in range(LIVES):
        failed, controls_failed = np.cumsum(random.binomial([[STEP], [STEP * CONTROLS]], rates), axis=1).tolist()
        aborted += any(
            gate(Seen(number * STEP, failed=bad, controls=number * STEP * CONTROLS, controls_failed=theirs))
            is VerdictKind.ABORT
            for number, bad, theirs in zip(range(1, LOOKS + 1), failed, controls_failed, strict=True)
        )
    return aborted


def _timed(
    random: np.random.Generator, number: int, typical_ms: float, device_class: str, controls: int = CONTROLS
) -> Seen:
    """Return a class in which nobody has become slower: every p95 is typical, give or take a tenth."""

    def windows(*shape: int) -> NDArray[np.float64]:
        return typical_ms * np.exp(random.normal(0, 0.08, shape))

    return Seen(
        number,
        controls=number * controls,
        before_ms=tuple(windows(number)),
        after_ms=tuple(windows(number)),
        controls_before_ms=tuple(map(tuple, windows(number, controls))),
        controls_after_ms=tuple(map(tuple, windows(number, controls))),
        device_class=device_class,
    )
